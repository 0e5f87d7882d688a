"""What the doors may ask of `ris`: plain dataclasses, in the standards' terms, free of any wire format.

`values` mappings go from attribute name (snake_case DICOM keyword, as in ris/models) to value: a missing key
means "no change", an empty string means "delete". Names of people are PN strings (common/names.py), dates of
birth `YYYY[MM[DD]]`, instants are aware datetimes in UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Identifier:
    """An identifier with its assigning authority (CX / Issuer of Patient ID)."""

    value: str
    namespace: str = ""
    universal_id: str = ""
    universal_id_type: str = ""
    type_code: str = ""


@dataclass(frozen=True, slots=True)
class OrderNumber:
    """A placer or filler order number (EI)."""

    value: str = ""
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class VisitFacts:
    """A visit: `values` holds attributes of ris.models.Visit."""

    admission_id: str
    issuer_of_admission_id: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RegisterPatient:
    """Create or update a patient (ADT A01 A04 A05 A08 A28 A31 …, and the PID of every order).

    The first identifier is the one that worklists and reports show. `facts_at` is how old the facts are
    (EVN-2, else MSH-7): older facts never overwrite newer ones. `authoritative` is False for the PID of an
    order or result: it fills what is empty and never changes what an ADT said.
    """

    identifiers: tuple[Identifier, ...]
    values: Mapping[str, Any] = field(default_factory=dict)
    visit: VisitFacts | None = None
    facts_at: datetime | None = None
    authoritative: bool = True
    arrived: bool = False
    """The patient is here (A10, by policy A04): scheduled steps of today become ARRIVED."""


@dataclass(frozen=True, slots=True)
class MergePatients:
    """Merge the prior patient into the survivor (A40, A34, A18). The prior identifiers become aliases."""

    survivor: RegisterPatient
    prior: tuple[Identifier, ...]


@dataclass(frozen=True, slots=True)
class ChangeIdentifier:
    """One identifier of one patient gets another value (A47)."""

    patient: RegisterPatient
    prior: Identifier


@dataclass(frozen=True, slots=True)
class VisitKey:
    """A visit by its number (PV1-19, MRG-5) and who gave it."""

    admission_id: str
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class MoveIdentifiers:
    """Identifiers, and what came in under them, go to the patient whom the others of the command name (A43)."""

    patient: RegisterPatient
    moved: tuple[Identifier, ...] = ()
    """Empty: those of the command that the patient of `prior` has, else all of `prior`."""
    prior: tuple[Identifier, ...] = ()
    """Other identifiers of the patient who had them."""


@dataclass(frozen=True, slots=True)
class MoveVisits:
    """Visits with their orders go to the patient (A44, A45), or to another number or account (A41, A42, A49, A50)."""

    patient: RegisterPatient
    prior: tuple[Identifier, ...] = ()
    """The patient who had them; empty: the same."""
    visits: tuple[tuple[VisitKey, VisitKey], ...] = ()
    """What they were called, and are called from now on."""
    prior_account: str = ""
    """Every visit of this account."""
    account: str = ""
    """The account they are on from now on."""


class OrderAction(Enum):
    """What an order group asks (from ORC-1; a source's table may map local codes)."""

    NEW = "new"
    CHANGE = "change"
    STATUS = "status"
    CANCEL = "cancel"
    DISCONTINUE = "discontinue"
    HOLD = "hold"
    RELEASE = "release"
    REPLACED = "replaced"
    """The old one of a pair (RP, RU): canceled. Its REPLACEMENT (RO) stands beside it in the same message."""
    REPLACEMENT = "replacement"
    NUMBER_ASSIGNED = "number assigned"
    """The other side tells us its order number (NA)."""
    QUESTION = "question"
    """What is the order's state (SS)? Nothing changes, but the order must be known."""
    NOTE = "note"
    """Nothing to change (PA, CH, RE, SR): keys and links are kept."""


@dataclass(frozen=True, slots=True)
class OrderKeys:
    """Every key by which an order group can be known; any subset may be there."""

    accession_number: str = ""
    issuer_of_accession_number: str = ""
    placer: OrderNumber = OrderNumber()
    filler: OrderNumber = OrderNumber()
    requested_procedure_id: str = ""
    study_instance_uid: str = ""
    scheduled_procedure_step_id: str = ""


@dataclass(frozen=True, slots=True)
class OrderGroup:
    """One ORC/OBR group. `status` is a StepStatus value that ORC-5 (or OBR-25) asks for, or empty.

    `request`, `procedure`, `step` hold attributes of the models of the same name. A step's start is
    `start` (aware datetime), `start_has_time`, `timezone_offset_from_utc`; its stations are lists.
    `cascade` is False when the group has no OBR, so that it concerns everything under its keys.
    """

    action: OrderAction
    keys: OrderKeys
    status: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    procedure: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)
    has_detail: bool = True
    """False for an ORC without OBR: the group concerns everything that its keys reach."""


