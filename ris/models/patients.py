"""Patients, the identifiers others know them by, their visits and merges."""

from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import Q

from common.names import parse_pn
from common.rows import Row


class AssigningAuthority(Row):
    """Who gives identifiers: HL7's CX.4, DICOM's Issuer. Equal by universal id if both have one, else by namespace."""

    namespace = models.CharField(max_length=227, blank=True)
    universal_id = models.CharField(max_length=199, blank=True)
    universal_id_type = models.CharField(max_length=20, blank=True)

    class Meta:
        verbose_name_plural = "assigning authorities"
        constraints = [
            models.UniqueConstraint(fields=["namespace", "universal_id"], name="one_authority_a_name_and_id")
        ]

    def __str__(self) -> str:
        return self.namespace or self.universal_id or "(no issuer)"


class Patient(Row):
    """A person who is examined. `patient_name` is a DICOM PN value; `details` holds what no list searches."""

    patient_name = models.CharField(max_length=324, blank=True)
    patient_name_search = models.CharField(max_length=324, blank=True)
    patient_birth_date = models.CharField(max_length=8, blank=True, help_text="YYYY, YYYYMM or YYYYMMDD")
    patient_sex = models.CharField(max_length=1, blank=True, help_text="M, F, O or empty")
    details = models.JSONField(default=dict, blank=True, help_text="snake_case DICOM keyword → value")
    merged_into = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="retired", db_index=False
    )
    provisional = models.BooleanField(default=False, help_text="made from an image or MPPS, not from the HIS")
    facts_at = models.DateTimeField(null=True, blank=True, help_text="how old the sender's newest facts are")
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    cause = models.CharField(max_length=128, help_text="of the latest change")

    class Meta:
        ordering = ["patient_name_search", "id"]
        indexes = [
            GinIndex(
                fields=["patient_name_search"], opclasses=["gin_trgm_ops"], name="patient_name_trigrams"
            ),
            models.Index(fields=["patient_birth_date"]),
            models.Index(fields=["-updated_at"]),
            models.Index(
                fields=["merged_into"], name="patient_retired", condition=Q(merged_into__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return self.display_name() or "(no name)"

    def display_name(self) -> str:
        """The name as a person reads it."""
        return parse_pn(self.patient_name).display()


class PatientIdentifier(Row):
    """One identifier of a patient. Never match on the bare value: (value, authority) is the key."""

    class Status(models.TextChoices):
        CURRENT = "current", "Current"
        ALIAS = "alias", "Alias (retired by a merge or change)"

    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="identifiers")
    value = models.CharField(max_length=199, help_text="the identifier itself: DICOM Patient ID")
    authority = models.ForeignKey(
        AssigningAuthority, on_delete=models.PROTECT, related_name="+", db_index=False
    )
    type_code = models.CharField(max_length=20, blank=True, help_text="table 0203: MR, PI, SS, …")
    position = models.PositiveSmallIntegerField(default=0, help_text="0 = the one worklist and reports show")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.CURRENT)

    class Meta:
        ordering = ["position", "id"]
        constraints = [
            models.UniqueConstraint(fields=["value", "authority"], name="one_patient_an_identifier")
        ]

    def __str__(self) -> str:
        return f"{self.value} ({self.authority})"


class PatientMerge(Row):
    """A merge or move as it happened, with exactly what it changed, so that it can be undone.

    Of a move `survivor` is the patient who got something, `retired` the one who had it and lives on.
    """

    class Kind(models.TextChoices):
        MERGE = "merge", "Merge"
        MOVE = "move", "Move"

    kind = models.CharField(max_length=5, choices=Kind.choices, default=Kind.MERGE)
    survivor = models.ForeignKey(Patient, on_delete=models.PROTECT, related_name="merges")
    retired = models.ForeignKey(Patient, on_delete=models.PROTECT, related_name="merged_by")
    moved = models.JSONField(default=dict, help_text="model → row ids that changed owner")
    changed = models.JSONField(default=dict, help_text="model → row id → attribute → [before, after]")
    at = models.DateTimeField()
    cause = models.CharField(max_length=128)
    undone_at = models.DateTimeField(null=True, blank=True)
    undone_cause = models.CharField(max_length=128, blank=True)

    class Meta:
        ordering = ["-at"]


class Visit(Row):
    """A stay or visit. `admission_id` is HL7's PV1-19, else PID-18."""

    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="visits", db_index=False)
    admission_id = models.CharField(max_length=64)
    issuer_of_admission_id = models.CharField(max_length=227, blank=True)
    account_number = models.CharField(max_length=199, blank=True, help_text="PID-18: the account it is on")
    patient_class = models.CharField(max_length=20, blank=True, help_text="table 0004: E, I, O, P, …")
    status = models.CharField(
        max_length=20, blank=True, help_text="planned, in-progress, finished, cancelled"
    )
    current_patient_location = models.CharField(max_length=200, blank=True)
    referring_physician_name = models.CharField(max_length=324, blank=True)
    attending_physician_name = models.CharField(max_length=324, blank=True)
    admitted_at = models.DateTimeField(null=True, blank=True)
    discharged_at = models.DateTimeField(null=True, blank=True)
    facts_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["patient", "admission_id", "issuer_of_admission_id"],
                name="one_visit_a_patient_and_id",
            )
        ]

    def __str__(self) -> str:
        return self.admission_id
