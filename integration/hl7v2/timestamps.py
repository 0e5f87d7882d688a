"""Times (data types TS, DTM, DT, TM): YYYY[MM[DD[HH[MM[SS[.S{1,4}]]]]]][+/-ZZZZ], with the precision they came in."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from enum import IntEnum
from functools import lru_cache


class Precision(IntEnum):
    """How much of a time was said."""

    YEAR = 4
    MONTH = 6
    DAY = 8
    HOUR = 10
    MINUTE = 12
    SECOND = 14
    FRACTION = 15


class TimestampError(ValueError):
    """A text is no HL7 time. The message never holds the text itself."""


@dataclass(frozen=True, slots=True)
class Timestamp:
    """A time as it was said. `value` is aware when an offset or a default zone was known and hours were said."""

    value: datetime
    precision: Precision
    has_offset: bool

    @property
    def date(self) -> date:
        """The calendar date, in the zone it was said in."""
        return self.value.date()

    @property
    def has_time(self) -> bool:
        """Whether at least the hour was said."""
        return self.precision >= Precision.HOUR

    def utc(self) -> datetime:
        """The instant in UTC; a time without a zone is taken as UTC."""
        aware = self.value if self.value.tzinfo else self.value.replace(tzinfo=UTC)
        return aware.astimezone(UTC)

    def dicom_date(self) -> str:
        """DA form (PS3.5 section 6.2): YYYYMMDD; empty when the day was not said."""
        return f"{self.value:%Y%m%d}" if self.precision >= Precision.DAY else ""


_TEXT = re.compile(
    r"(?P<digits>\d{4}(?:\d{2}){0,5})(?:\.(?P<fraction>\d{1,9}))?(?P<zone>[+-]\d{4})?\Z", re.ASCII
)
# The degree-of-precision component that TS had up to version 2.4.
_DEGREES = {
    "Y": Precision.YEAR,
    "L": Precision.MONTH,
    "D": Precision.DAY,
    "H": Precision.HOUR,
    "M": Precision.MINUTE,
    "S": Precision.SECOND,
}


@lru_cache(maxsize=8192)  # one message says the same moment in several places, and many messages say one day
def parse(text: str, zone: tzinfo | None = None, degree: str = "") -> Timestamp:
    """Read a time. `zone` holds where the text names no offset and says hours; never for plain dates.

    24:00 is the next midnight and second 60 the next minute. `degree` (Y L D H M S) can only lower the
    precision. Raises TimestampError.
    """
    match = _TEXT.match(text.strip())
    if not match:
        raise TimestampError("not of the form YYYY[MM[DD[HH[MM[SS[.S]]]]]][+/-ZZZZ]")
    digits, fraction = match["digits"], match["fraction"]
    if fraction and len(digits) < 14:
        raise TimestampError("a fraction needs seconds before it")
    precision = Precision.FRACTION if fraction else Precision(len(digits))
    if degree:
        precision = min(precision, _DEGREES.get(degree.strip().upper(), precision))
        digits = digits[: min(len(digits), precision)]
        fraction = fraction if precision is Precision.FRACTION else None
    numbers = [int(digits[:4]), *(int(digits[i : i + 2]) for i in range(4, len(digits), 2))]
    moment = _moment(numbers, fraction)
    offset = read_offset(match["zone"]) if match["zone"] else None
    if precision < Precision.HOUR:
        return Timestamp(moment, precision, offset is not None)
    return Timestamp(moment.replace(tzinfo=offset or zone), precision, offset is not None)


def read_offset(text: str) -> timezone:
    """The zone of `+/-ZZZZ`; `-0030` is half an hour west. Raises TimestampError."""
    hours, minutes = int(text[1:3]), int(text[3:5])
    if hours > 14 or minutes > 59:
        raise TimestampError("no offset goes further than 14 hours")
    distance = timedelta(hours=hours, minutes=minutes)
    return timezone(-distance if text[0] == "-" else distance)


def format_time(moment: datetime, precision: Precision = Precision.SECOND) -> str:
    """The text of a time, with its offset when it is aware and says hours."""
    text = moment.strftime("%Y%m%d%H%M%S")
    text = text.rjust(14, "0")[: min(precision, Precision.SECOND)]
    if precision is Precision.FRACTION:
        text += f".{moment.microsecond // 100:04d}"
    if moment.tzinfo is None or precision < Precision.HOUR:
        return text
    return text + moment.strftime("%z")[:5]


def format_date(day: date) -> str:
    """The text of a date: YYYYMMDD."""
    return f"{day.year:04d}{day.month:02d}{day.day:02d}"


def _moment(numbers: list[int], fraction: str | None) -> datetime:
    numbers = numbers + [1] * (3 - len(numbers)) + [0] * (6 - max(len(numbers), 3))
    year, month, day, hour, minute, second = numbers
    beyond = timedelta()
    if hour == 24 and minute == second == 0:
        hour, beyond = 0, timedelta(days=1)
    elif second == 60:
        second, beyond = 59, timedelta(seconds=1)
    try:
        moment = datetime(year, month, day, hour, minute, second) + beyond  # noqa: DTZ001 zone comes later
    except (ValueError, OverflowError) as error:
        raise TimestampError("no such day or time") from error
    if fraction:
        moment += timedelta(microseconds=int(fraction[:6].ljust(6, "0")))
    return moment
