"""What every test of what goes out shares."""

from collections.abc import Iterator

import pytest

from integration import delivery


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """Connections that a test leaves open for the next message are closed with the test."""
    yield
    delivery.KEPT.close_idle(every=True)
