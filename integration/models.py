"""What the doors keep: sources and destinations as data, messages that came in, messages that go out."""

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVectorField
from django.core.exceptions import ValidationError
from django.db import models


class Source(models.Model):
    """A system that sends us HL7 v2, with its profile: which field holds what, and how to answer."""

    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=100, unique=True)
    application = models.CharField(max_length=200, default="*", help_text="MSH-3.1, or `*`")
    facility = models.CharField(max_length=200, default="*", help_text="MSH-4.1, or `*`")
    address = models.CharField(max_length=64, default="*", help_text="peer address or network, or `*`")
    enabled = models.BooleanField(default=True)
    profile = models.JSONField(
        default=dict, blank=True, help_text="fields, policies, tables; see docs/hl7.md"
    )
    version = models.PositiveIntegerField(default=1)
    temporary = models.BooleanField(default=False, help_text="made by a rehearsal for its own run")

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Refuse a profile that cannot be used, naming its key."""
        from integration.sources import ProfileError, check

        try:
            check(self.profile)
        except ProfileError as error:
            raise ValidationError({"profile": str(error)}) from None


class Destination(models.Model):
    """A system we send to: HL7 v2 over MLLP, a FHIR server, or a receiver of MPPS."""

    class Kind(models.TextChoices):
        HL7 = "hl7", "HL7 v2 over MLLP"
        FHIR = "fhir", "FHIR R4 server"
        MPPS = "mpps", "MPPS (DICOM)"

    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=100, unique=True)
    kind = models.CharField(max_length=4, choices=Kind.choices, default=Kind.HL7)
    host = models.CharField(max_length=255, blank=True)
    port = models.PositiveIntegerField(null=True, blank=True)
    url = models.CharField(max_length=300, blank=True, help_text="base of a FHIR server")
    version = models.CharField(max_length=8, default="2.5.1")
    messages = ArrayField(models.CharField(max_length=16), default=list, help_text="ORU, ORM, ADT, FHIR")
    enabled = models.BooleanField(default=True)
    settings = models.JSONField(
        default=dict, blank=True, help_text="separators, charset, ACK rules, time-outs, …"
    )
    circuit_open_until = models.DateTimeField(null=True, blank=True)
    failures = models.PositiveIntegerField(default=0, help_text="transport failures in a row")
    temporary = models.BooleanField(default=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class MessageIdentity(models.Model):
    """Who sent which control id with which bytes: narrow, unpartitioned, outlives the pruning of messages."""

    id = models.BigAutoField(primary_key=True)
    sender = models.CharField(max_length=300, help_text="MSH-3 and MSH-4 as sent, or the peer")
    control_id = models.CharField(max_length=199)
    sha256 = models.CharField(max_length=64)
    message_id = models.BigIntegerField(null=True)
    accepted = models.BooleanField(default=False)
    ack = models.BinaryField(default=b"")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["sender", "control_id", "sha256"], name="one_identity_a_message")
        ]


class Message(models.Model):
    """One inbound HL7 message: its bytes as they came, what became of it, and its ACK."""

    class State(models.TextChoices):
        APPLIED = "applied", "Applied"
        KEPT = "kept", "Kept: a type we do not apply"
        WAITING = "waiting", "Stored, waits to be applied"
        REFUSED = "refused", "Refused (AE): the sender must repair it"
        REJECTED = "rejected", "Rejected (AR)"
        FAULT = "fault", "Not HL7"
        PARKED = "parked", "Parked: a person must look"
        SKIPPED = "skipped", "Skipped by a person"

    OPEN_STATES = ("waiting", "refused", "rejected", "fault", "parked")

    id = models.BigAutoField(primary_key=True)
    received_at = models.DateTimeField()
    # No constraint in the database: every message would lock the row of its source.
    source = models.ForeignKey(
        Source, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", db_index=False,
        db_constraint=False,
    )  # fmt: skip
    peer = models.CharField(max_length=64, help_text="address and port")
    sender = models.CharField(max_length=300, blank=True)
    control_id = models.CharField(max_length=199, blank=True)
    message_type = models.CharField(max_length=20, blank=True, help_text="MSH-9.1")
    trigger_event = models.CharField(max_length=20, blank=True, help_text="MSH-9.2")
    version = models.CharField(max_length=20, blank=True)
    sent_at = models.DateTimeField(null=True, blank=True, help_text="MSH-7")
    raw = models.BinaryField()
    state = models.CharField(max_length=10, choices=State.choices)
    ack_code = models.CharField(max_length=2, blank=True)
    ack = models.BinaryField(default=b"")
    errors = models.JSONField(default=list, blank=True, help_text="place, code (0357), text; no health data")
    warnings = models.JSONField(default=list, blank=True)
    lanes = ArrayField(models.CharField(max_length=300), default=list, blank=True)
    patient_ids = ArrayField(models.UUIDField(), default=list, blank=True)
    request_ids = ArrayField(models.UUIDField(), default=list, blank=True)
    accession_numbers = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    attempts = models.PositiveIntegerField(default=1)
    duration_ms = models.FloatField(null=True, blank=True)
    applied_at = models.DateTimeField(null=True, blank=True)
    solved_at = models.DateTimeField(null=True, blank=True)
    solved_by = models.CharField(max_length=128, blank=True)
    solved_reason = models.CharField(max_length=300, blank=True)
    original = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="edited", db_index=False,
        help_text="the message as it came, where this is an edited copy of it",
    )  # fmt: skip

    class Meta:
        ordering = ["-id"]
        indexes = [
            # Lists are read newest first, a page after a known id: each filter's index ends with the id.
            models.Index(fields=["source", "id"], name="message_by_source"),
            models.Index(fields=["message_type", "trigger_event", "id"], name="message_by_type"),
            models.Index(
                fields=["state", "id"], name="message_by_state", condition=~models.Q(state="applied")
            ),
            models.Index(
                fields=["control_id"],
                include=["id"],
                name="message_control_id",
                opclasses=["varchar_pattern_ops"],
            ),
            models.Index(
                fields=["received_at"], include=["source", "state", "duration_ms"], name="message_traffic"
            ),
            models.Index(
                fields=["original"], name="message_edited", condition=models.Q(original__isnull=False)
            ),
            models.Index(
                fields=["received_at"],
                name="message_open",
                condition=models.Q(
                    state__in=("waiting", "refused", "rejected", "fault", "parked"), solved_at=None
                ),
            ),
            GinIndex(fields=["patient_ids"], name="message_patients"),
            GinIndex(fields=["request_ids"], name="message_requests"),
            GinIndex(fields=["accession_numbers"], name="message_accessions"),
        ]

    def __str__(self) -> str:
        return f"{self.message_type}^{self.trigger_event} {self.control_id}"


class SourceVersion(models.Model):
    """A source as it was at one time: each change of it leaves a row, and any of them can be used again."""

    id = models.BigAutoField(primary_key=True)
    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    at = models.DateTimeField()
    by = models.CharField(max_length=128, help_text="cause: `user:17`, `system:site load`")
    why = models.CharField(max_length=300, blank=True)
    values = models.JSONField(help_text="application, facility, address, enabled, profile")

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["source", "number"], name="one_version_a_source_and_number")
        ]

    def __str__(self) -> str:
        return f"version {self.number}"


class DryRun(models.Model):
    """A changed source tried over its last messages, in a transaction that was rolled back: what would differ."""

    class State(models.TextChoices):
        RUNNING = "running", "Running"
        DONE = "done", "Done"
        STOPPED = "stopped", "Stopped at its bound"
        FAILED = "failed", "Failed"

    id = models.BigAutoField(primary_key=True)
    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="+")
    values = models.JSONField(help_text="the source as it would be; as in SourceVersion")
    by = models.CharField(max_length=128)
    state = models.CharField(max_length=10, choices=State.choices, default=State.RUNNING)
    messages = models.PositiveIntegerField(help_text="how many of the last messages, at most")
    seconds = models.PositiveIntegerField(help_text="how long, at most")
    done = models.PositiveIntegerField(default=0)
    total = models.PositiveIntegerField(default=0)
    started_at = models.DateTimeField()
    beat_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)
    result = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["-id"]


class MessageText(models.Model):
    """What a message says, as words to search for; made after commit, and again at any time (integration/search.py)."""

    message = models.OneToOneField(Message, primary_key=True, on_delete=models.CASCADE, related_name="text")
    words = SearchVectorField(
        help_text="A: the patient's names and numbers, B: the order's numbers, C: the rest"
    )

    class Meta:
        indexes = [GinIndex(fields=["words"], name="message_words")]


class MessageDeed(models.Model):
    """What a person did with a message after it had come: replayed, edited, parked, released, skipped."""

    class What(models.TextChoices):
        APPLIED = "applied", "Applied again"
        REPLAYED = "replayed", "Replayed"
        EDITED = "edited", "Edited and sent again"
        PARKED = "parked", "Parked"
        RELEASED = "released", "Released"
        SKIPPED = "skipped", "Skipped"

    id = models.BigAutoField(primary_key=True)
    message = models.ForeignKey(Message, on_delete=models.CASCADE, related_name="deeds")
    at = models.DateTimeField()
    by = models.CharField(max_length=128)
    what = models.CharField(max_length=10, choices=What.choices)
    reason = models.CharField(max_length=300, blank=True)
    outcome = models.CharField(max_length=300, blank=True, help_text="what came of it; no health data")

    class Meta:
        ordering = ["-id"]


class LegalHold(models.Model):
    """Messages that must not be removed, however old they are, until the hold is lifted."""

    class About(models.TextChoices):
        PATIENT = "patient", "A patient"
        ACCESSION = "accession", "An accession number"
        SOURCE = "source", "A source"
        ALL = "all", "Everything"

    id = models.BigAutoField(primary_key=True)
    about = models.CharField(max_length=10, choices=About.choices)
    value = models.CharField(max_length=199, blank=True, help_text="row id, accession number, or source id")
    reason = models.CharField(max_length=300)
    placed_at = models.DateTimeField()
    placed_by = models.CharField(max_length=128)
    lifted_at = models.DateTimeField(null=True, blank=True)
    lifted_by = models.CharField(max_length=128, blank=True)

    class Meta:
        ordering = ["-id"]


def outbox_rank() -> models.Case:
    """Where an outbox item stands at the desk: 0 parked, 1 queued, 2 settled."""
    return models.Case(
        models.When(state="parked", then=0), models.When(state="queued", then=1), default=2,
        output_field=models.IntegerField(),
    )  # fmt: skip


class OutboxItem(models.Model):
    """One thing to tell one destination. Facts and control id are frozen with the fact; bytes once composed."""

    class State(models.TextChoices):
        QUEUED = "queued", "Waits to be sent"
        DELIVERED = "delivered", "Delivered"
        PARKED = "parked", "Parked: a person must look"
        SKIPPED = "skipped", "Skipped by a person"

    id = models.BigAutoField(primary_key=True)
    destination = models.ForeignKey(Destination, on_delete=models.PROTECT, related_name="items")
    lane = models.CharField(max_length=100, help_text="sent in order within destination and lane")
    kind = models.CharField(max_length=40, help_text="ORU, ORM, FHIR:ImagingStudy, …")
    subject = models.CharField(max_length=100, help_text="`report_version:<uuid>`, `step:<uuid>`, …")
    patient_id = models.UUIDField(null=True, blank=True, db_index=True)
    facts = models.JSONField(default=dict, help_text="everything the message says, as it was at the fact")
    control_id = models.CharField(max_length=20, blank=True, help_text="MSH-10, the same on every attempt")
    payload = models.BinaryField(
        null=True, blank=True, help_text="composed and checked once, before the first attempt"
    )
    state = models.CharField(max_length=10, choices=State.choices, default=State.QUEUED)
    attempts = models.PositiveIntegerField(default=0)
    due_at = models.DateTimeField()
    lease_until = models.DateTimeField(null=True, blank=True)
    lease_owner = models.CharField(max_length=64, blank=True)
    last_error = models.CharField(max_length=300, blank=True)
    answer = models.BinaryField(null=True, blank=True, help_text="the ACK or response that settled it")
    created_at = models.DateTimeField()
    delivered_at = models.DateTimeField(null=True, blank=True)
    cause = models.CharField(max_length=128)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["destination", "lane", "id"], name="outbox_queued", condition=models.Q(state="queued")
            ),
            models.Index(
                fields=["destination", "id"], name="outbox_next", condition=models.Q(state="queued")
            ),
            models.Index(
                fields=["destination"],
                name="outbox_leased",
                condition=models.Q(state="queued", lease_until__isnull=False),
            ),
            models.Index(fields=["state", "created_at"]),
            models.Index(fields=["subject"]),
            models.Index(fields=["control_id"], name="outbox_control_id"),
            models.Index(
                fields=["destination", "created_at"], include=["state", "delivered_at"], name="outbox_traffic"
            ),
            # The desk's order: what needs a person first. With the state, a page's ids need no row.
            models.Index(outbox_rank(), models.F("id").desc(), include=["state"], name="outbox_desk"),
        ]


class DeliveryAttempt(models.Model):
    """One attempt to deliver an outbox item, and what came of it."""

    id = models.BigAutoField(primary_key=True)
    item = models.ForeignKey(OutboxItem, on_delete=models.CASCADE, related_name="tries")
    at = models.DateTimeField()
    duration_ms = models.FloatField(default=0)
    outcome = models.CharField(
        max_length=20, help_text="delivered, refused, rejected, timeout, transport, compose"
    )
    detail = models.CharField(max_length=300, blank=True)
    answer = models.BinaryField(null=True, blank=True)

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["at"], include=["outcome"], name="attempt_traffic")]


class MirrorState(models.Model):
    """What a FHIR destination was last told about one resource: id, hash, version."""

    id = models.BigAutoField(primary_key=True)
    destination = models.ForeignKey(Destination, on_delete=models.CASCADE, related_name="mirror")
    resource = models.CharField(max_length=120, help_text="`ImagingStudy/<uuid>`")
    sha256 = models.CharField(max_length=64)
    etag = models.CharField(max_length=64, blank=True)
    told_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["destination", "resource"], name="one_state_a_resource")
        ]
