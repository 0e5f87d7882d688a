"""Elements that several resources share: identifiers, codings, names, references, times."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import Any
from urllib.parse import quote
from uuid import UUID

from common.names import NameGroup, PersonName, parse_pn

Resource = dict[str, Any]

DCM = "http://dicom.nema.org/resources/ontology/DCM"
LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"
V2_0074 = "http://terminology.hl7.org/CodeSystem/v2-0074"
DICOM_UID = "urn:dicom:uid"

# Coding Scheme Designator (PS3.16 section 8.2) → FHIR code system. Others need the site's own table, for a raw
# designator is no system.
SCHEMES: Mapping[str, str] = {
    "DCM": DCM,
    "LN": LOINC,
    "SCT": SNOMED,
    "SRT": SNOMED,
    "SNM3": SNOMED,
    "RADLEX": "http://www.radlex.org",
    "UCUM": "http://unitsofmeasure.org",
    "I10": "http://hl7.org/fhir/sid/icd-10",
    "I10C": "http://hl7.org/fhir/sid/icd-10-cm",
    "I9C": "http://hl7.org/fhir/sid/icd-9-cm",
    "C4": "http://www.ama-assn.org/go/cpt",
    "CPT": "http://www.ama-assn.org/go/cpt",
}
# Legacy designators that carry SNOMED-RT style codes, which are not SNOMED CT concept ids.
_NOT_CONCEPT_IDS = frozenset({"SRT", "SNM3"})

_OID = re.compile(r"[0-2](\.(0|[1-9]\d*))+\Z")


class Systems:
    """What a site calls its authorities and local code systems: namespace or designator → URI."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self.names: Mapping[str, str] = dict(names or {})

    def authority(self, namespace: str, universal_id: str = "", universal_id_type: str = "") -> str:
        """The system of an identifier: what the site says, else the OID, UUID or URI, else `urn:id:NAMESPACE`."""
        if namespace in self.names:
            return self.names[namespace]
        kind = universal_id_type.upper()
        if universal_id and (kind == "ISO" or _OID.match(universal_id)):
            return f"urn:oid:{universal_id}"
        if universal_id and kind in ("UUID", "GUID"):
            return f"urn:uuid:{universal_id.lower()}"
        if universal_id and kind in ("URI", "URL"):
            return universal_id
        return f"urn:id:{quote(namespace or universal_id, safe='')}" if namespace or universal_id else ""

    def coding(self, code: str, designator: str = "", display: str = "") -> Resource:
        """A Coding; without a system where nobody knows the designator's."""
        system = self.names.get(designator) or SCHEMES.get(designator.upper(), "")
        if designator.upper() in _NOT_CONCEPT_IDS and not code.isdigit():
            system = ""
        return without_empty({"system": system, "code": code, "display": display})


def without_empty(element: Mapping[str, Any]) -> Resource:
    """The element without what is empty: FHIR has no nulls, no empty texts and no empty lists."""
    return {key: value for key, value in element.items() if value not in (None, "", [], {})}


def reference(kind: str, pk: UUID | str, display: str = "") -> Resource:
    """A relative reference to one of our resources."""
    return without_empty({"reference": f"{kind}/{pk}", "type": kind, "display": display})


def concept(codings: Iterable[Resource] = (), text: str = "") -> Resource:
    """A CodeableConcept."""
    return without_empty({"coding": [c for c in codings if c], "text": text.strip()})


def coded(system: str, code: str, display: str = "") -> Resource:
    """A Coding of a known system."""
    return without_empty({"system": system, "code": code, "display": display})


def identifier(
    value: str, system: str = "", type_code: str = "", *, use: str = "", assigner: str = ""
) -> Resource:
    """An Identifier; `type_code` is of table 0203."""
    return without_empty(
        {
            "use": use,
            "type": concept([coded(V2_0203, type_code)]) if type_code else None,
            "system": system,
            "value": value.strip(),
            "assigner": {"display": assigner} if assigner else None,
        }
    )


def accession(value: str, issuer: str, systems: Systems) -> Resource:
    """The accession number, type ACSN."""
    return identifier(value, systems.authority(issuer), "ACSN", assigner=issuer)


def study_uid(uid: str) -> Resource:
    """A Study Instance UID as identifiers carry it: `urn:oid:` before it, unlike series.uid."""
    return {
        "type": concept([coded(DCM, "110180", "Study Instance UID")]),
        "system": DICOM_UID,
        "value": f"urn:oid:{uid}",
    }


def person(name: str, number: str = "") -> Resource | None:
    """Somebody we have no resource of: the name, and the number others know them by."""
    display = parse_pn(name).display()
    if not display and not number:
        return None
    return without_empty({"display": display, "identifier": {"value": number} if number else None})


def human_names(pn: str) -> list[Resource]:
    """HumanName for each representation of a PN value; the alphabetic one first."""
    name: PersonName = parse_pn(pn)
    groups = ((name.alphabetic, ""), (name.ideographic, "IDE"), (name.phonetic, "SYL"))
    return [_human_name(group, code) for group, code in groups if group]


def _human_name(group: NameGroup, representation: str) -> Resource:
    result = without_empty(
        {
            "use": "official",
            "text": group.display(),
            "family": group.family,
            "given": [*group.given.split(), *group.middle.split()],
            "prefix": group.prefix.split(),
            "suffix": [group.suffix] if group.suffix else [],
        }
    )
    if representation:
        url = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"
        result["extension"] = [{"url": url, "valueCode": representation}]
    return result


def birth_date(text: str) -> str:
    """YYYY, YYYYMM or YYYYMMDD as a FHIR date of the same precision; empty when it is no date."""
    try:
        if len(text) == 8:
            return date(int(text[:4]), int(text[4:6]), int(text[6:])).isoformat()
        if len(text) == 6 and 1 <= int(text[4:]) <= 12:
            return f"{int(text[:4]):04d}-{text[4:]}"
        return f"{int(text):04d}" if len(text) == 4 else ""
    except ValueError:
        return ""


def instant(moment: datetime) -> str:
    """An aware datetime as FHIR instant, in UTC, to the second."""
    return moment.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def dicom_time(day: date | None, clock: time | None, offset: str, zone: tzinfo | None) -> str:
    """A DICOM date and time as FHIR dateTime.

    FHIR forbids a time without zone: it is the object's own (0008,0201), else the facility's `zone`, else only
    the date is said. Never a guess.
    """
    if day is None:
        return ""
    own = read_offset(offset) or zone
    if clock is None or own is None:
        return day.isoformat()
    return datetime.combine(day, clock.replace(microsecond=0)).replace(tzinfo=own).isoformat()


def read_offset(text: str) -> timezone | None:
    """Timezone Offset From UTC (0008,0201), `&ZZXX`; None when there is none or it is wrong."""
    match = re.match(r"([+-])(\d{2})([0-5]\d)\Z", text.strip())
    if not match or int(match[2]) > 14:
        return None
    distance = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return timezone(-distance if match[1] == "-" else distance)


def unsigned(number: int | None) -> int | None:
    """An unsignedInt of FHIR (0 to 2^31-1), or None."""
    return number if number is not None and 0 <= number < 2**31 else None
