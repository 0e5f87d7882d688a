"""Django's admin with our own site: stands in INSTALLED_APPS in place of `django.contrib.admin`."""

from django.conf import settings
from django.contrib.admin.apps import AdminConfig, SimpleAdminConfig


class DeskConfig(AdminConfig):
    default_site = "common.desk.Desk"

    def ready(self) -> None:
        """Find the pages of all rooms; a headless process leaves that to whoever asks for a URL (config/urls.py)."""
        if settings.ORDERLY_HEADLESS:
            SimpleAdminConfig.ready(self)
        else:
            super().ready()
