"""What the archive keeps: peers, studies, series, instances, overlays, and what was set aside."""

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models

from common.rows import Row


class ApplicationEntity(Row):
    """A DICOM peer: who may call us and for what, and where we find it."""

    SERVICES = ("echo", "store", "find", "move", "get", "commit", "worklist", "mpps")

    title = models.CharField(max_length=16, help_text="AE title, or `*` for any caller from the address")
    host = models.CharField(
        max_length=255, blank=True, help_text="address, network such as 10.1.0.0/16, or `*`"
    )
    port = models.PositiveIntegerField(
        null=True, blank=True, help_text="where it listens; empty: it only calls"
    )
    services = ArrayField(models.CharField(max_length=16), default=list, help_text="what it may ask of us")
    description = models.CharField(max_length=200, blank=True)
    enabled = models.BooleanField(default=True)
    tls = models.BooleanField(default=False)
    certificate_sha256 = models.CharField(max_length=64, blank=True)
    settings = models.JSONField(default=dict, blank=True, help_text="worklist rule, character set, limits, …")
    temporary = models.BooleanField(default=False, help_text="made by a rehearsal for its own run")

    class Meta:
        verbose_name_plural = "application entities"
        ordering = ["title"]
        constraints = [models.UniqueConstraint(fields=["title", "host"], name="one_ae_a_title_and_host")]

    def __str__(self) -> str:
        return self.title


class Study(Row):
    """A study. The columns hold what we answer (overlay applied); `as_received` what an overlay hides."""

    study_instance_uid = models.CharField(max_length=64, unique=True)
    patient_id = models.CharField(max_length=64, blank=True)
    issuer_of_patient_id = models.CharField(max_length=64, blank=True)
    patient_name = models.CharField(max_length=324, blank=True, help_text="PN, up to three groups")
    patient_name_search = models.CharField(
        max_length=324, blank=True, help_text="matching.name_keys, alphabetic"
    )
    patient_name_ideographic_search = models.CharField(
        max_length=324, blank=True, help_text="matching.name_keys"
    )
    patient_name_phonetic_search = models.CharField(
        max_length=324, blank=True, help_text="matching.name_keys"
    )
    patient_birth_date = models.CharField(max_length=8, blank=True)
    patient_sex = models.CharField(max_length=16, blank=True)
    accession_number = models.CharField(max_length=64, blank=True)
    issuer_of_accession_number = models.CharField(max_length=64, blank=True)
    study_id = models.CharField(max_length=64, blank=True)
    study_date = models.DateField(null=True, blank=True)
    study_time = models.TimeField(null=True, blank=True)
    timezone_offset_from_utc = models.CharField(max_length=16, blank=True)
    study_description = models.CharField(max_length=64, blank=True)
    referring_physician_name = models.CharField(max_length=324, blank=True)
    referring_physician_name_search = models.CharField(
        max_length=324, blank=True, help_text="matching.name_keys"
    )
    modalities_in_study = ArrayField(models.CharField(max_length=16), default=list, blank=True)
    sop_classes_in_study = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    number_of_study_related_series = models.PositiveIntegerField(default=0)
    number_of_study_related_instances = models.PositiveIntegerField(default=0)
    size = models.BigIntegerField(default=0, help_text="bytes of all its files")
    calling_ae = models.CharField(max_length=16, blank=True, help_text="who sent its first object")
    as_received = models.JSONField(
        default=dict, blank=True, help_text="columns an overlay has changed, as they came"
    )
    attributes = models.JSONField(default=dict, blank=True, help_text="other study attributes, DICOM JSON")
    received_at = models.DateTimeField(db_index=True)
    last_instance_at = models.DateTimeField(db_index=True)
    settled_at = models.DateTimeField(
        null=True, blank=True, help_text="quiet and told upward; null: still growing"
    )
    times_settled = models.PositiveIntegerField(default=0, help_text="how often it was told upward")
    hidden = models.BooleanField(default=False)

    class Meta:
        verbose_name_plural = "studies"
        ordering = ["-received_at"]
        indexes = [
            models.Index(fields=["patient_id"]),
            models.Index(fields=["accession_number"]),
            models.Index(fields=["study_date", "study_time"]),
            models.Index(
                fields=["patient_name_search"], opclasses=["text_pattern_ops"], name="study_name_prefix"
            ),
            models.Index(
                fields=["patient_name_ideographic_search"],
                opclasses=["text_pattern_ops"],
                name="study_name_ideographic_prefix",
            ),
            models.Index(
                fields=["patient_name_phonetic_search"],
                opclasses=["text_pattern_ops"],
                name="study_name_phonetic_prefix",
            ),
            models.Index(fields=["patient_birth_date"]),
            GinIndex(fields=["modalities_in_study"], name="study_modalities"),
            models.Index(
                fields=["last_instance_at"],
                condition=models.Q(settled_at__isnull=True),
                name="study_unsettled",
            ),
        ]

    def __str__(self) -> str:
        return self.study_instance_uid


