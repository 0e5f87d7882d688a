"""The schedule: Scheduled Procedure Steps and the stations that perform them."""

from django.contrib.postgres.fields import ArrayField
from django.db import models

from common.rows import Row
from ris.models.procedures import RequestedProcedure


class Station(Row):
    """A scanner as the schedule knows it: its name, AE title, modality and room."""

    name = models.CharField(max_length=64, unique=True)
    ae_title = models.CharField(max_length=16, blank=True)
    modality = models.CharField(max_length=16, blank=True)
    room = models.CharField(max_length=64, blank=True)
    temporary = models.BooleanField(default=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class StepStatus(models.TextChoices):
    """Scheduled Procedure Step Status (0040,0020); ris/transitions.py says what may follow what."""

    SCHEDULED = "SCHEDULED", "Scheduled"
    ARRIVED = "ARRIVED", "Arrived"
    READY = "READY", "Ready"
    STARTED = "STARTED", "Started"
    DEPARTED = "DEPARTED", "Departed"
    HELD = "HELD", "On hold"
    COMPLETED = "COMPLETED", "Completed"
    DISCONTINUED = "DISCONTINUED", "Discontinued"
    CANCELED = "CANCELED", "Canceled"


class ScheduledProcedureStep(Row):
    """One thing to be done on one kind of scanner at one time. Without a start it waits to be scheduled."""

    procedure = models.ForeignKey(
        RequestedProcedure, on_delete=models.CASCADE, related_name="steps", db_index=False
    )
    scheduled_procedure_step_id = models.CharField(max_length=64)
    status = models.CharField(max_length=12, choices=StepStatus.choices, default=StepStatus.SCHEDULED)
    status_at = models.DateTimeField()
    modality = models.CharField(max_length=16, blank=True)
    scheduled_station_ae_titles = ArrayField(models.CharField(max_length=16), default=list, blank=True)
    scheduled_station_names = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    scheduled_procedure_step_location = models.CharField(max_length=200, blank=True)
    start = models.DateTimeField(
        null=True, blank=True, help_text="Scheduled Procedure Step Start Date and Time"
    )
    start_has_time = models.BooleanField(default=True, help_text="false: only the day is known")
    timezone_offset_from_utc = models.CharField(
        max_length=5, blank=True, help_text="as the order gave it: +0100"
    )
    minutes = models.PositiveIntegerField(default=20)
    scheduled_procedure_step_description = models.CharField(max_length=200, blank=True)
    protocol_codes = models.JSONField(
        default=list, blank=True, help_text="code_value, coding_scheme_designator, code_meaning each"
    )
    scheduled_performing_physician_name = models.CharField(max_length=324, blank=True, help_text="PN")
    pre_medication = models.CharField(max_length=200, blank=True)
    requested_contrast_agent = models.CharField(max_length=200, blank=True)
    comments = models.TextField(blank=True)
    made = models.JSONField(
        default=dict, blank=True, help_text="ids made here, and the sender's where it had to be mapped"
    )
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    cause = models.CharField(max_length=128)

    class Meta:
        ordering = ["start", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["procedure", "scheduled_procedure_step_id"], name="one_step_a_procedure_and_id"
            )
        ]
        indexes = [
            models.Index(fields=["status", "start"]),
            models.Index(fields=["scheduled_procedure_step_id"]),
        ]

    def __str__(self) -> str:
        return self.scheduled_procedure_step_id
