"""Which study belongs to which procedure: sure matches, and cases that wait for a clerk."""

from django.conf import settings
from django.db import models

from common.rows import Row
from pacs.models import Study
from ris.models.procedures import RequestedProcedure


class StudyMatch(Row):
    """A study linked to a procedure, with the evidence; undone, it stays as history."""

    class Method(models.TextChoices):
        STUDY_INSTANCE_UID = "study_instance_uid", "Study Instance UID"
        ACCESSION_NUMBER = "accession_number", "Accession number"
        EVIDENCE = "evidence", "Weighed evidence"
        CLERK = "clerk", "By a clerk"

    study = models.ForeignKey(Study, on_delete=models.PROTECT, related_name="matches")
    procedure = models.ForeignKey(RequestedProcedure, on_delete=models.PROTECT, related_name="matches")
    method = models.CharField(max_length=20, choices=Method.choices)
    evidence = models.JSONField(
        default=list, help_text="what spoke for it and against it, each with its reason"
    )
    at = models.DateTimeField()
    cause = models.CharField(max_length=128)
    undone_at = models.DateTimeField(null=True, blank=True)
    undone_cause = models.CharField(max_length=128, blank=True)

    class Meta:
        verbose_name_plural = "study matches"
        ordering = ["-at"]
        constraints = [
            models.UniqueConstraint(
                fields=["study"], condition=models.Q(undone_at__isnull=True), name="one_match_a_study"
            )
        ]


class ReconciliationCase(Row):
    """A study without a sure match: why, the candidates with their evidence, and who looks after it."""

    class State(models.TextChoices):
        OPEN = "OPEN", "Open"
        SOLVED = "SOLVED", "Solved"
        DISMISSED = "DISMISSED", "Dismissed: stays without an order"

    study = models.OneToOneField(Study, on_delete=models.PROTECT, related_name="case")
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    reason = models.CharField(max_length=300, help_text="why it did not match by itself; no health data")
    candidates = models.JSONField(default=list, help_text="procedure id, score, evidence; best first")
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    opened_at = models.DateTimeField()
    checked_at = models.DateTimeField(help_text="when it was last compared with the orders")
    solved_at = models.DateTimeField(null=True, blank=True)
    cause = models.CharField(max_length=128)

    class Meta:
        ordering = ["opened_at"]
        indexes = [models.Index(fields=["state", "opened_at"])]
