"""What a destination may say of itself: the keys of `Destination.settings`, their defaults and meanings."""

import ssl
from dataclasses import dataclass
from typing import Any

from integration.models import Destination


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: what it is when nobody says anything, and what it means."""

    default: Any
    note: str


# Shown by docs/hl7.md and docs/fhir.md; config/site.py refuses any other key.
_KEYS: dict[str, Key] = {
    # -- the wire
    "tls": Key(False, "MLLP over TLS, with the certificate of ORDERLY_TLS_* as ours where the peer asks"),
    "tls_server_name": Key("", "the name the peer's certificate must carry, when it is not the host"),
    "certificate_file": Key("", "PEM file of our certificate for this peer, rather than that of ORDERLY_TLS_*"),
    "key_file": Key("", "PEM file of its private key, when it is not in `certificate_file`"),
    "ca_file": Key("", "PEM file of the authority that signs the peer's certificate, rather than ORDERLY_TLS_CA"),
    "connections": Key(1, "how many messages may be under way at once, each on its own connection"),
    "connect_seconds": Key(5.0, "bound of opening a connection"),
    "write_seconds": Key(30.0, "bound of writing one message"),
    "ack_seconds": Key(30.0, "bound of waiting for the ACK or the response"),
    "keep_open_seconds": Key(
        60.0, "how long a connection stays open for the next message; 0: closed when nothing waits"
    ),
    "per_minute": Key(0, "most messages a minute, evenly spaced; 0: as fast as it answers"),
    # -- what happens when it does not work
    "retry_seconds": Key(5.0, "pause after the first failure; doubles each time, with jitter"),
    "retry_seconds_most": Key(300.0, "the longest pause"),
    "give_up_hours": Key(168.0, "a message that could not be sent for so long is parked for a person"),
    "rejections_most": Key(8, "an AR (or 409, 412) is tried so often, then parked"),
    "circuit_after": Key(3, "transport failures in a row after which only one probe at a time is sent"),
    "lane": Key(
        "order",
        "`order`: messages of one order in order; `patient`: of one patient; `destination`: strictly one by one",
    ),
    "ack_rules": Key(
        {},
        "an MSA-1 code, an ERR-3 code, or both as `AE:207` → `park`, `retry` or `accept`; the closest rule counts",
    ),
    # -- HL7: who speaks to whom
    "sending_application": Key("ORDERLY", "MSH-3"),
    "sending_facility": Key("", "MSH-4; empty: the site's name"),
    "receiving_application": Key("", "MSH-5"),
    "receiving_facility": Key("", "MSH-6"),
    "processing_id": Key("P", "MSH-11: P, T or D"),
    "enhanced": Key(False, "ask for commit ACKs: MSH-15 AL, MSH-16 NE; off: original mode"),
    "application_ack": Key(False, "with `enhanced`: MSH-16 AL; delivered only by the AA that follows the CA"),
    "country": Key("", "MSH-17"),
    # -- HL7: how it is written
    "separators": Key("|^~\\&", "MSH-1 and MSH-2"),
    "charset": Key("UNICODE UTF-8", "MSH-18, table 0211; what it lacks is transliterated"),
    "obx_style": Key(
        "lines",
        "`lines`: one TX a line; `FT`: one OBX a section, lines parted by \\.br\\; `repeat`: one TX a section, a line"
        " a repetition; `PDF`: ED with the document; several: `lines+PDF`",
    ),
    "obx_codes": Key(
        {}, "OBX-3 of findings, impression, addendum, study, document, note: `code^text^system` each"
    ),
    "send_study_uids": Key(True, "OBX with the Study Instance UIDs (113014 DCM)"),
    "line_length": Key(0, "lines longer than this many characters go on in the next; 0: as written"),
    "obx_5_most": Key(0, "longest text OBX-5 as encoded, in characters; what is longer goes on in the next OBX"),
    "pdf_most_kb": Key(5000, "largest PDF in kB before Base64; 0: any"),
    "pdf_too_large": Key("park", "`park`: a person decides; `text`: the text alone, with an OBX that says so"),
    "pdf_fonts": Key([], "TrueType files for scripts other than Latin, Greek and Cyrillic in the PDF"),
    "pdf_subtype": Key("Application^PDF", "ED.2 and ED.3: `Application^PDF`, or as the receiver knows it"),
    "filler": Key("filler", "OBR-3: `filler` number (else accession), or `accession`"),
    "accession": Key("OBR-18", "where the accession number stands: OBR-18, or OBR-3 alone"),
    "ids": Key(
        {},
        "other places of placer, filler, accession, procedure, step, study: `OBR-18`, several parted by spaces,"
        " empty: nowhere; study also `ZDS`",
    ),
    "order_control": Key("RE", "ORC-1 of results; empty: no ORC segment"),
    "provider_authority": Key("", "XCN.9 of the physicians we name"),
    "result_status": Key({}, "our OBR-25 → theirs, such as C → F"),
    "observation_status": Key({}, "our OBX-11 → theirs"),
    "addendum": Key("replace", "`replace`: the whole text again, status C; `append`: the addendum alone"),
    "combined": Key(
        False, "a result names every procedure of its accession that has no report of its own, with ORC-1 CN"
    ),
    "order_status": Key({}, "our ORC-5 → theirs; an empty text keeps that status from being sent"),
    "status_control": Key({}, "our ORC-5 → ORC-1 of status messages, such as CA → OC; else SC"),
    # -- HL7: patients and documents
    "adt_events": Key(
        {}, "`created`, `changed`, `merged` → event; A04, A08, A40 unless said, empty: not sent"
    ),
    "adt_from": Key("any", "`any` change of a patient; `people`: only what did not itself come by HL7"),
    "document_type": Key("DI", "TXA-2 of MDM, table 0270"),
    # -- MPPS (DICOM)
    "called_ae": Key("", "AE title of an MPPS receiver"),
    "calling_ae": Key("", "AE title we call it with; empty: our own"),
    "stations": Key([], "MPPS of these Performed Station AE Titles only; empty: of all"),
    # -- FHIR
    "token": Key("", "bearer token we show"),
    "token_env": Key("", "name of the environment variable that holds the bearer token, rather than `token`"),
}  # fmt: skip

SETTING_KEYS = frozenset(_KEYS)


def setting(destination: Destination, key: str) -> Any:
    """A setting of a destination, else its default. Raises KeyError for a key nobody defined."""
    default = _KEYS[key].default
    return destination.settings.get(key, default)


def described() -> dict[str, Key]:
    """Every key with its default and note, for documentation and pages."""
    return dict(_KEYS)


def tls_context(destination: Destination) -> ssl.SSLContext:
    """The TLS settings for calls to this destination: its certificate is checked, ours shown where we have one."""
    from django.conf import settings

    context = ssl.create_default_context(
        cafile=setting(destination, "ca_file") or settings.ORDERLY_TLS_CA or None
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    own = setting(destination, "certificate_file")
    if own:
        context.load_cert_chain(own, setting(destination, "key_file") or None)
    elif settings.ORDERLY_TLS_CERTIFICATE:
        context.load_cert_chain(settings.ORDERLY_TLS_CERTIFICATE, settings.ORDERLY_TLS_KEY or None)
    return context
