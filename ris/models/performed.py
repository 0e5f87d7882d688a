"""What was done: Performed Procedure Steps as the scanners report them (MPPS), by UID and without a key."""

from django.contrib.postgres.fields import ArrayField
from django.db import models

from common.rows import Row
from ris.models.patients import Patient
from ris.models.schedule import ScheduledProcedureStep


class PerformedProcedureStep(Row):
    """One performed step; it may answer several scheduled ones (group case) or none (unscheduled)."""

    class Status(models.TextChoices):
        IN_PROGRESS = "IN PROGRESS", "In progress"
        COMPLETED = "COMPLETED", "Completed"
        DISCONTINUED = "DISCONTINUED", "Discontinued"

    sop_instance_uid = models.CharField(max_length=64, unique=True)
    status = models.CharField(max_length=12, choices=Status.choices)
    steps = models.ManyToManyField(ScheduledProcedureStep, blank=True, related_name="performed")
    patient = models.ForeignKey(Patient, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    performed_procedure_step_id = models.CharField(max_length=64, blank=True)
    performed_station_ae_title = models.CharField(max_length=16, blank=True)
    modality = models.CharField(max_length=16, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    description = models.CharField(max_length=200, blank=True)
    discontinuation_reason = models.JSONField(default=dict, blank=True)
    study_instance_uids = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    series = models.JSONField(
        default=list, blank=True, help_text="series_instance_uid, protocol_name, sop_instance_uids"
    )
    attributes = models.JSONField(default=dict, blank=True, help_text="everything as received, DICOM JSON")
    problem = models.CharField(
        max_length=300, blank=True, help_text="what a clerk must look at; empty: nothing"
    )
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    cause = models.CharField(max_length=128)

    class Meta:
        ordering = ["-created_at"]
