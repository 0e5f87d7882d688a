"""How pages write names, dates, ages and sizes, and which icon stands for what."""

from datetime import date, datetime
from typing import Any

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from common.clock import now, site_zone, to_site
from common.names import parse_pn

register = template.Library()

# State → the tone in which it is shown: `ok`, `wait`, `bad`, `info`, `off`. Words always stand beside the colour.
_TONES = {
    "ok": "applied delivered COMPLETED FINAL ADDENDED CORRECTED solved SOLVED skipped ready current AA CA",
    "wait": "waiting queued SCHEDULED ARRIVED READY OPEN open DRAFT PRELIMINARY HELD HIGH warning starting",
    "bad": "refused rejected fault parked CANCELED DISCONTINUED STAT critical AE AR CE CR down RETRACTED",
    "info": "STARTED DEPARTED ACTIVE kept alias",
}
_TONE_OF = {state: tone for tone, states in _TONES.items() for state in states.split()}
_TONE_OF |= {"IN PROGRESS": "info", "skipped": "off", "DISMISSED": "off"}


@register.filter
def tone(state: Any) -> str:
    """The tone of a state's chip."""
    return _TONE_OF.get(str(state), "off")


@register.filter
def pn(value: str | None) -> str:
    """A DICOM person name as one reads it; a dash when there is none."""
    return parse_pn(value or "").display() or "–"


@register.filter
def dicom_date(value: str | None) -> str:
    """`YYYY[MM[DD]]` with hyphens; a dash when empty."""
    text = value or ""
    return "-".join(part for part in (text[:4], text[4:6], text[6:8]) if part) or "–"


@register.filter
def years(birth: str | None) -> str:
    """The age of a person born on `YYYYMMDD`: `46 y`, below two years `13 mo`; empty when it cannot be known."""
    try:
        born = date(int(birth[:4]), int(birth[4:6]), int(birth[6:8]))  # type: ignore[index]
    except (TypeError, ValueError):
        return ""
    today = now().astimezone(site_zone()).date()
    months = (today.year - born.year) * 12 + today.month - born.month - (today.day < born.day)
    if months < 0:
        return ""
    return f"{months // 12} y" if months >= 24 else f"{months} mo"


@register.filter
def sex(value: str | None) -> str:
    """Patient's Sex in a word."""
    return {"M": "male", "F": "female", "O": "other"}.get(value or "", value or "")


@register.filter
def age(moment: datetime | None) -> str:
    """How long ago, in one or two units: `40 s`, `14 min`, `3 h 20 min`, `2 d 4 h`, `12 d`."""
    if moment is None:
        return "–"
    return span((now() - moment).total_seconds())


@register.filter
def span(seconds: float) -> str:
    """A length of time, as `age` writes it."""
    left = int(max(0, seconds))
    if left < 60:
        return f"{left} s"
    minutes = left // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours and days < 7 else f"{days} d"


@register.filter
def moment(value: datetime | None) -> SafeString | str:
    """An instant on the site's clock: today only the time, else the date too; the full form on hovering."""
    if value is None:
        return "–"
    local, today = to_site(value), to_site(now()).date()
    if local.date() == today:
        text = f"{local:%H:%M}"
    elif local.year == today.year:
        text = f"{local.day} {local:%b} {local:%H:%M}"
    else:
        text = f"{local:%Y-%m-%d %H:%M}"
    full = f"{local:%Y-%m-%d %H:%M:%S %Z}"
    return format_html('<time datetime="{}" title="{}">{}</time>', value.isoformat(), full, text)


@register.filter
def short(value: Any, length: int = 24) -> str:
    """A long identifier cut in its middle, so that both ends can be read."""
    text = str(value or "")
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[-(length - 1 - head) :]}"


@register.filter
def size(number: int | None) -> str:
    """A number of bytes in a readable unit."""
    value = float(number or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


@register.filter
def words(value: Any) -> str:
    """A snake_case keyword as words."""
    return str(value).replace("_", " ")


@register.filter
def attribute(keyword: str) -> str:
    """A snake_case DICOM keyword as people say it: `patient ID`, `study instance UID`."""
    said = {"id": "ID", "uid": "UID", "ae": "AE"}
    return " ".join(said.get(word, word) for word in keyword.split("_"))


@register.filter
def get(mapping: Any, key: Any) -> Any:
    """A mapping's value, or nothing."""
    return mapping.get(key) if mapping else None


@register.inclusion_tag("parts/icon.html")
def icon(name: str, label: str = "") -> dict[str, str]:
    """A symbol of our own small set (templates/parts/icon.html); with a label it speaks to screen readers."""
    return {"name": name, "label": label}
