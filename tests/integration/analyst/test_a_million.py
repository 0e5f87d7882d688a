"""A million stored messages: no page reads them all. Plans are tested here; `manage.py bench pages` takes the times."""

import os

import pytest

from integration.benches import pages, stock

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True), pytest.mark.timeout(1200)]

COUNT = int(os.environ.get("ORDERLY_TEST_MESSAGES", "1000000"))
MOST_ROWS = max(COUNT * 3 // 10, 150_000)
"""Of one query. A count of all deliveries, read from an index, is the longest."""
GROWING = {
    "integration_message", "integration_messagetext", "integration_outboxitem", "integration_deliveryattempt",
    "ris_patient", "ris_patientidentifier", "ris_change", "common_auditevent",
}  # fmt: skip


def test_every_page_reads_from_indexes_and_a_bounded_part():
    stored = stock.fill(COUNT)
    client = pages.visitor()
    faults = []
    for page in pages.pages_over(stored):
        found = pages.reads(client, page)
        assert found, page.name
        slowest = max(found, key=lambda read: read.ms)
        print(f"{page.name:50} {sum(read.rows for read in found):8} rows, slowest {slowest.ms:6.0f} ms")
        for read in found:
            if tables := read.whole & GROWING:
                faults.append(f"{page.name} reads all of {', '.join(tables)}: {read.sql[:300]}")
            if read.rows > MOST_ROWS and page.must == pages.MUST_MS:
                faults.append(f"{page.name} looks at {read.rows} rows: {read.sql[:300]}")
    assert not faults, "\n".join(faults)
