"""For benches: objects made up beforehand and sent as fast as a receiver takes them, each association a process.

Run as `python -m pacs.benches.loading PORT CALLED COUNT BYTES SEED`: it associates, prints `ready`, waits for a
line on its input, sends, and prints the seconds it took.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pacs.dimse import command, sender, stream
from pacs.dimse.registry import EXPLICIT_VR_LITTLE_ENDIAN
from pacs.storage.part10 import Origin, prefix

CT = "1.2.840.10008.5.1.4.1.1.2"
CALLING = "BENCH"


def _element(tag: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def objects(count: int, size: int, seed: int) -> Iterator[tuple[Origin, bytes, bytes]]:
    """CT images of one series: origin, header and pixel data (`size` bytes, 512 pixels wide)."""
    pixels = os.urandom(min(size, 1 << 20))
    pixels = (pixels * (size // max(len(pixels), 1) + 1))[:size]
    study = f"1.2.826.0.1.99.{seed}"
    for number in range(1, count + 1):
        uid = f"{study}.1.{number}"
        header = b"".join(
            (
                _element(0x00080016, b"UI", CT.encode()),
                _element(0x00080018, b"UI", uid.encode()),
                _element(0x00080020, b"DA", b"20260310"),
                _element(0x00080030, b"TM", b"101500"),
                _element(0x00080050, b"SH", b"A%d" % (seed % 10**12)),
                _element(0x00080060, b"CS", b"CT"),
                _element(0x00100010, b"PN", b"Bench^Made Up"),
                _element(0x00100020, b"LO", b"BENCH"),
                _element(0x0020000D, b"UI", study.encode()),
                _element(0x0020000E, b"UI", f"{study}.1".encode()),
                _element(0x00200013, b"IS", b"%d" % number),
                _element(0x00280002, b"US", b"\1\0"),
                _element(0x00280004, b"CS", b"MONOCHROME2"),
                _element(0x00280010, b"US", struct.pack("<H", min(size // 1024, 0xFFFF))),
                _element(0x00280011, b"US", struct.pack("<H", 512)),
                _element(0x00280100, b"US", b"\x10\0"),
                _element(0x00280101, b"US", b"\x10\0"),
                _element(0x00280102, b"US", b"\x0f\0"),
                _element(0x00280103, b"US", b"\0\0"),
                struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, size),
            )
        )
        yield Origin(CT, uid, EXPLICIT_VR_LITTLE_ENDIAN), header, pixels


def write_files(folder: Path, count: int, size: int, seed: int) -> None:
    """The same objects as Part 10 files, for senders that read those."""
    folder.mkdir(parents=True)
    for number, (origin, header, pixels) in enumerate(objects(count, size, seed)):
        (folder / f"{number:05d}.dcm").write_bytes(
            prefix(replace(origin, calling_ae=CALLING)) + header + pixels
        )


def send(port: int, called: str, count: int, size: int, seed: int) -> None:
    """Be one association."""
    destination = sender.Destination("127.0.0.1", port, called, CALLING)
    assoc = sender.associate(destination, [(CT, (EXPLICIT_VR_LITTLE_ENDIAN,))])
    context = next(iter(assoc.contexts.values()))
    encoded = []
    for number, (origin, header, pixels) in enumerate(objects(count, size, seed), 1):
        request = sender.store_command(origin) | {"MessageID": number % 0xFFFF + 1, "CommandDataSetType": 1}
        pdus = [
            *stream.data_pdus(context.id, command.encode(request), command=True, max_data=assoc.max_data),
            *stream.data_pdus(context.id, [header, pixels], command=False, max_data=assoc.max_data),
        ]
        encoded.append(pdus)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    for pdus in encoded:
        assoc.wire.write(*pdus)
        status = assoc.next_message(120).command.status
        if status != 0:
            raise SystemExit(f"refused with {status:04X}")
    print(time.perf_counter() - began, flush=True)
    assoc.release()


def load(port: int, called: str, associations: int, count: int, size: int, seed: int) -> float:
    """Send `count` objects over several associations at once; gives the seconds until the last is through."""
    words = [
        sys.executable,
        "-m",
        "pacs.benches.loading",
        str(port),
        called,
        str(count // associations),
        str(size),
    ]
    children = [
        subprocess.Popen(
            [*words, str(seed + number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(associations)
    ]
    try:
        for child in children:
            if child.stdout is None or child.stdout.readline() != "ready\n":
                raise RuntimeError(f"no association with the server on port {port}")
        began = time.perf_counter()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            assert child.stdout is not None
            if not child.stdout.readline():
                raise RuntimeError(f"the server on port {port} refused an object")
        return time.perf_counter() - began
    finally:
        for child in children:
            if child.wait(60):
                raise RuntimeError(f"a sender to port {port} failed")


if __name__ == "__main__":
    send(int(sys.argv[1]), sys.argv[2], *(int(word) for word in sys.argv[3:6]))
