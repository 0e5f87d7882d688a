"""What time it is: UTC inside, the site's zone for people and for timestamps that name no zone."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from django.conf import settings


def now() -> datetime:
    """The present instant, aware, in UTC."""
    return datetime.now(UTC)


def site_zone() -> ZoneInfo:
    """The zone of the site (`[site] timezone`, default UTC): for display and for zoneless input."""
    return ZoneInfo(settings.TIME_ZONE)


def to_site(moment: datetime) -> datetime:
    """The same instant on the site's wall clock."""
    return moment.astimezone(site_zone())
