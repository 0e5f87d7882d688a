"""The first page, and the way in and out."""

from typing import Any

from django.contrib.auth import views as auth
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse_lazy
from django.views.decorators.http import require_GET

from common.logins import LoginForm
from common.roles import Role, has_role, require
from config import glance
from config.navigation import STAFF


@require(*Role)
@require_GET
def home(request: HttpRequest) -> HttpResponse:
    """The morning at a glance; htmx asks for its inner part every half minute. Referrers go to the portal."""
    if not has_role(request.user, *STAFF):
        return redirect("portal:list")
    seen = glance.look(request)
    context: dict[str, Any] = {"glance": seen, "chart": bars(seen.hours)}
    return render(request, "home/glance.html" if request.htmx else "home/page.html", context)  # type: ignore[attr-defined]


def bars(hours: list[dict[str, Any]]) -> dict[str, Any]:
    """The chart of messages per hour as positions in an SVG of 720 × 190 units."""
    width, top, bottom = 720, 14, 158
    most = max([hour["good"] + hour["bad"] for hour in hours] + [1])
    slot = width / len(hours)
    drawn = []
    for index, hour in enumerate(hours):
        good, bad = ((bottom - top) * hour[k] / most for k in ("good", "bad"))
        drawn.append(
            {
                **hour,
                "total": hour["good"] + hour["bad"],
                "x": round(index * slot + slot * 0.17, 1),
                "middle": round(index * slot + slot / 2, 1),
                "width": round(slot * 0.66, 1),
                "good_y": round(bottom - good, 1),
                "good_height": round(good, 1),
                "bad_y": round(bottom - good - bad, 1),
                "bad_height": round(bad, 1),
                "label_y": round(bottom - good - bad - 5, 1),
            }
        )
    return {"bars": drawn, "bottom": bottom, "total": sum(hour["total"] for hour in drawn)}


class Login(auth.LoginView):
    """The way in. Who has guessed too often is told how long to wait (common/logins.py)."""

    authentication_form = LoginForm
    redirect_authenticated_user = True

    def form_invalid(self, form: Any) -> HttpResponse:
        answer = super().form_invalid(form)
        if form.wait_seconds:
            answer.status_code = 429
            answer["Retry-After"] = str(form.wait_seconds)
        return answer


login = Login.as_view()
logout = auth.LogoutView.as_view()
password = require(*Role)(
    auth.PasswordChangeView.as_view(
        template_name="registration/password.html", success_url=reverse_lazy("home")
    )
)
