"""Headers made by enemies: read with bounds or in a child with limits, set aside with a reason, never the end of it."""

from __future__ import annotations

import mmap
import os
import random
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from pacs import aside, children, header, indexing, reader
from pacs.facts import WANTED, Unindexable, facts_of
from pacs.header import HeaderError, TooMuch
from pacs.models import Instance, SetAside
from pacs.storage import spool
from pacs.storage.part10 import Origin
from tests.pacs.storage.conftest import CT, EXPLICIT, data_set, encoded

DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"

#: An element that is none in explicit VR: our walker gives up at it, and pydicom goes on in implicit VR.
NO_VR = struct.pack("<HHI", 0x0008, 0x0005, 10) + b"ISO_IR 100"


def implicit_items(count: int) -> bytes:
    """A sequence of undefined length with so many empty items: each costs pydicom a kilobyte."""
    start = struct.pack("<HHI", 0x0008, 0x1110, 0xFFFFFFFF)
    return start + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * count + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


@pytest.fixture(autouse=True)
def fresh_child() -> Iterator[None]:
    reader.end()
    yield
    reader.end()


@pytest.mark.django_db(transaction=True)
def test_what_takes_any_memory_is_set_aside_and_the_rest_of_its_batch_indexed(
    spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SECONDS", 4.0)
    spooled(SOPInstanceUID="1.2.3.1.2")
    spooled(NO_VR + implicit_items(1_500_000), uid="1.2.3.1.9")
    spooled(SOPInstanceUID="1.2.3.1.3")
    while indexing.index_once():
        pass
    assert Instance.objects.count() == 2
    row = SetAside.objects.get()
    assert (row.sop_instance_uid, row.reason) == ("1.2.3.1.9", "unreadable")
    assert row.detail.startswith("header: reading it takes")
    assert spool.oldest()[0] == 0
    assert reader._child is None or reader._child.process.poll() is None


@pytest.mark.django_db(transaction=True)
def test_what_was_set_aside_is_indexed_when_it_is_tried_again_and_can_be_read(
    spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    implicit = data_set()
    as_implicit = bytearray()
    with monkeypatch.context() as patched:
        patched.setattr(reader, "Child", lambda module: children.Child("tests.pacs.storage.dies"))
        from io import BytesIO

        buffer = BytesIO()
        implicit.save_as(buffer, implicit_vr=True, little_endian=True)
        as_implicit += buffer.getvalue()
        spooled(bytes(as_implicit))  # announced as explicit
        while indexing.index_once():
            pass
    row = SetAside.objects.get()
    assert row.detail == "header: whoever reads it dies"
    assert aside.try_again(row) == ""
    assert Instance.objects.get().sop_instance_uid == "1.2.3.1.1"
    assert not SetAside.objects.filter(state="open").exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("trouble", [TypeError, RecursionError, MemoryError, AttributeError])
def test_whatever_a_header_does_to_its_reader_the_rest_of_the_batch_is_indexed(
    spooled: Any, monkeypatch: pytest.MonkeyPatch, trouble: type[Exception]
) -> None:
    real = header.read

    def read(data: Any, *rest: Any, **more: Any) -> Any:
        if b"HOSTILE" in bytes(data):
            raise trouble
        return real(data, *rest, **more)

    monkeypatch.setattr(header, "read", read)
    spooled(SOPInstanceUID="1.2.3.1.2")
    spooled(SOPInstanceUID="1.2.3.1.9", StudyID="HOSTILE")
    spooled(SOPInstanceUID="1.2.3.1.3")
    while indexing.index_once():
        pass
    assert Instance.objects.count() == 2
    assert SetAside.objects.get().detail == f"cannot be read: {trouble.__name__}"


@pytest.mark.django_db(transaction=True)
def test_a_value_within_an_item_that_cannot_be_read_does_not_keep_its_object_out(spooled: Any) -> None:
    item = Dataset()
    item.ScheduledProcedureStepID = "S1"
    item.add_new(0x00280010, "US", 1)
    raw = encoded(data_set(RequestAttributesSequence=[item]))
    two_bytes = b"\x28\x00\x10\x00US\x02\x00\x01\x00"
    assert raw.count(two_bytes) == 1
    spooled(raw.replace(two_bytes, two_bytes.replace(b"US", b"UL")))
    while indexing.index_once():
        pass
    series = Instance.objects.select_related("series").get().series
    assert series.scheduled_procedure_step_id == "S1"
    assert "00400275" not in series.attributes


@pytest.mark.django_db(transaction=True)
def test_a_deflated_bomb_is_set_aside(data_dir: Path) -> None:
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(encoded(data_set(pixels=0))[:-12])
    element = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 256 * 1024 * 1024)
    bomb += deflater.compress(element)
    for _ in range(256):
        bomb += deflater.compress(bytes(1024 * 1024))
    bomb += deflater.flush()
    assert len(bomb) < 1024 * 1024
    incoming = spool.mine().begin(Origin(CT, "1.2.3.1.1", DEFLATED, "CT01", "ORDERLY"))
    incoming.write(bomb)
    incoming.commit()
    while indexing.index_once():
        pass
    assert not Instance.objects.exists()
    assert "inflates to more" in SetAside.objects.get().detail


def test_a_reader_that_was_killed_in_between_is_replaced() -> None:
    data = NO_VR + struct.pack("<HHI", 0x0010, 0x0020, 2) + b"P1"
    for _ in range(2):
        found = header.read(data, EXPLICIT, WANTED)
        assert (found.text(0x00100020), found.implicit) == ("P1", True)
        assert reader._child is not None
        reader._child.process.kill()
        reader._child.process.wait(20)


@pytest.mark.parametrize("depth", [600, 200_000])
def test_what_is_nested_without_end_is_refused_by_the_reader(depth: int) -> None:
    nested = struct.pack("<HHIHHI", 0x0008, 0x1110, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF) * depth
    with pytest.raises(HeaderError):
        header.read(NO_VR + nested, EXPLICIT, WANTED)
    assert header.read(NO_VR + struct.pack("<HHI", 0x0010, 0x0020, 2) + b"P1", EXPLICIT, WANTED).values


def test_elements_are_counted_over_all_sequences_together() -> None:
    inner = struct.pack("<HHI", 0x0008, 0x0060, 0) * 1000
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    sequences = b"".join(
        struct.pack("<HHI", 0x0009, number, 0xFFFFFFFF) + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        for number in range(0x1000, 0x1000 + 120)
    )
    assert header.read(sequences[: len(sequences) // 2], IMPLICIT, WANTED)
    with pytest.raises(TooMuch, match="more than 100000 elements"):
        header.read(sequences, IMPLICIT, WANTED)


def test_of_a_huge_value_no_more_is_kept_than_the_index_looks_at(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    size = 1024**3
    with path.open("wb") as file:
        file.write(struct.pack("<HHI", 0x0008, 0x1110, size))
        file.truncate(size + 8)  # a file of holes
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        tracemalloc.start()
        try:
            with memoryview(mapped) as view:
                found = header.read(view, IMPLICIT, WANTED)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert len(found.values[0x00081110]) == header.LONGEST_VALUE
    assert peak < 8 * 1024 * 1024


def mutants(count: int, seed: int) -> Iterator[tuple[bytes, str]]:
    """Data sets with bytes changed, cut out, doubled, cut off, lengths set to extremes, in three syntaxes."""
    chance = random.Random(seed)
    whole = data_set(StudyDescription="Größe", SpecificCharacterSet="ISO_IR 192")
    item = data_set()
    del item[0x7FE00010]
    whole.RequestAttributesSequence = [item]
    whole.ProcedureCodeSequence = [item, item]
    from io import BytesIO

    originals = []
    for implicit, little, syntax in (
        (False, True, EXPLICIT),
        (True, True, IMPLICIT),
        (False, False, "1.2.840.10008.1.2.2"),
    ):
        buffer = BytesIO()
        whole.save_as(buffer, implicit_vr=implicit, little_endian=little)
        originals.append((buffer.getvalue(), syntax))
    for _ in range(count):
        raw, syntax = chance.choice(originals)
        out = bytearray(raw)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(out))
            kind = chance.randrange(6)
            if kind == 0:
                out[at] = chance.randrange(256)
            elif kind == 1:
                del out[at : at + chance.randint(1, 16)]
            elif kind == 2:
                out[at:at] = out[at : at + chance.randint(1, 64)]
            elif kind == 3:
                out[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", bytes(4), b"\0\1\0\0", b"SQ\0\0"))
            elif kind == 4:
                out[at:at] = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * chance.randint(1, 80)
            else:
                del out[at:]
            if not out:
                out = bytearray(b"\0")
        yield bytes(out), chance.choice((syntax, EXPLICIT))


def read_mutants(count: int, seed: int) -> tuple[int, int]:
    """How many could be read, and how many were refused; anything else is a failure."""
    good = bad = 0
    for raw, syntax in mutants(count, seed):
        try:
            facts = facts_of(header.read(raw, syntax, WANTED), syntax)
            facts.study(), facts.series(), facts.instance()
            good += 1
        except (HeaderError, Unindexable):
            bad += 1
    return good, bad


def test_mutated_data_sets_are_read_or_refused_and_nothing_else() -> None:
    good, bad = read_mutants(2000, 20260310)
    assert good > 50 and bad > 500


@pytest.mark.slow
def test_fifty_thousand_mutated_data_sets_leave_memory_and_reader_as_they_were() -> None:
    read_mutants(2000, 1)
    before = resident()
    good, bad = read_mutants(50_000, 2)
    assert good + bad == 50_000
    assert resident() - before < 50 * 1024 * 1024


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
