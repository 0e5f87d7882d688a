"""One patient's history, shuffled and repeated, ends where it ends in its own order."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TransactionTestCase

from integration.inbox import Peer, receive
from integration.models import Source
from ris.models import ImagingServiceRequest, Patient, PatientIdentifier, ScheduledProcedureStep
from tests.integration.hl7v2.conftest import _forget
from tests.integration.hl7v2.making import adt, merge, orm

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


def orders_of(history: list[bytes]) -> st.SearchStrategy[list[int]]:
    """Every message at least once, some twice, in any order."""
    every = list(range(len(history)))
    return st.lists(st.sampled_from(every), max_size=4).flatmap(lambda more: st.permutations([*every, *more]))


class ShuffledHistories(TransactionTestCase):
    """Hypothesis gives each example a database of its own."""

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

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(orders_of(same_order()))
    def test_order(self, order: list[int]) -> None:
        self.play(same_order(), order)
        step = ScheduledProcedureStep.objects.get()
        self.assertEqual((step.status, ImagingServiceRequest.objects.get().status), ("CANCELED", "CANCELED"))
