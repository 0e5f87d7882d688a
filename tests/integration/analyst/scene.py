"""A believable day of interfaces for the pages' tests and their screenshots."""

from dataclasses import dataclass
from datetime import timedelta

from django.contrib.auth.models import User

from common.clock import now
from common.models import Site
from common.roles import Role
from integration import inbox, search, solving, sources
from integration.analyst import versions
from integration.models import DeliveryAttempt, Destination, Message, OutboxItem, Source
from tests import factories as make

PEER = inbox.Peer("10.4.0.17", 51322)


@dataclass
class Scene:
    """What the tests point at."""

    analyst: User
    clerk: User
    his: Source
    clinic: Source
    refused: Message
    order: Message


def text(*segments: str) -> bytes:
    return ("\r".join(segments) + "\r").encode()


def head(kind: str, number: str, application: str = "HIS", facility: str = "STBRIGID") -> str:
    stamp = f"{now():%Y%m%d%H%M%S}"
    return (
        f"MSH|^~\\&|{application}|{facility}|ORDERLY|RAD|{stamp}||{kind}|{number}|P|2.5.1||||||UNICODE UTF-8"
    )


def person(number: str, name: str, birth: str, sex: str) -> str:
    address = "Quay Street 4^^Galway^^H91^IRL"
    return f"PID|1||{number}^^^STBRIGID^MR~756.{number}^^^GOV^SS||{name}||{birth}|{sex}|||{address}"


def order(number: str, who: str, code: str, modality: str, control: str = "NW", accession: str = "") -> bytes:
    start = f"{now() + timedelta(hours=2):%Y%m%d%H%M}"
    return text(
        head("ORM^O01^ORM_O01", f"HIS{number}"),
        who,
        "PV1|1|O|RAD^1^^STBRIGID||||P100^Ahrens^Jonas^^^Dr.|P100^Ahrens^Jonas^^^Dr.",
        f"ORC|{control}|P-{number}^HIS|F-{number}^RIS||||^^^{start}^^R||{start}|||P100^Ahrens^Jonas^^^Dr.|RADIOLOGY",
        f"OBR|1|P-{number}^HIS|F-{number}^RIS|{code}||||||||||||P100^Ahrens^Jonas^^^Dr.||{accession}|RP-{number}|SPS-{number}"
        f"||||{modality}||||||WALK|^Headache since this morning",
        f"ZDS|1.2.826.0.1.3680043.8.498.{number}^HIS^Application^DICOM",
    )


PEOPLE = (
    person("4711", "Sommer^Clara^^^Ms.", "19600512", "F"),
    person("4712", "Beck^Anton", "19871103", "M"),
    person("4713", "Ito^Hana", "19940221", "F"),
    person("4714", "Keller^Ruth", "19510830", "F"),
)


def begin(busy: bool = True) -> Scene:
    """Make it; `busy` with a day of updates for the charts."""
    Site.objects.update_or_create(pk=1, defaults={"name": "St. Brigid's Hospital", "timezone": "UTC"})
    analyst = make.user("ines.moreau", Role.ANALYST, first_name="Ines", last_name="Moreau")
    clerk = make.user("clara.weiss", Role.CLERK, first_name="Clara", last_name="Weiss")
    make.department()
    with versions.author(f"user:{analyst.pk}", "First connection, as agreed in May"):
        his = Source.objects.create(name="HIS St. Brigid", application="HIS")
        clinic = Source.objects.create(
            name="Clinic Northside", application="CLINIC", profile={"policy": "stored"}
        )
    versions.use(
        his, {**versions.values_of(his), "profile": {"station_table": {"CT-A": "CT01"}}},
        f"user:{analyst.pk}", "CT-A is the scanner in room 2",
    )  # fmt: skip
    sources.forget()
    _traffic(busy)
    _stored(analyst)  # first: its parked message came a while ago, and ids grow with the time of arrival
    order_reply = inbox.receive(
        order("55510", PEOPLE[0], "CTHEAD^CT of the head^L", "CT", accession="A26-1050"), PEER
    )
    for n, who in enumerate(PEOPLE):
        inbox.receive(
            order(f"5552{n}", who, "MRKNEE^MR of the left knee^L", "MR", accession=f"A26-106{n}"), PEER
        )
    refused = inbox.receive(order("99999", PEOPLE[3], "MRHEAD^MR of the head^L", "MR", "CA"), PEER)
    inbox.receive(b"GET / HTTP/1.1\r\nHost: 10.4.0.2\r\n\r\n", inbox.Peer("10.9.9.9", 40000))
    _outgoing()
    search.index_new()
    found = Message.objects.get(pk=order_reply.message_id)
    return Scene(analyst, clerk, his, clinic, Message.objects.get(pk=refused.message_id), found)


