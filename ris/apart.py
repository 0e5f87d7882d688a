"""Work on rows of one's own: a trial over copies, which must neither hold nor remember what others use."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_memory: ContextVar[dict[str, list[Any]] | None] = ContextVar("apart", default=None)


@contextmanager
def apart() -> Iterator[None]:
    """Within it, lanes are other locks than everybody's, and what is remembered is forgotten at its end."""
    token = _memory.set({})
    try:
        yield
    finally:
        _memory.reset(token)


def is_apart() -> bool:
    """Whether this thread works on rows of its own."""
    return _memory.get() is not None


def memory(name: str, everybodys: list[Any]) -> list[Any]:
    """A list kept in memory: everybody's, or one of this work's own."""
    own = _memory.get()
    return everybodys if own is None else own.setdefault(name, [])
