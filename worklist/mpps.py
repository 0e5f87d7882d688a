"""Modality Performed Procedure Step (PS3.4 annex F): N-CREATE, N-SET and N-GET, translated for `ris` to decide.

What breaks the rules of the state machine is refused with the codes of PS3.7. What a scanner merely leaves out
or gets wrong while reporting what it did (no series, no end time, an impossible date) is taken, kept as
received, and shown to a clerk; an AE with `mpps = { strict = true }` is refused there, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from django.db import IntegrityError, OperationalError
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag, tag_for_keyword

from common import audit, cause
from common.clock import site_zone
from common.store import Unit, unit_of_work
from common.uids import is_loose_uid, is_uid, new_uid
from pacs.dimse import status
from pacs.dimse.registry import Outcome, Refused, Registry, Request
from pacs.matching import parse_date, parse_time
from ris.commands import Identifier, OrderKeys, OrderNumber, PerformedFacts
from ris.errors import BadValue, DuplicateKey, Missing, NotAllowed, Refusal, UnknownKey
from ris.models import PerformedProcedureStep
from ris.services import steps

log = logging.getLogger(__name__)

MPPS = "1.2.840.10008.3.1.2.3.3"
MPPS_RETRIEVE = "1.2.840.10008.3.1.2.3.4"
NO_LONGER_UPDATED = 0xA710
"""Error ID of PS3.4 F.7.2.2.2: the object may no longer be updated."""
IN_PROGRESS = "IN PROGRESS"
STATUSES = (IN_PROGRESS, "COMPLETED", "DISCONTINUED")
TRIES = 3
WAITS_FOR_CREATE = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between looks for an N-CREATE that is still on its way when its N-SET arrives."""


def _tags(*keywords: str) -> tuple[int, ...]:
    return tuple(tag for k in keywords if (tag := tag_for_keyword(k)) is not None)


# Table F.7.2-1. Type 1 of N-CREATE, then its type 2.
_TYPE_1 = _tags(
    "ScheduledStepAttributesSequence",
    "PerformedProcedureStepID",
    "PerformedStationAETitle",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "PerformedProcedureStepStatus",
    "Modality",
)
_TYPE_2 = _tags(
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "ReferencedPatientSequence",
    "PerformedStationName",
    "PerformedLocation",
    "StudyID",
    "PerformedProcedureStepDescription",
    "PerformedProcedureTypeDescription",
    "ProcedureCodeSequence",
    "PerformedProtocolCodeSequence",
    "PerformedProcedureStepEndDate",
    "PerformedProcedureStepEndTime",
    "PerformedSeriesSequence",
)
# Not allowed in N-SET: the patient and the scheduled steps; and, for a strict AE, what N-CREATE fixed.
_NEVER_SET = _tags(
    "ScheduledStepAttributesSequence",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "ReferencedPatientSequence",
)
_FIXED = _tags(
    "PerformedProcedureStepID",
    "PerformedStationAETitle",
    "PerformedStationName",
    "PerformedLocation",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "Modality",
    "StudyID",
)
_STUDY_INSTANCE_UID, _STATUS = _tags("StudyInstanceUID", "PerformedProcedureStepStatus")
_SCHEDULED_STEPS, _SERIES = _tags("ScheduledStepAttributesSequence", "PerformedSeriesSequence")
_END_DATE, _END_TIME = _tags("PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime")


def register(registry: Registry) -> None:
    """Serve MPPS, and its retrieval."""
    registry.add(MPPS, "N-CREATE", create, service="mpps")
    registry.add(MPPS, "N-SET", set_, service="mpps")
    registry.add(MPPS_RETRIEVE, "N-GET", get, service="mpps")


# -- the services


def create(request: Request) -> Outcome:
    """N-CREATE: a scanner has begun. Without a SOP Instance UID we make one and return it."""
    uid = request.command.affected_sop_instance_uid
    if uid and not is_loose_uid(uid):
        raise Refused(status.INVALID_OBJECT_INSTANCE, "a SOP Instance UID has digits and dots only")
    made = "" if uid else new_uid()
    ds = request.dataset
    strict = _is_strict(request)
    check_create(ds, strict=strict)
    zone = _zone(ds, request)
    facts = facts_of(ds, uid or made, IN_PROGRESS, zone)
    _carry_out(request, lambda unit: _perform(facts, unit, create=True), uid or made)
    return Outcome(elements={"AffectedSOPInstanceUID": made} if made else {})


