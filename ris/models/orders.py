"""Orders: the Imaging Service Request, one for each accession number."""

from django.db import models

from common.rows import Row
from ris.models.patients import Patient, Visit


class ImagingServiceRequest(Row):
    """What somebody asked for. Its procedures and their steps say what is done about it."""

    class Status(models.TextChoices):
        ACTIVE = "ACTIVE", "Active"
        HELD = "HELD", "On hold"
        COMPLETED = "COMPLETED", "Completed"
        CANCELED = "CANCELED", "Canceled"
        DISCONTINUED = "DISCONTINUED", "Discontinued"

    patient = models.ForeignKey(Patient, on_delete=models.PROTECT, related_name="requests")
    visit = models.ForeignKey(
        Visit, null=True, blank=True, on_delete=models.SET_NULL, related_name="requests"
    )
    accession_number = models.CharField(max_length=64, blank=True)
    issuer_of_accession_number = models.CharField(max_length=227, blank=True)
    placer_order_number = models.CharField(max_length=199, blank=True)
    placer_issuer = models.CharField(max_length=227, blank=True)
    filler_order_number = models.CharField(max_length=199, blank=True)
    filler_issuer = models.CharField(max_length=227, blank=True)
    placer_group_number = models.CharField(max_length=199, blank=True)
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.ACTIVE)
    requesting_physician = models.CharField(max_length=324, blank=True, help_text="PN")
    requesting_physician_id = models.CharField(max_length=199, blank=True)
    referring_physician_name = models.CharField(max_length=324, blank=True, help_text="PN")
    referring_physician_id = models.CharField(max_length=199, blank=True)
    requesting_service = models.CharField(max_length=200, blank=True)
    institution_name = models.CharField(max_length=200, blank=True)
    imaging_service_request_comments = models.TextField(blank=True)
    details = models.JSONField(
        default=dict, blank=True, help_text="other attributes: snake_case DICOM keyword → value"
    )
    source = models.CharField(max_length=100, blank=True, help_text="name of the source that placed it")
    placed_at = models.DateTimeField(null=True, blank=True)
    facts_at = models.DateTimeField(
        null=True, blank=True, help_text="ORC-9 or MSH-7 of the newest facts applied"
    )
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    cause = models.CharField(max_length=128)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["accession_number", "issuer_of_accession_number"],
                condition=~models.Q(accession_number=""),
                name="one_request_an_accession",
            )
        ]
        indexes = [
            models.Index(fields=["placer_order_number"]),
            models.Index(fields=["filler_order_number"]),
            models.Index(fields=["-created_at"]),
            models.Index(fields=["updated_at"]),
        ]

    def __str__(self) -> str:
        return self.accession_number or self.placer_order_number or self.filler_order_number or str(self.id)
