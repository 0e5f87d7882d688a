"""What every test may ask for: a real PostgreSQL, the samples of others, peers, and their absence by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import Engine
from tests.peer_programs import PEERS, find

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = Path(os.environ.get("ORDERLY_SAMPLES") or REPOSITORY.parent / "shared" / "samples")


def missing(what: str, way: str) -> None:
    """Skip the test that needs `what`, saying how to get it; where CI=true, fail instead."""
    text = f"needs {what}: {way}"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"CI must not skip: this test {text}", pytrace=False)
    pytest.skip(text)


def require_peer(program: str) -> str:
    """The path of a peer's program; without it the test is skipped by name (in CI: fails)."""
    found = find(program)
    if not found:
        missing(program, PEERS.get(program, "install it and put it on the PATH"))
    return str(found)


def sample(*parts: str) -> Path:
    """A file or folder of the samples that others wrote; without them the test is skipped by name."""
    path = SAMPLES.joinpath(*parts)
    if not path.exists():
        missing(
            f"the samples' {'/'.join(parts) or 'folder'}", "put them at ../shared/samples beside the clone"
        )
    return path


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of the samples."""
    return sample()


# -- the database


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        _session_cluster.start()  # workers come and go: the server belongs to the process that outlives them


def pytest_unconfigure(config: pytest.Config) -> None:
    if os.environ.get("ORDERLY_TEST_OWNER") == str(os.getpid()):
        _session_cluster.stop()


class _SessionCluster:
    """The test session's PostgreSQL, started when the first test asks for it."""

    def __init__(self) -> None:
        self._cluster: object | None = None

    def start(self) -> None:
        from django.conf import settings

        from config.postgres import Cluster

        if self._cluster is None:
            cluster = Cluster(settings.DATA_DIR, durable=False)
            cluster.enter(die_with_us=os.environ.get("ORDERLY_TEST_OWNER") == str(os.getpid()))
            self._cluster = cluster

    def stop(self) -> None:
        if self._cluster is not None:
            self._cluster.leave(stop_always=True)  # type: ignore[attr-defined]
            self._cluster = None


_session_cluster = _SessionCluster()


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None) -> Iterator[None]:
    """pytest-django's hook before it makes the test database: the server must run by then."""
    _session_cluster.start()
    yield


@pytest.fixture(autouse=True)
def forget_what_processes_remember() -> None:
    """Rows that a process keeps in memory do not survive a test's rollback."""
    from ris.services import authorities, catalogue

    authorities.forget()
    catalogue.forget()


# -- a whole engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A real `serve` with every process, fresh for this test (about 4 s); not started yet: `engine.start()`."""
    one = Engine()
    yield one
    one.close()


@pytest.fixture(scope="module")
def live_engine() -> Iterator[Engine]:
    """A real `serve` with every process, started once for the tests of a module."""
    one = Engine()
    try:
        one.start()
        yield one
    finally:
        one.close()


# -- a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser, driven by Playwright; gone with the module, for its event loop holds the thread."""
    from playwright.sync_api import sync_playwright

    path = require_peer("chromium")
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Django refuses its ORM in a thread with an event loop, though nothing here is asynchronous.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        browser = playwright.chromium.launch(executable_path=path, headless=True)
        yield browser
        browser.close()
