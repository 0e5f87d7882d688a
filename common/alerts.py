"""Alerts: one at the start and one at recovery, told by page banner, mail and webhook. A log line is no alert."""

from django.db import IntegrityError, transaction

from common.clock import now
from common.models import Alert


def raise_alert(key: str, summary: str, *, severity: str = Alert.Severity.WARNING, link: str = "") -> bool:
    """Open an alert unless one with this key is open; True when it is new. `summary` holds no health data."""
    if Alert.objects.filter(key=key, recovered_at__isnull=True).exists():
        return False
    try:
        with transaction.atomic():
            Alert.objects.create(key=key, summary=summary, severity=severity, link=link, started_at=now())
    except IntegrityError:
        return False
    return True


def recover(key: str) -> bool:
    """Close the open alert with this key; True when there was one."""
    return bool(Alert.objects.filter(key=key, recovered_at__isnull=True).update(recovered_at=now()))


def open_alerts() -> list[Alert]:
    """What is wrong now, critical first."""
    return sorted(
        Alert.objects.filter(recovered_at__isnull=True),
        key=lambda a: (a.severity != "critical", a.started_at),
    )