def set_(request: Request) -> Outcome:
    """N-SET: a scanner goes on, or has ended. Data without any attribute changes nothing."""
    uid = request.command.affected_sop_instance_uid
    if not is_loose_uid(uid):
        raise Refused(status.INVALID_OBJECT_INSTANCE, "a SOP Instance UID has digits and dots only")
    ds = request.dataset
    problems = check_set(ds, strict=_is_strict(request))
    zone = _zone(ds, request)
    facts = facts_of(ds, uid, str(ds.get("PerformedProcedureStepStatus") or "").strip(), zone)
    facts = replace(facts, problems=(*problems, *facts.problems))
    for wait in (*WAITS_FOR_CREATE, None):
        try:
            _carry_out(request, lambda unit: _perform(facts, unit, create=False), uid)
            return Outcome()
        except Refused as refused:
            if refused.status != status.NO_SUCH_SOP_INSTANCE or wait is None:
                raise
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def get(request: Request) -> Outcome:
    """N-GET: what we hold of a performed step; the attributes that were asked for, else all."""
    row = PerformedProcedureStep.objects.filter(
        sop_instance_uid=request.command.affected_sop_instance_uid
    ).first()
    if row is None:
        raise Refused(status.NO_SUCH_SOP_INSTANCE, "no such performed procedure step")
    held = Dataset.from_json(row.attributes)
    wanted = request.command.get("AttributeIdentifierList")
    if wanted:
        wanted = {wanted} if isinstance(wanted, int) else set(wanted)
        for tag in [elem.tag for elem in held if int(elem.tag) not in wanted]:
            del held[tag]
    if any(not _is_ascii(elem.value) for elem in held.iterall() if elem.VR != "SQ"):
        held.SpecificCharacterSet = "ISO_IR 192"
    audit.record(
        f"ae:{request.assoc.calling_ae}",
        "read",
        "performed step",
        patients=[row.patient_id] if row.patient_id else [],
        objects=[row.id],
        address=request.assoc.address or None,
    )
    return Outcome(data=request.encode(held))


def _is_ascii(value: Any) -> bool:
    return str(value).isascii()


def _perform(facts: PerformedFacts, unit: Unit, *, create: bool) -> PerformedProcedureStep:
    return steps.perform(facts if create else _on_top(facts), unit, create=create)


def _on_top(facts: PerformedFacts) -> PerformedFacts:
    """The facts of an N-SET with its attributes laid over those that are kept."""
    kept = (
        PerformedProcedureStep.objects.select_for_update()
        .filter(sop_instance_uid=facts.sop_instance_uid)
        .values_list("attributes", flat=True)
        .first()
    )
    values = {**facts.values, "attributes": {**(kept or {}), **facts.values["attributes"]}}
    return replace(facts, values=values)


def _carry_out(
    request: Request, perform: Callable[[Unit], PerformedProcedureStep], uid: str
) -> PerformedProcedureStep:
    """Do it in one transaction, again after a deadlock; refusals become the codes of PS3.7."""
    for attempt in range(1, TRIES + 1):
        try:
            with unit_of_work(cause.mpps(uid)) as unit:
                row = perform(unit)
                audit.record(
                    f"ae:{request.assoc.calling_ae}",
                    "change",
                    "performed step",
                    patients=[row.patient_id] if row.patient_id else [],
                    objects=[row.id],
                    address=request.assoc.address or None,
                )
            return row
        except Refusal as refusal:
            raise refused(refusal) from None
        except IntegrityError:
            raise Refused(
                status.DUPLICATE_SOP_INSTANCE, "this performed procedure step exists already"
            ) from None
        except OperationalError as error:
            if attempt == TRIES:
                log.error("%s: MPPS not stored: %s", request.assoc.id, type(error).__name__)
                raise Refused(status.RESOURCE_LIMITATION, "the database is busy or away; try again") from None
    raise AssertionError("the last attempt returns or raises")


def refused(refusal: Refusal) -> Refused:
    """A refusal of `ris` in the words of PS3.7 annex C."""
    if isinstance(refusal, NotAllowed):
        return Refused(status.PROCESSING_FAILURE, refusal.text, ErrorID=NO_LONGER_UPDATED)
    if isinstance(refusal, DuplicateKey):
        return Refused(status.DUPLICATE_SOP_INSTANCE, refusal.text)
    if isinstance(refusal, UnknownKey):
        return Refused(status.NO_SUCH_SOP_INSTANCE, refusal.text)
    if isinstance(refusal, Missing):
        return Refused(status.MISSING_ATTRIBUTE, refusal.text)
    if isinstance(refusal, BadValue):
        return Refused(status.INVALID_ATTRIBUTE_VALUE, refusal.text)
    return Refused(status.PROCESSING_FAILURE, refusal.text)


def _is_strict(request: Request) -> bool:
    options = (request.assoc.peer.options if request.assoc.peer else {}).get("mpps") or {}
    return bool(options.get("strict"))


# -- checks


def _refuse(code: int, text: str, *tags: int) -> Refused:
    return Refused(code, text, AttributeIdentifierList=list(tags))


