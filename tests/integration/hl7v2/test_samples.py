"""Every message of the samples through the real socket: what each must become, by reading it.

Each folder (and each case of MESA) is one morning at a fresh database, in the order of the messages' numbers. The
table says what is answered, what the message's row says, and why where that is not plain.
"""

import re

import pytest

from integration.hl7v2.framing import encode
from integration.hl7v2.reading import parse
from integration.models import Message
from ris.models import ImagingServiceRequest, Patient, PatientIdentifier, ScheduledProcedureStep
from tests.conftest import sample
from tests.integration.hl7v2.conftest import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

APPLIED = ("AA", "applied", "")
KEPT = ("AA", "kept", "")  # a type or event that changes nothing here


def refused(code: str, place: str):
    return "AE", "refused", f"{code} {place}"


MESA = {
    "100": {
        "adt_100__100.102.a04": APPLIED,
        "adt_100__100.104.a04": APPLIED,
        # ORC-9 is 200082011000, no time: passed over, for nothing hangs on it
        "order_100__100.106.o01": APPLIED,
        "order_100__100.108.o01": APPLIED,
        "order_100__100.110.o01": APPLIED,
        "order_100__100.112.o01": APPLIED,
        "sched_100__100.112.o01": APPLIED,
        # the same order A100Z, accession and procedure id with another code
        "sched_100__100.114.o01": APPLIED,
        # the same order number and accession for another patient (M4010): must not be applied
        "sched_100__100.116.o01": refused("205", "OBR^1^18"),
        "sched_100__100.118.o01": refused("205", "OBR^1^18"),
    },
    "101": {
        "order_101__101.104.o01": APPLIED,
        "sched_101__101.106.o01": APPLIED,
        "order_101__101.162.o01": APPLIED,  # SN: a filler announces its order B101Y and asks for a number
        "order_101__101.164.o02": APPLIED,  # NA: the placer's number for it is A101Y
        # the template's Study Instance UID 1.2.1, which 101.106 gave to another order
        "sched_101__101.165.o01": refused("205", "ZDS^1^1"),
        "order_101__101.182.o01": APPLIED,
        "sched_101__101.184.o01": APPLIED,
        "order_101__101.188.o01x": APPLIED,  # CA of A101X by an ORC alone
        "sched_101__101.190.o01": APPLIED,  # the scheduler's CA of the same order: canceled already
        "order_101__101.192.o01": APPLIED,
        "sched_101__101.194.o01": refused("205", "ZDS^1^1"),  # 1.2.1 again
    },
    "102": {
        "order_102__102.104.o01": APPLIED,
        "sched_102__102.106.o01": APPLIED,
        "order_102__102.122.o01": APPLIED,
        "sched_102__102.124.o01": refused("205", "ZDS^1^1"),  # 1.2.1 again
        "order_102__102.126.o01x": APPLIED,  # OC: the filler cancelled A102Y
        "sched_102__102.128.o01": APPLIED,
        "order_102__102.130.o01": APPLIED,  # SN
        "order_102__102.131.o01": APPLIED,  # NW with the same filler number
        "order_102__102.132.o02": APPLIED,  # NA
        "sched_102__102.134.o01": refused("205", "ZDS^1^1"),  # 1.2.1 again
    },
    "103": {
        "adt_103__103.102.a04": APPLIED,
        "adt_103__103.103.a04": APPLIED,
        "order_103__103.104.o01": APPLIED,
        "sched_103__103.106.o01": APPLIED,
        "adt_103__103.130.a08": APPLIED,
        "adt_103__103.132.a08": APPLIED,
    },
    "104": {
        "order_104__104.104.o01": APPLIED,
        "sched_104__104.106.o01": APPLIED,  # three groups: three steps of one procedure
        "order_104__104.144.o01": APPLIED,
        "order_104__104.145.o01": APPLIED,  # the same control id, other content
        "order_104__104.146.o02": APPLIED,
        "sched_104__104.148.o01": APPLIED,
    },
}

