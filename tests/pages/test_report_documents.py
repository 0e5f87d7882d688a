"""Documents that came with a report: shown to those who may read it, handed out as they came, never run."""

import hashlib
from typing import Any

import pytest
from django.test import Client

from common.models import AuditEvent
from common.roles import Role
from ris.models import ReportDocument, ReportVersion
from tests import factories as make
from tests.pages.morning import Morning, begin

pytestmark = pytest.mark.django_db

PDF = b"%PDF-1.4\n%%EOF\n"


@pytest.fixture
def morning() -> Morning:
    """A department at work."""
    return begin()


def attach(morning: Morning, content: bytes, media_type: str, number: int = 1) -> ReportDocument:
    """A document of the morning's signed report."""
    version = ReportVersion.objects.filter(report__procedure__request=morning.reported).latest("number")
    return ReportDocument.objects.create(
        version=version,
        number=number,
        title="Scanned report",
        media_type=media_type,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        content=content,
    )


def opened(client: Client, user: Any, document: ReportDocument) -> Any:
    client.force_login(user)
    return client.get(f"/reading/document/{document.pk}/")


def test_a_pdf_is_linked_from_the_report_and_opens_as_it_came(client: Client, morning: Morning):
    document = attach(morning, PDF, "application/pdf")
    procedure = morning.reported.procedures.get()
    client.force_login(morning.radiologist)
    page = client.get(f"/reading/{procedure.pk}/").content.decode()
    assert f'href="/reading/document/{document.pk}/"' in page and "Scanned report" in page
    answer = opened(client, morning.radiologist, document)
    assert answer.content == PDF and answer["Content-Type"] == "application/pdf"
    assert answer["Content-Disposition"] == 'inline; filename="report-1.pdf"'
    assert answer["X-Content-Type-Options"] == "nosniff"
    seen = AuditEvent.objects.filter(action="read", what="report document").get()
    assert seen.patient_ids == [str(morning.reported.patient_id)]
    assert seen.object_ids == [str(document.pk)]


def test_what_a_browser_might_run_is_only_saved(client: Client, morning: Morning):
    document = attach(morning, b"<script>alert(1)</script>", "text/html", 2)
    answer = opened(client, morning.radiologist, document)
    assert answer["Content-Type"] == "application/octet-stream"
    assert answer["Content-Disposition"] == 'attachment; filename="report-2.bin"'


def test_a_referrer_opens_the_documents_of_own_orders_alone(client: Client, morning: Morning):
    document = attach(morning, PDF, "application/pdf")
    assert opened(client, morning.referrer, document).content == PDF
    procedure = morning.reported.procedures.get()
    assert str(document.pk) in client.get(f"/portal/{procedure.pk}/").content.decode()
    stranger = make.user("other.referrer", Role.REFERRER)
    make.practitioner("Other^Rita", "P999", stranger)
    assert opened(client, stranger, document).status_code == 404
    technologist = make.user("tech", Role.TECHNOLOGIST)
    assert opened(client, technologist, document).status_code == 403
