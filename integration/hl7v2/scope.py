"""Reading a message by a source's profile: the segments an expression may look into, and what stands there."""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta, tzinfo

from django.utils.functional import cached_property

from integration.hl7v2 import names, timestamps
from integration.hl7v2.errors import Code, Location, Refused, refuse
from integration.hl7v2.reading import NULL, Message, Segment
from integration.hl7v2.timestamps import Precision, Timestamp, TimestampError
from integration.sources import Place, Profile, site_zone_of

_QUOTES = '""'
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# Facts that claim to come from the future would keep later ones out: they count as of their arrival.
_FUTURE = timedelta(minutes=15)


class Head:
    """What every part of one message shares: the message, the profile, when it came, and its time zone."""

    def __init__(self, message: Message, profile: Profile, received_at: datetime) -> None:
        self.message = message
        self.profile = profile
        self.received_at = received_at
        self.warnings: list[str] = []
        self.places = profile.places({s.name for s in message.segments})

    @cached_property
    def sent_at(self) -> Timestamp | None:
        """MSH-7; None when it is empty or no time (an old sender's slip is no reason to refuse)."""
        try:
            return timestamps.parse(self.message.header.value(7), site_zone_of(self.profile))
        except TimestampError:
            return None

    @cached_property
    def zone(self) -> tzinfo:
        """The zone of times that name none: the configured one, unless MSH-7's offset says that it is another."""
        configured = site_zone_of(self.profile)
        sent = self.sent_at
        if sent is None or not sent.has_offset or not sent.has_time:
            return configured
        offset = sent.value.utcoffset()
        if sent.utc().astimezone(configured).utcoffset() == offset or sent.value.tzinfo is None:
            return configured  # its rules know summer time, a bare offset does not
        return sent.value.tzinfo


class Scope:
    """Some segments of a message (its own first, then the message's MSH, PID, PV1, …), read by the profile."""

    def __init__(self, head: Head, segments: Iterable[Segment] = ()) -> None:
        self.head = head
        self.profile = head.profile
        self.own: dict[str, list[Segment]] = {}
        for segment in segments:
            self.own.setdefault(segment.name, []).append(segment)
        self._first: dict[str, Segment] = {}

    def segment(self, name: str) -> Segment:
        """The first segment of this name here; of those before the first order, the message's."""
        found = self._first.get(name)
        if found is None:
            own = self.own.get(name)
            if own:
                found = own[0]
            elif name in _SHARED:
                found = self.head.message.first(name)
            else:
                found = _absent(name)
            self._first[name] = found
        return found

    def filled(self, attribute: str) -> tuple[Segment, Place] | None:
        """The first alternative of an attribute's expression that holds anything, and where."""
        for place in self.head.places[attribute]:
            segment = self._selected(place) if place.selector else self.segment(place.segment)
            if segment.raw and (
                segment.field(place.field) if place.component is None else _raw(segment, place)
            ):
                return segment, place
        return None

    def value(self, attribute: str) -> str:
        """The attribute's value: a clean text, NULL for `""` (or empty, when the source's `""` means nothing)."""
        for place in self.head.places[attribute]:
            segment = self._selected(place) if place.selector else self.segment(place.segment)
            fields = segment.fields
            text = fields[place.field] if place.field < len(fields) else ""
            if not text or not (place.component is None or _raw(segment, place)):
                continue
            if text.isalnum() and (place.component or 1) == 1 == (place.subcomponent or 1):
                return text  # without any separator, as most values are
            if text == _QUOTES and self.profile["null"] == "ignore":
                return ""
            return clean(segment.value(place.field, place.component or 1, 1, place.subcomponent or 1))
        return self.profile.fields[attribute].constant

    def text(self, attribute: str) -> str:
        """As `value`, but stray separators are part of the text."""
        found = self.filled(attribute)
        if found is None:
            return self.profile.fields[attribute].constant
        segment, place = found
        return clean(
            segment.component(place.field, place.component) if place.component else segment.text(place.field)
        )

    def values(self, attribute: str) -> list[str]:
        """The attribute's values, one a repetition."""
        found = self.filled(attribute)
        if found is None:
            constant = self.profile.fields[attribute].constant
            return [constant] if constant else []
        segment, place = found
        count = len(segment.repetitions(place.field))
        read = (clean(segment.value(place.field, place.component or 1, r)) for r in range(1, count + 1))
        return [v for v in read if v]

    def code(self, attribute: str) -> dict[str, str] | None:
        """A coded value (CE, CWE): the three components from the place's on; None when there is none."""
        for place in self.head.places[attribute]:
            segment = self._selected(place) if place.selector else self.segment(place.segment)
            if not segment.field(place.field):
                continue
            first = place.component or 1
            value, meaning, scheme = (clean(segment.value(place.field, first + i)) for i in range(3))
            if value or meaning:
                return {"code_value": value, "coding_scheme_designator": scheme, "code_meaning": meaning}
        return None

    def person(self, attribute: str) -> names.Person | None:
        """A person (XCN, or CNN's subcomponents)."""
        found = self.filled(attribute)
        if found is None:
            return None
        segment, place = found
        return names.read_cnn(segment, place.field)

    def time(self, attribute: str) -> Timestamp | None:
        """A time in the message's zone. Raises Refused (102) where it stands."""
        found = self.filled(attribute)
        if found is None:
            return None
        segment, place = found
        return read_time(self.head, segment, place.field, place.component or 1)

    def lenient_time(self, attribute: str) -> Timestamp | None:
        """A time that no decision hangs on: one that cannot be read is noted and passed over."""
        try:
            return self.time(attribute)
        except Refused as refusal:
            self.head.warnings.append(f"{refusal.problem.location}: this is no time; it was passed over.")
            return None

    def where(self, attribute: str) -> Location:
        """The place to name when an attribute is at fault: where it stands, else where it was looked for."""
        found = self.filled(attribute)
        if found is None:
            places = self.profile.fields[attribute].places
            there = next((p for p in places if self._selected(p)), places[0] if places else None)
            if there is None:
                return Location("MSH", 1)
            found = self._selected(there), there
        segment, place = found
        return Location(
            place.segment,
            max(segment.sequence, 1),
            place.field,
            1 if place.component else None,
            place.component,
            place.subcomponent,
        )

    def _selected(self, place: Place) -> Segment:
        if not place.selector:
            return self.segment(place.segment)
        wanted = place.selector.casefold()
        for segment in self.own.get(place.segment, ()):
            if any(c.strip().casefold() == wanted for c in segment.components(3)):
                return segment
        return _absent(place.segment)


