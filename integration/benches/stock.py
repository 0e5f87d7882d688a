"""A store full of messages, made within PostgreSQL: people, orders, messages and their words, deliveries, accesses.

Made for measuring: the values are spread as a hospital's are (few codes, many names, each number once), a message
is about as long as a real one, and a few of them wait, are refused or are parked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import connection

from integration.models import Destination, Message, Source
from ris.models import AssigningAuthority

DAYS = 60
PEOPLE = 50_000
SOURCES, DESTINATIONS = 3, 3
_TABLES = (
    "integration_message", "integration_messagetext", "integration_outboxitem", "integration_deliveryattempt",
    "ris_patient", "ris_patientidentifier", "ris_change", "common_auditevent",
)  # fmt: skip

_PERSON = """
CREATE TEMPORARY TABLE stock_person AS
SELECT who, md5('stock' || who)::uuid AS id, '4' || lpad(who::text, 6, '0') AS number,
    (ARRAY['SOM','BECK','KEL','ITO','MOR','WEI','LIN','FOR','SEN','BRA','DUN','HOF','MAR','OKA','PET','ROS','SAN',
        'TAM','VOG','WAL'])[1 + who %% 20]
    || (ARRAY['A','E','I','O','U','AN','EN','IN','ON','UN','AR','ER','IR','OR','UR','AL','EL','IL','OL','UL'])
        [1 + who / 20 %% 20]
    || (ARRAY['MER','TON','LER','NER','SON','LEY','FORD','BERG','MANN','HAM','DEN','STEIN','WELL','BY','KOV','SKI',
        'TINI','EZ','SEN','LUND'])[1 + who / 400 %% 20] AS family,
    (ARRAY['CLA','ANT','HAN','RU','JO','EL','MI','SA','TO','LE','OR','FIO'])[1 + who * 7 %% 12]
    || (ARRAY['RA','ON','NA','TH','NAS','LA','RIA','BINE','BIAS','NA','LY','NN'])[1 + who / 12 %% 12] AS given,
    to_char(date '1925-01-01' + who * 37 %% 36500, 'YYYYMMDD') AS birth,
    CASE WHEN who %% 2 = 0 THEN 'F' ELSE 'M' END AS sex,
    (ARRAY['Galway','Cork','Sligo','Ennis','Tralee','Athlone','Tuam','Clifden','Westport','Bantry'])[1 + who / 10 %% 10]
        AS town
FROM generate_series(0, %(people)s - 1) who
"""

_PATIENTS = """
INSERT INTO ris_patient (id, patient_name, patient_name_search, patient_birth_date, patient_sex, details, provisional,
    created_at, updated_at, cause)
SELECT id, family || '^' || given, lower(family || ' ' || given), birth, sex, '{}', false, now(), now(), 'system:stock'
FROM stock_person
"""

_IDENTIFIERS = """
INSERT INTO ris_patientidentifier (id, patient_id, value, authority_id, type_code, position, status)
SELECT md5('identifier' || who)::uuid, id, number, %(authority)s, 'MR', 0, 'current' FROM stock_person
"""

# Everything of the nth message that is not its person's; the newest is the last.
_MADE = """
CREATE TEMPORARY TABLE stock_made AS
SELECT n, %(first)s + n AS id, now() - (%(count)s - n) * (interval '%(days)s days' / %(count)s) AS at,
    (n * 48271) %% %(people)s AS who, 'HIS' || lpad(n::text, 9, '0') AS control, 1 + n %% %(sources)s AS system,
    CASE WHEN n %% 10 < 6 THEN 'ADT' WHEN n %% 10 < 9 THEN 'ORM' WHEN n %% 20 = 9 THEN 'ORU' ELSE 'SIU' END AS kind,
    CASE WHEN n %% 200 = 0 THEN 'A40' WHEN n %% 10 < 4 THEN 'A08' WHEN n %% 10 < 6 THEN 'A04'
        WHEN n %% 10 < 9 THEN 'O01' WHEN n %% 20 = 9 THEN 'R01' ELSE 'S12' END AS event,
    CASE WHEN n %% 1000 = 3 THEN 'refused' WHEN n %% 50 = 9 THEN 'kept' WHEN n %% 5000 = 7 THEN 'parked'
        WHEN n > %(count)s - 400 AND n %% 4 = 1 THEN 'waiting' ELSE 'applied' END AS state,
    (ARRAY['CTHEAD^CT of the head','CTCHEST^CT of the chest','MRKNEE^MR of the left knee','MRHEAD^MR of the head',
        'DXHAND^X-ray of the right hand','DXCHEST^Chest in two planes','USABD^Ultrasound of the abdomen',
        'MGSCREEN^Mammography, screening'])[1 + n / 10 %% 8] AS code
FROM generate_series(1::bigint, %(count)s) n
"""

_MESSAGES = """
INSERT INTO integration_message (id, received_at, source_id, peer, sender, control_id, message_type, trigger_event,
    version, sent_at, raw, state, ack_code, ack, errors, warnings, lanes, patient_ids, request_ids, accession_numbers,
    attempts, duration_ms, applied_at, solved_by, solved_reason)