class Overlay(Row):
    """Corrected attributes of a study: keyword → value, only where they differ from the files; never a UID."""

    study = models.OneToOneField(Study, on_delete=models.CASCADE, related_name="overlay")
    attributes = models.JSONField(
        default=dict, help_text="DICOM keyword → string, list, or list of objects (SQ)"
    )
    version = models.PositiveIntegerField(default=1)
    cause = models.CharField(max_length=128)
    updated_at = models.DateTimeField()


class Series(Row):
    """A series of a study."""

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="series")
    series_instance_uid = models.CharField(max_length=64)
    modality = models.CharField(max_length=16, blank=True)
    series_number = models.BigIntegerField(null=True, blank=True)
    series_description = models.CharField(max_length=64, blank=True)
    series_date = models.DateField(null=True, blank=True)
    series_time = models.TimeField(null=True, blank=True)
    body_part_examined = models.CharField(max_length=16, blank=True)
    laterality = models.CharField(max_length=16, blank=True)
    protocol_name = models.CharField(max_length=64, blank=True)
    station_name = models.CharField(max_length=16, blank=True)
    institution_name = models.CharField(max_length=64, blank=True)
    manufacturer = models.CharField(max_length=64, blank=True)
    manufacturer_model_name = models.CharField(max_length=64, blank=True)
    performing_physician_name = models.CharField(max_length=324, blank=True)
    performed_procedure_step_start_date = models.DateField(null=True, blank=True)
    performed_procedure_step_start_time = models.TimeField(null=True, blank=True)
    performed_procedure_step_id = models.CharField(max_length=16, blank=True)
    scheduled_procedure_step_id = models.CharField(
        max_length=16, blank=True, help_text="of the first request item"
    )
    requested_procedure_id = models.CharField(
        max_length=16, blank=True, help_text="of the first request item"
    )
    frame_of_reference_uid = models.CharField(max_length=64, blank=True)
    number_of_series_related_instances = models.PositiveIntegerField(default=0)
    attributes = models.JSONField(default=dict, blank=True, help_text="other series attributes, DICOM JSON")
    received_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "series"
        ordering = ["series_number", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["study", "series_instance_uid"], name="one_series_a_study_and_uid"
            )
        ]
        indexes = [models.Index(fields=["series_instance_uid"]), models.Index(fields=["modality"])]

    def __str__(self) -> str:
        return self.series_instance_uid


