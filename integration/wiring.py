"""Who hears what: the one page. Handlers run in the publisher's transaction and only add rows of their own room.

The hearers of an event are called in the order in which they stand here.
"""

from common.events import Handler, subscribe
from integration import forwarding, outbox, performed
from pacs.events import StudyOverlaid, StudySettled
from ris.events import (
    OrderChanged,
    PatientChanged,
    PatientsMerged,
    ReportSigned,
    StepMoved,
    StepPerformed,
    StudyGrew,
    StudyMatched,
)
from ris.reconciliation import cases
from ris.services import images
from ris.services import performed as performed_steps
from worklist import projection


def page() -> dict[type, tuple[Handler, ...]]:
    """Event → its hearers."""
    return {
        # A study is quiet: whoever waits for its images is counted again; match it, or open a case.
        StudySettled: (
            images.on_study_settled,
            performed_steps.on_study_settled,
            cases.on_study_settled,
        ),
        # Orders and patients change: the worklist follows at once, studies are corrected, mirrors are told.
        OrderChanged: (projection.on_order_changed, outbox.on_order_changed),
        PatientChanged: (
            projection.on_patient_changed,
            cases.on_patient_changed,
            outbox.on_patient_changed,
        ),
        PatientsMerged: (
            projection.on_patients_merged,
            cases.on_patients_merged,
            outbox.on_patients_merged,
        ),
        # Work is done: the HIS hears of it.
        StepMoved: (projection.on_step_moved, outbox.on_step_moved),
        # A scanner reported what it does: other MPPS receivers are told on.
        StepPerformed: (performed.on_step_performed,),
        # Studies and reports: results to the HIS, the mirror to FHIR servers.
        # The archive's routing: what waited for the match may go.
        StudyMatched: (outbox.on_study_matched, forwarding.on_study_matched),
        StudyGrew: (outbox.on_study_grew, forwarding.on_study_grew),
        StudyOverlaid: (outbox.on_study_overlaid,),
        ReportSigned: (outbox.on_report_signed,),
    }


def wire() -> None:
    """Subscribe every hearer on the page; called once, when the application is ready."""
    for event, hearers in page().items():
        for hearer in hearers:
            subscribe(event, hearer)
