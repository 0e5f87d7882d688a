"""Named points in the code where a test may have the process die at once, as by kill -9.

`crashpoint("mllp.after_commit")` does nothing, except in a process whose environment variable
ORDERLY_CRASHPOINT names it: `mllp.after_commit` dies at the first pass, `mllp.after_commit:3` at the third.
"""

import os
import signal

_wanted, _, _count = os.environ.get("ORDERLY_CRASHPOINT", "").partition(":")
_passes_left = int(_count or 1)


def crashpoint(name: str) -> None:
    """Die here by SIGKILL when ORDERLY_CRASHPOINT says so; nothing is flushed, closed or rolled back."""
    if name == _wanted:
        _pass()


def _pass() -> None:
    global _passes_left
    _passes_left -= 1
    if _passes_left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
