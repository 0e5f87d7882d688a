"""Reports from outside: ORU^R01, and MDM documents, as reports to be filed with `ris`. Pure."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from common.uids import is_loose_uid
from integration.hl7v2 import names, orders, patients
from integration.hl7v2.errors import Code, Location, refuse
from integration.hl7v2.reading import Segment
from integration.hl7v2.scope import Head, Scope, clean, facts_at, instant
from ris.commands import Document, FileReport, OrderKeys, OrderNumber, OrderPolicy, RegisterPatient

# OBR-25 (table 0123) → what the report becomes; the others say that there is none yet.
RESULT_STATUS: Mapping[str, str] = {
    "P": "PRELIMINARY", "R": "PRELIMINARY", "A": "PRELIMINARY", "M": "PRELIMINARY", "N": "PRELIMINARY",
    "F": "FINAL", "C": "CORRECTED", "X": "RETRACTED",
}  # fmt: skip

# TXA-17 (table 0271), document completion status.
DOCUMENT_STATUS: Mapping[str, str] = {
    "AU": "FINAL", "LA": "FINAL", "DO": "PRELIMINARY", "PA": "PRELIMINARY", "IP": "PRELIMINARY",
    "IN": "PRELIMINARY", "DI": "PRELIMINARY",
}  # fmt: skip

# MDM events with content; T06 adds to what is known, T11 takes it back.
DOCUMENTS = ("T02", "T04", "T06", "T08", "T10", "T11")
# Events that announce a document → the event that brings it; some senders put the text into them all the same.
ANNOUNCED: Mapping[str, str] = {"T01": "T02", "T03": "T04", "T05": "T06", "T07": "T08", "T09": "T10"}

_STUDY = frozenset({"113014", "dicom study", "study instance uid", "110180"})
_OTHER_UIDS = frozenset({"series instance uid", "sr instance uid", "112002", "sop instance uid"})
_IMPRESSION = frozenset({"i", "imp", "impression", "impressions", "conclusion", "19005-8"})
_ADDENDUM = frozenset({"adt", "add", "addendum", "55107-7"})
_NO_RESULT = frozenset({"D", "W", "X", "N"})  # OBX-11: deleted, wrong, none obtained, not asked for
# ED.2 (table 0191) → the first half of a media type (RFC 2045).
_FAMILIES = {
    "ap": "application",
    "im": "image",
    "ns": "application",
    "sd": "text",
    "ft": "text",
    "tx": "text",
}
_TEXTS = frozenset({"TX", "FT", "ST", "CE", "CWE", "NM", "SN", "DT", "TM", "TS", "DTM", ""})


@dataclass(slots=True)
class Texts:
    """What the OBX of a group say."""

    findings: list[str] = field(default_factory=list)
    impression: list[str] = field(default_factory=list)
    addendum: list[str] = field(default_factory=list)
    study_instance_uid: str = ""
    documents: list[str] = field(default_factory=list)
    """Kinds of documents that travel inside (ED): `PDF`, `text/xml`."""
    attached: list[Document] = field(default_factory=list)
    """Those of them whose bytes could be read."""


@dataclass(slots=True)
class Reports:
    """The reports of a message, with the scope that tells where an attribute stands."""

    commands: list[FileReport]
    scopes: list[Scope]

    def locate(self, attribute: str, group: int | None) -> Location:
        """The place in the message to which a refusal of `ris` points."""
        scope = self.scopes[0]
        if attribute == "report":
            return scope.segment("OBX").at(5) if scope.segment("OBX") else scope.segment("OBR").at()
        return orders.locate(scope, attribute)


def results(head: Head) -> Reports | None:
    """The reports of an ORU; None when no group of it is one. Raises Refused."""
    found, scopes = [], []
    for segments in orders.runs(head.message.segments):
        scope = Scope(head, segments)
        obr = scope.segment("OBR")
        status = RESULT_STATUS.get(clean(obr.value(25)).upper()) if obr else None
        if status is None:
            continue
        texts = read_texts(scope)
        signer = names.read_cnn(obr, 32) or names.read_cnn(obr, 33)
        reported = scope.lenient_time("reported_at")
        found.append(
            FileReport(
                patient=_patient(head),
                keys=_keys(scope, texts),
                status=status,
                findings="\n".join(texts.findings) or _of_documents(texts),
                impression="\n".join(texts.impression),
                addendum="\n".join(texts.addendum),
                documents=tuple(texts.attached),
                signer_name=str(signer.name) if signer else "",
                signer_id=signer.id if signer else "",
                reported_at=instant(reported, head.zone) if reported else facts_at(Scope(head)),
                procedure=_procedure(scope),
                source=head.profile.name,
                policy=_policy(head),
            )
        )
        scopes.append(scope)
    return Reports(found, scopes) if found else None


def document(head: Head) -> Reports | None:
    """The report of an MDM; None of one that only announces a document. Raises Refused."""
    event = head.message.trigger_event
    if event in ANNOUNCED and not head.message.all("OBX"):
        head.warnings.append("The message announces a document and has no text of it; it is kept.")
        return None
    event = ANNOUNCED.get(event, event)
    scope = Scope(head, head.message.segments)
    txa = scope.segment("TXA")
    if not txa:
        raise refuse(Code.SEGMENT_SEQUENCE, "A document needs a TXA segment.", Location("TXA", 1))
    texts = read_texts(scope)
    body = "\n".join(texts.findings) or _of_documents(texts)
    signer = names.read_xcn(txa, 22) or names.read_xcn(txa, 9)
    status = DOCUMENT_STATUS.get(clean(txa.value(17)).upper(), "FINAL")
    if event in ("T06", "T11"):
        status = "ADDENDED" if event == "T06" else "RETRACTED"
    command = FileReport(
        patient=_patient(head),
        keys=_document_keys(scope, texts),
        status=status,
        findings="" if event in ("T06", "T11") else body,
        impression="" if event in ("T06", "T11") else "\n".join(texts.impression),
        addendum=body if event == "T06" else "\n".join(texts.addendum),
        documents=tuple(texts.attached),
        signer_name=str(signer.name) if signer else "",
        signer_id=signer.id if signer else "",
        reported_at=facts_at(Scope(head)),
        source=head.profile.name,
        policy=_policy(head),
    )
    return Reports([command], [scope])


def read_texts(scope: Scope) -> Texts:
    """The report text of a group's OBX (and NTE), sorted by their labels (OBX-3, any component)."""
    texts = Texts()
    for obx in scope.own.get("OBX", ()):
        labels = {c.strip().casefold() for c in obx.components(3) if c.strip()}
        if clean(obx.value(11)).upper() in _NO_RESULT or labels & _OTHER_UIDS:
            continue
        kind = clean(obx.value(2)).upper()
        if labels & _STUDY:
            uid = clean(obx.value(5))
            texts.study_instance_uid = texts.study_instance_uid or (uid if is_loose_uid(uid) else "")
        elif kind == "ED":
            texts.documents.append(clean(obx.value(5, 3)) or clean(obx.value(5, 2)) or "document")
            _attach(obx, scope, texts)
        elif kind in _TEXTS:
            target = texts.findings
            if labels & _IMPRESSION:
                target = texts.impression
            elif labels & _ADDENDUM:
                target = texts.addendum
            target.append(_line(obx, kind))
    texts.findings += [clean(n.text(3)) for n in scope.own.get("NTE", ()) if n.text(3)]
    return texts


