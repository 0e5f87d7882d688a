"""What the index keeps of a data set: columns and DICOM JSON for its study, series and instance rows."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass, field
from datetime import date, time
from io import BytesIO
from typing import Any

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence

from common.rows import Row
from common.uids import is_loose_uid
from pacs.header import BIG_ENDIAN, IMPLICIT, SPECIFIC_CHARACTER_SET, Header, check_sequence
from pacs.matching import name_keys, parse_date, parse_time, text_key
from pacs.models import Instance, Series, Study

STUDY_INSTANCE_UID, SERIES_INSTANCE_UID = 0x0020000D, 0x0020000E
PATIENT_ID = 0x00100020
SOP_CLASS_UID, SOP_INSTANCE_UID = 0x00080016, 0x00080018
_LARGEST = {"instance_number": 2**63 - 1, "series_number": 2**63 - 1, "bits_allocated": 2**15 - 1}
_LARGEST_BY_DEFAULT = 2**31 - 1
_MAX_JSON_VALUE = 4096  #: bytes; a longer value is read from the file when somebody wants it


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag


# Column → keyword. The models say how long a text may be.
_STUDY = {
    "patient_id": "PatientID",
    "issuer_of_patient_id": "IssuerOfPatientID",
    "patient_name": "PatientName",
    "patient_birth_date": "PatientBirthDate",
    "patient_sex": "PatientSex",
    "accession_number": "AccessionNumber",
    "study_id": "StudyID",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "timezone_offset_from_utc": "TimezoneOffsetFromUTC",
    "study_description": "StudyDescription",
    "referring_physician_name": "ReferringPhysicianName",
}
_SERIES = {
    "modality": "Modality",
    "series_number": "SeriesNumber",
    "series_description": "SeriesDescription",
    "series_date": "SeriesDate",
    "series_time": "SeriesTime",
    "body_part_examined": "BodyPartExamined",
    "laterality": "Laterality",
    "protocol_name": "ProtocolName",
    "station_name": "StationName",
    "institution_name": "InstitutionName",
    "manufacturer": "Manufacturer",
    "manufacturer_model_name": "ManufacturerModelName",
    "performing_physician_name": "PerformingPhysicianName",
    "performed_procedure_step_start_date": "PerformedProcedureStepStartDate",
    "performed_procedure_step_start_time": "PerformedProcedureStepStartTime",
    "performed_procedure_step_id": "PerformedProcedureStepID",
    "frame_of_reference_uid": "FrameOfReferenceUID",
}
_INSTANCE = {
    "instance_number": "InstanceNumber",
    "rows": "Rows",
    "columns": "Columns",
    "bits_allocated": "BitsAllocated",
    "number_of_frames": "NumberOfFrames",
    "content_date": "ContentDate",
    "content_time": "ContentTime",
}

# Kept as DICOM JSON beside the columns.
_STUDY_JSON = (
    "ProcedureCodeSequence PhysiciansOfRecord NameOfPhysiciansReadingStudy AdmittingDiagnosesDescription "
    "ReferencedStudySequence ReferencedPatientSequence IssuerOfPatientIDQualifiersSequence PatientBirthTime "
    "OtherPatientIDs OtherPatientIDsSequence OtherPatientNames PatientAge PatientSize PatientWeight "
    "MedicalAlerts Allergies EthnicGroup Occupation AdditionalPatientHistory PregnancyStatus PatientComments "
    "RequestingPhysician RequestedProcedureDescription AdmissionID IssuerOfAccessionNumberSequence"
)
_SERIES_JSON = (
    "OperatorsName InstitutionalDepartmentName ReferencedPerformedProcedureStepSequence DeviceSerialNumber "
    "SoftwareVersions PatientPosition PerformedProcedureStepDescription PerformedProtocolCodeSequence "
    "RequestAttributesSequence AnatomicRegionSequence"
)
_INSTANCE_JSON = (
    "ImageType AcquisitionDate AcquisitionTime AcquisitionNumber InstanceCreationDate InstanceCreationTime "
    "SliceThickness SpacingBetweenSlices ImagePositionPatient ImageOrientationPatient SliceLocation "
    "SamplesPerPixel PhotometricInterpretation PixelSpacing ImagerPixelSpacing BitsStored HighBit "
    "PixelRepresentation WindowCenter WindowWidth RescaleIntercept RescaleSlope LossyImageCompression "
    "ViewPosition ImageLaterality ConceptNameCodeSequence CompletionFlag VerificationFlag DocumentTitle "
    "MIMETypeOfEncapsulatedDocument ContentLabel ContentDescription TemporalPositionIdentifier"
)

_REQUESTS = _tag("RequestAttributesSequence")
_ISSUER_OF_ACCESSION = _tag("IssuerOfAccessionNumberSequence")
_JSON_TAGS = {
    "study": tuple(_tag(keyword) for keyword in _STUDY_JSON.split()),
    "series": tuple(_tag(keyword) for keyword in _SERIES_JSON.split()),
    "instance": tuple(_tag(keyword) for keyword in _INSTANCE_JSON.split()),
}
_COLUMNS = {
    Study: tuple((column, _tag(keyword)) for column, keyword in _STUDY.items()),
    Series: tuple((column, _tag(keyword)) for column, keyword in _SERIES.items()),
    Instance: tuple((column, _tag(keyword)) for column, keyword in _INSTANCE.items()),
}

#: Every element that the index wants of a header.
WANTED = frozenset(
    {SPECIFIC_CHARACTER_SET, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID, SOP_CLASS_UID, SOP_INSTANCE_UID}
    | {tag for columns in _COLUMNS.values() for _, tag in columns}
    | {tag for tags in _JSON_TAGS.values() for tag in tags}
)


class Unindexable(ValueError):
    """The data set lacks what a row needs; says which, never a value."""


@dataclass(slots=True)
class Facts:
    """One object as the index sees it. Study and series are read on demand: one object of each is enough."""

    header: Header
    transfer_syntax_uid: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    modality: str = ""
    _read: dict[str, dict[str, Any]] = field(default_factory=dict)

    def study(self) -> dict[str, Any]:
        """Columns of the Study row that come from the data set."""
        if "study" not in self._read:
            columns = self._columns(Study)
            keys = name_keys(columns["patient_name"])
            columns["patient_name_search"] = keys[0]
            columns["patient_name_ideographic_search"], columns["patient_name_phonetic_search"] = keys[1:]
            columns["referring_physician_name_search"] = name_keys(columns["referring_physician_name"])[0]
            issuer = self._sequence(_ISSUER_OF_ACCESSION)
            columns["issuer_of_accession_number"] = _item_text(issuer, "LocalNamespaceEntityID", 64)
            columns["attributes"] = self._json("study")
            self._read["study"] = columns
        return self._read["study"]

    def series(self) -> dict[str, Any]:
        """Columns of the Series row that come from the data set."""
        if "series" not in self._read:
            columns = self._columns(Series)
            requests = self._sequence(_REQUESTS)
            columns["scheduled_procedure_step_id"] = _item_text(requests, "ScheduledProcedureStepID", 16)
            columns["requested_procedure_id"] = _item_text(requests, "RequestedProcedureID", 16)
            columns["attributes"] = self._json("series")
            self._read["series"] = columns
        return self._read["series"]

    def instance(self) -> dict[str, Any]:
        """Columns of the Instance row that come from the data set."""
        columns = self._columns(Instance)
        columns["attributes"] = self._json("instance")
        return columns

    def _columns(self, model: type[Row]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for column, tag in _COLUMNS[model]:
            vr = DicomDictionary[tag][0]
            if vr in ("US", "IS"):
                number = self.header.integer(tag)
                largest = _LARGEST.get(column, _LARGEST_BY_DEFAULT)
                smallest = -largest if column.endswith("_number") else 0
                found[column] = number if number is not None and smallest <= number <= largest else None
            elif vr == "DA" and column != "patient_birth_date":
                found[column] = _date(self.header.text(tag))
            elif vr == "TM":
                found[column] = _time(self.header.text(tag))
            else:
                most = model._meta.get_field(column).max_length  # type: ignore[union-attr]
                found[column] = text_key(self.header.text(tag).replace("\0", ""))[:most]
        return found

    def _json(self, level: str) -> dict[str, Any]:
        found = {}
        for tag in _JSON_TAGS[level]:
            raw = self.header.values.get(tag)
            if raw and len(raw) <= _MAX_JSON_VALUE:
                element = self._element(tag)
                if element is not None:
                    found[f"{tag:08X}"] = element
        return found

    def _element(self, tag: int) -> dict[str, Any] | None:
        """One element as DICOM JSON (PS3.18 annex F.2); None when it cannot be read."""
        vr = DicomDictionary[tag][0].split(" or ")[0]
        values: list[Any]
        try:
            if vr == "SQ":
                values = [item.to_json_dict() for item in self._sequence(tag)]
            elif vr in ("US", "SS", "UL", "SL"):
                values = self._numbers(tag, {"US": "H", "SS": "h", "UL": "I", "SL": "i"}[vr])
            elif vr == "PN":
                values = [_name(text) for text in self.header.texts(tag)]
            elif vr == "DS":
                values = [float(text) for text in self.header.texts(tag) if text]
            elif vr == "IS":
                values = [int(float(text)) for text in self.header.texts(tag) if text]
            elif vr in ("ST", "LT", "UT"):
                values = [self.header.plain(tag).replace("\0", "")]
            else:
                values = [text.replace("\0", "") for text in self.header.texts(tag)]
        except Exception:  # pydicom raises anything at all on malformed values within items
            return None
        return {"vr": vr, "Value": values} if values else None

    def _numbers(self, tag: int, code: str) -> list[int]:
        raw = self.header.values[tag]
        size = struct.calcsize("=" + code)
        order = "<" if self.header.little_endian else ">"
        return list(struct.unpack(f"{order}{len(raw) // size}{code}", raw[: len(raw) // size * size]))

    def _sequence(self, tag: int) -> list[Dataset]:
        """The items of a sequence; none when it is absent, long, or out of bounds."""
        raw = self.header.values.get(tag)
        if not raw or len(raw) > 16 * _MAX_JSON_VALUE:
            return []
        little, implicit = self.transfer_syntax_uid != BIG_ENDIAN, self.transfer_syntax_uid == IMPLICIT
        try:
            check_sequence(raw, implicit=implicit, little_endian=little)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return list(read_sequence(BytesIO(raw), implicit, little, len(raw), self.header.encodings))
        except Exception:  # pydicom raises anything at all on malformed input
            return []


def facts_of(header: Header, transfer_syntax_uid: str) -> Facts:
    """What the index takes from a header. Raises Unindexable when a UID is missing or no UID."""
    uids = {}
    for tag, keyword in (
        (STUDY_INSTANCE_UID, "StudyInstanceUID"),
        (SERIES_INSTANCE_UID, "SeriesInstanceUID"),
        (SOP_INSTANCE_UID, "SOPInstanceUID"),
        (SOP_CLASS_UID, "SOPClassUID"),
    ):
        uid = header.text(tag)
        if not is_loose_uid(uid):
            raise Unindexable(f"{keyword} is missing" if not uid else f"{keyword} is no UID")
        uids[keyword] = uid
    return Facts(
        header,
        transfer_syntax_uid,
        uids["StudyInstanceUID"],
        uids["SeriesInstanceUID"],
        uids["SOPInstanceUID"],
        uids["SOPClassUID"],
        text_key(header.text(_tag("Modality")).replace("\0", ""))[:16],
    )


def _item_text(items: list[Dataset], keyword: str, most: int) -> str:
    try:
        value = items[0].get(keyword, "") if items else ""
    except Exception:  # pydicom raises anything at all on malformed values
        value = ""
    return text_key(str(value or "").replace("\0", ""))[:most]


def _name(text: str) -> dict[str, str]:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.replace("\0", "").split("="), strict=False)
    return {name: group for name, group in groups if group}


def _date(text: str) -> date | None:
    try:
        return parse_date(text, strict=False)
    except ValueError:
        return None


def _time(text: str) -> time | None:
    try:
        return parse_time(text, strict=False)
    except ValueError:
        return None
