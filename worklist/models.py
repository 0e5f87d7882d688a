"""The worklist as a read model: one row a scheduled step, keys to match and its answer already encoded."""

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models

from ris.models import ScheduledProcedureStep


class WorklistItem(models.Model):
    """One scheduled step as a scanner sees it. Everything here can be made again from `ris` at any time.

    Key columns hold values in the normal form of pacs/matching.py and are spelled as in worklist/attributes.py.
    `answer` holds the elements that have a value, in Explicit VR Little Endian and UTF-8 (see answers.py).
    """

    step = models.OneToOneField(
        ScheduledProcedureStep,
        primary_key=True,
        on_delete=models.CASCADE,
        db_constraint=False,
        related_name="worklist_item",
    )
    patient_row = models.UUIDField(db_index=True, help_text="row id of the patient")
    request_row = models.UUIDField(db_index=True, help_text="row id of the order")
    waiting = models.BooleanField(
        help_text="shown to a query that names no status: scheduled, arrived or ready, and not withheld"
    )
    withheld = models.CharField(
        max_length=300, blank=True, help_text="why no scanner can be told of this step; empty: it can"
    )
    adapted = ArrayField(
        models.CharField(max_length=64),
        default=list,
        blank=True,
        help_text="attributes whose value was shortened or left out to fit DICOM",
    )
    status = models.CharField(max_length=16)
    start = models.DateTimeField(null=True, blank=True)
    start_has_time = models.BooleanField(default=True)
    start_date = models.DateField(null=True, blank=True, help_text="of the start, in the site's time zone")
    start_time = models.TimeField(null=True, blank=True, help_text="00:00 when only the day is known")
    modality = models.CharField(max_length=16, blank=True)
    scheduled_station_ae_titles = ArrayField(models.CharField(max_length=16), default=list, blank=True)
    scheduled_station_names = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    scheduled_procedure_step_location = models.CharField(max_length=200, blank=True)
    scheduled_procedure_step_id = models.CharField(max_length=64, blank=True)
    scheduled_procedure_step_description = models.CharField(max_length=200, blank=True)
    protocol_code_values = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    protocol_coding_schemes = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    performing_physician_search = models.CharField(max_length=324, blank=True)
    performing_physician_ideographic_search = models.CharField(max_length=324, blank=True)
    performing_physician_phonetic_search = models.CharField(max_length=324, blank=True)
    pre_medication = models.CharField(max_length=200, blank=True)
    requested_contrast_agent = models.CharField(max_length=200, blank=True)
    comments = models.TextField(blank=True)
    requested_procedure_id = models.CharField(max_length=64, blank=True)
    requested_procedure_description = models.CharField(max_length=200, blank=True)
    requested_procedure_code_value = models.CharField(max_length=64, blank=True)
    requested_procedure_coding_scheme = models.CharField(max_length=64, blank=True)
    requested_procedure_priority = models.CharField(max_length=16, blank=True)
    patient_transport_arrangements = models.CharField(max_length=64, blank=True)
    study_instance_uid = models.CharField(max_length=64, blank=True)
    accession_number = models.CharField(max_length=64, blank=True)
    issuer_of_accession_number = models.CharField(max_length=227, blank=True)
    placer_order_number = models.CharField(max_length=199, blank=True)
    filler_order_number = models.CharField(max_length=199, blank=True)
    requesting_physician_search = models.CharField(max_length=324, blank=True)
    referring_physician_name_search = models.CharField(max_length=324, blank=True)
    institution_name = models.CharField(max_length=200, blank=True)
    admission_id = models.CharField(max_length=64, blank=True)
    current_patient_location = models.CharField(max_length=200, blank=True)
    patient_name_search = models.CharField(max_length=324, blank=True)
    patient_name_ideographic_search = models.CharField(max_length=324, blank=True)
    patient_name_phonetic_search = models.CharField(max_length=324, blank=True)
    patient_id = models.CharField(max_length=199, blank=True)
    issuer_of_patient_id = models.CharField(max_length=227, blank=True)
    patient_birth_date = models.CharField(max_length=8, blank=True)
    patient_sex = models.CharField(max_length=16, blank=True)
    patient_weight = models.CharField(max_length=16, blank=True)
    pregnancy_status = models.SmallIntegerField(null=True, blank=True)
    medical_alerts = models.TextField(blank=True)
    allergies = models.TextField(blank=True)
    special_needs = models.TextField(blank=True)
    patient_state = models.TextField(blank=True)
    confidentiality_constraint = models.TextField(blank=True)
    worklist_label = models.CharField(max_length=64, blank=True)
    ascii = models.BooleanField(default=True, help_text="the answer has no character beyond ASCII")
    answer = models.BinaryField(default=b"")
    updated_at = models.DateTimeField()

    class Meta:
        verbose_name = "worklist item"
        ordering = ["start", "step"]
        indexes = [
            models.Index(fields=["start_date", "start_time"]),
            # A scanner usually asks for its day and modality.
            models.Index(
                fields=["start_date", "modality"],
                name="worklist_waiting_day",
                condition=models.Q(waiting=True),
            ),
            GinIndex(fields=["scheduled_station_ae_titles"], name="worklist_ae_titles"),
            models.Index(fields=["patient_id"]),
            models.Index(fields=["accession_number"]),
            models.Index(fields=["requested_procedure_id"]),
            models.Index(fields=["scheduled_procedure_step_id"]),
            models.Index(fields=["study_instance_uid"]),
            models.Index(
                fields=["patient_name_search"], opclasses=["text_pattern_ops"], name="worklist_name"
            ),
            models.Index(
                fields=["patient_name_ideographic_search"],
                opclasses=["text_pattern_ops"],
                name="worklist_name_ideographic",
            ),
            models.Index(
                fields=["patient_name_phonetic_search"],
                opclasses=["text_pattern_ops"],
                name="worklist_name_phonetic",
            ),
        ]

    def __str__(self) -> str:
        return self.scheduled_procedure_step_id