SELECT m.id, at, %(source)s + system - 1, '10.4.0.17:51322', 'HIS' || system || '|STBRIGID', control, kind, event,
    '2.5.1', at,
    convert_to(concat('MSH|^~\\&|HIS', system, '|STBRIGID|ORDERLY|RAD|', to_char(at, 'YYYYMMDDHH24MISS'), '||', kind,
        '^', event, '|', control, '|P|2.5.1||||||UNICODE UTF-8', chr(13),
        'PID|1||', number, '^^^STBRIGID^MR~756.', number, '^^^GOV^SS||', family, '^', given, '||', birth, '|', sex,
        '|||Quay Street ', who %% 90, '^^', town, '^^H91^IRL||^PRN^PH^^353^91^', 500000 + who, chr(13),
        'PV1|1|O|RAD^', who %% 9, '^^STBRIGID||||P100^Ahrens^Jonas^^^Dr.|P100^Ahrens^Jonas^^^Dr.', chr(13),
        CASE WHEN kind = 'ORM' THEN concat('ORC|NW|P-', n, '^HIS|F-', n, '^RIS||||^^^', to_char(at, 'YYYYMMDDHH24MI'),
            '^^R||', to_char(at, 'YYYYMMDDHH24MI'), '|||P100^Ahrens^Jonas^^^Dr.|RADIOLOGY', chr(13),
            'OBR|1|P-', n, '^HIS|F-', n, '^RIS|', code, '^L||||||||||||P100^Ahrens^Jonas^^^Dr.||A26-', n, '|RP-', n,
            '|SPS-', n, '||||', left(code, 2), '||||||WALK|^Pain since this morning', chr(13),
            'ZDS|1.2.826.0.1.3680043.8.498.', n, '^HIS^Application^DICOM', chr(13)) END), 'UTF8'),
    state, CASE WHEN state = 'refused' THEN 'AE' ELSE 'AA' END,
    convert_to(concat('MSH|^~\\&|ORDERLY|RAD|HIS', system, '|STBRIGID|', to_char(at, 'YYYYMMDDHH24MISS'), '||ACK^',
        event, '|', n, '|P|2.5.1', chr(13), 'MSA|AA|', control, chr(13)), 'UTF8'),
    CASE WHEN state = 'refused' THEN '[{"code": 204, "text": "No order here has this number.", "place": "ORC^1^2"}]'
        ELSE '[]' END::jsonb, '[]',
    CASE WHEN state IN ('waiting', 'parked') THEN ARRAY['STBRIGID|' || who %% 40] ELSE '{}' END,
    ARRAY[p.id], CASE WHEN kind = 'ORM' THEN ARRAY[md5('request' || n)::uuid] ELSE '{}' END,
    CASE WHEN kind = 'ORM' THEN ARRAY['A26-' || n] ELSE '{}' END, 1, 2 + n * 7 %% 23,
    CASE WHEN state = 'applied' THEN at END, '', ''
