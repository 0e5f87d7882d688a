"""The Django application of this floor."""

from django.apps import AppConfig


class IntegrationConfig(AppConfig):
    name = "integration"
    verbose_name = "Messages"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Say who hears what, before anything can happen; keep a version of each source that is saved."""
        from integration import wiring
        from integration.analyst import versions

        wiring.wire()
        versions.connect()
