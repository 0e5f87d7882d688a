"""Requested procedures, and the catalogue that says what steps a procedure has."""

from django.contrib.postgres.fields import ArrayField
from django.db import models

from common.rows import Row
from common.uids import new_uid
from ris.models.orders import ImagingServiceRequest


class Priority(models.TextChoices):
    """Requested Procedure Priority (0040,1003) and the order in which lists show it."""

    STAT = "STAT", "Stat"
    HIGH = "HIGH", "High"
    ROUTINE = "ROUTINE", "Routine"
    MEDIUM = "MEDIUM", "Medium"
    LOW = "LOW", "Low"


class RequestedProcedure(Row):
    """One procedure of an order: the unit of one study and one report."""

    request = models.ForeignKey(
        ImagingServiceRequest, on_delete=models.CASCADE, related_name="procedures", db_index=False
    )
    requested_procedure_id = models.CharField(max_length=64)
    study_instance_uid = models.CharField(max_length=64, default=new_uid)
    placer_order_number = models.CharField(
        max_length=199, blank=True, help_text="of the group that brought it"
    )
    placer_issuer = models.CharField(max_length=227, blank=True)
    filler_order_number = models.CharField(max_length=199, blank=True)
    filler_issuer = models.CharField(max_length=227, blank=True)
    requested_procedure_description = models.CharField(max_length=200, blank=True)
    code_value = models.CharField(max_length=64, blank=True)
    coding_scheme_designator = models.CharField(max_length=64, blank=True)
    code_meaning = models.CharField(max_length=200, blank=True)
    requested_procedure_priority = models.CharField(
        max_length=8, choices=Priority.choices, default=Priority.ROUTINE
    )
    reason_for_the_requested_procedure = models.CharField(max_length=500, blank=True)
    reason_code = models.JSONField(
        default=dict, blank=True, help_text="code_value, coding_scheme_designator, code_meaning"
    )
    patient_transport_arrangements = models.CharField(max_length=64, blank=True)
    requested_procedure_comments = models.TextField(blank=True)
    details = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    cause = models.CharField(max_length=128)

    class Meta:
        ordering = ["request", "requested_procedure_id"]
        constraints = [
            models.UniqueConstraint(
                fields=["request", "requested_procedure_id"], name="one_procedure_a_request_and_id"
            ),
            models.UniqueConstraint(fields=["study_instance_uid"], name="one_procedure_a_study"),
        ]
        indexes = [models.Index(fields=["placer_order_number"]), models.Index(fields=["filler_order_number"])]

    def __str__(self) -> str:
        return self.requested_procedure_description or self.code_meaning or self.requested_procedure_id


class ProcedureDefinition(Row):
    """A line of the procedure catalogue: what an order code means here and which steps it has."""

    code = models.CharField(max_length=64, unique=True)
    name = models.CharField(max_length=200)
    modality = models.CharField(max_length=16, blank=True)
    steps = models.JSONField(
        default=list, blank=True, help_text="one object a step: code, name, minutes, modality"
    )
    minutes = models.PositiveIntegerField(default=20)
    stations = ArrayField(
        models.CharField(max_length=64),
        default=list,
        blank=True,
        help_text="names of the stations that do it; empty: all of its modality",
    )
    temporary = models.BooleanField(default=False)

    class Meta:
        ordering = ["code"]

    def __str__(self) -> str:
        return f"{self.code} {self.name}"
