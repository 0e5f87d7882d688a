"""What changed, when and why: one row for each changed row of a unit of work."""

from django.db import models


class Change(models.Model):
    """One change of one row: attribute → [before, after], with its cause."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField()
    cause = models.CharField(max_length=128)
    what = models.CharField(max_length=40, help_text="model name in lower case")
    object_id = models.UUIDField(db_index=True)
    patient_id = models.UUIDField(null=True, db_index=True)
    values = models.JSONField(default=dict)

    class Meta:
        ordering = ["-id"]
        # A message notes half a dozen changes: every index here is written that often.
        indexes = [models.Index(fields=["cause"], name="change_by_cause")]
