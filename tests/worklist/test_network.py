"""The worklist through the DICOM door: rights, transfer syntaxes, cancelling, scanners of other makers."""

from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, Association

from pacs.dimse.admission import Known
from tests.ris.making import group, place, who
from tests.worklist.asking import door, query
from worklist.models import QueryLog
from worklist.scp import MODALITY_WORKLIST_FIND

pytestmark = pytest.mark.django_db(transaction=True)


def associate(port: int, *syntaxes: str, title: str = "CT01") -> Association:
    """An association of pynetdicom's that proposes the worklist."""
    ae = AE(title)
    ae.add_requested_context(MODALITY_WORKLIST_FIND, list(syntaxes) or [ExplicitVRLittleEndian])
    return ae.associate("127.0.0.1", port, ae_title="ORDERLY")


def ask(assoc: Association, ds: Dataset) -> tuple[list[Dataset], int]:
    """The identifiers of one query, and the final status."""
    answers, final = [], -1
    for answer, identifier in assoc.send_c_find(ds, MODALITY_WORKLIST_FIND):
        if identifier is not None:
            answers.append(identifier)
        final = answer.Status
    return answers, final


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
def test_every_transfer_syntax_is_spoken(syntax: str) -> None:
    place(group(accession="A1", scheduled_station_ae_titles=["CT01"]), patient=who(name="Müller^Jürgen"))
    with door() as port:
        assoc = associate(port, syntax)
        assert assoc.is_established
        answers, final = ask(assoc, query(PatientName="müll*", SpecificCharacterSet="ISO_IR 100"))
        assoc.release()
    assert final == 0x0000
    assert [str(a.PatientName) for a in answers] == ["Müller^Jürgen"]


def test_several_queries_share_an_association_and_a_refused_one_does_not_end_it() -> None:
    place(group(accession="A1"))
    with door() as port:
        assoc = associate(port)
        assert len(ask(assoc, query())[0]) == 1
        bad = query(step={"ScheduledProcedureStepStartDate": "2026*"})
        assert ask(assoc, bad) == ([], 0xA900)
        assert len(ask(assoc, query())[0]) == 1
        assoc.release()


def test_who_has_no_right_to_the_worklist_gets_none() -> None:
    with door(Known("CT01", "*", frozenset({"echo"}))) as port:
        assoc = associate(port)
        assert not assoc.is_established
    assert not QueryLog.objects.exists()


def test_a_scanner_s_own_settings_reach_its_queries() -> None:
    place(group(accession="A1", scheduled_station_ae_titles=["CT01"]))
    place(group(accession="A2", scheduled_station_ae_titles=["CT02"]), patient=who("2"))
    settings = {"worklist": {"see": "own"}}
    with door(Known("*", "*", frozenset({"worklist"}), options=settings)) as port:
        assoc = associate(port, title="CT02")
        answers, _ = ask(assoc, query())
        assoc.release()
    assert [a.AccessionNumber for a in answers] == ["A2"]


def test_a_cancelled_query_ends_early_and_the_association_lives_on() -> None:
    # More than the sockets between us hold, so that the query cannot be over before the cancel arrives.
    comments = "x" * 10_000
    for patient in range(20):
        renamed = [
            group(accession=f"B{patient}-{n}", sps=f"S{n}", rp=f"R{n}", comments=comments) for n in range(40)
        ]
        place(*renamed, patient=who(f"p{patient}"))
    with door() as port:
        assoc = associate(port)
        final, count = -1, 0
        ds = query(step={"CommentsOnTheScheduledProcedureStep": ""})
        for answer, identifier in assoc.send_c_find(ds, MODALITY_WORKLIST_FIND, msg_id=7):
            count += identifier is not None
            if count == 1:
                assoc.send_c_cancel(7, query_model=MODALITY_WORKLIST_FIND)
            final = answer.Status
        assert final == 0xFE00
        assert count < 800
        assert ask(assoc, query(AccessionNumber="B3-4"))[1] == 0x0000
        assoc.release()
    assert QueryLog.objects.filter(status=0xFE00).exists()
