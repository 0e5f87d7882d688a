"""Rows every room shares: the audit trail, alerts, access tokens and signs of life."""

from django.conf import settings
from django.db import models


class AuditEvent(models.Model):
    """One access to a patient's data; append-only (a trigger refuses UPDATE and DELETE)."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(auto_now_add=True, db_index=True)
    actor = models.CharField(max_length=128, help_text="`user:17`, `token:4`, `ae:CT01`, `source:his`")
    action = models.CharField(max_length=64, help_text="what was done: `read`, `search`, `change`, `send`, …")
    what = models.CharField(max_length=64, help_text="the kind of thing: `patient`, `study`, `report`, …")
    patient_ids = models.JSONField(default=list, help_text="row ids of the patients concerned")
    object_ids = models.JSONField(default=list, help_text="row ids of the things touched, at most 100")
    detail = models.JSONField(default=dict, help_text="path template, result count; no health data")
    address = models.GenericIPAddressField(null=True)

    class Meta:
        ordering = ["-id"]


class Alert(models.Model):
    """Something that waits or fails so long that a person must know; open until it recovers."""

    class Severity(models.TextChoices):
        WARNING = "warning", "Warning"
        CRITICAL = "critical", "Critical"

    id = models.BigAutoField(primary_key=True)
    key = models.CharField(max_length=200, help_text="one open alert a key: `outbox:his`, `lane:…`, `disk`")
    severity = models.CharField(max_length=10, choices=Severity.choices, default=Severity.WARNING)
    summary = models.CharField(max_length=300, help_text="what is wrong and what to do; no health data")
    link = models.CharField(max_length=300, blank=True, help_text="the page that shows it")
    started_at = models.DateTimeField()
    recovered_at = models.DateTimeField(null=True, blank=True)
    start_told_at = models.DateTimeField(
        null=True, blank=True, help_text="mail and webhook sent at the start"
    )
    recovery_told_at = models.DateTimeField(null=True, blank=True, help_text="and once at recovery")

    class Meta:
        ordering = ["-started_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["key"], condition=models.Q(recovered_at__isnull=True), name="one_open_alert_a_key"
            )
        ]

    def __str__(self) -> str:
        return self.summary


class ApiToken(models.Model):
    """A bearer token for `/dicomweb`, `/fhir` and `/metrics`: only its SHA-256 is kept."""

    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=100, unique=True)
    role = models.CharField(max_length=20)
    sha256 = models.CharField(max_length=64, unique=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.CASCADE, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.name


class LoginTries(models.Model):
    """Failed logins of one name from one address, and when the next try may come (common/logins.py)."""

    key = models.CharField(primary_key=True, max_length=64, help_text="digest of name and address")
    failures = models.PositiveIntegerField()
    last_at = models.DateTimeField(db_index=True)
    wait_until = models.DateTimeField()


class Site(models.Model):
    """What `[site]` of site.toml says; one row."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    name = models.CharField(max_length=100, default="Orderly")
    timezone = models.CharField(max_length=64, default="UTC")
    live = models.BooleanField(
        default=False, help_text="a hospital depends on it: the rehearsal refuses to run"
    )
    uid_root = models.CharField(max_length=40, blank=True)
    settings = models.JSONField(default=dict, blank=True, help_text="alert mail, webhook, ages, …")

    def __str__(self) -> str:
        return self.name
