"""People who work here: how a user is named in reports and messages."""

from django.conf import settings
from django.db import models

from common.rows import Row


class Practitioner(Row):
    """A physician or technologist, with the name and number that messages carry."""

    person_name = models.CharField(max_length=324, help_text="PN")
    identifier = models.CharField(max_length=199, blank=True, db_index=True)
    issuer = models.CharField(max_length=227, blank=True)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="practitioner",
    )

    def __str__(self) -> str:
        return self.person_name.replace("^", " ")
