"""What codes mean, by HL7 table number, for people who look at a message; which field holds which table says hl7apy.

Only tables a radiology message is read by stand here; a code without a line is shown as it is.
"""

from functools import cache
from typing import Any

import hl7apy

from integration.hl7v2 import tables
from integration.hl7v2.errors import Code

_USUAL, _NEWEST = "2.5.1", "2.8.2"

TABLES: dict[str, dict[str, str]] = {
    "HL70001": {"A": "ambiguous", "F": "female", "M": "male", "N": "not applicable", "O": "other", "U": "unknown",
                "X": "other"},
    "HL70002": {"A": "separated", "D": "divorced", "M": "married", "S": "single", "W": "widowed", "U": "unknown",
                "P": "domestic partner", "T": "unreported"},
    "HL70003": tables.EVENTS,
    "HL70004": {"E": "emergency", "I": "inpatient", "O": "outpatient", "P": "pre-admit", "R": "recurring",
                "B": "obstetrics", "C": "commercial account", "N": "not applicable", "U": "unknown"},
    "HL70007": {"A": "accident", "E": "emergency", "L": "labor and delivery", "R": "routine", "N": "newborn",
                "U": "urgent", "C": "elective"},
    "HL70008": tables.ACKNOWLEDGMENT,
    "HL70009": {"A0": "no functional limitations", "A1": "ambulates with help", "A2": "wheelchair or bedfast",
                "A3": "comatose", "A4": "disoriented", "A5": "vision impaired", "A6": "hearing impaired",
                "B6": "pregnant"},
    "HL70027": {"S": "stat", "A": "as soon as possible", "R": "routine", "P": "preoperative", "T": "timing critical"},
    "HL70038": tables.ORDER_STATUS,
    "HL70065": {"A": "add to an existing specimen", "G": "generated", "L": "lab obtains the specimen",
                "O": "specimen obtained elsewhere", "P": "pending", "R": "revised", "S": "schedule the tests"},
    "HL70074": {"RAD": "radiology", "CT": "CT scan", "NMR": "magnetic resonance", "NMS": "nuclear medicine scan",
                "RUS": "radiology ultrasound", "RX": "radiograph", "XRC": "cineradiograph",
                "VUS": "vascular ultrasound",
                "OUS": "obstetric ultrasound", "RT": "radiation therapy", "CUS": "cardiac ultrasound",
                "EC": "electrocardiac", "LAB": "laboratory", "OTH": "other", "RC": "respiratory care",
                "SR": "surgery pathology", "PF": "pulmonary function", "CH": "chemistry", "HM": "hematology"},
    "HL70078": {"L": "below normal", "H": "above normal", "LL": "critically low", "HH": "critically high",
                "N": "normal", "A": "abnormal", "AA": "critically abnormal"},
    "HL70085": {"C": "correction", "D": "deleted", "F": "final", "I": "specimen in, pending", "N": "not asked",
                "O": "order detail only", "P": "preliminary", "R": "entered, not verified", "S": "partial",
                "U": "final without resending", "W": "wrong, sent for another patient", "X": "cannot be obtained",
                "B": "appended", "V": "verified"},
    "HL70103": tables.PROCESSING,
    "HL70119": tables.ORDER_CONTROL,
    "HL70121": {"E": "report exceptions", "R": "as E, and replacements", "D": "as R, and other segments",
                "F": "as D, and confirmations", "N": "only the MSA segment"},
    "HL70123": tables.RESULT_STATUS,
    "HL70124": {"CART": "cart", "PORT": "portable: the examiner goes to the patient", "WALK": "walks",
                "WHLC": "wheelchair"},
    "HL70125": {"AD": "address", "CE": "coded element", "CWE": "coded, with exceptions", "CX": "identifier",
                "DT": "date", "ED": "encapsulated data", "FT": "formatted text", "NM": "number", "PN": "name",
                "RP": "reference pointer", "SN": "structured number", "ST": "string", "TM": "time",
                "TS": "time stamp", "TX": "text", "XPN": "person name", "HD": "hierarchic designator"},
    "HL70127": {"DA": "drug allergy", "FA": "food allergy", "MA": "miscellaneous allergy",
                "MC": "miscellaneous contraindication", "EA": "environmental allergy", "LA": "pollen allergy"},
    "HL70128": {"SV": "severe", "MO": "moderate", "MI": "mild", "U": "unknown"},
    "HL70155": {"AL": "always", "NE": "never", "ER": "on error or reject only", "SU": "on success only"},
    "HL70136": {"Y": "yes", "N": "no"},
    "HL70190": {"B": "firm or business", "C": "current or temporary", "H": "home", "L": "legal", "M": "mailing",
                "O": "office", "P": "permanent", "BA": "bad address", "BR": "residence at birth",
                "F": "country of origin"},
    "HL70191": {"AP": "application data", "AU": "audio", "FT": "formatted text", "IM": "image", "TEXT": "text",
                "SD": "scanned document", "SI": "scanned image", "multipart": "MIME multipart", "TX": "text",
                "Application": "application data"},
    "HL70200": {"A": "alias", "B": "name at birth", "C": "adopted", "D": "display name", "I": "licensing name",
                "L": "legal name", "M": "maiden name", "N": "nickname", "P": "partner's name", "S": "pseudonym",
                "T": "tribal name", "U": "unspecified"},
    "HL70201": {"PRN": "primary residence", "ORN": "other residence", "WPN": "work", "VHN": "vacation home",
                "ASN": "answering service", "EMR": "emergency", "NET": "e-mail", "BPN": "beeper", "PRS": "personal"},
    "HL70202": {"PH": "telephone", "FX": "fax", "MD": "modem", "CP": "cell phone", "BP": "beeper",
                "Internet": "e-mail", "X.400": "X.400", "TDD": "text telephone", "SAT": "satellite phone"},
    "HL70203": {"MR": "medical record number", "PI": "patient internal identifier", "PN": "person number",
                "PT": "patient external identifier", "SS": "social security number", "DL": "driver's license",
                "AN": "account number", "VN": "visit number", "NH": "national health plan", "NI": "national identifier",
                "NNUSA": "national person identifier", "HC": "health card number",
                "JHN": "jurisdictional health number",
                "EI": "employee number", "MC": "Medicare number", "MA": "Medicaid number", "PPN": "passport number",
                "U": "unspecified", "XX": "organization identifier", "DN": "doctor number", "NPI": "national provider",
                "MD": "medical license", "FI": "facility identifier", "ACSN": "accession number", "PLAC": "placer",
                "FILL": "filler", "BC": "bank card", "SR": "state registry", "TAX": "tax number"},
    "HL70204": {"A": "alias", "D": "display name", "L": "legal name", "SL": "stock exchange name"},
    "HL70211": {"ASCII": "seven-bit ASCII", "8859/1": "Latin 1", "8859/2": "Latin 2", "8859/5": "Cyrillic",
                "8859/6": "Arabic", "8859/7": "Greek", "8859/8": "Hebrew", "8859/9": "Latin 5",
                "8859/15": "Latin 9", "UNICODE UTF-8": "Unicode", "UNICODE": "Unicode", "ISO IR87": "Japanese",
                "GB 18030-2000": "Chinese", "KS X 1001": "Korean", "BIG-5": "traditional Chinese"},
    "HL70270": {"CN": "consultation", "DI": "diagnostic imaging", "DS": "discharge summary",
                "HP": "history and physical",
                "OP": "operative report", "PN": "procedure note", "PR": "progress note", "TS": "transfer summary"},
    "HL70271": {"AU": "authenticated", "DI": "dictated", "DO": "documented", "IN": "incomplete", "IP": "in progress",
                "LA": "legally authenticated", "PA": "pre-authenticated"},
    "HL70276": {"CHECKUP": "check-up", "EMERGENCY": "emergency", "FOLLOWUP": "follow-up", "ROUTINE": "routine",
                "WALKIN": "walk-in"},
    "HL70278": {"Pending": "not confirmed", "Booked": "booked", "Waitlist": "on a waiting list",
                "Started": "started", "Complete": "complete", "Cancelled": "cancelled", "Dc": "discontinued",
                "Deleted": "deleted", "Noshow": "the patient did not come", "Blocked": "blocked",
                "Overbook": "overbooked"},
    "HL70291": {"PDF": "PDF", "JPEG": "JPEG image", "RTF": "rich text", "HTML": "HTML", "XML": "XML",
                "DICOM": "DICOM", "Octet-stream": "bytes"},
    "HL70299": {"A": "not encoded", "Base64": "Base64", "Hex": "hexadecimal"},
    "HL70357": {str(int(code)): code.meaning.lower() for code in Code},
    "HL70485": {"S": "stat", "A": "as soon as possible", "R": "routine", "P": "preoperative", "C": "callback",
                "T": "timing critical", "TS": "timing critical, seconds", "TM": "timing critical, minutes",
                "TH": "timing critical, hours", "PRN": "as needed"},
    "HL70516": {"E": "error", "F": "fatal error", "I": "information", "W": "warning"},
}  # fmt: skip


def meaning(segment: str, field: int, component: int, value: str, version: str = _USUAL) -> str:
    """What a code at this place means; empty when nothing is known of it. `component` 0 is the whole field."""
    if not value or len(value) > 40:
        return ""
    if (segment, field) in (("ORC", 7), ("OBR", 27)) and component == 6:
        return TABLES["HL70485"].get(value, "")
    table = table_of(segment, field, component, version)
    return TABLES.get(table, {}).get(value, "")


@cache
def table_of(segment: str, field: int, component: int, version: str = _USUAL) -> str:
    """The HL7 table of a place by hl7apy, such as `HL70119`; empty when it has none."""
    for one in (version if version in hl7apy.SUPPORTED_LIBRARIES else _USUAL, _USUAL, _NEWEST):
        library: Any = hl7apy.load_library(one)
        entry = library.FIELDS.get(f"{segment}_{field}")
        if not entry:
            continue
        if entry[4] and component <= 1:
            return str(entry[4])
        part = library.DATATYPES.get(f"{entry[2]}_{max(component, 1)}")
        if part and part[4]:
            return str(part[4])
    return ""
