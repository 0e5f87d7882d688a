"""Times: every precision, offsets, zones, and the odd ones."""

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.hl7v2.timestamps import Precision, TimestampError, format_date, format_time, parse

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "value", "precision"),
    [
        ("2026", datetime(2026, 1, 1), Precision.YEAR),
        ("202603", datetime(2026, 3, 1), Precision.MONTH),
        ("20260301", datetime(2026, 3, 1), Precision.DAY),
        ("2026030110", datetime(2026, 3, 1, 10), Precision.HOUR),
        ("202603011030", datetime(2026, 3, 1, 10, 30), Precision.MINUTE),
        ("20260301103015", datetime(2026, 3, 1, 10, 30, 15), Precision.SECOND),
        ("20260301103015.5", datetime(2026, 3, 1, 10, 30, 15, 500000), Precision.FRACTION),
        ("20260301103015.1234", datetime(2026, 3, 1, 10, 30, 15, 123400), Precision.FRACTION),
    ],
)
def test_the_precision_is_kept(text, value, precision):
    read = parse(text)
    assert (read.value, read.precision, read.has_offset) == (value, precision, False)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("20260301103015+0000", datetime(2026, 3, 1, 10, 30, 15, tzinfo=UTC)),
        ("20260301103015-0500", datetime(2026, 3, 1, 15, 30, 15, tzinfo=UTC)),
        ("20260301103015+0545", datetime(2026, 3, 1, 4, 45, 15, tzinfo=UTC)),
        ("20260301103015-0030", datetime(2026, 3, 1, 11, 0, 15, tzinfo=UTC)),
        ("202603011030+1400", datetime(2026, 2, 28, 20, 30, tzinfo=UTC)),
    ],
)
def test_an_offset_is_honoured(text, utc):
    assert parse(text, BERLIN).utc() == utc
    assert parse(text).has_offset


def test_a_time_without_offset_is_in_the_given_zone_with_its_summer_time():
    assert parse("202601151200", BERLIN).utc() == datetime(2026, 1, 15, 11, tzinfo=UTC)
    assert parse("202607151200", BERLIN).utc() == datetime(2026, 7, 15, 10, tzinfo=UTC)


def test_a_date_never_has_a_zone():
    assert parse("20260301", BERLIN).value.tzinfo is None
    assert parse("20260301+0900").value == datetime(2026, 3, 1)
    assert parse("20260301+0900").date == date(2026, 3, 1)


def test_24_00_is_the_next_midnight_and_second_60_the_next_minute():
    assert parse("202612312400").value == datetime(2027, 1, 1)
    assert parse("20261231240000").value == datetime(2027, 1, 1)
    assert parse("20161231235960+0000").utc() == datetime(2017, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("degree", "precision"),
    [
        ("Y", Precision.YEAR),
        ("L", Precision.MONTH),
        ("D", Precision.DAY),
        ("H", Precision.HOUR),
        ("S", Precision.SECOND),
    ],
)
def test_the_old_degree_component_lowers_the_precision(degree, precision):
    assert parse("20260301103015.55", degree=degree).precision is precision
    assert parse("2026", degree="S").precision is Precision.YEAR


@pytest.mark.parametrize(
    "text",
    [
        "", "26", "2026-03-01", "202", "20263", "20261301", "20260230", "2026030125", "202603012401",
        "20260301106000", "20260301103061", "20260301103015Z", "20260301103015+5", "20260301103015+0500x",
        "20260301103015 junk", "2026030110.5", "20260301103015+2500", "20260301103015+0560", "00000000",
        "٢٠٢٦", "20260301103015.",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused_without_repeating_it(text):
    with pytest.raises(TimestampError) as refusal:
        parse(text)
    assert not text or text not in str(refusal.value)


def test_a_dicom_date_needs_the_day():
    assert parse("20260301").dicom_date() == "20260301"
    assert parse("202603").dicom_date() == ""


def test_times_are_written_with_their_offset():
    moment = datetime(2026, 3, 1, 10, 30, 15, 123456, timezone(-timedelta(minutes=30)))
    assert format_time(moment) == "20260301103015-0030"
    assert format_time(moment, Precision.FRACTION) == "20260301103015.1234-0030"
    assert format_time(moment, Precision.DAY) == "20260301"
    assert format_date(date(812, 3, 1)) == "08120301"


@given(
    st.datetimes(min_value=datetime(1000, 1, 1), max_value=datetime(9990, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
)
def test_what_is_written_is_read_back(moment, minutes):
    aware = moment.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=minutes)))
    assert parse(format_time(aware)).value == aware


@given(st.text(alphabet="0123456789.+-", max_size=24))
def test_any_digits_are_a_time_or_refused(text):
    try:
        parse(text, BERLIN)
    except TimestampError:
        pass