class QueryLog(models.Model):
    """What a scanner asked and got. A repeat with the same answers counts on its row; old rows go (querylog.py)."""

    id = models.BigAutoField(primary_key=True)
    ae_title = models.CharField(max_length=16, help_text="who asked: the calling AE title")
    called_ae = models.CharField(max_length=16, blank=True)
    address = models.GenericIPAddressField(null=True, blank=True)
    digest = models.CharField(max_length=64, help_text="of keys, status and items: equal for a repeat")
    keys = models.JSONField(default=list, help_text="[keyword path, key] of each key that was not universal")
    notes = ArrayField(
        models.CharField(max_length=200), default=list, blank=True, help_text="what was repaired or adapted"
    )
    status = models.PositiveIntegerField(help_text="the final DIMSE status")
    comment = models.CharField(max_length=200, blank=True, help_text="why it was refused or cut off")
    count = models.PositiveIntegerField(default=0, help_text="answers")
    item_ids = ArrayField(models.UUIDField(), default=list, blank=True, help_text="steps, at most 200")
    identifier = models.BinaryField(
        default=b"", help_text="the query's data set as received, to ask it again"
    )
    transfer_syntax = models.CharField(max_length=64, blank=True, help_text="of the identifier")
    duration_ms = models.FloatField(default=0)
    times = models.PositiveIntegerField(default=1, help_text="how often it was asked with these answers")
    first_at = models.DateTimeField()
    last_at = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = "worklist query"
        verbose_name_plural = "worklist queries"
        ordering = ["-last_at"]
        constraints = [
            models.UniqueConstraint(fields=["ae_title", "digest"], name="one_row_a_repeated_query")
        ]
        indexes = [models.Index(fields=["ae_title", "-last_at"])]

    def __str__(self) -> str:
        return f"{self.ae_title} {self.last_at:%Y-%m-%d %H:%M:%S}"
