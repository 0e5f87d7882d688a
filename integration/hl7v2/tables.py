"""Tables of the standard that the door needs, each with its number; events and structures of table 0354."""

# Table 0354 / 0003: trigger event → message structure (2.5.1; chapters 3, 4, 7, 9, 10).
STRUCTURES: dict[str, str] = {
    "ADT^A01": "ADT_A01", "ADT^A02": "ADT_A02", "ADT^A03": "ADT_A03", "ADT^A04": "ADT_A01", "ADT^A05": "ADT_A05",
    "ADT^A06": "ADT_A06", "ADT^A07": "ADT_A06", "ADT^A08": "ADT_A01", "ADT^A09": "ADT_A09", "ADT^A10": "ADT_A09",
    "ADT^A11": "ADT_A09", "ADT^A12": "ADT_A12", "ADT^A13": "ADT_A01", "ADT^A14": "ADT_A05", "ADT^A15": "ADT_A15",
    "ADT^A16": "ADT_A16", "ADT^A17": "ADT_A17", "ADT^A18": "ADT_A18", "ADT^A20": "ADT_A20", "ADT^A21": "ADT_A21",
    "ADT^A22": "ADT_A21", "ADT^A23": "ADT_A21", "ADT^A24": "ADT_A24", "ADT^A32": "ADT_A21", "ADT^A33": "ADT_A21",
    "ADT^A37": "ADT_A37", "ADT^A46": "ADT_A30", "ADT^A48": "ADT_A30", "ADT^A51": "ADT_A50", "ADT^A52": "ADT_A52",
    "ADT^A53": "ADT_A52", "ADT^A54": "ADT_A54", "ADT^A55": "ADT_A52", "ADT^A61": "ADT_A61", "ADT^A62": "ADT_A61",
    "ADT^A25": "ADT_A21", "ADT^A26": "ADT_A21", "ADT^A27": "ADT_A21", "ADT^A28": "ADT_A05", "ADT^A29": "ADT_A21",
    "ADT^A30": "ADT_A30", "ADT^A31": "ADT_A05", "ADT^A34": "ADT_A30", "ADT^A35": "ADT_A30", "ADT^A36": "ADT_A30",
    "ADT^A42": "ADT_A39", "ADT^A49": "ADT_A30", "ADT^A50": "ADT_A50", "ADT^A38": "ADT_A38", "ADT^A39": "ADT_A39",
    "ADT^A40": "ADT_A39", "ADT^A41": "ADT_A39", "ADT^A43": "ADT_A43", "ADT^A44": "ADT_A43", "ADT^A45": "ADT_A45",
    "ADT^A47": "ADT_A30", "ADT^A60": "ADT_A60", "ORM^O01": "ORM_O01", "ORR^O02": "ORR_O02", "OMG^O19": "OMG_O19",
    "ORG^O20": "ORG_O20", "OMI^O23": "OMI_O23", "ORI^O24": "ORI_O24", "ORU^R01": "ORU_R01", "SIU^S12": "SIU_S12",
    "SIU^S13": "SIU_S12", "SIU^S14": "SIU_S12", "SIU^S15": "SIU_S12", "SIU^S16": "SIU_S12", "SIU^S17": "SIU_S12",
    "SIU^S26": "SIU_S12", "MDM^T01": "MDM_T01", "MDM^T02": "MDM_T02", "MDM^T03": "MDM_T01", "MDM^T04": "MDM_T02",
    "MDM^T05": "MDM_T01", "MDM^T06": "MDM_T02", "MDM^T07": "MDM_T01", "MDM^T08": "MDM_T02", "MDM^T09": "MDM_T01",
    "MDM^T10": "MDM_T02", "MDM^T11": "MDM_T01",
}  # fmt: skip

# Table 0003: what an event means, for pages.
EVENTS: dict[str, str] = {
    "A01": "admit", "A02": "transfer", "A03": "discharge", "A04": "register", "A05": "pre-admit",
    "A06": "outpatient to inpatient", "A07": "inpatient to outpatient", "A08": "update patient",
    "A09": "patient departing", "A10": "patient arriving", "A11": "cancel admit", "A12": "cancel transfer",
    "A13": "cancel discharge", "A14": "pending admit", "A15": "pending transfer", "A16": "pending discharge",
    "A17": "swap patients", "A18": "merge patients (old)", "A19": "patient query", "A20": "bed status",
    "A21": "leave of absence begins", "A22": "leave of absence ends", "A23": "delete patient record",
    "A24": "link patients", "A25": "cancel pending discharge", "A26": "cancel pending transfer",
    "A27": "cancel pending admit", "A28": "add person", "A29": "delete person", "A30": "merge person (old)",
    "A31": "update person", "A32": "cancel patient arriving", "A33": "cancel patient departing",
    "A34": "merge identifier (old)", "A35": "merge account (old)", "A36": "merge identifier and account (old)",
    "A37": "unlink patients", "A38": "cancel pre-admit", "A39": "merge person (old)", "A40": "merge identifier list",
    "A41": "merge account", "A42": "merge visit", "A49": "change account", "A50": "change visit number",
    "A43": "move patient identifiers", "A44": "move account", "A45": "move visit",
    "A46": "change external patient id (old)", "A47": "change identifier", "A48": "change alternate patient id (old)",
    "A51": "change alternate visit number", "A52": "cancel leave of absence", "A53": "cancel end of leave of absence",
    "A54": "change attending doctor", "A55": "cancel change of attending doctor", "A60": "update allergies",
    "A61": "change consulting doctor", "A62": "cancel change of consulting doctor", "O01": "order",
    "O02": "order response", "O19": "clinical order", "O20": "clinical order response", "O23": "imaging order",
    "O24": "imaging order response", "R01": "result", "S12": "new appointment", "S13": "reschedule",
    "S14": "change appointment", "S15": "cancel appointment", "S16": "discontinue appointment",
    "S17": "delete appointment", "S18": "add service or resource", "S19": "change service or resource",
    "S20": "cancel service or resource", "S21": "discontinue service or resource",
    "S22": "delete service or resource", "S23": "block schedule slots", "S24": "open schedule slots",
    "S26": "no show", "T01": "document notification", "T02": "document", "T03": "document status notification",
    "T04": "document status change and content", "T07": "edit notification", "T05": "addendum notification",
    "T06": "addendum", "T08": "document edit", "T09": "replacement notification", "T10": "document replacement",
    "T11": "document cancel",
}  # fmt: skip

