"""Messages of known types that are not applied: stored as they came, answered by policy, seen, and changing nothing."""

import pytest
from django.test import Client
from django.urls import reverse

from common.roles import Role
from integration import sources
from integration.hl7v2 import specification
from integration.inbox import Peer, receive
from integration.models import Message, Source
from ris.models import Change
from tests import factories as make
from tests.conftest import REPOSITORY
from tests.integration.hl7v2.making import adt, message, msh, pid

pytestmark = pytest.mark.django_db
PEER = Peer("127.0.0.1", 1)
EVENTS = specification.kept_events()


@pytest.fixture
def source(db: None, fresh_memory: None) -> Source:
    """A source of everybody's, and a patient whom the messages are about."""
    row = Source.objects.create(name="anybody")
    assert receive(adt("A04", identifier="OLD^^^HOSP^MR"), PEER).code == "AA"
    return row


def speaking_of_it(kind: str, event: str) -> bytes:
    """A message of this event about the known patient, with what its kind usually brings."""
    head = msh(f"{kind}^{event}")
    people = [pid("NEW^^^HOSP^MR", name="OTHER^NAME"), "MRG|OLD^^^HOSP^MR|||OLD"]
    if event in ("A24", "A37", "A17"):
        people = [pid("OLD^^^HOSP^MR"), "PV1|1|I", pid("NEW^^^HOSP^MR"), "PV1|2|I"]
    return message(head, f"EVN|{event}|20260301130000+0000", *people)


def test_the_changes_of_identifiers_and_links_that_are_not_applied_are_among_them():
    assert {("ADT", event) for event in ("A24", "A37", "A46", "A48", "A51")} <= set(EVENTS)


@pytest.mark.parametrize(("kind", "event"), EVENTS)
def test_each_is_kept_byte_for_byte_and_changes_nothing(source: Source, kind: str, event: str):
    before, raw = Change.objects.count(), speaking_of_it(kind, event)
    assert receive(raw, PEER).code == "AA"
    row = Message.objects.latest("id")
    assert (row.state, row.message_type, row.trigger_event, bytes(row.raw)) == ("kept", kind, event, raw)
    assert Change.objects.count() == before


@pytest.mark.parametrize(("kind", "event"), EVENTS)
def test_each_is_refused_and_stands_on_the_list_where_the_source_wants_it(
    source: Source, kind: str, event: str
):
    Source.objects.update(profile={"unknown_type": "refuse"})
    sources.forget()
    before = Change.objects.count()
    assert receive(speaking_of_it(kind, event), PEER).code == "AR"
    row = Message.objects.latest("id")
    assert (row.state, row.solved_at, row.errors[0]["code"]) == ("rejected", None, 201)
    assert Change.objects.count() == before


def test_all_of_them_are_on_the_messages_page(source: Source, client: Client):
    for kind, event in EVENTS:
        receive(speaking_of_it(kind, event), PEER)
    client.force_login(make.user("ines", Role.ANALYST))
    page = client.get(reverse("admin:integration_message_changelist") + "?state=kept").content.decode()
    assert all(f"{kind}^{event}" in page for kind, event in EVENTS)


def test_each_is_named_in_the_documentation():
    page = (REPOSITORY / "docs" / "hl7.md").read_text()
    assert all(f"| {kind} | {event} |" in page for kind, event in EVENTS)
