"""The Django application of this floor."""

from typing import Any

from django.apps import AppConfig
from django.db import transaction
from django.db.models.signals import post_save


class ConfigConfig(AppConfig):
    name = "config"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """A site changed at the desk is written down for the processes that start later."""
        from common.models import Site

        post_save.connect(_site_changed, sender=Site, dispatch_uid="site.json")


def _site_changed(**kwargs: Any) -> None:
    from config.site import write_site_file

    transaction.on_commit(write_site_file, robust=True)
