"""A HIS: registers patients and orders exams by HL7 v2 over MLLP, as the script says, and keeps its own log.

It sends like a real one: one message at a time, each again with the same bytes and MSH-10 until it is
acknowledged, over a new connection whenever the old one broke.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from common.clock import now, to_site
from integration.hl7v2 import composing
from integration.hl7v2.names import write_xcn, write_xpn
from integration.hl7v2.sender import Answer, NotAnswered, Sender
from integration.hl7v2.timestamps import format_time
from integration.rehearsal.doors import Doors, GaveUp
from integration.rehearsal.people import Person
from integration.rehearsal.script import Exam

APPLICATION, FACILITY = "REHEARSAL_HIS", "REHEARSAL"
AUTHORITY = "REHEARSAL"
"""Assigning authority of the Patient IDs (CX.4)."""

ACK_SECONDS = 20.0

Segments = list[tuple[str, dict[int, Any]]]


@dataclass(slots=True)
class Sent:
    """One message in the HIS's log. `attempts` counts frames; `seconds` is the last one's way to its ACK."""

    kind: str
    control_id: str
    subject: str
    raw: bytes
    at: datetime
    attempts: int = 0
    repeats: int = 0
    codes: list[str] = field(default_factory=list)
    acknowledged_at: datetime | None = None
    seconds: float = 0.0
    complaint: str = ""


class His:
    """The sending side. `tag` begins each control id; safe for several threads."""

    def __init__(self, doors: Doors, tag: str) -> None:
        self.doors, self.tag = doors, tag
        self.log: list[Sent] = []
        self._turn = threading.Lock()
        self._sender: Sender | None = None

    # -- what it has to say

    def register(self, person: Person, event: str) -> Sent:
        """ADT^A01, A04, A05 or A08 of a person. Raises GaveUp when it is not accepted."""
        at = to_site(now())
        inpatient = event == "A01"
        segments: Segments = [
            ("EVN", {1: event, 2: format_time(at)}),
            pid(person, full=True),
            pv1(person, "I" if inpatient else "O"),
        ]
        return self._say("ADT", event, person.charset, person.number, segments, at)

    def merge(self, survivor: Person, prior: Person) -> Sent:
        """ADT^A40: the prior registration goes into the survivor's."""
        at = to_site(now())
        segments: Segments = [
            ("EVN", {1: "A40", 2: format_time(at)}),
            pid(survivor, full=True),
            ("MRG", {1: cx(prior.number), 7: write_xpn(prior.name)}),
        ]
        return self._say("ADT", "A40", survivor.charset, survivor.number, segments, at)

    def order(self, exam: Exam, control: str = "NW") -> Sent:
        """An order in its dialect: placed (NW) or cancelled (CA)."""
        at = to_site(now())
        build = {"ORM": _orm, "OMI": _omi, "OMG": _omg}[exam.dialect]
        event = {"ORM": "O01", "OMI": "O23", "OMG": "O19"}[exam.dialect]
        segments: Segments = [pid(exam.person), pv1(exam.person, "O"), *build(exam, control, at)]
        return self._say(exam.dialect, event, exam.person.charset, exam.placer, segments, at)

    def repeat(self, sent: Sent) -> None:
        """The same bytes once more, as a HIS does that lost our ACK. Raises GaveUp."""
        sent.repeats += 1
        self._send(sent)

    def close(self) -> None:
        """Hang up."""
        with self._turn:
            if self._sender:
                self._sender.close()

    # -- how it says it

    def _say(
        self, kind: str, event: str, charset: str, subject: str, segments: Segments, at: datetime
    ) -> Sent:
        version = "2.3.1" if kind == "ORM" else "2.5.1"
        structure = {"ADT": {"A40": "ADT_A39", "A05": "ADT_A05"}.get(event, "ADT_A01")}.get(
            kind, f"{kind}_{event}"
        )
        with self._turn:
            control_id = f"{self.tag}{len(self.log) + 1:05d}"
            sent = Sent(f"{kind}^{event}", control_id, subject, b"", now())
            self.log.append(sent)
        charset = _holding(segments, charset)
        msh = {
            3: APPLICATION,
            4: FACILITY,
            5: "ORDERLY",
            7: format_time(at.replace(tzinfo=None) if version == "2.3.1" else at),
            9: (kind, event) if version == "2.3.1" else (kind, event, structure),
            10: control_id,
            11: "T",  # table 0103: training
            12: version,
            18: charset,
        }
        sent.raw = composing.message([("MSH", msh), *segments], charset=charset, transliterate=False)
        self._send(sent)
        return sent

    def _send(self, sent: Sent) -> None:
        deadline = time.monotonic() + self.doors.patience
        while True:
            with self._turn:
                answer = self._try(sent)
            if answer is not None:
                sent.codes.append(answer.code)
                if answer.accepted:
                    sent.acknowledged_at = sent.acknowledged_at or now()
                    return
                sent.complaint = f"{answer.code} {','.join(answer.error_codes)}".strip()
                if answer.permanent:
                    raise GaveUp(f"{sent.kind} {sent.control_id} was refused: {sent.complaint} {answer.text}")
            if time.monotonic() > deadline:
                raise GaveUp(
                    f"{sent.kind} {sent.control_id} was not accepted within {self.doors.patience:.0f} s "
                    f"({sent.complaint or 'no ACK'})"
                )
            self.doors.pause()

    def _try(self, sent: Sent) -> Answer | None:
        """One attempt; None when no ACK came."""
        port = self.doors.port("mllp")
        if self._sender is None or self._sender.port != port:
            if self._sender:
                self._sender.close()
            self._sender = Sender(self.doors.host, port, ack_timeout=ACK_SECONDS)
        started = time.perf_counter()
        sent.attempts += 1
        try:
            answer = self._sender.send(sent.raw, sent.control_id)
        except NotAnswered:
            return None
        sent.seconds = time.perf_counter() - started
        return answer