def _attach(obx: Segment, scope: Scope, texts: Texts) -> None:
    """The document in an ED (source, type, subtype, encoding, data); one that cannot be read is noted."""
    kind, subtype = clean(obx.value(5, 2)).lower(), clean(obx.value(5, 3)).lower()
    try:
        content = _decoded(clean(obx.value(5, 4)).lower(), obx.component(5, 5))
    except ValueError:
        content = b""
    if not content:
        scope.head.warnings.append(
            f"{obx.at(5, 5)}: this document cannot be read; it is kept in the message alone."
        )
        return
    title = clean(obx.value(3, 2)) or clean(obx.value(3))
    family = _FAMILIES.get(kind, kind or "application")
    media_type = subtype if "/" in subtype else f"{family}/{subtype or 'octet-stream'}"
    texts.attached.append(Document(content, title, media_type))


def _decoded(encoding: str, data: str) -> bytes:
    """The bytes of ED.5 by its encoding (table 0299). Raises ValueError."""
    if encoding in ("hex",):
        return bytes.fromhex("".join(data.split()))
    if encoding in ("a", "ascii", "none"):
        return data.encode()
    return base64.b64decode("".join(data.split()), validate=True)


def _line(obx: Segment, kind: str) -> str:
    """One OBX as a line of text: coded values by their meaning, numbers with their unit."""
    if kind in ("CE", "CWE"):
        return clean(obx.value(5, 2)) or clean(obx.value(5))
    if kind in ("NM", "SN"):
        label = clean(obx.value(3, 2)) or clean(obx.value(3))
        return f"{label}: {clean(obx.text(5))} {clean(obx.value(6))}".strip()
    return clean("\n".join(obx.decoded(r) for r in obx.repetitions(5)) if kind == "TX" else obx.text(5))


def _of_documents(texts: Texts) -> str:
    """What a report says whose text is a document: that it is one, and where it lies."""
    if not texts.documents:
        return ""
    where = "it is kept with this version" if texts.attached else "it lies in the message"
    return f"The report is a document ({', '.join(texts.documents)}); {where}."


def _patient(head: Head) -> RegisterPatient:
    return patients.register(head, Scope(head), authoritative=False)


def _keys(scope: Scope, texts: Texts) -> OrderKeys:
    keys = orders.keys(scope)
    if keys.study_instance_uid or not texts.study_instance_uid:
        return keys
    return OrderKeys(
        keys.accession_number,
        keys.issuer_of_accession_number,
        keys.placer,
        keys.filler,
        keys.requested_procedure_id,
        texts.study_instance_uid,
        keys.scheduled_procedure_step_id,
    )


def _document_keys(scope: Scope, texts: Texts) -> OrderKeys:
    """An MDM's order: its own ORC and OBR where it has them, else TXA-14 and TXA-15."""
    keys = _keys(scope, texts)
    txa = scope.segment("TXA")
    placer = keys.placer if keys.placer.value else _number(txa, 14)
    filler = keys.filler if keys.filler.value else _number(txa, 15)
    return OrderKeys(
        keys.accession_number,
        keys.issuer_of_accession_number,
        placer,
        filler,
        keys.requested_procedure_id,
        keys.study_instance_uid,
    )


def _number(txa: Segment, number: int) -> OrderNumber:
    value = str(clean(txa.value(number)))
    return OrderNumber(value, str(clean(txa.value(number, 2)))) if value else OrderNumber()


def _procedure(scope: Scope) -> dict[str, str]:
    code = scope.code("procedure_code")
    if not code:
        return {}
    return {
        **{k: str(v) for k, v in code.items()},
        "requested_procedure_description": str(code["code_meaning"]),
    }


def _policy(head: Head) -> OrderPolicy:
    """Of a result: its order is made by what the source says of unknown orders; a made accession is never refused."""
    return OrderPolicy(accession_number="make", unknown_order=head.profile["unknown_order"])