def _traffic(busy: bool) -> None:
    for number in range(48 if busy else 2):
        who = PEOPLE[number % len(PEOPLE)]
        inbox.receive(text(head("ADT^A08^ADT_A01", f"HIS{number:05}"), "EVN|A08", who, "PV1|1|O|RAD^1"), PEER)
    rows = list(Message.objects.order_by("id").values_list("pk", flat=True))
    for index, pk in enumerate(rows):
        hours = 22 * (1 - (index / len(rows)) ** 0.7)
        Message.objects.filter(pk=pk).update(
            received_at=now() - timedelta(hours=hours), duration_ms=3 + index % 9
        )


def _stored(analyst: User) -> None:
    """A clinic that stores first: one lane is held by a parked message."""
    for number in range(4):
        kind = "ORM^O01" if number else "ADT^A40"
        who = "PID|1||8801^^^NORTH^MR||O'Neill^Fionn||20010304|M"
        body = (
            ("MRG|8800^^^NORTH^MR",)
            if not number
            else (f"ORC|NW|N{number}^CLINIC", f"OBR|1|N{number}||CTCHEST^CT chest^L")
        )
        inbox.receive(text(head(kind, f"CL{number:04}", "CLINIC", "NORTH"), who, *body), PEER)
    first = Message.objects.filter(sender__startswith="CLINIC").earliest("id")
    solving.park(first.pk, f"user:{analyst.pk}", "Northside is asked whether these are one person.")
    Message.objects.filter(pk=first.pk).update(received_at=now() - timedelta(minutes=47))
    inbox.receive(
        text(head("ORM^O01", "CL0009", "CLINIC", "NORTH"), "PID|1||8855^^^NORTH^MR||Walsh^Orla||19900101|F",
             "ORC|NW|N9^CLINIC", "OBR|1|N9||CTCHEST^CT chest^L"), PEER,
    )  # fmt: skip


def _outgoing() -> None:
    his = Destination.objects.create(name="HIS results", host="10.4.0.20", port=6661, messages=["ORU", "ORM"])
    away = Destination.objects.create(
        name="GP gateway", host="10.7.1.4", port=2575, messages=["ORU"], failures=14,
        circuit_open_until=now() + timedelta(minutes=4),
    )  # fmt: skip
    for number in range(30):
        at = now() - timedelta(minutes=40 * (30 - number) / 2)
        OutboxItem.objects.create(
            destination=his, lane=f"order:{number}", kind="ORU", subject=f"report_version:{number}", facts={},
            control_id=f"01JD{number:016}", state="delivered", attempts=1, due_at=at, created_at=at,
            delivered_at=at + timedelta(milliseconds=140 + 17 * number), cause="user:1",
        )  # fmt: skip
    for number in range(3):
        at = now() - timedelta(minutes=31 - number)
        item = OutboxItem.objects.create(
            destination=away, lane="order:77" if number < 2 else "order:78", kind="ORU", facts={},
            subject="report_version:77", control_id=f"01JE{number:016}", attempts=5 if number != 1 else 0,
            due_at=now() + timedelta(minutes=4), created_at=at, cause="user:1",
            last_error="No connection to 10.7.1.4:2575 (refused)." if number != 1 else "",
        )  # fmt: skip
        DeliveryAttempt.objects.create(item=item, at=now() - timedelta(minutes=5), outcome="transport")
    OutboxItem.objects.create(
        destination=his, lane="order:90", kind="ORM", subject="step:1", facts={}, control_id="01JF0000000000000001",
        state="parked", attempts=3, due_at=now(), created_at=now() - timedelta(hours=2), cause="user:1",
        last_error="AE 204 unknown order",
    )  # fmt: skip