# Segments that stand before the first order and hold for all of them.
_SHARED = frozenset({"MSH", "EVN", "PID", "PD1", "PV1", "PV2", "MRG", "SCH", "TXA"})


def clean(text: str) -> str:
    """A value without control characters (line ends stay) and outer spaces; NULL stays NULL."""
    if text is NULL:
        return NULL
    return text.strip() if text.isprintable() else _CONTROL.sub("", text).strip()


def read_time(head: Head, segment: Segment, field: int, component: int = 1) -> Timestamp | None:
    """A time in a field, in the message's zone; None when it is empty or `""`. Raises Refused (102)."""
    if not segment.field(field):
        return None
    text = segment.value(field, component).strip()
    if not text.strip("0"):  # 00000000 is how some say that they do not know
        return None
    degree = segment.value(field, 2) if component == 1 else ""
    try:
        return timestamps.parse(text, head.zone, degree if len(degree) == 1 else "")
    except TimestampError as error:
        place = segment.at(field, component if component > 1 else None)
        raise refuse(Code.DATA_TYPE, f"This is no time: {error}.", place) from None


def facts_at(scope: Scope, attribute: str = "facts_at") -> datetime:
    """How old the facts of a message are (EVN-2 or ORC-9, else MSH-7); never later than its arrival.

    A sender that leaves MSH-7 empty claims no order among its messages: then it is the arrival. MSH-7 stands in
    for a place that says the same moment less exactly.
    """
    head = scope.head
    if head.sent_at is None and head.message.message_type != "ADT":
        return head.received_at
    said = [t for place in scope.profile.fields[attribute].places if (t := _optional_time(scope, place))]
    if not said:
        return head.received_at
    best = said[0]
    if head.sent_at and head.sent_at.precision > best.precision and _covers(best, head.sent_at):
        best = head.sent_at
    moment = instant(best, head.zone)
    return head.received_at if moment > head.received_at + _FUTURE else moment


def instant(read: Timestamp, zone: tzinfo) -> datetime:
    """The aware moment of a time; a date is its midnight in the zone."""
    return read.value if read.value.tzinfo else read.value.replace(tzinfo=zone)


def _optional_time(scope: Scope, place: Place) -> Timestamp | None:
    segment = scope.segment(place.segment)
    try:
        read = read_time(scope.head, segment, place.field, place.component or 1) if segment else None
    except Refused:
        return None
    return read if read and read.precision >= Precision.MINUTE else None


def _covers(coarse: Timestamp, fine: Timestamp) -> bool:
    """Whether the finer time lies within the minute (or second) that the coarser one names."""
    digits = min(coarse.precision, Precision.SECOND)
    texts = [t.value.strftime("%Y%m%d%H%M%S")[:digits] for t in (coarse, fine)]
    return texts[0] == texts[1]


def _raw(segment: Segment, place: Place) -> str:
    """What stands at the place, encoded, in its first repetition; empty when nothing does."""
    if place.component is None:
        return segment.field(place.field)
    repetitions = segment.repetitions(place.field)
    parts = repetitions[0].split(segment.separators.component) if repetitions else []
    if place.component > len(parts):
        return ""
    if place.subcomponent is None:
        return parts[place.component - 1]
    deep = parts[place.component - 1].split(segment.separators.subcomponent)
    return deep[place.subcomponent - 1] if place.subcomponent <= len(deep) else ""


def _absent(name: str) -> Segment:
    absent = Segment("")
    absent.name = name
    return absent
