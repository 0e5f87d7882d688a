"""The Django application of this floor."""

from django.apps import AppConfig


class RisConfig(AppConfig):
    name = "ris"
    verbose_name = "People and work"
    default_auto_field = "django.db.models.BigAutoField"