# Table 0119: order control codes (ORC-1).
ORDER_CONTROL: dict[str, str] = {
    "AF": "order refill granted", "CA": "cancel order", "CH": "child order", "CN": "combined result",
    "CR": "cancelled as requested", "DC": "discontinue order", "DE": "data errors", "DR": "discontinued as requested",
    "HD": "hold order", "HR": "held as requested", "LI": "link to a goal", "NA": "number assigned", "NW": "new order",
    "OC": "order cancelled", "OD": "order discontinued", "OE": "order released", "OH": "order held",
    "OK": "order accepted", "OP": "notification of order for dispense", "OR": "released as requested",
    "PA": "parent order", "RE": "observations follow", "RL": "release held order", "RO": "replacement order",
    "RP": "replace order", "RQ": "replaced as requested", "RR": "request received", "RU": "replaced unsolicited",
    "SC": "status changed", "SN": "send number", "SR": "response to status request", "SS": "status request",
    "UA": "unable to accept", "UC": "unable to cancel", "UD": "unable to discontinue", "UH": "unable to hold",
    "UM": "unable to replace", "UR": "unable to release", "UX": "unable to change", "XO": "change order",
    "XR": "changed as requested", "XX": "order changed, unsolicited",
}  # fmt: skip

# Table 0119: what answers a request, accepted and refused.
CONTROL_ANSWERS: dict[str, tuple[str, str]] = {
    "NW": ("OK", "UA"), "CA": ("CR", "UC"), "DC": ("DR", "UD"), "HD": ("HR", "UH"), "RL": ("OR", "UR"),
    "RP": ("RQ", "UM"), "XO": ("XR", "UX"), "SS": ("SR", "UA"), "SN": ("NA", "UA"),
}  # fmt: skip

# Table 0038: order status (ORC-5).
ORDER_STATUS: dict[str, str] = {
    "A": "some results available", "CA": "cancelled", "CM": "completed", "DC": "discontinued",
    "ER": "error", "HD": "on hold", "IP": "in progress", "RP": "replaced", "SC": "scheduled",
}  # fmt: skip

# Table 0123: result status (OBR-25).
RESULT_STATUS: dict[str, str] = {
    "O": "order received", "I": "in process", "S": "scheduled", "A": "some results", "P": "preliminary",
    "C": "correction", "R": "stored, not verified", "F": "final", "X": "cancelled", "Y": "no order", "Z": "no patient",
    "M": "corrected, not final", "N": "done, pending",
}  # fmt: skip

# Table 0008: acknowledgment code.
ACKNOWLEDGMENT: dict[str, str] = {
    "AA": "accepted", "AE": "error", "AR": "rejected", "CA": "commit accepted", "CE": "commit error",
    "CR": "commit rejected",
}  # fmt: skip

# Table 0103: processing id.
PROCESSING: dict[str, str] = {"P": "production", "T": "training", "D": "debugging"}

# Table 0001: administrative sex → DICOM Patient's Sex (0010,0040): M, F, O.
SEX: dict[str, str] = {"M": "M", "F": "F", "O": "O", "A": "O", "N": "O", "U": "", "C": ""}

# Table 0027 and its use in TQ1-9 (0485): priority → DICOM Requested Procedure Priority (0040,1003), CP of PS3.3 C.4.11.
PRIORITY: dict[str, str] = {
    "S": "STAT", "STAT": "STAT", "A": "HIGH", "ASAP": "HIGH", "P": "HIGH", "C": "HIGH", "R": "ROUTINE",
    "ROUTINE": "ROUTINE", "T": "MEDIUM", "TS": "MEDIUM",
}  # fmt: skip

VERSIONS = (
    "2.1",
    "2.2",
    "2.3",
    "2.3.1",
    "2.4",
    "2.5",
    "2.5.1",
    "2.6",
    "2.7",
    "2.7.1",
    "2.8",
    "2.8.1",
    "2.8.2",
    "2.9",
)


def structure_of(message_type: str, trigger_event: str) -> str:
    """The message structure (MSH-9.3) of a type and event; empty when the table has none."""
    return STRUCTURES.get(f"{message_type}^{trigger_event}", "")
