"""Pages about sources: the profile as a form, dry run, versions, specification, and samples of a new system."""

import json
from typing import Any

from django.contrib import messages as notices
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import URLPattern, reverse

from common import audit
from common.desk import DeskAdmin
from integration import sources
from integration.analyst import dryrun, samples, versions
from integration.analyst.messagepages import by
from integration.analyst.profileform import SourceForm
from integration.hl7v2 import specification
from integration.models import DryRun, Message, Source, SourceVersion
from integration.sources import ProfileError
from ris.admin import story

_EMPTY = {"application": "*", "facility": "*", "address": "*", "enabled": True, "profile": {}}


class SourcePages(DeskAdmin):
    """What the desk shows of sources, beside what the model's admin says."""

    def own_urls(self) -> list[URLPattern]:
        return [
            self.door("samples/", self.samples, "samples"),
            self.door("<int:pk>/versions/", self.versions, "versions"),
            self.door("<int:pk>/versions/<int:number>/try/", self.try_version, "try_version", post=True),
            self.door("<int:pk>/dry-run/<int:run>/", self.dry_run, "dry_run"),
            self.door("<int:pk>/dry-run/<int:run>/use/", self.use, "use", post=True),
            self.door("<int:pk>/specification/", self.specification, "specification"),
        ]

    def page(self, request: HttpRequest, template: str, **context: Any) -> HttpResponse:
        return super().page(request, template, wires=True, **context)

    # -- the profile

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """A new source, empty or as the samples propose."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        proposed = _proposed(request)
        if request.method == "POST" and proposed is None:
            form = SourceForm(request.POST, new=True)
            if form.is_valid() and self._is_free(form):
                return self._made(request, form)
        else:
            form = SourceForm(values=proposed or _EMPTY, new=True)
        return self.page(
            request,
            "integration/source.html",
            title="New source",
            form=form,
            row=None,
            proposed=proposed is not None,
        )

    def _is_free(self, form: SourceForm) -> bool:
        if Source.objects.filter(name=form.cleaned_data["name"]).exists():
            form.add_error("name", "There is a source of this name.")
        return form.is_valid()

    def _made(self, request: HttpRequest, form: SourceForm) -> HttpResponse:
        values = form.values()
        with versions.author(by(request), request.POST.get("why", "").strip() or "New"):
            row = Source.objects.create(name=form.cleaned_data["name"], **values)
        sources.forget()
        audit.record_request(request, "configure", "source", objects=[row.pk])
        notices.success(request, "The source is known from now on. Its messages are read by this profile.")
        return redirect(self.url_of(row))

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """The profile as a form. What is changed is tried over stored messages before it is used."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        row = self.get_object(request, object_id)
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        stored = Message.objects.filter(source=row).order_by()[: dryrun.MOST_MESSAGES].count()
        form = SourceForm(values=versions.values_of(row))
        if request.method == "POST":
            form = SourceForm(request.POST)
            if form.is_valid():
                answer = self._changed(request, row, form, stored)
                if answer is not None:
                    return answer
        return self.page(
            request, "integration/source.html", title="Source", form=form, row=row, stored=stored,
            usual=dryrun.MESSAGES, seconds=dryrun.SECONDS, most=dryrun.MOST_MESSAGES,
            version=versions.keep(row), last=_last_heard(row), trouble=_trouble(row),
        )  # fmt: skip

    def _changed(
        self, request: HttpRequest, row: Source, form: SourceForm, stored: int
    ) -> HttpResponse | None:
        values = form.values()
        if not versions.differences(versions.values_of(row), values):
            notices.info(request, "Nothing is changed.")
            return redirect(self.url_of(row))
        if "try" in request.POST and stored:
            return self._begun(request, row, values)
        why = request.POST.get("why", "").strip()
        if not why:
            notices.error(request, "Say why it is changed; the next person will ask.")
            return None
        return self._used(request, row, values, why)

    def _begun(self, request: HttpRequest, row: Source, values: dict[str, Any]) -> HttpResponse:
        wanted = (request.POST.get("messages", ""), request.POST.get("seconds", ""))
        messages, seconds = (int(w) if w.isdigit() and len(w) < 9 else 0 for w in wanted)
        run = dryrun.start(row, values, by(request), messages or dryrun.MESSAGES, seconds or dryrun.SECONDS)
        audit.record_request(
            request, "dry run", "source", objects=[row.pk], detail={"messages": run.messages}
        )
        return redirect(reverse("admin:integration_source_dry_run", args=[row.pk, run.pk]))

    def _used(self, request: HttpRequest, row: Source, values: dict[str, Any], why: str) -> HttpResponse:
        try:
            version = versions.use(row, values, by(request), why)
        except (ProfileError, versions.ValidationError) as trouble:
            notices.error(request, f"It cannot be used: {trouble}")
            return redirect(self.url_of(row))
        audit.record_request(
            request, "configure", "source", objects=[row.pk], detail={"version": version.number}
        )
        notices.success(
            request, f"Version {version.number} is in use. Messages that come now are read by it."
        )
        return redirect(self.url_of(row))

    # -- dry run

    def dry_run(self, request: HttpRequest, pk: int, run: int) -> HttpResponse:
        """A dry run: how far it is, then what would become different. htmx asks for the inner part meanwhile."""
        seen = get_object_or_404(DryRun.objects.select_related("source"), pk=run, source=pk)
        if seen.state != DryRun.State.RUNNING:
            ids = [one["message_id"] for one in seen.result.get("differs", ())][:100]
            shown = Message.objects.filter(pk__in=ids).values_list("patient_ids", flat=True)
            patients = {str(p) for some in shown for p in some}
            audit.record_request(request, "read", "message", patients=sorted(patients), objects=ids)
        inner = bool(getattr(request, "htmx", False))
        return self.page(
            request, "integration/dry_run_inner.html" if inner else "integration/dry_run.html", title="Dry run",
            row=seen.source, run=seen, dead=dryrun.is_dead(seen), running=seen.state == DryRun.State.RUNNING,
            percent=round(100 * seen.done / seen.total) if seen.total else 0,
            changed=versions.differences(versions.values_of(seen.source), seen.values), found=seen.result,
        )  # fmt: skip

    def use(self, request: HttpRequest, pk: int, run: int) -> HttpResponse:
        """Use what was tried, with a reason."""
        seen = get_object_or_404(DryRun.objects.select_related("source"), pk=run, source=pk)
        why = request.POST.get("why", "").strip()
        if seen.state == DryRun.State.RUNNING and not dryrun.is_dead(seen):
            notices.warning(request, "Wait until the dry run has ended.")
        elif not why:
            notices.error(request, "Say why it is changed; the next person will ask.")
        else:
            return self._used(request, seen.source, seen.values, why)
        return redirect(reverse("admin:integration_source_dry_run", args=[pk, run]))

    # -- versions

    def versions(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Every version: who, when, why, and what differs."""
        row = get_object_or_404(Source, pk=pk)
        told = [(v, lines, story.explain(v.by)[0]) for v, lines in versions.history(row)]
        return self.page(
            request, "integration/versions.html", title="Versions", row=row, history=told,
            current=told[0][0].number if told else 0,
        )  # fmt: skip

    def try_version(self, request: HttpRequest, pk: int, number: int) -> HttpResponse:
        """Try an earlier version over stored messages, to go back to it."""
        row = get_object_or_404(Source, pk=pk)
        version = get_object_or_404(SourceVersion, source=row, number=number)
        try:
            return self._begun(request, row, version.values)
        except ProfileError as trouble:
            notices.error(request, f"Version {number} cannot be used any more: {trouble}")
            return redirect(reverse("admin:integration_source_versions", args=[pk]))

    def specification(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The interface of this source in words, from its live profile."""
        row = get_object_or_404(Source, pk=pk)
        try:
            text = specification.of_source(row)
        except ProfileError as trouble:
            text = f"The profile cannot be used: {trouble}\n"
        return HttpResponse(text, content_type="text/markdown; charset=utf-8")

    # -- samples

    def samples(self, request: HttpRequest) -> HttpResponse:
        """Sample messages looked at; nothing of them is stored."""
        found = trouble = None
        if request.method == "POST":
            files = request.FILES.getlist("files")
            contents = [file.read() for file in files if (file.size or 0) <= samples.MOST_BYTES]
            contents.append(request.POST.get("text", "").strip().encode())
            if len(contents) <= len(files) or sum(map(len, contents)) > samples.MOST_BYTES:
                megabytes = samples.MOST_BYTES // 1_000_000
                trouble = f"Together at most {megabytes} MB, please: a few hundred messages tell enough."
            elif not any(contents):
                trouble = "Drop a file, or paste some messages."
            else:
                found = samples.analyse(contents)
                detail = {"messages": found.messages, "files": len(files)}
                audit.record_request(request, "analyse", "samples", detail=detail)
        return self.page(
            request, "integration/samples.html", title="Samples", found=found, trouble=trouble,
            proposal=json.dumps(found.values) if found else "", most=samples.MOST_MESSAGES,
        )  # fmt: skip


def _proposed(request: HttpRequest) -> dict[str, Any] | None:
    """The values that a page of samples proposes for a new source, if it sent any that can be read."""
    try:
        said = json.loads(request.POST.get("proposal", ""))
    except ValueError:
        return None
    if not isinstance(said, dict) or not isinstance(said.get("profile"), dict):
        return None
    return {**_EMPTY, **{k: v for k, v in said.items() if k in _EMPTY}}


def _last_heard(row: Source) -> Any:
    return Message.objects.filter(source=row).order_by("-id").values_list("received_at", flat=True).first()


def _trouble(row: Source) -> str:
    """Why the profile in use cannot be used, or nothing."""
    try:
        sources.check(row.profile)
    except ProfileError as trouble:
        return str(trouble)
    return ""
