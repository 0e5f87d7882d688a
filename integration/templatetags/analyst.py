"""How the analyst's pages write values, numbers and moments."""

from datetime import datetime
from typing import Any

from django import template

from common.clock import to_site
from common.templatetags.orderly import attribute, span

register = template.Library()


@register.filter
def local_input(moment: datetime | None) -> str:
    """A moment in the form of a datetime-local input, on the site's clock."""
    return f"{to_site(moment):%Y-%m-%dT%H:%M}" if moment else ""


@register.filter
def before(text: Any, mark: str) -> str:
    """What stands before a mark: `Kept` of `Kept: a type we do not apply`."""
    return str(text).partition(mark)[0]


@register.filter
def after(text: Any, mark: str) -> str:
    """What stands after a mark, or everything where there is none."""
    return str(text).partition(mark)[2] or str(text)


@register.filter
def grouped(number: Any) -> str:
    """A whole number in groups of three: `1,204,000`; of large estimates only two digits are true."""
    value = int(number or 0)
    if value > 1000:
        digits = len(str(value)) - 2
        value = round(value / 10**digits) * 10**digits
    return f"{value:,}"


@register.filter
def state_word(state: str) -> str:
    """A message's state in one word."""
    return "Not HL7" if state == "fault" else str(state).capitalize()


@register.filter
def profiled(value: Any) -> str:
    """A profile's value as one reads it: a table by its arrows, a missing one as the default."""
    if value is None:
        return "(default)"
    if isinstance(value, dict):
        return ", ".join(f"{k} → {v or 'empty'}" for k, v in value.items()) or "(empty)"
    return said(value)


@register.filter
def said(value: Any) -> str:
    """A stored value in words: nothing, a list with commas, a code with its meaning, an instant on the site's clock."""
    if value in (None, "", [], {}):
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{attribute(str(k))} {said(v)}" for k, v in value.items() if v not in ("", None))
    if isinstance(value, list | tuple):
        return ", ".join(said(v) for v in value)
    text = str(value)
    if len(text) >= 19 and text[4:5] == "-" and text[10:11] == "T":
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return text
        return f"{to_site(moment):%Y-%m-%d %H:%M}" if moment.tzinfo else f"{moment:%Y-%m-%d %H:%M}"
    return text


@register.filter
def lag(first: datetime, then: datetime | None) -> str:
    """How long from one moment to another."""
    return span((then - first).total_seconds()) if then else ""


@register.filter
def milliseconds(value: float | None) -> str:
    """A latency in the unit one reads: `3.4 ms`, `210 ms`, `1.2 s`, `3 min`."""
    if value is None:
        return "–"
    if value < 10:
        return f"{value:.1f} ms"
    if value < 1000:
        return f"{value:.0f} ms"
    return f"{value / 1000:.1f} s" if value < 60_000 else span(value / 1000)


@register.filter
def minus(number: int, other: int) -> int:
    """The difference of two numbers."""
    return int(number or 0) - int(other or 0)