DCM4CHE = {
    "ADT^A31-UpdatePersonInfo-Veterinary": APPLIED,
    "ADT^A31-UpdatePersonInfo": APPLIED,
    "ADT^A40-PatientMerge": APPLIED,
    "ADT^A47-ChangePatientID": APPLIED,
    "OMG^O19-GeneralClinicalOrder-Eyecare": APPLIED,
    "OMI^O23-ImagingOrder": refused(
        "104", "IPC^1^9"
    ),  # ScheduledStationAET1 has 20 characters, an AE title 16
    "ORM^O01-GeneralOrder": APPLIED,  # MSH-9 says OMI, the groups are those of an ORM
    "ORU^R01-CDA": KEPT,
    "ORU^R01-PDF": KEPT,
    "ORU^R01-SR": KEPT,
    "SIU^S12-NewAppointmentBooking": refused("100", "SCH^1"),  # it has no SCH
}

ANS = {
    "1_ACK_R01": KEPT,
    "2_ACK_R01": KEPT,
    "3_ORM_O01": APPLIED,
    "4_ORM_O01": APPLIED,  # CA
    "5_ORU_R01": KEPT,
    "6_OMI_O23": APPLIED,  # SR
}

ODD = {
    "cdc_0_": ("", "kept", ""),  # MSH-15 and MSH-16 say NE: nobody wants an answer
    "cdc_1_": ("", "kept", ""),
    "cdc_2_": KEPT,
    "cdc_3_": KEPT,
    "cdc_4_trunc": KEPT,  # `^~\&#` before 2.7, no sender
    "cdc_5_trunc": KEPT,
}

_ADT = [f"ADT-A{n:02d}-0{v}" for n in range(1, 12) for v in (1, 2)]
_ADT += [f"ADT-A{n}-0{v}" for n in (13, 14, 15, 16, 25, 26, 27, 28, 31, 60) for v in (1, 2)]
CONVERTER = {
    **dict.fromkeys(_ADT, APPLIED),
    "ADT-A29-01": KEPT,
    "ADT-A29-02": KEPT,
    "ADT-A41-01": APPLIED,
    "ADT-A41-02": refused("101", "MRG^1^3"),  # a merge of accounts that names none
    "ADT-A45-01": APPLIED,
    "ADT-A45-02": APPLIED,
    "ADT-A40-01": ("", "applied", ""),  # MSH-15 and MSH-16 say NE
    "ADT-A40-02": ("", "applied", ""),
    "ADT-A47-01": refused("204", "MRG^1^1"),  # nobody had MR102
    "ADT-A47-02": refused("204", "MRG^1^1"),
    **dict.fromkeys(["ADT01-23", "ADT01-28", "ADT04-23", "ADT04-251", "ADT04-28"], APPLIED),
    **dict.fromkeys([f"MDM-T{t}-0{v}" for t in ("01", "02", "05", "06", "09", "10") for v in (1, 2)], KEPT),
    "MDM-T02-03": ("CA", "kept", ""),  # enhanced mode
    "MDM_01": APPLIED,  # MSH-9 says ADT^A01
    "OMG-O19-01": refused("101", "ORC^1^2"),  # SC of an order without any number
    "OMG-O19-02": refused("101", "ORC^1^2"),
    "ORM-O01-01": APPLIED,
    "ORM-O01-02": APPLIED,
    "ORM-O01-03": APPLIED,
    "ORM-O01-04": KEPT,  # a diet (ODS)
    "ORM-O01-05": KEPT,  # supplies (RQD)
    "ORM-O01-06": KEPT,  # a drug (RXO)
    "ORU-R01-01": ("CA", "kept", ""),
    "ORU-R01-RMGEAD": KEPT,
    **dict.fromkeys(
        [f"SIU-S{n}-0{v}" for n in (12, 13, 14, 15, 16, 17, 26) for v in (1, 2)], KEPT
    ),  # no order
    "SIU-S12_1": KEPT,
    "SIU_12": APPLIED,  # MSH-9 says ADT^A60
}

