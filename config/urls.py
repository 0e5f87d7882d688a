"""Every door of the web process."""

from django.contrib import admin
from django.urls import include, path

from config import health, pages

admin.autodiscover()  # done already, but in a headless process
urlpatterns = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", health.metrics, name="metrics"),
    path("", pages.home, name="home"),
    path("login/", pages.login, name="login"),
    path("logout/", pages.logout, name="logout"),
    path("password/", pages.password, name="password_change"),
    path("reading/", include("ris.reading.urls")),
    path("portal/", include("ris.portal.urls")),
    path("admin/", admin.site.urls),
    path("dicomweb/", include("pacs.dicomweb.urls")),
    path("fhir/", include("integration.fhir.urls")),
    path("viewer/", include("pacs.viewer.urls")),
]
