"""A source as a form that people can read: who sends, where each value stands, what gaps mean, tables of local codes.

The form is made from the two tables of integration/sources.py, so that it knows every key that a profile may have.
What is left at its default is not kept in the profile.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django import forms

from common.templatetags.orderly import attribute, words
from integration import sources
from integration.analyst.versions import WHO
from integration.sources import FIELDS, POLICIES, ProfileError

# Part of the page → the fields that stand there, in this order. What no part names comes in the last one.
FIELD_PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Keys",
        (
            "patient_identifiers", "placer_order_number", "filler_order_number", "placer_group_number",
            "accession_number", "requested_procedure_id", "study_instance_uid", "scheduled_procedure_step_id",
        ),
    ),
    (
        "What is done, where and when",
        (
            "procedure_code", "modality", "protocol_code", "scheduled_procedure_step_description", "start", "minutes",
            "scheduled_station_ae_title", "scheduled_station_name", "scheduled_procedure_step_location",
            "scheduled_performing_physician_name", "priority", "reason", "patient_transport_arrangements",
        ),
    ),
    (
        "Who asks for it",
        (
            "requesting_physician", "referring_physician_name", "requesting_service", "institution_name",
            "institution_address", "order_callback_phone_number", "order_entered_by", "placed_at",
            "confidentiality_code",
        ),
    ),
    (
        "The patient's state and visit",
        (
            "patient_state", "medical_alerts", "pregnancy_status", "patient_weight", "patient_size", "admission_id",
        ),
    ),
    ("Appointments, and how old facts are", ()),
)  # fmt: skip
POLICY_PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Answers", ("policy", "unknown_type", "unknown_order", "reused_control_id", "order_answers")),
    ("Characters and time", ("charset", "force_charset", "separators", "timezone")),
    ("Identifiers", ("default_authority", "primary_authority", "ignored_identifier_types")),
    ("Connection", ("certificate_sha256", "max_kb", "per_minute", "idle_seconds")),
    ("Other choices", ()),
)
_WHO_NOTES = {
    "application": "MSH-3.1 of its messages, or * for any",
    "facility": "MSH-4.1, or * for any",
    "address": "its address or network, like 10.1.2.3 or 10.1.0.0/16, or * for any",
    "enabled": "messages of a source that is off are answered AR",
}


@dataclass(frozen=True)
class Part:
    """One part of the page: its title, its bound fields, and how many of them differ from the default."""

    title: str
    fields: list[forms.BoundField]
    own: int


class SourceForm(forms.Form):
    """A source's values. `values()` gives what a version keeps; errors stand at the key that is at fault."""

    def __init__(
        self, *args: Any, values: Mapping[str, Any] | None = None, new: bool = False, **kwargs: Any
    ) -> None:
        if values is not None:
            kwargs["initial"] = {**initial_of(values), **kwargs.get("initial", {})}
        super().__init__(*args, **kwargs)
        if new:
            self.fields["name"] = forms.CharField(max_length=100, help_text="what pages call it")
        for name in ("application", "facility", "address"):
            self.fields[name] = forms.CharField(max_length=200, required=False, help_text=_WHO_NOTES[name])
        self.fields["enabled"] = forms.BooleanField(required=False, help_text=_WHO_NOTES["enabled"])
        for key, default in FIELDS.items():
            self.fields[f"field.{key}"] = forms.CharField(
                max_length=300, required=False, label=_label(key),
                widget=forms.TextInput(attrs={"placeholder": default, "spellcheck": "false", "class": "o-mono"}),
            )  # fmt: skip
        for key, policy in POLICIES.items():
            if key not in FIELDS:
                self.fields[f"policy.{key}"] = _policy_field(key, policy)

    # -- in and out

    def values(self) -> dict[str, Any]:
        """What a version keeps of a source; only after `is_valid`."""
        said = self.cleaned_data
        profile: dict[str, Any] = {}
        for key, default in FIELDS.items():
            text = ", ".join(p.strip() for p in said.get(f"field.{key}", "").split(",") if p.strip())
            if text and text != default:
                profile[key] = text
        for key, policy in POLICIES.items():
            if key in FIELDS:
                continue
            value = _read(said.get(f"policy.{key}"), policy.default)
            if value != policy.default:
                profile[key] = value
        who = {name: said.get(name) or "*" for name in ("application", "facility", "address")}
        return {**who, "enabled": bool(said.get("enabled")), "profile": profile}

    def clean(self) -> dict[str, Any]:
        said = super().clean() or self.cleaned_data
        if self.errors:
            return said
        profile = self.values()["profile"]
        for _ in range(20):  # every fault at its place, not only the first
            try:
                sources.check(profile)
            except ProfileError as error:
                self.add_error(self._place(error.key), str(error).partition(": ")[2])
                if profile.pop(error.key, None) is None:
                    break
            else:
                break
        return said

    def _place(self, key: str) -> str | None:
        return next((n for n in (f"field.{key}", f"policy.{key}") if n in self.fields), None)

    # -- for the page

    def who(self) -> list[forms.BoundField]:
        """Who sends."""
        return [self[name] for name in ("name", *WHO) if name in self.fields]

    def field_parts(self) -> list[Part]:
        """Where values stand, part by part."""
        return list(self._parts("field.", FIELD_PARTS, list(FIELDS)))

    def policy_parts(self) -> list[Part]:
        """What gaps and oddities mean, part by part."""
        plain = [k for k, p in POLICIES.items() if k not in FIELDS and not isinstance(p.default, dict)]
        return list(self._parts("policy.", POLICY_PARTS, plain))

    def tables(self) -> list[forms.BoundField]:
        """The tables of local codes."""
        return [self[f"policy.{k}"] for k, p in POLICIES.items() if isinstance(p.default, dict)]

    def _parts(self, prefix: str, parts: Any, keys: list[str]) -> Iterator[Part]:
        named = {k for _, some in parts for k in some}
        for title, some in parts:
            here = [k for k in some if k in keys] or [k for k in keys if k not in named]
            fields = [self[prefix + k] for k in here]
            own = sum(1 for f in fields if f.value() not in (None, "") and f.value() != f.field.initial)
            if fields:
                yield Part(title, fields, own)