def check_create(ds: Dataset, *, strict: bool = False) -> None:
    """Whether the data set may begin a performed step. Raises Refused."""
    missing = [tag for tag in _TYPE_1 if tag not in ds]
    if missing:
        raise _refuse(status.MISSING_ATTRIBUTE, _named("missing", missing), *missing)
    empty = [tag for tag in _TYPE_1 if _is_empty(ds, tag)]
    if empty:
        raise _refuse(status.MISSING_ATTRIBUTE_VALUE, _named("empty", empty), *empty)
    if str(ds.PerformedProcedureStepStatus).strip() != IN_PROGRESS:
        raise _refuse(status.INVALID_ATTRIBUTE_VALUE, "begin with IN PROGRESS", _STATUS)
    if any(_is_empty(item, _STUDY_INSTANCE_UID) for item in ds.ScheduledStepAttributesSequence):
        raise _refuse(
            status.INVALID_ATTRIBUTE_VALUE, "a scheduled step without StudyInstanceUID", _SCHEDULED_STEPS
        )
    lacking = [tag for tag in _TYPE_2 if tag not in ds]
    if lacking and strict:
        raise _refuse(status.MISSING_ATTRIBUTE, _named("missing", lacking), *lacking)


def check_set(ds: Dataset, *, strict: bool = False) -> list[str]:
    """Whether the data set may change a performed step. Raises Refused; gives what a clerk must look at."""
    forbidden = [tag for tag in (*_NEVER_SET, *(_FIXED if strict else ())) if tag in ds]
    if forbidden:
        raise _refuse(status.NO_SUCH_ATTRIBUTE, _named("may not be set", forbidden), *forbidden)
    if _STATUS not in ds:
        return []
    if _is_empty(ds, _STATUS):
        raise _refuse(status.MISSING_ATTRIBUTE_VALUE, "the status is empty", _STATUS)
    said = str(ds.PerformedProcedureStepStatus).strip()
    if said not in STATUSES:
        raise _refuse(status.INVALID_ATTRIBUTE_VALUE, f"the status is one of {', '.join(STATUSES)}", _STATUS)
    if said == IN_PROGRESS:
        return []
    problems = []
    lacking = [tag for tag in (_SERIES, _END_DATE, _END_TIME) if _is_empty(ds, tag)]
    if lacking and strict:
        raise _refuse(status.MISSING_ATTRIBUTE_VALUE, _named("empty", lacking), *lacking)
    if _SERIES in lacking:
        problems.append("Ended without any performed series.")
    if _END_DATE in lacking or _END_TIME in lacking:
        problems.append("Ended without an end date and time.")
    nameless = [item for item in ds.get("PerformedSeriesSequence") or () if not item.get("SeriesInstanceUID")]
    if nameless and strict:
        raise _refuse(status.INVALID_ATTRIBUTE_VALUE, "a performed series without SeriesInstanceUID", _SERIES)
    if nameless:
        problems.append("A performed series has no Series Instance UID.")
    return problems


def _is_empty(ds: Dataset, tag: int) -> bool:
    if tag not in ds:
        return True
    value = ds[tag].value
    return value is None or len(str(value).strip()) == 0 or (ds[tag].VR == "SQ" and len(value) == 0)


def _named(what: str, tags: Iterable[int]) -> str:
    return f"{what}: {', '.join(keyword_for_tag(tag) for tag in tags)}"


# -- translation


def facts_of(ds: Dataset, uid: str, said: str, zone: tzinfo) -> PerformedFacts:
    """What the data set says, in the words of `ris`; only what it has."""
    problems: list[str] = []
    message = as_json(ds)
    values: dict[str, Any] = {"attributes": message}
    for keyword, name, length in (
        ("PerformedProcedureStepID", "performed_procedure_step_id", 64),
        ("PerformedStationAETitle", "performed_station_ae_title", 16),
        ("Modality", "modality", 16),
        ("PerformedProcedureStepDescription", "description", 200),
    ):
        if keyword in ds:
            values[name] = _text(ds, keyword)[:length]
    for keyword, name in (("Start", "started_at"), ("End", "ended_at")):
        day, clock = f"PerformedProcedureStep{keyword}Date", f"PerformedProcedureStep{keyword}Time"
        if _text(ds, day):
            values[name] = _moment(_text(ds, day), _text(ds, clock), zone)
            if values[name] is None:
                problems.append(f"{keyword} date or time is impossible.")
    if "PerformedSeriesSequence" in ds:
        values["series"] = [series_of(item) for item in ds.PerformedSeriesSequence or ()]
    if "PerformedProcedureStepDiscontinuationReasonCodeSequence" in ds:
        reasons = ds.PerformedProcedureStepDiscontinuationReasonCodeSequence or ()
        values["discontinuation_reason"] = _code(reasons[0]) if reasons else {}
    items = ds.get("ScheduledStepAttributesSequence") or ()
    if items:
        uids = [_text(item, "StudyInstanceUID") for item in items]
        values["study_instance_uids"] = list(dict.fromkeys(u for u in uids if is_uid(u) or is_loose_uid(u)))
    return PerformedFacts(
        sop_instance_uid=uid,
        status=said,
        steps=tuple(keys_of_step(item) for item in items),
        patient_identifiers=_identifiers(ds),
        patient_name=_text(ds, "PatientName"),
        patient_birth_date=_text(ds, "PatientBirthDate"),
        values=values,
        problems=tuple(problems),
        said=message,
    )


