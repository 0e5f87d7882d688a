"""A changed profile over stored messages: what would differ is told, and nothing is changed."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from common.store import unit_of_work
from integration import solving
from integration.analyst import dryrun, versions
from integration.analyst.dryrun import Line
from integration.models import DryRun, Message, OutboxItem, Source
from integration.sources import ProfileError
from ris.models import (
    AssigningAuthority,
    Change,
    ImagingServiceRequest,
    Patient,
    RequestedProcedure,
    ScheduledProcedureStep,
)
from ris.services import authorities, lanes
from tests.integration.hl7v2.making import adt, merge, orm

pytestmark = pytest.mark.django_db

Send = Callable[[bytes], Message]


def changed(source: Source, **profile: Any) -> dict[str, Any]:
    return {**versions.values_of(source), "profile": {**source.profile, **profile}}


def test_a_field_that_would_be_read_elsewhere_differs_in_the_order(his: Source, send: Send):
    for number in range(3):
        send(orm(placer=f"PL{number}", filler=f"F{number}", accession=f"A{number}"))
    found = dryrun.compare(his, changed(his, accession_number="ORC-3.1, make"))
    assert (found.messages, found.same, len(found.differs)) == (3, 0, 3)
    assert found.outcomes == {}
    assert found.differs[0].lines == [Line("Order", "accession_number", "A0", "F0")]
    assert found.attributes == [("Order: accession_number", 3)]


def test_a_message_that_would_be_refused_says_so_with_its_reason(his: Source, send: Send):
    row = send(orm(placer="PL1"))
    found = dryrun.compare(his, changed(his, accession_number="OBR-18, refuse"))
    assert found.outcomes == {"applied → refused": 1}
    assert found.differs[0].message_id == row.pk
    assert "accession" in found.differs[0].problem_after.lower()
    assert found.differs[0].lines == []


def test_a_refused_message_that_would_be_applied_is_told_too(his: Source, send: Send):
    Source.objects.filter(pk=his.pk).update(profile={"accession_number": "OBR-18, refuse"})
    his.refresh_from_db()
    from integration import sources

    sources.forget()
    row = send(orm(placer="PL1"))
    assert row.state == "refused"
    found = dryrun.compare(his, changed(his, accession_number="OBR-18, make"))
    assert found.outcomes == {"refused → applied": 1}


def test_the_same_profile_differs_in_nothing_though_numbers_and_uids_are_made_anew(his: Source, send: Send):
    send(adt("A04"))
    send(orm(placer="PL1"))
    send(orm(placer="PL1", control="XO", start="20260305100000"))
    send(orm(placer="PL1", control="CA"))
    send(merge("P1^^^HOSP^MR", "P2^^^HOSP^MR"))
    found = dryrun.compare(his, changed(his))
    assert (found.messages, found.same, found.differs) == (5, 5, [])


def test_an_order_from_before_the_last_messages_is_known_to_the_trial_as_it_was_then(his: Source, send: Send):
    send(orm(placer="PL1", accession="A1", start="20260302090000"))
    send(orm(placer="PL1", accession="A1", control="XO", start="20260303100000"))
    found = dryrun.compare(his, changed(his, modality="'MR'"), messages=1)
    assert found.messages == 1 and found.outcomes == {}  # known, so the change is not refused
    assert found.differs[0].lines == [Line("Step", "modality", "CT", "MR")]


def test_what_was_changed_since_is_taken_back_before_the_trial(his: Source, send: Send):
    send(orm(placer="PL1", accession="A1"))
    send(orm(placer="PL1", accession="A1", control="XO", start="20260303100000"))
    send(orm(placer="PL1", accession="A1", control="CA"))
    found = dryrun.compare(his, changed(his, start="'20300101'"), messages=2)
    assert found.outcomes == {}
    assert {(x.what, x.attribute) for d in found.differs for x in d.lines} >= {("Step", "start")}


def test_a_dry_run_changes_no_row_and_leaves_no_memory(his: Source, send: Send):
    send(orm(placer="PL1", accession="A1"))
    models = (
        Patient,
        ImagingServiceRequest,
        RequestedProcedure,
        ScheduledProcedureStep,
        Change,
        OutboxItem,
        AssigningAuthority,
    )
    before = [sorted(map(str, m.objects.values_list())) for m in models]
    known = list(authorities._everybodys)
    dryrun.compare(his, changed(his, default_authority="NEW", patient_identifiers="PID-3.1"))
    assert [sorted(map(str, m.objects.values_list())) for m in models] == before
    assert authorities._everybodys == known
    assert not AssigningAuthority.objects.filter(namespace="NEW").exists()
    send(orm(placer="PL2", accession="A2"))  # prepared statements find the real tables again
    assert ImagingServiceRequest.objects.filter(accession_number="A2").exists()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND relname = 'ris_patient'")
        assert cursor.fetchone() == (0,)


def test_it_stops_at_its_bound_and_says_of_how_many(his: Source, send: Send):
    for number in range(4):
        send(orm(placer=f"PL{number}"))
    found = dryrun.compare(his, changed(his), seconds=0)
    assert found.stopped and found.messages == 0 and found.of == 4
    told: list[tuple[int, int]] = []
    dryrun.compare(his, changed(his), messages=2, progress=lambda done, of: told.append((done, of)))
    assert all(of == 4 for _, of in told)


def test_a_profile_that_cannot_be_used_is_not_tried(his: Source, send: Send):
    send(orm())
    with pytest.raises(ProfileError):
        dryrun.compare(his, changed(his, accession_number="OBR-18-2"))


@pytest.mark.django_db(transaction=True)
def test_a_run_keeps_its_result_and_its_progress_is_seen_meanwhile(his: Source, send: Send):
    for number in range(12):
        send(orm(placer=f"PL{number}", filler=f"F{number}", accession=f"A{number}"))
    run = DryRun.objects.create(
        source=his, values=changed(his, accession_number="ORC-3.1"), by="user:1", messages=50, seconds=30,
        started_at=Message.objects.latest("id").received_at, beat_at=Message.objects.latest("id").received_at,
    )  # fmt: skip
    done = dryrun.carry_out(run.pk)
    assert (done.state, done.result["messages"], len(done.result["differs"])) == ("done", 12, 12)
    run.refresh_from_db()
    assert (run.done, run.total) == (22, 24)  # told every ten trials, by a connection of its own
    assert dryrun.use(run, "user:1", "as agreed with the HIS") == 2
    his.refresh_from_db()
    assert his.profile == {"accession_number": "ORC-3.1"} and his.version == 2


@pytest.mark.django_db(transaction=True)
def test_a_patients_real_messages_do_not_wait_for_a_trial(his: Source, send: Send):
    from integration.analyst.sandbox import Keys, attempt, copied, fill, sandbox
    from integration.sources import compile_profile

    row = send(orm(placer="PL1", accession="A1"))
    profile = compile_profile({}, his.name, his.pk)
    keys = Keys()
    keys.add(row, profile)
    copies = copied(keys)
    with sandbox():
        fill(copies)
        attempt(row, profile)
        with connection.cursor() as cursor:
            cursor.execute("SELECT objid, classid FROM pg_locks WHERE locktype = 'advisory'")
            ours = set(cursor.fetchall())
        assert ours
    with unit_of_work("system:tests"):
        lanes.lock(["P1"])
        with connection.cursor() as cursor:
            cursor.execute("SELECT objid, classid FROM pg_locks WHERE locktype = 'advisory'")
            real = set(cursor.fetchall())
        assert real and not real & ours


def test_separators_of_a_source_are_tried_and_used(his: Source, send: Send):
    row = send(adt("A04", name="MARKS & SON^ANNA"))  # it never meant subcomponents
    assert Patient.objects.get().patient_name == "MARKS^ANNA"
    found = dryrun.compare(his, changed(his, separators="^~\\@"))
    lines = [line for d in found.differs for line in d.lines]
    assert Line("Patient", "patient_name", "MARKS^ANNA", "MARKS & SON^ANNA") in lines
    versions.use(his, changed(his, separators="^~\\@"), "user:1", "an ampersand is a letter there")
    solving.replay([row.pk], "user:1", "read anew")
    assert Patient.objects.get().patient_name == "MARKS & SON^ANNA"
    send(adt("A08", name="MARKS & DAUGHTER^ANNA"))
    assert Patient.objects.get().patient_name == "MARKS & DAUGHTER^ANNA"
    with pytest.raises(ProfileError) as refused:
        dryrun.compare(his, changed(his, separators="^^"))
    assert refused.value.key == "separators"
