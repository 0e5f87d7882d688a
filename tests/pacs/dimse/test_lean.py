"""What a receiving process is made of, and that objects do not make it larger."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from pacs.dimse import sender
from pacs.storage.part10 import Origin
from tests.conftest import REPOSITORY
from tests.pacs.storage.conftest import CT, EXPLICIT

HEADLESS = """
import sys, django
django.setup()
from pacs.dimse import server
from pacs.dimse.registry import load
load((*server.SERVICES, "worklist.scp", "worklist.mpps"))
heavy = {"numpy", "PIL", "gdcm", "pylibjpeg", "requests", "fpdf", "fontTools", "unfold.admin"}
print(sorted(heavy & set(sys.modules)))
import numpy  # what was hidden from pydicom only is there for whoever needs it
from django.urls import reverse
print(reverse("admin:pacs_study_changelist"))
"""

LARGE = 40_000_000
SENDERS = 3


def environment(data_dir: Path) -> dict[str, str]:
    return {
        **os.environ,
        "ORDERLY_HEADLESS": "1",
        "ORDERLY_DATA_DIR": str(data_dir),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    }


def test_a_headless_process_starts_without_decoders_and_pages_yet_knows_every_url(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEADLESS],
        cwd=REPOSITORY, env=environment(tmp_path), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "/admin/pacs/study/"]


def test_memory_does_not_grow_with_the_size_of_objects(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.pacs.storage.receiver"],
        cwd=REPOSITORY, env=environment(tmp_path), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        destination = sender.Destination("127.0.0.1", int(child.stdout.readline()), "ORDERLY", "CT01")
        codes: list[int] = []

        def send(number: int, size: int) -> None:
            uid = f"1.2.3.{number}"
            with sender.associate(destination, [(CT, (EXPLICIT,))]) as assoc:
                data = [element(0x0008, 0x0018, b"UI", uid.encode()), pixels(size), bytes(size)]
                codes.append(assoc.store(Origin(CT, uid, EXPLICIT), data))

        send(1, 2000)
        before = peak(child.pid)
        threads = [threading.Thread(target=send, args=(10 + n, LARGE)) for n in range(SENDERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert codes == [0] * (1 + SENDERS)
        assert peak(child.pid) - before < LARGE
    finally:
        child.kill()
        child.wait(20)


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return (
        group.to_bytes(2, "little")
        + number.to_bytes(2, "little")
        + vr
        + len(value).to_bytes(2, "little")
        + value
    )


def pixels(size: int) -> bytes:
    return b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little")


def peak(pid: int) -> int:
    """VmHWM in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
