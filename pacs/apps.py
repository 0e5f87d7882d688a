"""The Django application of this floor."""

from django.apps import AppConfig


class PacsConfig(AppConfig):
    name = "pacs"
    verbose_name = "Images"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Malformed values are judged by our own rules; pydicom's warnings about them would print a patient's data."""
        from pydicom import config

        config.settings.reading_validation_mode = config.IGNORE
