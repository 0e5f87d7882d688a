"""What was done: Performed Procedure Steps as the scanners report them (MPPS), by UID and without a key."""

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
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

    class Trouble(models.TextChoices):
        """Why a person must look at it."""

        NONE = "", "None"
        UNSCHEDULED = "unscheduled", "Without a worklist entry"
        UNKNOWN = "unknown", "Step not known here"
        PATIENT = "patient", "Another patient"
        STATE = "state", "Contradicts the step's state"
        WRONG_ENTRY = "wrong_entry", "Wrong entry picked"
        INCOMPLETE = "incomplete", "Incomplete report"

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
    trouble = models.CharField(max_length=12, choices=Trouble.choices, blank=True)
    told = models.JSONField(
        default=dict, blank=True, help_text="patient and numbers as the scanner named them, for comparison"
    )
    solved_at = models.DateTimeField(null=True, blank=True, help_text="a person has dealt with the problem")
    solved_cause = models.CharField(max_length=128, blank=True)
    solution = models.CharField(max_length=300, blank=True)
    correction = models.JSONField(
        default=dict, blank=True, help_text="what assigning it to another order changed, to undo it"
    )
    images_expected = models.PositiveIntegerField(
        null=True, blank=True, help_text="instances it names, once it has ended"
    )
    images_missing = models.PositiveIntegerField(
        null=True, blank=True, help_text="of those, not in the archive"
    )
    images_since = models.DateTimeField(null=True, blank=True, help_text="when they were first waited for")
    images_accepted = models.CharField(
        max_length=128, blank=True, help_text="cause: a person says that no more will come"
    )
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    cause = models.CharField(max_length=128)

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            GinIndex(fields=["study_instance_uids"], name="performed_studies"),
            models.Index(
                fields=["created_at"],
                name="performed_troubled",
                condition=~models.Q(problem="") & models.Q(solved_at__isnull=True),
            ),
            models.Index(
                fields=["images_since"],
                name="performed_short",
                condition=models.Q(images_missing__gt=0, images_accepted=""),
            ),
        ]

    def __str__(self) -> str:
        return self.performed_procedure_step_id or self.sop_instance_uid

    @property
    def needs_a_person(self) -> bool:
        """Whether its problem is still to be dealt with."""
        return bool(self.problem) and self.solved_at is None

    @property
    def is_short(self) -> bool:
        """Whether images that it names are missing, and nobody has said that none will come."""
        return bool(self.images_missing) and not self.images_accepted
