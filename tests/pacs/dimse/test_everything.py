"""Every storage class, every file of others, every kind of bad data set: taken, returned as it came, and counted."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from hashlib import sha256
from io import BytesIO
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from common.clock import now
from pacs import header
from pacs.dimse import sender
from pacs.dimse.admission import Known
from pacs.dimse.errors import AssociationRefused
from pacs.dimse.registry import Registry
from pacs.models import Instance, Overlay, SetAside, Study
from pacs.services import move
from pacs.services.store import storage_classes
from pacs.storage.part10 import Origin, prefix
from pacs.storage.volume import open_file
from tests.pacs.dimse.conftest import ALL, Served
from tests.pacs.dimse.test_retrieve import identifier, index, moved, receiving
from tests.pacs.dimse.test_store import CT, EXPLICIT, every_test_file, made
from tests.pacs.storage.test_hostile import mutants

pytestmark = pytest.mark.django_db(transaction=True)
PRIVATE = "1.3.46.670589.11.0.0.12.1"
DEFLATED = "1.2.840.10008.1.2.1.99"


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    def register(registry: Registry) -> None:
        move.register(registry)

    return serve(register=register, known=[Known("*", "*", ALL)])


def test_every_storage_class_is_taken_in_any_syntax_even_one_that_nobody_knows(served: Served) -> None:
    unknown = "1.2.826.0.1.3680043.2.1143.9.9"
    classes = sorted(storage_classes())
    assert len(classes) > 150
    for begin in range(0, len(classes), 128):
        part = classes[begin : begin + 128]
        with sender.associate(served.destination(), [(uid, (unknown,)) for uid in part]) as assoc:
            assert {context.abstract_syntax for context in assoc.contexts.values()} == set(part)
            assert {context.transfer_syntax for context in assoc.contexts.values()} == {unknown}


def test_private_classes_are_taken_where_the_site_says_so(served: Served, settings: Any) -> None:
    origin, data = made(10, SOPClassUID=PRIVATE)
    origin = Origin(PRIVATE, origin.sop_instance_uid, EXPLICIT)
    settings.ORDERLY_PRIVATE_STORAGE = ()
    with pytest.raises(AssociationRefused):
        sender.associate(served.destination(), sender.contexts_of([origin]))
    for allowed in ([PRIVATE], ["*"]):
        settings.ORDERLY_PRIVATE_STORAGE = allowed
        with sender.associate(served.destination(), sender.contexts_of([origin])) as assoc:
            assert assoc.store(origin, data) == 0
    index()
    assert Instance.objects.get().sop_class_uid == PRIVATE


def store_all(served: Served) -> dict[str, tuple[str, bytes]]:
    """Send every file of others that can be announced; gives syntax and data set of those that are indexed."""
    sent: dict[str, tuple[str, bytes]] = {}
    for path in every_test_file():
        try:
            with sender.part10(path) as (origin, view):
                data = bytes(view)
        except ValueError:
            continue
        if origin.sop_class_uid in storage_classes() and origin.sop_instance_uid:
            with sender.associate(served.destination(), sender.contexts_of([origin])) as assoc:
                if assoc.store(origin, data) == 0:
                    sent.setdefault(sha256(data).hexdigest(), (origin.transfer_syntax_uid, data))
    index()
    # Some have a UID that another one has, or none of the UIDs that a row needs: they are set aside.
    assert Instance.objects.count() + SetAside.objects.count() == len(sent)
    found = {row.sop_instance_uid: row.sha256 for row in Instance.objects.all()}
    return {uid: sent[digest] for uid, digest in found.items()}


def test_every_file_of_others_comes_back_as_it_went_and_with_the_overlays_differences_when_there_is_one(
    served: Served,
) -> None:
    sent = store_all(served)
    assert len(sent) > 30
    syntaxes = sorted({syntax for syntax, _ in sent.values()})
    studies = list(Study.objects.values_list("study_instance_uid", flat=True))
    with receiving(*syntaxes) as receiver:
        for uid in studies:
            moved(served, identifier(StudyInstanceUID=uid))
        assert receiver.got == sent
        receiver.got.clear()
        Overlay.objects.bulk_create(
            Overlay(study=study, attributes={"AccessionNumber": "A77"}, cause="user:1", updated_at=now())
            for study in Study.objects.all()
        )
        for uid in studies:
            moved(served, identifier(StudyInstanceUID=uid))
        # One is written in another syntax than it says: it cannot be corrected, and is told to have failed.
        odd = {uid for uid, (syntax, data) in sent.items() if not _can_be_followed(data, syntax)}
        assert set(receiver.got) == set(sent) - odd and len(odd) < 3
        for uid, (syntax, data) in receiver.got.items():
            assert differences(sent[uid][1], data, syntax) <= {0x00080050, 0x00080000}, uid


def _can_be_followed(data: bytes, syntax: str) -> bool:
    try:
        return syntax in header.DEFLATED_SYNTAXES or header.walk(data, syntax).whole
    except header.HeaderError:
        return False


def differences(before: bytes, after: bytes, syntax: str) -> set[int]:
    """Tags whose elements differ; everything behind the last header group is compared as bytes."""
    one, other = (
        dcmread(BytesIO(prefix(Origin(CT, "1.2.3", syntax)) + raw), force=True) for raw in (before, after)
    )
    assert str(other.get("AccessionNumber")) == "A77"
    tags = {*one.keys(), *other.keys()}
    return {int(tag) for tag in tags if tag not in one or tag not in other or not _same(one, other, tag)}


def _same(one: Dataset, other: Dataset, tag: Any) -> bool:
    first, second = one.get_item(tag), other.get_item(tag)
    return bool(first.value == second.value)


def test_of_mutated_objects_each_is_refused_set_aside_or_stored_and_the_counts_add_up(served: Served) -> None:
    chance = random.Random(7)
    good: set[tuple[str, str]] = set()
    refused = 0
    with sender.associate(served.destination(), [(CT, (EXPLICIT,))]) as assoc:
        for raw, _ in mutants(250, 20260311):
            # As it is announced; most mutants still hold the UID they began with.
            uid = "1.2.3.1.1" if chance.random() < 0.9 else "1.2.3.1.2"
            status = assoc.store(Origin(CT, uid, EXPLICIT), raw)
            if status == 0:
                good.add((uid, sha256(raw).hexdigest()))
            else:
                assert status in (0xA900, 0xC000), hex(status)
                refused += 1
    index()
    kept = {row.sha256 for row in Instance.objects.all()} | {row.sha256 for row in SetAside.objects.all()}
    assert kept == {digest for _, digest in good}
    assert refused > 20 and SetAside.objects.exists()
    for row in (*Instance.objects.all(), *SetAside.objects.all()):
        with open_file(row) as file:
            assert file.read().endswith(b"") and row.size == file.tell()


# -- generated data sets, cut and lengthened

TEXT = st.text("ABC^ 12", max_size=20)


def _data_set(depth: int) -> st.SearchStrategy[Dataset]:
    def build(name: str, words: list[str], number: int, items: list[Dataset]) -> Dataset:
        ds = Dataset()
        ds.PatientName, ds.StudyDescription = name, "\\".join(words)[:60]
        ds.InstanceNumber = number
        if items:
            ds.ProcedureCodeSequence = Sequence(items)
        return ds

    inner = st.lists(_data_set(depth - 1), max_size=2) if depth else st.just([])
    return st.builds(build, TEXT, st.lists(TEXT, max_size=2), st.integers(0, 999), inner)


def encoded(ds: Dataset, syntax: str) -> bytes:
    buffer = BytesIO()
    implicit, little = syntax == header.IMPLICIT, syntax != header.BIG_ENDIAN
    ds.save_as(buffer, implicit_vr=implicit, little_endian=little)
    raw = buffer.getvalue()
    if syntax != DEFLATED:
        return raw
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(raw) + deflater.flush()


class Received:
    """What `check` looks at of an object that came in."""

    def __init__(self, data: bytes, syntax: str) -> None:
        self.origin, self._data = Origin(CT, "1.2.3", syntax), data

    def received(self) -> Any:
        return memoryview(self._data)


SYNTAXES = st.sampled_from([EXPLICIT, header.IMPLICIT, header.BIG_ENDIAN, DEFLATED])


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(_data_set(2), SYNTAXES, st.data())
def test_a_generated_data_set_is_taken_whole_and_refused_where_it_is_cut_within_an_element(
    ds: Dataset, syntax: str, data: st.DataObject
) -> None:
    from pacs.dimse.errors import Refused
    from pacs.services.store import check

    ds.add_new(0x7FE00010, "OW", bytes(50))
    whole = encoded(ds, syntax)
    check(Received(whole, syntax))  # type: ignore[arg-type]
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    try:
        check(Received(cut, syntax))  # type: ignore[arg-type]
    except Refused as refusal:
        assert refusal.status == 0xC000
        return
    # What was let through ends exactly where an element does.
    assert syntax != DEFLATED
    assert header.walk(cut, syntax).whole or not cut
    lengthened = whole + data.draw(st.binary(min_size=1, max_size=40))
    check(Received(lengthened, syntax))  # type: ignore[arg-type]  # kept as it comes: nothing says it is wrong