def initial_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The form's initial data for a version's values: fields at their default stay empty."""
    profile = values.get("profile", {})
    initial: dict[str, Any] = {name: values[name] for name in WHO if name in values}
    for key, default in FIELDS.items():
        if key in profile and profile[key] != default:
            initial[f"field.{key}"] = profile[key]
    for key, policy in POLICIES.items():
        if key not in FIELDS:
            initial[f"policy.{key}"] = _shown(profile.get(key, policy.default))
    return initial


def _label(key: str) -> str:
    text = attribute(key).replace("charset", "character set").replace("timezone", "time zone")
    return text[0].upper() + text[1:]


def _policy_field(key: str, policy: sources.Policy) -> forms.Field:
    label, note = _label(key), policy.note
    if isinstance(policy.allowed, tuple):
        choices = [(str(v), _choice(v, policy.default)) for v in policy.allowed]
        return forms.ChoiceField(
            choices=choices, initial=str(policy.default), required=False, label=label, help_text=note
        )
    if isinstance(policy.default, bool):
        return forms.BooleanField(required=False, initial=policy.default, label=label, help_text=note)
    if isinstance(policy.default, int):
        return forms.IntegerField(
            required=False, min_value=0, initial=policy.default, label=label, help_text=note
        )
    if isinstance(policy.default, dict):
        area = forms.Textarea(
            attrs={"rows": 4, "class": "o-mono", "placeholder": "LOCAL = STANDARD", "spellcheck": "false"}
        )
        return forms.CharField(required=False, initial="", label=label, help_text=note, widget=area)
    text = forms.TextInput(attrs={"class": "o-mono", "spellcheck": "false"})
    initial = _shown(policy.default)
    return forms.CharField(required=False, initial=initial, label=label, help_text=note, widget=text)


def _choice(value: Any, default: Any) -> str:
    return f"{words(value)} (default)" if value == default else words(value)


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return "\n".join(f"{k} = {v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    return value


def _read(said: Any, default: Any) -> Any:
    """What was typed, in the policy's kind."""
    if isinstance(default, dict):
        return _table(str(said or ""))
    if isinstance(default, list):
        return [p.strip() for p in str(said or "").split(",") if p.strip()]
    if isinstance(default, bool):
        return bool(said)
    if isinstance(default, int):
        return default if said is None else int(said)
    return str(said or "").strip() or default


def _table(text: str) -> dict[str, str]:
    """`LOCAL = STANDARD`, one a line; a line without `=` maps to nothing."""
    table = {}
    for line in text.splitlines():
        local, _, standard = line.partition("=")
        if local.strip():
            table[local.strip()] = standard.strip()
    return table
