"""What the engine counts of itself: processes that do not serve, and the room on the disk."""

import shutil
from collections.abc import Iterable
from datetime import datetime

from django.conf import settings

from common.metrics import Waiting, gauge, queue
from common.process import read_run_file


@gauge("orderly_disk_free_bytes", "Room on the disk of the data directory")
def disk_free() -> float:
    return shutil.disk_usage(settings.DATA_DIR).free


@gauge("orderly_disk_total_bytes", "Size of the disk of the data directory")
def disk_total() -> float:
    return shutil.disk_usage(settings.DATA_DIR).total


@queue("processes", "Processes that do not serve", late_after=60)
def processes() -> Iterable[Waiting]:
    """A process that keeps dying is no log line alone: after a minute it is an alert."""
    run = read_run_file(settings.DATA_DIR)
    if run is None:
        return
    for name, said in run["processes"].items():
        if said["state"] != "ready":
            yield Waiting(name, 1, datetime.fromisoformat(said["down_since"]))
