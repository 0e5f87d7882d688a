"""One patient's history, shuffled and repeated, ends where it ends in its own order."""

from typing import Any, ClassVar

from django.core.management import call_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TransactionTestCase

from integration.inbox import Peer, receive
from integration.models import Source
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    RequestedProcedure,
    ScheduledProcedureStep,
    Visit,
)
from tests.integration.hl7v2.conftest import _forget
from tests.integration.hl7v2.making import adt, group, merge, message, msh, orm, pid

PEER = Peer("127.0.0.1", 1)


def at(hour: int) -> str:
    return f"20260301{hour:02d}0000+0000"


def same_patient(**more: str) -> list[bytes]:
    return [
        adt("A04", control_id="H1", sent=at(8), name="DOE^JANE", identifier="P1^^^HOSP"),
        adt("A08", control_id="H2", sent=at(9), name="DOE-SMITH^JANE", identifier="P1^^^HOSP"),
        adt("A08", control_id="H3", sent=at(10), name="SMITH^JANE", identifier="P1^^^HOSP", birth="19710203"),
        merge("P1^^^HOSP", "OLD^^^HOSP", control_id="H4"),
        adt(
            "A08", control_id="H5", sent=at(14), name="SMITH^JANE^Q", identifier="P1^^^HOSP", birth="19710203"
        ),
    ]


def same_order() -> list[bytes]:
    whole = {"placer": "PL1", "accession": "A1", "procedure_id": "RP1", "step_id": "SP1"}
    return [
        orm(control_id="O1", sent=at(8), start="20260302090000", **whole),
        orm(control_id="O2", control="XO", sent=at(9), start="20260302100000", **whole),
        orm(control_id="O3", control="XO", sent=at(10), start="20260302110000", modality="MR", **whole),
        orm("ORC|CA|PL1", control_id="O4", sent=at(11)),
    ]


def everything() -> list[bytes]:
    """A patient with a visit, facts that are emptied, two procedures, one of them cancelled, a merge."""

    def who(hour: int, event: str, address: str, mother: str = "") -> bytes:
        person = f"PID|1||P1^^^HOSP^MR||DOE^JANE^{hour}|{mother}|19700102|F|||{address}"
        visit = "PV1|1|I|W" + str(hour) + "|" * 16 + "V1^^^ADM"
        return message(
            msh(f"ADT^{event}", f"E{hour}{event}", sent=at(hour)), f"EVN|{event}|{at(hour)}", person, visit
        )

    def order(hour: int, name: str, *segments: str) -> bytes:
        return message(msh("ORM^O01", f"E{hour}{name}", sent=at(hour)), pid("P1^^^HOSP^MR"), *segments)

    first = {"placer": "PL1", "accession": "A1", "procedure_id": "RP1", "step_id": "SP1"}
    second = {**first, "procedure_id": "RP2", "step_id": "SP2", "code": "CTCHEST^CT Chest^L"}
    alert = "ZDS|1.2.3.4^HIS^Application^DICOM"
    return [
        who(6, "A04", "Lane 1^^Bonn", "ROE^ANN"),
        order(7, "N", *group(**first), alert, *group(**second)),
        order(9, "X", *group(control="XO", start="20260302100000", modality="MR", **first)),
        order(10, "C", "ORC|CA|PL1", f"OBR|1|PL1|||{'|' * 12}|A1|RP2|SP2"),
        order(12, "Y", *group(control="XO", **{**second, "start": "20260304100000"})),
        merge("P1^^^HOSP^MR", "OLD^^^HOSP", control_id="EM"),
        who(14, "A08", '""'),
        order(15, "X", *group(control="XO", filler="F1", **first)),
    ]


PASSING = {"id", "created_at", "updated_at", "status_at", "cause", "patient_id", "request_id", "procedure_id",
           "visit_id", "authority_id", "merged_into_id", "sha256", "made", "details"}  # fmt: skip


def facts() -> dict[str, list[dict[str, Any]]]:
    """What is known at the end, without ids of rows and times of arrival; details without notes of our own."""
    models = (
        Patient,
        PatientIdentifier,
        Visit,
        ImagingServiceRequest,
        RequestedProcedure,
        ScheduledProcedureStep,
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        rows = []
        for row in model._default_manager.values():
            said = {k: v for k, v in row.items() if k not in PASSING and not str(v).startswith("2.25.")}
            said |= {k: v for k, v in row.get("details", {}).items() if k not in ("ordered_for", "emptied")}
            rows.append(said)
        found[model.__name__] = sorted(rows, key=str)
    return found


def orders_of(history: list[bytes]) -> st.SearchStrategy[list[int]]:
    """Every message at least once, some twice, in any order."""
    every = list(range(len(history)))
    return st.lists(st.sampled_from(every), max_size=4).flatmap(lambda more: st.permutations([*every, *more]))


class ShuffledHistories(TransactionTestCase):
    """Hypothesis gives each example a database of its own."""

    expected: ClassVar[dict[str, list[dict[str, Any]]]] = {}

    def play(self, history: list[bytes], order: list[int]) -> None:
        """As a sender does: what is refused is sent again after the others."""
        _forget()
        Source.objects.create(name="any")
        waiting = [history[i] for i in order]
        for _ in range(len(waiting) + 1):
            waiting = [raw for raw in waiting if receive(raw, PEER).code not in ("AA", "")]
            if not waiting:
                return
        raise AssertionError("something is refused for ever")

    def tearDown(self) -> None:
        _forget()

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(orders_of(same_patient()))
    def test_patient(self, order: list[int]) -> None:
        self.play(same_patient(), order)
        patient = Patient.objects.get(merged_into=None)
        self.assertEqual((patient.patient_name, patient.patient_birth_date), ("SMITH^JANE^Q", "19710203"))
        known = {i.value: i.status for i in PatientIdentifier.objects.all()}
        self.assertEqual(known, {"P1": "current", "OLD": "alias"})

    def test_everything_in_its_own_order(self) -> None:
        self.play(everything(), list(range(len(everything()))))
        steps = {s.scheduled_procedure_step_id: s for s in ScheduledProcedureStep.objects.all()}
        self.assertEqual({k: (s.status, s.modality) for k, s in steps.items()},
                         {"SP1": ("SCHEDULED", "CT"), "SP2": ("CANCELED", "CT")})  # fmt: skip
        self.assertEqual(f"{steps['SP2'].start:%m%d}", "0304")
        self.assertEqual(Patient.objects.get().details.get("patient_address"), None)
        self.assertEqual(Visit.objects.get().current_patient_location, "W14")

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(orders_of(everything()))
    def test_everything(self, order: list[int]) -> None:
        if not self.__class__.expected:
            self.play(everything(), list(range(len(everything()))))
            self.__class__.expected = facts()
            call_command("flush", verbosity=0, interactive=False, inhibit_post_migrate=True)
        self.play(everything(), order)
        self.assertEqual(facts(), self.__class__.expected)

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(orders_of(same_order()))
    def test_order(self, order: list[int]) -> None:
        self.play(same_order(), order)
        step = ScheduledProcedureStep.objects.get()
        self.assertEqual((step.status, ImagingServiceRequest.objects.get().status), ("CANCELED", "CANCELED"))
