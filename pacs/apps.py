"""The Django application of this floor."""

import sys

from django.apps import AppConfig
from django.conf import settings

if settings.ORDERLY_HEADLESS:
    # pydicom imports every decoder it finds, 45 MB of them, though a headless process has pixels decoded by children
    # (rendering.py). What is None here counts as not installed, for as long as pydicom is imported.
    _absent = [name for name in ("numpy", "PIL", "gdcm", "pylibjpeg", "requests") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(_absent))  # type: ignore[arg-type]
    import pydicom  # noqa: F401

    for name in _absent:
        del sys.modules[name]


class PacsConfig(AppConfig):
    name = "pacs"
    verbose_name = "Images"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Malformed values are judged by our own rules; pydicom's warnings about them would print a patient's data."""
        from pydicom import config

        config.settings.reading_validation_mode = config.IGNORE
