"""What a clerk fills in: a patient, an order, a time for a step. Forms make commands; services decide.

Times are entered on the site's clock (Django's current zone) and leave as aware datetimes.
"""

from datetime import datetime
from typing import Any

from django import forms

from common.names import NameGroup, PersonName, clean_component, parse_pn
from ris.commands import (
    ApplyOrders,
    Identifier,
    OrderAction,
    OrderGroup,
    OrderKeys,
    OrderNumber,
    OrderPolicy,
    RegisterPatient,
)
from ris.models import (
    AssigningAuthority,
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    Practitioner,
    ProcedureDefinition,
    Station,
)
from ris.models.procedures import Priority

_SPAN = {"span": "o-span"}


def identifiers_of(patient: Patient) -> tuple[Identifier, ...]:
    """A patient's current identifiers as a command names them, the shown one first."""
    current = patient.identifiers.filter(status=PatientIdentifier.Status.CURRENT).select_related("authority")
    return tuple(
        Identifier(
            i.value,
            i.authority.namespace,
            i.authority.universal_id,
            i.authority.universal_id_type,
            i.type_code,
        )
        for i in current.order_by("position", "id")
    )


class PatientForm(forms.Form):
    """A patient by hand. For a known patient the identifier fields are left out."""

    family_name = forms.CharField(max_length=64)
    given_name = forms.CharField(max_length=64, required=False)
    middle_name = forms.CharField(max_length=64, required=False)
    name_prefix = forms.CharField(max_length=20, required=False, label="Title")
    name_suffix = forms.CharField(max_length=20, required=False, label="Suffix")
    birth_date = forms.DateField(required=False, widget=forms.DateInput({"type": "date"}, format="%Y-%m-%d"))
    sex = forms.ChoiceField(
        required=False, choices=[("", "not said"), ("F", "female"), ("M", "male"), ("O", "other")]
    )
    identifier = forms.CharField(
        max_length=64, label="Patient ID", help_text="As on the wristband or referral."
    )
    authority = forms.ModelChoiceField(
        AssigningAuthority.objects.all(), label="Issued by", required=False, empty_label="this department"
    )

    def __init__(self, *args: Any, patient: Patient | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patient = patient
        for name in ("family_name", "given_name"):
            self.fields[name].widget.attrs["autocomplete"] = "off"
        if patient is not None:
            del self.fields["identifier"], self.fields["authority"]

    @staticmethod
    def filled(patient: Patient) -> dict[str, Any]:
        """The form's initial values for a known patient."""
        group = parse_pn(patient.patient_name).alphabetic
        born = patient.patient_birth_date
        return {
            "family_name": group.family,
            "given_name": group.given,
            "middle_name": group.middle,
            "name_prefix": group.prefix,
            "name_suffix": group.suffix,
            "birth_date": f"{born[:4]}-{born[4:6]}-{born[6:]}" if len(born) == 8 else "",
            "sex": patient.patient_sex,
        }

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        value, authority = cleaned.get("identifier", "").strip(), cleaned.get("authority")
        if value:
            taken = PatientIdentifier.objects.filter(value=value)
            taken = taken.filter(authority=authority) if authority else taken.filter(authority__namespace="")
            if taken.exists():
                self.add_error(
                    "identifier", "A patient with this identifier is registered already: search for it."
                )
        return cleaned

    def command(self, at: datetime) -> RegisterPatient:
        """The command that this form asks for."""
        data = self.cleaned_data
        group = NameGroup(
            *(
                clean_component(data[name])
                for name in ("family_name", "given_name", "middle_name", "name_prefix", "name_suffix")
            )
        )
        name = PersonName(alphabetic=group)
        if self.patient is not None:
            known = parse_pn(self.patient.patient_name)
            name = PersonName(group, known.ideographic, known.phonetic)
        values = {
            "patient_name": str(name),
            "patient_birth_date": data["birth_date"].strftime("%Y%m%d") if data["birth_date"] else "",
            "patient_sex": data["sex"],
        }
        return RegisterPatient(identifiers=self._identifiers(), values=values, facts_at=at)

    def _identifiers(self) -> tuple[Identifier, ...]:
        if self.patient is not None:
            return identifiers_of(self.patient)
        authority = self.cleaned_data["authority"] or AssigningAuthority()
        return (
            Identifier(
                self.cleaned_data["identifier"].strip(),
                authority.namespace,
                authority.universal_id,
                authority.universal_id_type,
                "MR",
            ),
        )


class OrderForm(forms.Form):
    """An order by hand for one patient: one procedure of the catalogue, now or later."""

    procedure = forms.ModelChoiceField(
        ProcedureDefinition.objects.filter(temporary=False),
        empty_label="choose an exam",
        widget=forms.Select(_SPAN),
    )
    priority = forms.ChoiceField(choices=Priority.choices, initial=Priority.ROUTINE)
    start = forms.DateTimeField(
        required=False,
        label="Date and time",
        help_text="Empty: it waits to be scheduled.",
        widget=forms.DateTimeInput({"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        input_formats=["%Y-%m-%dT%H:%M"],
    )
    station = forms.ModelChoiceField(
        Station.objects.filter(temporary=False), required=False, empty_label="any of its modality"
    )
    physician = forms.ModelChoiceField(
        Practitioner.objects.order_by("person_name"),
        required=False,
        label="Requested by",
        empty_label="not listed",
        help_text="Reports go to this physician's portal.",
    )
    physician_name = forms.CharField(
        required=False, max_length=64, label="or another physician (Family, Given)"
    )
    reason = forms.CharField(
        required=False,
        max_length=500,
        label="Reason for the exam",
        widget=forms.Textarea({"rows": 2, **_SPAN}),
    )
    comments = forms.CharField(
        required=False,
        max_length=2000,
        label="Remarks for the department",
        widget=forms.Textarea({"rows": 2, **_SPAN}),
    )

    def command(self, patient: Patient) -> ApplyOrders:
        """The command that this form asks for."""
        data = self.cleaned_data
        listed: ProcedureDefinition = data["procedure"]
        step: dict[str, Any] = {"modality": listed.modality}
        if data["start"]:
            step |= {"start": data["start"], "start_has_time": True}
        if station := data["station"]:
            step |= {
                "scheduled_station_names": [station.name],
                "scheduled_station_ae_titles": [station.ae_title] if station.ae_title else [],
                "scheduled_procedure_step_location": station.room,
            }
        group = OrderGroup(
            action=OrderAction.NEW,
            keys=OrderKeys(),
            request={**self._physician(), "imaging_service_request_comments": data["comments"]},
            procedure={
                "code_value": listed.code,
                "coding_scheme_designator": "L",
                "code_meaning": listed.name,
                "requested_procedure_description": listed.name,
                "requested_procedure_priority": data["priority"],
                "reason_for_the_requested_procedure": data["reason"],
            },
            step=step,
        )
        return ApplyOrders(
            patient=RegisterPatient(identifiers=identifiers_of(patient), authoritative=False),
            groups=(group,),
            source="desk",
            policy=OrderPolicy(accession_number="make", start="wait"),
        )

    def _physician(self) -> dict[str, str]:
        chosen = self.cleaned_data["physician"]
        if chosen is not None:
            return {
                "requesting_physician": chosen.person_name,
                "requesting_physician_id": chosen.identifier,
                "referring_physician_name": chosen.person_name,
                "referring_physician_id": chosen.identifier,
            }
        family, _, given = self.cleaned_data["physician_name"].partition(",")
        name = str(NameGroup(clean_component(family), clean_component(given)))
        return {"requesting_physician": name, "referring_physician_name": name} if name else {}


class ScheduleForm(forms.Form):
    """When and where a step is done."""

    start = forms.DateTimeField(
        required=False,
        label="Date and time",
        widget=forms.DateTimeInput({"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        input_formats=["%Y-%m-%dT%H:%M"],
    )
    station = forms.ModelChoiceField(Station.objects.all(), required=False, empty_label="as it is")
    minutes = forms.IntegerField(min_value=1, max_value=1440, required=False)


def end_order(request: ImagingServiceRequest, action: OrderAction) -> ApplyOrders:
    """The command that cancels, holds or releases a whole order."""
    keys = OrderKeys(
        accession_number=request.accession_number,
        issuer_of_accession_number=request.issuer_of_accession_number,
        placer=OrderNumber(request.placer_order_number, request.placer_issuer),
        filler=OrderNumber(request.filler_order_number, request.filler_issuer),
    )
    patient = RegisterPatient(identifiers=identifiers_of(request.patient), authoritative=False)
    return ApplyOrders(
        patient=patient, groups=(OrderGroup(action=action, keys=keys, has_detail=False),), source="desk"
    )