MORNINGS = {
    **{f"mesa-open {case}": ("mesa-open", "rad_msgs_", table) for case, table in MESA.items()},
    "dcm4che": ("dcm4che", "", DCM4CHE),
    "ans-teleradiologie": ("ans-teleradiologie", "", ANS),
    "ms-fhir-converter": ("ms-fhir-converter", "", CONVERTER),
    "odd": ("odd", "", ODD),
}


def send(client, raw: bytes, answered: bool) -> str:
    """The acknowledgement code of one message; empty when none is asked for."""
    client.write(encode(raw))
    if not answered:
        return ""
    return parse(client.read_raw()).first("MSA").value(1)


@pytest.mark.parametrize("morning", list(MORNINGS))
def test_every_message_becomes_what_it_says(morning, open_door, any_source, connect):
    folder, prefix, table = MORNINGS[morning]
    door = open_door(threads=1)
    client = connect(door)
    for name, (code, state, error) in table.items():
        raw = sample("hl7", folder, f"{prefix}{name}.hl7").read_bytes()
        before = Message.objects.count()
        assert send(client, raw, bool(code)) == code, name
        if not code:
            wait_until(lambda before=before: Message.objects.count() > before)
        row = Message.objects.latest("id")
        assert bytes(row.raw) == raw, name
        assert row.state == state, (name, row.errors)
        assert [f"{e['code']} {e['place']}" for e in row.errors] == ([error] if error else []), name


def test_every_file_of_the_samples_is_in_a_table():
    listed = {f"{folder}/{prefix}{name}" for folder, prefix, table in MORNINGS.values() for name in table}
    there = {str(p.relative_to(sample("hl7")).with_suffix("")) for p in sample("hl7").glob("*/*.hl7")}
    there = {re.sub(r"\.hl7$", "", p) for p in there}
    assert there == listed


def play(connect, door, *files: str) -> None:
    client = connect(door)
    for file in files:
        client.send(sample("hl7", *file.split("/")).read_bytes())


def test_mesa_104_becomes_one_procedure_of_three_steps_with_one_study(door, connect):
    play(
        connect,
        door,
        "mesa-open/rad_msgs_order_104__104.104.o01.hl7",
        "mesa-open/rad_msgs_sched_104__104.106.o01.hl7",
    )
    request = ImagingServiceRequest.objects.get(accession_number="ACCESSION_NUMBER")
    procedure = request.procedures.get()
    assert procedure.study_instance_uid == "1.113654.3.104.1"
    assert (procedure.requested_procedure_id, procedure.code_value) != ("", "")
    steps = ScheduledProcedureStep.objects.filter(procedure=procedure)
    assert sorted(s.protocol_codes[0]["code_value"] for s in steps) == ["X4A_A1", "X4B_A1", "X4B_A2"]
    assert {s.modality for s in steps} == {"MR"}


def test_mesa_103_an_unknown_person_gets_a_name_and_the_order_with_it(door, connect):
    play(
        connect,
        door,
        "mesa-open/rad_msgs_order_103__103.104.o01.hl7",
        "mesa-open/rad_msgs_adt_103__103.130.a08.hl7",
    )
    patient = Patient.objects.get()
    assert (patient.patient_name, patient.patient_birth_date) == ("SILVERHEELS^JAY", "19000102")
    assert ImagingServiceRequest.objects.get().patient_id == patient.id


def test_dcm4che_merge_leaves_the_old_identifier_as_an_alias(door, connect):
    play(connect, door, "dcm4che/ADT^A40-PatientMerge.hl7")
    known = {i.value: i.status for i in PatientIdentifier.objects.all()}
    assert known == {"NEW_PID_1": "current", "OLD_PID_1": "alias"}
    assert Patient.objects.get().details["patient_comments"] == "PatientComments"