def keys_of_step(item: Dataset) -> OrderKeys:
    """The keys in an item of the Scheduled Step Attributes Sequence."""
    return OrderKeys(
        accession_number=_text(item, "AccessionNumber"),
        placer=OrderNumber(_text(item, "PlacerOrderNumberImagingServiceRequest")),
        filler=OrderNumber(_text(item, "FillerOrderNumberImagingServiceRequest")),
        requested_procedure_id=_text(item, "RequestedProcedureID"),
        study_instance_uid=_text(item, "StudyInstanceUID"),
        scheduled_procedure_step_id=_text(item, "ScheduledProcedureStepID"),
    )


def series_of(item: Dataset) -> dict[str, Any]:
    """One performed series with the instances that it references."""
    references = [
        *(item.get("ReferencedImageSequence") or ()),
        *(item.get("ReferencedNonImageCompositeSOPInstanceSequence") or ()),
    ]
    return {
        "series_instance_uid": _text(item, "SeriesInstanceUID"),
        "protocol_name": _text(item, "ProtocolName"),
        "series_description": _text(item, "SeriesDescription"),
        "performing_physician_name": _text(item, "PerformingPhysicianName"),
        "operators_name": _text(item, "OperatorsName"),
        "retrieve_ae_title": _text(item, "RetrieveAETitle"),
        "sop_instance_uids": [_text(r, "ReferencedSOPInstanceUID") for r in references],
    }


def _identifiers(ds: Dataset) -> tuple[Identifier, ...]:
    value = _text(ds, "PatientID")
    if not value:
        return ()
    qualifiers = ds.get("IssuerOfPatientIDQualifiersSequence") or ()
    universal = _text(qualifiers[0], "UniversalEntityID") if qualifiers else ""
    kind = _text(qualifiers[0], "UniversalEntityIDType") if qualifiers else ""
    return (Identifier(value, _text(ds, "IssuerOfPatientID"), universal, kind),)


def _code(item: Dataset) -> dict[str, str]:
    return {
        "code_value": _text(item, "CodeValue"),
        "coding_scheme_designator": _text(item, "CodingSchemeDesignator"),
        "code_meaning": _text(item, "CodeMeaning"),
    }


def _text(ds: Dataset, keyword: str) -> str:
    """The first value as text, without padding; "" when absent. NUL, which PostgreSQL cannot hold, goes."""
    value = ds.get(keyword)
    if value is None:
        return ""
    if not isinstance(value, str) and isinstance(value, Iterable) and type(value).__name__ == "MultiValue":
        value = next(iter(value), "")
    return str(value).replace("\0", "").strip()


def _zone(ds: Dataset, request: Request) -> tzinfo:
    """The zone of the data set's times: (0008,0201), else the scanner's, else the site's."""
    text = _text(ds, "TimezoneOffsetFromUTC")
    if (
        len(text) == 5
        and text[0] in "+-"
        and text[1:].isdecimal()
        and int(text[1:3]) < 15
        and int(text[3:]) < 60
    ):
        minutes = int(text[1:3]) * 60 + int(text[3:])
        return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))
    options: Mapping[str, Any] = request.assoc.peer.options if request.assoc.peer else {}
    name = (options.get("worklist") or {}).get("timezone")
    try:
        return ZoneInfo(name) if name else site_zone()
    except (KeyError, ValueError, OSError):
        return site_zone()


def _moment(day: str, clock: str, zone: tzinfo) -> datetime | None:
    """A date and time of the scanner's clock as an instant in UTC; None when there is no such moment."""
    try:
        time_of_day = parse_time(clock, strict=False) if clock else parse_time("00")
        return datetime.combine(parse_date(day, strict=False), time_of_day, zone).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def as_json(ds: Dataset) -> dict[str, Any]:
    """The whole data set as DICOM JSON (PS3.18 annex F), without what cannot be read or stored."""
    found: dict[str, Any] = ds.to_json_dict(suppress_invalid_tags=True)
    return _storable(found)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {key: _storable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_storable(inner) for inner in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