def _holding(segments: Segments, charset: str) -> str:
    """The character set, if it holds everything that is said, else UTF-8."""
    try:
        composing.message(segments, charset=charset, transliterate=False)
    except ValueError:
        return "UNICODE UTF-8"
    return charset


# -- segments


def cx(number: str) -> tuple[str, ...]:
    """A Patient ID with its authority."""
    return (number, "", "", AUTHORITY, "MR")


def pid(person: Person, full: bool = False) -> tuple[str, dict[int, Any]]:
    """PID; `full` with what only a registration says."""
    fields: dict[int, Any] = {
        1: "1",
        3: [cx(person.number)],
        5: write_xpn(person.name),
        7: person.birth_date,
        8: person.sex,
    }
    if full:
        fields[11] = ("", "", person.city)
    return "PID", fields


def pv1(person: Person, patient_class: str) -> tuple[str, dict[int, Any]]:
    """PV1: class, ward and visit number."""
    place = ("RH-WARD", "1", "1") if patient_class == "I" else ("RH-AMBULANT",)
    return "PV1", {1: "1", 2: patient_class, 3: place, 19: (f"V{person.number[2:]}", "", "", AUTHORITY)}


def _physician(exam: Exam) -> tuple[str, ...]:
    number, name = exam.physician
    return write_xcn(number, name, AUTHORITY)


def _orm(exam: Exam, control: str, at: datetime) -> Segments:
    """ORM^O01 2.3.1 as IHE RAD-4 had it: keys in OBR-18 to 20, modality in OBR-24, the study UID in ZDS."""
    timing = ("", "", "", format_time(exam.start.replace(tzinfo=None)), "", exam.priority)
    procedure = exam.procedure
    return [
        (
            "ORC",
            {
                1: control,
                2: (exam.placer, FACILITY),
                7: timing,
                9: format_time(at.replace(tzinfo=None)),
                12: _physician(exam),
                18: exam.station.ae_title,
            },
        ),
        (
            "OBR",
            {
                1: "1",
                2: (exam.placer, FACILITY),
                4: (procedure.code, procedure.name, "RH", procedure.code, procedure.name, "RH"),
                16: _physician(exam),
                18: exam.accession,
                19: exam.procedure_id,
                20: exam.step_id,
                24: exam.station.modality,
                27: timing,
                31: ("", exam.reason),
            },
        ),
        ("ZDS", {1: (exam.study_uid, "", "Application", "DICOM")}),
    ]


def _omi(exam: Exam, control: str, at: datetime) -> Segments:
    """OMI^O23 2.5.1 as IHE RAD-4 has it: everything imaging needs in IPC."""
    procedure = exam.procedure
    ipc = {
        1: exam.accession,
        2: exam.procedure_id,
        3: exam.study_uid,
        4: exam.step_id,
        5: exam.station.modality,
        6: (procedure.code, procedure.name, "RH"),
        7: exam.station.name,
        8: exam.station.room,
        9: exam.station.ae_title,
    }
    return [*_omg(exam, control, at), ("IPC", ipc)]


def _omg(exam: Exam, control: str, at: datetime) -> Segments:
    """OMG^O19 2.5.1: a placer's number, a code and a time; the rest is left to the catalogue."""
    procedure = exam.procedure
    return [
        ("ORC", {1: control, 2: (exam.placer, FACILITY), 9: format_time(at), 12: _physician(exam)}),
        ("TQ1", {1: "1", 7: format_time(exam.start), 9: exam.priority}),
        (
            "OBR",
            {
                1: "1",
                2: (exam.placer, FACILITY),
                4: (procedure.code, procedure.name, "RH"),
                16: _physician(exam),
                31: ("", exam.reason),
            },
        ),
    ]
