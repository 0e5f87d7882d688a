"""Statements of the hot paths, as libpq takes them: prepared once a connection, several in one write.

A round trip costs a change of processes at both ends, and a cursor more than a small statement. Here statements that
belong together travel together (libpq's pipeline mode), and values go and come as PostgreSQL's text.
"""

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import psycopg
from django.db import DEFAULT_DB_ALIAS, DataError, connections
from psycopg import generators, pq
from psycopg.errors import error_from_result

Value = str | bytes | int | None | Sequence[str]
Rows = list[tuple[bytes | None, ...]]

_FAILED = pq.ExecStatus.FATAL_ERROR
_ABORTED = pq.ExecStatus.PIPELINE_ABORTED
_IDLE = pq.TransactionStatus.IDLE


class Answer:
    """What a statement said, there when it was sent and answered."""

    __slots__ = ("_result", "statement", "values")

    def __init__(self, statement: str, values: list[bytes | None]) -> None:
        self.statement, self.values = statement, values
        self._result: Any = None

    def __call__(self) -> Rows:
        """The rows, each value as PostgreSQL's text."""
        result = self._result
        if result is None:
            raise RuntimeError("The statement has not been answered yet.")
        columns = range(result.nfields)
        return [tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples)]


class _Waiting(threading.local):
    """The statements of this thread that wait to be sent together."""

    answers: list[Answer] | None = None


_waiting = _Waiting()
_numbers = count(1)
_MOST_PREPARED = 200
"""In one connection: each keeps its plan in the server's memory."""
_names: WeakKeyDictionary[psycopg.Connection[Any], dict[str, bytes]] = WeakKeyDictionary()
"""What is prepared in which connection, and by what name."""


def ask(statement: str, values: Sequence[Value] = ()) -> Answer:
    """Run a statement with `$1`, `$2`, … on the default connection; within `together`, at the end of the block.

    A list is sent as an array, bytes as the text that they are. Errors are Django's, as a cursor raises them.
    """
    answer = Answer(statement, [_text(v) for v in values])
    if _waiting.answers is None:
        _send([answer])
    else:
        _waiting.answers.append(answer)
    return answer


@contextmanager
def together(*, commit: bool = False) -> Iterator[None]:
    """Statements asked in this block travel together; at its end all are answered, or the first error is raised.

    PostgreSQL runs them one after the other, each with its own snapshot, and none after one that fails; with
    `commit`, COMMIT is the last of them.
    """
    if _waiting.answers is not None:
        raise RuntimeError("One block at a time.")
    answers: list[Answer] = []
    _waiting.answers = answers
    try:
        yield
    finally:
        _waiting.answers = None
    if answers or commit:
        _send(answers, commit)


def array(values: Sequence[str]) -> str:
    """A one-dimensional array as PostgreSQL reads it."""
    quoted = ('"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values)
    return "{" + ",".join(quoted) + "}"


def _text(value: Value) -> bytes | None:
    if value is None or type(value) is bytes:
        return value
    if not isinstance(value, str):
        value = str(value) if isinstance(value, int) else array(value)  # type: ignore[arg-type]
    if "\x00" in value:  # libpq would take the text up to it
        raise DataError("PostgreSQL keeps no text with a NUL character.")
    return value.encode()


def _send(answers: Sequence[Answer], commit: bool = False) -> None:
    current = connections[DEFAULT_DB_ALIAS]
    current.ensure_connection()
    raw = current.connection
    raw = getattr(raw, "_con", raw)  # from a pool, it is wrapped
    with current.wrap_database_errors, raw.lock:
        names = _names.setdefault(raw, {})
        begin = not raw.autocommit and raw.pgconn.transaction_status == _IDLE
        raw.wait(_exchange(raw.pgconn, names, answers, begin, commit))


def _exchange(
    pgconn: Any, names: dict[str, bytes], answers: Sequence[Answer], begin: bool, commit: bool
) -> Generator[Any, Any, None]:
    """Send everything in one write and read all results, the libpq way."""
    # Who takes each result; None where all that counts is that it is no failure.
    taking: list[Answer | _Prepared | None] = []
    new: dict[str, bytes] = {}
    pgconn.enter_pipeline_mode()
    try:
        if begin:
            pgconn.send_query_params(b"BEGIN", None)
            taking.append(None)
        for answer in answers:
            name = names.get(answer.statement) or new.get(answer.statement)
            if name is None:
                if names and len(names) + len(new) >= _MOST_PREPARED:
                    oldest = names.pop(next(iter(names)))
                    pgconn.send_query_params(b"DEALLOCATE " + oldest, None)
                    taking.append(None)
                name = new[answer.statement] = b"orderly_%d" % next(_numbers)
                pgconn.send_prepare(name, answer.statement.encode())
                taking.append(_Prepared(answer.statement, name))
            pgconn.send_query_prepared(name, answer.values)
            taking.append(answer)
        committed = Answer("COMMIT", [])
        if commit:
            pgconn.send_query_params(b"COMMIT", None)
            taking.append(committed)
        pgconn.pipeline_sync()
        yield from generators.send(pgconn)
        failed = None
        for taker in taking:
            (result,) = yield from generators.fetch_many(pgconn)
            if result.status == _FAILED:
                failed = failed or result
            elif result.status == _ABORTED or taker is None:
                continue
            elif isinstance(taker, Answer):
                taker._result = result
            else:
                names[taker.statement] = taker.name
        (sync,) = yield from generators.fetch_many(pgconn)
        assert sync.status == pq.ExecStatus.PIPELINE_SYNC
    finally:
        if pgconn.status == pq.ConnStatus.OK:
            pgconn.exit_pipeline_mode()
    if failed is not None:
        raise error_from_result(failed)
    # To a transaction that failed before, the answer is ROLLBACK.
    if commit and committed._result.command_status != b"COMMIT":
        raise psycopg.OperationalError("The database rolled the transaction back.")


class _Prepared(NamedTuple):
    """A statement that this connection knows by a name from now on."""

    statement: str
    name: bytes
