"""The written interface: docs/hl7.md says what the code does, and a source's own page says what differs."""

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from integration.hl7v2 import specification
from integration.models import Source
from integration.sources import PROFILE_KEYS
from tests.conftest import REPOSITORY


def test_the_tables_of_the_page_are_those_of_the_code():
    page = (REPOSITORY / "docs" / "hl7.md").read_text()
    assert page.endswith(specification.defaults()), "write them anew: manage.py interface"


def test_every_key_of_a_profile_is_on_the_page():
    page = specification.defaults()
    assert all(f"`{key}`" in page for key in PROFILE_KEYS)


@pytest.mark.django_db
def test_a_source_has_its_own_page():
    Source.objects.create(name="his", application="HIS", profile={"accession_number": "ORC-3.1, refuse"})
    out = StringIO()
    call_command("interface", "his", stdout=out)
    assert "| `accession_number` | ORC-3.1, *refuse* |" in out.getvalue()
    assert "| sending application (MSH-3) | HIS |" in out.getvalue()
    with pytest.raises(CommandError, match="his"):
        call_command("interface", "nobody")