def test_dcm4che_order_says_all_that_the_table_of_the_worklist_lists(door, connect):
    play(connect, door, "dcm4che/OMG^O19-GeneralClinicalOrder-Eyecare.hl7")
    request = ImagingServiceRequest.objects.get(accession_number="AccessionNumber")
    procedure = request.procedures.get()
    step = procedure.steps.get()
    assert request.placer_order_number == "PlacerOrderNumberImagingServiceRequest"
    assert request.filler_order_number == "FillerOrderNumberImagingServiceRequest"
    assert request.requesting_physician.startswith("RequestingPhysicianFN^RequestingPhysicianGN")
    assert request.referring_physician_name.startswith("ReferringPhysicianFN^ReferringPhysicianGN")
    assert request.institution_name == "Hospital1"
    details = request.details
    assert (details["patient_state"], details["medical_alerts"]) == ("PatientState", "MedicalAlerts")
    assert (details["patient_weight"], details["patient_size"], details["pregnancy_status"]) == (
        "65",
        "1.65",
        3,
    )
    assert details["institution_address"] == "InstitutionAddress"
    assert procedure.study_instance_uid == "1.2.392.200036.9125.0.198811291108.7"
    assert (procedure.code_value, procedure.coding_scheme_designator) == ("10637-7", "LN")
    assert procedure.reason_code["code_value"] == "D1304"
    assert "12 –35" in procedure.reason_for_the_requested_procedure  # UTF-8 that declares 8859/1
    assert procedure.requested_procedure_comments == "RequestedProcedureComments"
    assert procedure.patient_transport_arrangements == "PatientTransportArrangements"
    assert f"{step.start:%Y%m%d%H%M}" == "200008161510"
    assert (step.modality, step.status) == ("CT", "SCHEDULED")
    assert request.visit.admission_id == "AdmissionIDFromVisitNo"


def test_the_french_order_keeps_its_accents_and_is_canceled(door, connect):
    play(connect, door, "ans-teleradiologie/3_ORM_O01.hl7", "ans-teleradiologie/4_ORM_O01.hl7")
    request = ImagingServiceRequest.objects.get(placer_order_number="OPN101")
    procedure = request.procedures.get()
    assert procedure.requested_procedure_description == "Transmission d’une demande d’examen d'imagerie"
    assert [s.status for s in procedure.steps.all()] == ["CANCELED"]
    assert request.details["patient_size"] == "1.7"
    assert request.details["patient_weight"] == "68"


def test_an_order_with_two_groups_makes_two_orders(door, connect):
    play(connect, door, "ms-fhir-converter/ORM-O01-03.hl7")
    codes = {
        r.placer_order_number: r.procedures.get().code_value for r in ImagingServiceRequest.objects.all()
    }
    assert codes == {"1101": "24725-4", "2203": "24590-2"}


@pytest.mark.parametrize("form", ["omi", "orm"])
def test_the_offis_worklist_items_are_ten_steps(form, door, connect):
    client = connect(door)
    for number in range(1, 11):
        ack = client.send(sample("mwl", f"wklist{number}.{form}.hl7").read_bytes())
        assert ack.first("MSA").value(1) == "AA"
    assert ScheduledProcedureStep.objects.count() == 10
    step = ScheduledProcedureStep.objects.get(scheduled_procedure_step_id="SPD1234")
    procedure = step.procedure
    assert procedure.request.accession_number == "00005"
    assert (procedure.requested_procedure_id, procedure.study_instance_uid) == (
        "RP4734734",
        "1.2.276.0.7230010.3.2.105",
    )
    assert (step.modality, f"{step.start:%Y%m%d%H%M%S}") == ("CR", "19951206094500")
    assert step.scheduled_performing_physician_name == "COOPER"
    assert procedure.request.requesting_physician == "NEWMAN"
    assert procedure.request.patient.patient_name == "HAYDN^FRANZ^JOSEPH"
    assert step.protocol_codes[0]["code_value"] == "EXAM567"
    assert step.scheduled_station_ae_titles == (["AB45", "DD56"] if form == "omi" else [])
