"""What the room's tests share: a source that anybody is, and messages through the real inbox."""

from collections.abc import Callable, Iterator

import pytest

from integration import inbox, sources
from integration.models import Message, Source
from ris.services import authorities, catalogue
from tests.pages.conftest import log_in, page, shot

__all__ = ["log_in", "page", "shot"]  # the browser's fixtures, for this room's pages too


@pytest.fixture(autouse=True)
def fresh_memory() -> Iterator[None]:
    """What processes keep in memory belongs to another test's database."""
    for forget in (sources.forget, authorities.forget, catalogue.forget, inbox._left.clear):
        forget()
    yield
    for forget in (sources.forget, authorities.forget, catalogue.forget, inbox._left.clear):
        forget()


@pytest.fixture
def his(db: None, fresh_memory: None) -> Source:
    """The source whose messages the tests send."""
    return Source.objects.create(name="HIS", application="HIS")


@pytest.fixture
def send(his: Source) -> Callable[[bytes], Message]:
    """Take a message in as the door does; returns its row."""

    def sent(raw: bytes) -> Message:
        reply = inbox.receive(raw, inbox.Peer("127.0.0.1", 40123))
        return Message.objects.get(pk=reply.message_id)

    return sent