@dataclass(frozen=True, slots=True)
class OrderPolicy:
    """How a source wants gaps to be handled (kept as data in its profile)."""

    accession_number: str = "make"
    """What a missing accession number means: `make` one, `placer` / `filler` number, or `refuse`."""
    start: str = "wait"
    """What a missing start means: `wait` for a clerk, or `now` (scheduled on arrival)."""
    unknown_order: str = "refuse"
    """A change, cancel or status of an order nobody knows: `refuse` (204), or `create` / `ignore`."""


@dataclass(frozen=True, slots=True)
class ApplyOrders:
    """The order groups of one message about one patient, in their order."""

    patient: RegisterPatient
    groups: tuple[OrderGroup, ...]
    facts_at: datetime | None = None
    source: str = ""
    policy: OrderPolicy = OrderPolicy()
    makes_patient: bool = True
    """False: the patient is compared with the order's, never made or changed (appointments)."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document that comes with a report: its bytes, and what the sender calls it."""

    content: bytes
    title: str = ""
    media_type: str = ""
    """As the sender says; its first bytes decide."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """A report that an outside system wrote: it becomes a version of the report of its procedure."""

    patient: RegisterPatient
    keys: OrderKeys
    status: str
    """A ReportStatus value: PRELIMINARY, FINAL, CORRECTED, ADDENDED or RETRACTED."""
    findings: str = ""
    impression: str = ""
    addendum: str = ""
    """With ADDENDED: what is added to the text that is known."""
    documents: tuple[Document, ...] = ()
    signer_name: str = ""
    signer_id: str = ""
    reported_at: datetime | None = None
    procedure: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of a procedure that must be made because the order is not known."""
    source: str = ""
    policy: OrderPolicy = OrderPolicy()


@dataclass(slots=True)
class Applied:
    """What a command did: for the message page, the audit row and the answer to the sender."""

    patient_ids: list[UUID] = field(default_factory=list)
    request_ids: list[UUID] = field(default_factory=list)
    step_ids: list[UUID] = field(default_factory=list)
    accession_numbers: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PerformedFacts:
    """What an MPPS N-CREATE or N-SET says. `steps` are the items of its Scheduled Step Attributes Sequence."""

    sop_instance_uid: str
    status: str
    """`IN PROGRESS`, `COMPLETED` or `DISCONTINUED`."""
    steps: tuple[OrderKeys, ...] = ()
    patient_identifiers: tuple[Identifier, ...] = ()
    patient_name: str = ""
    patient_birth_date: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of ris.models.PerformedProcedureStep that this message sets."""
    problems: tuple[str, ...] = ()
    """What the message lacks or has wrong and a clerk must look at, one sentence each."""
    said: Mapping[str, Any] = field(default_factory=dict)
    """This message alone, as it came, for those to whom it is told on; `ris` does not look into it."""
