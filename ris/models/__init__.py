"""The nouns of the department: patients, orders, procedures, schedule, performed steps, reports, people."""

from ris.models.history import Change
from ris.models.orders import ImagingServiceRequest
from ris.models.patients import AssigningAuthority, Patient, PatientIdentifier, PatientMerge, Visit
from ris.models.people import Practitioner
from ris.models.performed import PerformedProcedureStep
from ris.models.procedures import ProcedureDefinition, RequestedProcedure
from ris.models.reconciliation import ReconciliationCase, StudyMatch
from ris.models.reports import Report, ReportDocument, ReportVersion
from ris.models.schedule import ScheduledProcedureStep, Station

__all__ = [
    "AssigningAuthority",
    "Change",
    "ImagingServiceRequest",
    "Patient",
    "PatientIdentifier",
    "PatientMerge",
    "PerformedProcedureStep",
    "Practitioner",
    "ProcedureDefinition",
    "ReconciliationCase",
    "Report",
    "ReportDocument",
    "ReportVersion",
    "RequestedProcedure",
    "ScheduledProcedureStep",
    "Station",
    "StudyMatch",
    "Visit",
]
