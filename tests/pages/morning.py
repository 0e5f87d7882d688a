"""A believable morning for the browser tests and their screenshots: people, orders, images, messages, trouble."""

from dataclasses import dataclass
from datetime import timedelta

from django.contrib.auth.models import User

from common.alerts import raise_alert
from common.clock import now
from common.models import Site
from common.roles import Role
from integration.models import Message
from pacs.models import SetAside, Study
from ris.models import ImagingServiceRequest, Practitioner
from tests import factories as make


@dataclass
class Morning:
    """What the tests point at."""

    clerk: User
    radiologist: User
    referrer: User
    physician: Practitioner
    order: ImagingServiceRequest
    unscheduled: ImagingServiceRequest
    reported: ImagingServiceRequest
    unmatched: Study


def begin(*, busy: bool = False) -> Morning:
    """Make it; `busy` with the stream of messages that the chart of the first page shows."""
    Site.objects.update_or_create(pk=1, defaults={"name": "St. Brigid's Hospital", "timezone": "UTC"})
    clerk = make.user("clara.weiss", Role.CLERK, first_name="Clara", last_name="Weiss")
    radiologist = make.user("mara.lindt", Role.RADIOLOGIST, first_name="Mara", last_name="Lindt")
    referrer = make.user("jonas.ahrens", Role.REFERRER, first_name="Jonas", last_name="Ahrens")
    make.practitioner("Lindt^Mara^^Dr.", "R007", radiologist)
    physician = make.practitioner("Ahrens^Jonas^^Dr.", "P100", referrer)
    make.department()
    make.source(application="HIS")
    make.destination("HIS results")
    today = now().replace(minute=0, second=0, microsecond=0)

    sommer = make.patient("4711", "Sommer^Clara", "19600512", "F")
    beck = make.patient("4712", "Beck^Anton", "19871103", "M")
    ito = make.patient("4713", "Ito^Hana", "19940221", "F")
    keller = make.patient("4714", "Keller^Ruth", "19510830", "F")
    young = make.patient("4715", "Young^Daniel", "20190407", "M")

    old = make.order(
        sommer, "CTHEAD", accession="A25-0788", start=today - timedelta(days=120), physician=physician
    )
    make.study(old, make.Images(received_at=today - timedelta(days=120)))
    make.report(
        make.procedure(old),
        radiologist,
        "No haemorrhage. Ventricles and sulci of normal width. No mass.",
        "Normal CT of the head.",
    )
    order = make.order(
        sommer,
        "CTHEAD",
        accession="A26-1042",
        start=today - timedelta(hours=1),
        priority="STAT",
        physician=physician,
        reason="Sudden headache since this morning, on anticoagulants. Haemorrhage?",
        station="CT 1",
    )
    make.move(order, "ARRIVED")
    make.study(order, make.Images(received_at=now() - timedelta(minutes=34)))
    reported = make.order(
        beck, "DXCHEST", accession="A26-1043", start=today - timedelta(hours=2), physician=physician
    )
    make.study(
        reported,
        make.Images(
            series=(("PA", 1), ("Lateral", 1)),
            station="DX01",
            received_at=now() - timedelta(hours=2),
            values={"modalities_in_study": ["DX"]},
        ),
    )
    make.report(
        make.procedure(reported),
        radiologist,
        "Heart of normal size. Lungs clear, no effusion, no pneumothorax.",
        "Normal chest.",
    )
    waiting = make.order(
        keller, "MRHEAD", accession="A26-1044", start=today - timedelta(hours=3), station="MR 1"
    )
    make.study(
        waiting,
        make.Images(
            series=(("T1 sag", 24), ("T2 ax", 30), ("FLAIR", 30)),
            station="MR01",
            received_at=now() - timedelta(hours=26),
            values={"modalities_in_study": ["MR"]},
        ),
    )
    make.report(
        make.procedure(waiting), radiologist, "White matter lesions, few, non-specific.", "", sign=False
    )
    make.order(ito, "MRKNEE", accession="A26-1045", start=today + timedelta(hours=2), station="MR 1")
    unscheduled = make.order(young, "DXCHEST", accession="A26-1046")
    wanted = make.order(
        ito, "CTCHEST", accession="A26-1047", start=today - timedelta(hours=1), station="CT 1"
    )
    unmatched = make.study(
        wanted,
        make.Images(
            received_at=now() - timedelta(minutes=52),
            series=(("Localizer", 2), ("Chest 1.0", 212)),
            values={"study_instance_uid": "1.2.826.0.1.3680043.8.498.77", "accession_number": "A26-1074"},
        ),
    )
    _messages(56 if busy else 3)
    SetAside.objects.create(
        reason=SetAside.Reason.UNREADABLE,
        detail="The data set ends within element (7FE0,0010).",
        path="aside/1",
        size=88_120,
        sha256="1" * 64,
        calling_ae="US02",
        received_at=now() - timedelta(hours=3),
    )
    raise_alert(
        "queue:unmatched",
        "A study has waited for its order for 50 minutes.",
        link="/admin/ris/reconciliationcase/",
    )
    return Morning(clerk, radiologist, referrer, physician, order, unscheduled, reported, unmatched)


def _messages(updates: int) -> None:
    """Messages through the real inbox, then spread over the last hours."""
    stamp = f"{now():%Y%m%d%H%M%S}"
    for number in range(updates):
        make.message(
            f"MSH|^~\\&|HIS|HOSP|ORDERLY|RAD|{stamp}||ADT^A08^ADT_A01|M{number:05}|P|2.5.1",
            f"EVN|A08|{stamp}",
            f"PID|1||{9000 + number % 9}^^^HOSP^MR||Meier^Person {number % 9}||19700101|F",
            "PV1|1|O|RAD^1",
        )
    make.message(
        f"MSH|^~\\&|HIS|HOSP|ORDERLY|RAD|{stamp}||ORM^O01^ORM_O01|M00100|P|2.3.1",
        "PID|1||4714^^^HOSP^MR||Keller^Ruth||19510830|F",
        "ORC|CA|P-99999^HIS|||CA||||" + stamp,
        "OBR|1|P-99999^HIS||MRHEAD^MR of the head^L",
    )
    make.message(
        f"MSH|^~\\&|HIS|HOSP|ORDERLY|RAD|{stamp}||ORM^O01^ORM_O01|M00101|P|2.3.1",
        "PID|1||4713^^^HOSP^MR||Ito^Hana||19940221|F",
        "PV1|1|O|RAD^1||||P100^Ahrens^Jonas|P100^Ahrens^Jonas",
        f"ORC|NW|P-55510^HIS|||||^^^{stamp}^^S|{stamp}|||P100^Ahrens^Jonas",
        "OBR|1|P-55510^HIS||CTHEAD^CT of the head^L||||||||||||P100^Ahrens^Jonas||A26-1050|RP-1050|SPS-1050||||CT",
        "ZDS|1.2.826.0.1.3680043.8.498.1050^HIS^Application^DICOM",
    )
    rows = list(Message.objects.order_by("id"))
    pace = (1, 2, 2, 4, 6, 9, 8, 7, 6, 5, 4, len(rows))
    index = 0
    for hour, count in enumerate(pace):
        for row in rows[index : index + count]:
            this_hour = now().replace(minute=0, second=0, microsecond=0)
            Message.objects.filter(pk=row.pk).update(received_at=this_hour - timedelta(hours=11 - hour))
        index += count