FROM stock_made m JOIN stock_person p USING (who) ORDER BY n
"""

_WORDS = """
INSERT INTO integration_messagetext (message_id, words)
SELECT m.id, lower(concat($$'$$, control, $$':1B '$$, number, $$':1A '756.$$, number,
    $$':1A '756':1A 'gov':1A 'ss':1A 'mr':1A 'stbrigid':1A '$$, family, $$':1A '$$, given, $$':1A '$$, birth,
    $$':1C 'quay':1C 'street':1C '$$, town, $$':1C 'h91':1C 'irl':1C 'prn':1C 'ph':1C '353':1C '$$, 500000 + who,
    $$':1C 'his$$, system, $$':1C 'orderly':1C 'rad':1C '$$, kind, $$':1C '$$, event, $$':1C '$$, kind, '^', event,
    $$':1C 'p100':1C 'ahrens':1C 'jonas':1C 'dr':1C $$,
    CASE WHEN kind = 'ORM' THEN concat($$'p-$$, n, $$':1B 'f-$$, n, $$':1B '$$, n, $$':1B 'a26-$$, n, $$':1B 'a26':1B
        'rp-$$, n, $$':1B 'sps-$$, n, $$':1B '1.2.826.0.1.3680043.8.498.$$, n, $$':1B 'his':1B 'ris':1B 'dicom':1B
        'nw':1C 'radiology':1C 'walk':1C 'pain':1C 'since':1C 'this':1C 'morning':1C '$$,
        replace(replace(replace(code, ',', ''), '^', ' '), ' ', $$':1C '$$), $$':1C$$) END))::tsvector
FROM stock_made m JOIN stock_person p USING (who) ORDER BY n
"""

_CHANGES = """
INSERT INTO ris_change (at, cause, what, object_id, patient_id, values)
SELECT at, 'hl7:' || m.id, 'imagingservicerequest', md5('request' || n)::uuid, p.id,
    json_build_object('created', true, 'accession_number', json_build_array('', 'A26-' || n))
FROM stock_made m JOIN stock_person p USING (who) WHERE kind = 'ORM' ORDER BY n
"""

_ACCESSES = """
INSERT INTO common_auditevent (at, actor, action, what, patient_ids, object_ids, detail)
SELECT at, 'user:' || n %% 90, 'read', 'message', json_build_array(md5('stock' || who)::uuid), json_build_array(id),
    '{}'
FROM stock_made WHERE n %% 4 = 0 ORDER BY n
"""

_OUTBOX = """
INSERT INTO integration_outboxitem (id, destination_id, lane, kind, subject, patient_id, facts, control_id, payload,
    state, attempts, due_at, lease_owner, last_error, created_at, delivered_at, cause)
SELECT nextval('integration_outboxitem_id_seq'), %(destination)s + n / 4 %% %(destinations)s,
    'order:' || n / 4 %% 20000, 'ORU', 'report_version:' || md5('version' || n)::uuid, p.id, '{}',
    lpad(n::text, 20, '0'),
    convert_to(repeat('OBX|1|TX|||No fracture. No effusion.' || chr(13), 30), 'UTF8'),
    CASE WHEN n > %(count)s - 3600 THEN 'queued' WHEN n %% 16000 = 0 THEN 'parked' ELSE 'delivered' END, 1, at, '', '',
    at, CASE WHEN n %% 16000 <> 0 AND n <= %(count)s - 3600 THEN at + interval '300 ms' END, 'user:1'
FROM stock_made m JOIN stock_person p USING (who) WHERE n %% 4 = 0 ORDER BY n
"""

_ATTEMPTS = """
INSERT INTO integration_deliveryattempt (item_id, at, duration_ms, outcome, detail)
SELECT id, created_at, 41,
    CASE state WHEN 'delivered' THEN 'delivered' WHEN 'parked' THEN 'refused' ELSE 'transport' END, ''
FROM integration_outboxitem ORDER BY id
"""


@dataclass(frozen=True)
class Stock:
    """What was made: how many messages, of which ids."""

    count: int
    first: int
    last: int

    @property
    def middle(self) -> int:
        """The id of an order in the middle."""
        number = self.count // 2 // 10 * 10 + 6
        return self.first + number - 1

    @property
    def order_number(self) -> int:
        """The number within its accession, placer and filler numbers (`A26-500006`)."""
        return self.middle - self.first + 1


def fill(count: int) -> Stock:
    """So many messages over DAYS days, a quarter as many deliveries and accesses; statistics taken at the end.

    For a database of its own, outside a transaction: indexes are taken away and built anew, which is far faster.
    """
    sources = [Source.objects.create(name=f"Stock {n}", application=f"HIS{n}") for n in range(1, SOURCES + 1)]
    targets = [
        Destination.objects.create(name=f"Stock {n}", host="127.0.0.1", port=9, messages=["ORU"])
        for n in range(1, DESTINATIONS + 1)
    ]
    newest = Message.objects.order_by("-id").values_list("id", flat=True).first() or 0
    authority = AssigningAuthority.objects.create(namespace="STBRIGID")
    given: dict[str, Any] = {
        "count": count, "days": DAYS, "people": min(PEOPLE, count), "sources": SOURCES, "first": newest,
        "source": sources[0].pk, "destination": targets[0].pk, "destinations": DESTINATIONS, "authority": authority.pk,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute("SET maintenance_work_mem = '512MB'")
        cursor.execute("SET work_mem = '128MB'")
        cursor.execute("SET synchronous_commit = off")
        made = (_PERSON, _PATIENTS, _IDENTIFIERS, _MADE, _MESSAGES, _WORDS, _CHANGES, _ACCESSES, _OUTBOX)
        with _without_indexes(cursor):
            for statement in made:
                cursor.execute(statement, given)
            cursor.execute(_ATTEMPTS)
            cursor.execute("SELECT setval('integration_message_id_seq', %s)", [newest + count])
        cursor.execute("DROP TABLE stock_person, stock_made")
        for name in _TABLES:
            cursor.execute(f"VACUUM ANALYZE {name}")
        for setting in ("maintenance_work_mem", "work_mem", "synchronous_commit"):
            cursor.execute(f"RESET {setting}")
    return Stock(count, newest + 1, newest + count)


@contextmanager
def _without_indexes(cursor: Any) -> Iterator[None]:
    """Take away the tables' indexes that no constraint needs, and build them anew at the end."""
    cursor.execute(
        "SELECT i.indexname, i.indexdef FROM pg_indexes i WHERE i.schemaname = current_schema() "
        "AND i.tablename = ANY(%s) AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conname = i.indexname)",
        [list(_TABLES)],
    )
    found = cursor.fetchall()
    for name, _ in found:
        cursor.execute(f'DROP INDEX "{name}"')
    try:
        yield
    finally:
        for _, definition in found:
            cursor.execute(definition)
