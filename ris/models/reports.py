"""Reports: one for each requested procedure, and every version that was signed."""

from django.conf import settings
from django.db import models

from common.rows import Row
from ris.models.procedures import RequestedProcedure


class ReportStatus(models.TextChoices):
    """How far a report is. Only DRAFT text may change; everything later is a version of its own."""

    DRAFT = "DRAFT", "Draft"
    PRELIMINARY = "PRELIMINARY", "Preliminary"
    FINAL = "FINAL", "Final"
    ADDENDED = "ADDENDED", "Final with addendum"
    CORRECTED = "CORRECTED", "Corrected"
    RETRACTED = "RETRACTED", "Retracted"


class Report(Row):
    """The report of one requested procedure: its working draft and where it stands."""

    procedure = models.OneToOneField(RequestedProcedure, on_delete=models.PROTECT, related_name="report")
    status = models.CharField(max_length=12, choices=ReportStatus.choices, default=ReportStatus.DRAFT)
    findings = models.TextField(blank=True, help_text="of the working draft")
    impression = models.TextField(blank=True, help_text="of the working draft")
    draft_version = models.PositiveIntegerField(default=0, help_text="counts saves; a stale save is refused")
    reader = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    cause = models.CharField(max_length=128)


class ReportVersion(Row):
    """A version as it was signed; a trigger refuses any change of it."""

    report = models.ForeignKey(Report, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    status = models.CharField(max_length=12, choices=ReportStatus.choices)
    findings = models.TextField(blank=True)
    impression = models.TextField(blank=True)
    addendum = models.TextField(blank=True, help_text="what this version adds to the one before")
    signed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+"
    )
    signer_name = models.CharField(max_length=324, help_text="PN, as it was at signing")
    signer_id = models.CharField(max_length=199, blank=True)
    signed_at = models.DateTimeField()
    sha256 = models.CharField(
        max_length=64, help_text="of status, findings, impression, addendum, signer and time"
    )
    cause = models.CharField(max_length=128)

    class Meta:
        ordering = ["report", "number"]
        constraints = [models.UniqueConstraint(fields=["report", "number"], name="one_version_a_number")]

    def listed_documents(self) -> "models.QuerySet[ReportDocument]":
        """What came with it, without the bytes."""
        return ReportDocument.objects.filter(version=self).defer("content")


class ReportDocument(Row):
    """A document that came with a version from outside, as it came; a trigger refuses any change of it."""

    version = models.ForeignKey(ReportVersion, on_delete=models.PROTECT, related_name="documents")
    number = models.PositiveIntegerField(help_text="its place in the version, from 1")
    title = models.CharField(max_length=200, blank=True)
    media_type = models.CharField(max_length=64, help_text="by its first bytes, else as the sender says")
    size = models.PositiveIntegerField(help_text="bytes")
    sha256 = models.CharField(max_length=64)
    content = models.BinaryField()

    class Meta:
        ordering = ["version", "number"]
        constraints = [models.UniqueConstraint(fields=["version", "number"], name="one_document_a_number")]
