"""The wiring page: every event has its hearers, and they only ever add rows."""

import inspect

from common import events
from integration import wiring
from pacs import events as pacs_events
from ris import events as ris_events

# News that nobody needs today: a page or a later room may.
UNHEARD = {"CaseOpened", "ObjectSetAside"}


def published() -> dict[str, type]:
    """Every event class of the floors below."""
    found = {}
    for module in (pacs_events, ris_events):
        for name, one in inspect.getmembers(module, inspect.isclass):
            if one.__module__ == module.__name__:
                found[name] = one
    return found


def test_every_event_is_heard_or_known_to_be_unheard() -> None:
    heard = {event.__name__ for event in wiring.page()}
    assert heard | UNHEARD == set(published())
    assert not heard & UNHEARD


def test_what_the_page_says_is_what_happens_and_only_once() -> None:
    wiring.wire()
    for event, hearers in wiring.page().items():
        assert tuple(events.heard_by(event)) == hearers


def test_the_worklist_hears_before_anybody_is_told() -> None:
    for hearers in wiring.page().values():
        rooms = [h.__module__.partition(".")[0] for h in hearers]
        assert rooms == sorted(rooms, key=["worklist", "ris", "integration"].index)
