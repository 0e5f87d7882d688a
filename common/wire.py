"""Statements of the hot paths, as libpq takes them: prepared once a connection, several in one write.

A round trip costs a change of processes at both ends, and a cursor more than a small statement. Here statements that
belong together travel together (libpq's pipeline mode), and values go and come as PostgreSQL's text.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import psycopg
from django.db import DEFAULT_DB_ALIAS, DataError, Error, connections
from psycopg import generators, pq
from psycopg.errors import error_from_result

Value = str | bytes | int | None | Sequence[str]
Rows = list[tuple[bytes | None, ...]]

_FAILED = pq.ExecStatus.FATAL_ERROR
_ABORTED = pq.ExecStatus.PIPELINE_ABORTED
_IDLE = pq.TransactionStatus.IDLE


class Answer:
    """What a statement said, there when it was sent and answered; if it went ahead, it is waited for."""

    __slots__ = ("_result", "statement", "values")

    def __init__(self, statement: str, values: list[bytes | None]) -> None:
        self.statement, self.values = statement, values
        self._result: Any = None

    def __call__(self) -> Rows:
        """The rows, each value as PostgreSQL's text."""
        if self._result is None:
            settle()
        result = self._result
        if result is None:
            raise RuntimeError("The statement has not been answered yet.")
        columns = range(result.nfields)
        return [tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples)]


class _Waiting(threading.local):
    """The statements of this thread that wait to be sent together."""

    answers: list[Answer] | None = None
    ahead = False
    """Whether there are statements under way that nobody has waited for."""


_waiting = _Waiting()
_numbers = count(1)
_MOST_PREPARED = 200
"""In one connection: each keeps its plan in the server's memory."""
_lines: "WeakKeyDictionary[psycopg.Connection[Any], _Line]" = WeakKeyDictionary()


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
def together(*, commit: bool = False, ahead: bool = False) -> Iterator[None]:
    """Statements asked in this block travel together; at its end all are answered, or the first error is raised.

    PostgreSQL runs them one after the other, each with its own snapshot, and none after one that fails; with
    `commit`, COMMIT is the last of them. With `ahead` they are sent and nobody waits: PostgreSQL works while Python
    goes on. What they say, and their errors, come with the next statement, or with `settle`; whoever sends ahead
    in a transaction has to `abandon` it before a rollback.
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
        _send(answers, commit, ahead)


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


def settle() -> None:
    """Wait for what was sent ahead. Raises the error of the first that failed."""
    if _waiting.ahead:
        _send([])


def abandon() -> None:
    """Be done with what was sent ahead, whatever became of it: its transaction is about to be rolled back."""
    with suppress(Error):
        settle()


def _settle_first(execute: Callable[..., Any], *given: Any) -> Any:
    """What a cursor is asked waits until the connection is free for it."""
    settle()
    return execute(*given)


def _send(answers: Sequence[Answer], commit: bool = False, ahead: bool = False) -> None:
    current = connections[DEFAULT_DB_ALIAS]
    current.ensure_connection()
    raw = current.connection
    raw = getattr(raw, "_con", raw)  # from a pool, it is wrapped
    with current.wrap_database_errors, raw.lock:
        line = _lines.setdefault(raw, _Line())
        begin = not raw.autocommit and not line.taking and raw.pgconn.transaction_status == _IDLE
        if ahead:
            if not _waiting.ahead:
                _waiting.ahead = True
                current.execute_wrappers.append(_settle_first)
            line.put(raw.pgconn, answers, begin)
            raw.pgconn.flush()  # what does not fit goes with the next ones
            return
        try:
            raw.wait(_exchange(raw.pgconn, line, answers, begin, commit))
        finally:
            if _waiting.ahead:
                _waiting.ahead = False
                current.execute_wrappers.remove(_settle_first)


class _Line:
    """What is known of a connection: the statements it has prepared, and who takes the results under way."""

    def __init__(self) -> None:
        self.names: dict[str, bytes] = {}
        # None where all that counts is that it is no failure.
        self.taking: list[Answer | _Prepared | None] = []

    def put(self, pgconn: Any, answers: Sequence[Answer], begin: bool) -> None:
        """Hand statements to libpq, each prepared if it is new here."""
        if not self.taking:
            pgconn.enter_pipeline_mode()
        if begin:
            pgconn.send_query_params(b"BEGIN", None)
            self.taking.append(None)
        new: dict[str, bytes] = {}
        for answer in answers:
            name = self.names.get(answer.statement) or new.get(answer.statement)
            if name is None:
                if self.names and len(self.names) + len(new) >= _MOST_PREPARED:
                    oldest = self.names.pop(next(iter(self.names)))
                    pgconn.send_query_params(b"DEALLOCATE " + oldest, None)
                    self.taking.append(None)
                name = new[answer.statement] = b"orderly_%d" % next(_numbers)
                pgconn.send_prepare(name, answer.statement.encode())
                self.taking.append(_Prepared(answer.statement, name))
            pgconn.send_query_prepared(name, answer.values)
            self.taking.append(answer)


def _exchange(
    pgconn: Any, line: _Line, answers: Sequence[Answer], begin: bool, commit: bool
) -> Generator[Any, Any, None]:
    """Send everything in one write and read all results, the libpq way; those of what went ahead come first."""
    committed = Answer("COMMIT", [])
    failed = None
    try:
        line.put(pgconn, answers, begin)
        if commit:
            pgconn.send_query_params(b"COMMIT", None)
            line.taking.append(committed)
        pgconn.pipeline_sync()
        yield from generators.send(pgconn)
        for taker in line.taking:
            (result,) = yield from generators.fetch_many(pgconn)
            if result.status == _FAILED:
                failed = failed or result
            elif result.status == _ABORTED or taker is None:
                continue
            elif isinstance(taker, Answer):
                taker._result = result
            else:
                line.names[taker.statement] = taker.name
        (sync,) = yield from generators.fetch_many(pgconn)
        assert sync.status == pq.ExecStatus.PIPELINE_SYNC
    finally:
        line.taking = []
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
