"""News that travels upward: typed events, heard in the transaction that made them true.

An event is a frozen dataclass of the floor that publishes it. Who hears what is said on one page,
`integration/wiring.py`. A handler only adds rows of its own room to the unit it is given; it calls nothing
outside and cannot refuse: an exception in it is a programming error and rolls the whole fact back.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.store import Unit

Handler = Callable[[Any, "Unit"], None]

_handlers: dict[type, list[Handler]] = defaultdict(list)


def subscribe(event_type: type, handler: Handler) -> None:
    """Let `handler(event, unit)` hear every event of this very type; a second subscription changes nothing."""
    if handler not in _handlers[event_type]:
        _handlers[event_type].append(handler)


def publish(event: Any, unit: "Unit") -> None:
    """Tell everyone who subscribed to the event's type, in order of subscription, within the unit."""
    for handler in _handlers[type(event)]:
        handler(event, unit)


def heard_by(event_type: type) -> list[Handler]:
    """The handlers of an event type, for the wiring page and its test."""
    return list(_handlers[event_type])