class Instance(Row):
    """One stored object and where its bytes lie."""

    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="instances")
    sop_instance_uid = models.CharField(max_length=64, unique=True)
    sop_class_uid = models.CharField(max_length=64)
    transfer_syntax_uid = models.CharField(max_length=64)
    instance_number = models.BigIntegerField(null=True, blank=True)
    rows = models.PositiveIntegerField(null=True, blank=True)
    columns = models.PositiveIntegerField(null=True, blank=True)
    bits_allocated = models.PositiveSmallIntegerField(null=True, blank=True)
    number_of_frames = models.PositiveIntegerField(null=True, blank=True)
    content_date = models.DateField(null=True, blank=True)
    content_time = models.TimeField(null=True, blank=True)
    attributes = models.JSONField(default=dict, blank=True, help_text="geometry, image type, …: DICOM JSON")
    volume = models.CharField(max_length=32, default="files")
    path = models.CharField(max_length=200, help_text="below the volume's root; made of our own ids only")
    size = models.BigIntegerField(help_text="bytes of the Part 10 file")
    data_set_offset = models.PositiveIntegerField(
        help_text="where the data set as received begins in the file"
    )
    sha256 = models.CharField(max_length=64, help_text="of the data set as received")
    calling_ae = models.CharField(max_length=16, blank=True)
    received_at = models.DateTimeField()
    hidden = models.BooleanField(default=False)

    class Meta:
        ordering = ["instance_number", "id"]

    def __str__(self) -> str:
        return self.sop_instance_uid


class SetAside(Row):
    """An object that was taken but could not be indexed, or whose UID is taken by other bytes; kept and shown."""

    class Reason(models.TextChoices):
        UNREADABLE = "unreadable", "Cannot be read"
        UID_TAKEN = "uid_taken", "Same UID, other content"
        INCONSISTENT = "inconsistent", "Contradicts what is stored"

    class State(models.TextChoices):
        OPEN = "open", "Waits for a person"
        SOLVED = "solved", "Solved"

    reason = models.CharField(max_length=20, choices=Reason.choices)
    detail = models.CharField(max_length=300, help_text="what is wrong and where; no health data")
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN, db_index=True)
    sop_instance_uid = models.CharField(max_length=64, blank=True)
    sop_class_uid = models.CharField(max_length=64, blank=True)
    transfer_syntax_uid = models.CharField(max_length=64, blank=True)
    study_instance_uid = models.CharField(max_length=64, blank=True)
    volume = models.CharField(max_length=32, default="aside")
    path = models.CharField(max_length=200)
    size = models.BigIntegerField()
    sha256 = models.CharField(max_length=64, db_index=True)
    calling_ae = models.CharField(max_length=16, blank=True)
    received_at = models.DateTimeField(db_index=True)
    solved_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "object set aside"
        verbose_name_plural = "objects set aside"
        ordering = ["-received_at"]


class RoutingRule(Row):
    """Which arriving studies are sent on, and where to. Empty conditions are met by every study."""

    name = models.CharField(max_length=100, unique=True)
    destination = models.ForeignKey(ApplicationEntity, on_delete=models.CASCADE, related_name="routing_rules")
    modalities = ArrayField(
        models.CharField(max_length=16), default=list, blank=True, help_text="any of these"
    )
    calling_aes = ArrayField(
        models.CharField(max_length=16), default=list, blank=True, help_text="sent by any of"
    )
    description = models.CharField(max_length=64, blank=True, help_text="words of the study description")
    after_match = models.BooleanField(
        default=False, help_text="wait until the study is linked to its order, so that it goes out corrected"
    )
    enabled = models.BooleanField(default=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Forwarding(Row):
    """One study on its way to one node; kept until everything of it has arrived there."""

    class State(models.TextChoices):
        HELD = "held", "Waits for its order"
        WAITING = "waiting", "Waiting"
        SENT = "sent", "Sent"
        PARKED = "parked", "Waits for a person"

    rule = models.ForeignKey(RoutingRule, on_delete=models.CASCADE, related_name="forwardings")
    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="forwardings")
    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    sent = ArrayField(
        models.UUIDField(), default=list, blank=True, help_text="instances that have arrived there"
    )
    attempts = models.PositiveIntegerField(default=0, help_text="in a row without getting further")
    next_attempt_at = models.DateTimeField(null=True, blank=True)
    detail = models.CharField(max_length=300, blank=True, help_text="what went wrong last; no health data")
    created_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["created_at", "id"]
        constraints = [
            models.UniqueConstraint(fields=["rule", "study"], name="one_forwarding_a_rule_and_study")
        ]
        indexes = [
            models.Index(
                fields=["next_attempt_at"], condition=models.Q(state="waiting"), name="forwarding_due"
            )
        ]
