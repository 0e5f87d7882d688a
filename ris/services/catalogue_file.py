"""The procedure catalogue as a CSV file: read with errors by line, compared with what is there, taken over as a whole.

One line a step. The first line of a code gives the procedure; further lines with the same code add steps:

    code,name,modality,minutes,stations,step,step_name,step_modality,step_minutes
    CTCHEST,CT of the chest,CT,25,CT 1|CT 2,,,,
    PETCT,PET and CT,PT,60,,PETCT-1,Low dose CT,CT,10
    PETCT,,,,,PETCT-2,PET,PT,50

Columns stand in any order, only `code` and `name` must be there; comma, semicolon or tab part them.
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from common.store import Unit
from ris import history
from ris.errors import BadValue
from ris.models import ProcedureDefinition, Station
from ris.services import catalogue

COLUMNS = (
    "code",
    "name",
    "modality",
    "minutes",
    "stations",
    "step",
    "step_name",
    "step_modality",
    "step_minutes",
)
LARGEST = 2_000_000
"""Characters of a file; a catalogue of ten thousand lines is a third of that."""
MOST_FAULTS = 50
_MODALITY = re.compile(r"[A-Z0-9 _]{1,16}\Z")


@dataclass(frozen=True)
class Fault:
    """What is wrong with the file: the line as an editor counts it, and the column if it is one's."""

    line: int
    column: str
    text: str

    def __str__(self) -> str:
        where = f"line {self.line}" + (f", {self.column}" if self.column else "")
        return f"{where}: {self.text}"


@dataclass(frozen=True)
class Difference:
    """What the file would do to one procedure: `new`, `changed` or `same`; attribute → (before, after)."""

    code: str
    name: str
    kind: str
    line: int
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def said(self) -> list[tuple[str, str, str]]:
        """The changes in words: attribute, before, after."""
        return [(name, _in_words(was), _in_words(now)) for name, (was, now) in self.changes.items()]


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        names = [
            (one.get("name") or one.get("code", "")) if isinstance(one, dict) else str(one) for one in value
        ]
        return ", ".join(names) or "none"
    return str(value) if value not in ("", None) else "nothing"


@dataclass
class Preview:
    """A file compared with the catalogue: nothing is taken over while it has faults."""

    differences: list[Difference] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """Codes of the catalogue that the file does not name; they stay."""

    def count(self, kind: str) -> int:
        """How many procedures are `new`, `changed` or `same`."""
        return sum(d.kind == kind for d in self.differences)


@dataclass
class _Procedure:
    line: int
    values: dict[str, Any]
    steps: list[dict[str, Any]]


def decode(raw: bytes) -> str:
    """A file's bytes as text: UTF-8, with or without a mark. Raises BadValue that says what to do."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BadValue(f"Line {line} is not UTF-8. Save the file as “CSV UTF-8”.", attribute="file") from None


def preview(text: str) -> Preview:
    """What a file would change, and what is wrong with it."""
    result = Preview()
    found = _read(text, result.faults)
    known = {row.code: row for row in ProcedureDefinition.objects.all()}
    for code, procedure in found.items():
        values = {**procedure.values, "steps": procedure.steps}
        row = known.get(code)
        if row is None:
            result.differences.append(Difference(code, values.get("name", ""), "new", procedure.line))
            continue
        changes = {
            name: (getattr(row, name), value) for name, value in values.items() if getattr(row, name) != value
        }
        kind = "changed" if changes else "same"
        result.differences.append(Difference(code, values["name"], kind, procedure.line, changes))
    result.absent = sorted(set(known) - set(found))
    result.faults.sort(key=lambda fault: fault.line)
    return result


def take_over(text: str, unit: Unit) -> Preview:
    """Bring the catalogue to what the file says; codes it does not name stay. Raises BadValue for a faulty file."""
    result = preview(text)
    if result.faults:
        more = f", and {len(result.faults) - 1} more" if len(result.faults) > 1 else ""
        raise BadValue(f"Nothing was taken over: {result.faults[0]}{more}", attribute="file")
    known = {row.code: row for row in ProcedureDefinition.objects.all()}
    for code, procedure in _read(text, []).items():
        row = known.get(code) or ProcedureDefinition(code=code)
        for name, value in {**procedure.values, "steps": procedure.steps}.items():
            setattr(row, name, value)
        history.keep(row, unit, None)
    catalogue.forget()
    return result


def _read(text: str, faults: list[Fault]) -> dict[str, _Procedure]:
    """Code → procedure, in the file's order; faults are added to the list."""
    if len(text) > LARGEST:
        faults.append(Fault(1, "", f"The file has more than {LARGEST} characters."))
        return {}
    stations = set(Station.objects.values_list("name", flat=True))
    found: dict[str, _Procedure] = {}
    header: list[str] = []
    for line, cells in _lines(text):
        if len(faults) >= MOST_FAULTS:
            break
        if not header:
            header = [cell.strip().lower() for cell in cells]
            if wrong := _wrong_header(header):
                faults.append(Fault(line, "", wrong))
                return {}
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            faults.append(Fault(line, "", f"{len(cells)} columns where the first line names {len(header)}."))
            continue
        _take_line(line, dict(zip(header, (c.strip() for c in cells), strict=False)), found, stations, faults)
    if not header:
        faults.append(Fault(1, "", "The file is empty."))
    return found


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text.replace("\0", "")), delimiter=delimiter)
    begun = 1
    for cells in reader:
        yield begun, cells
        begun = reader.line_num + 1


def _wrong_header(header: list[str]) -> str:
    for name in ("code", "name"):
        if name not in header:
            return (
                f"The first line must name the columns, {name!r} among them; there are {', '.join(COLUMNS)}."
            )
    for name in header:
        if name not in COLUMNS:
            return f"{name!r} is no column; there are {', '.join(COLUMNS)}."
    if len(set(header)) < len(header):
        return "A column is named twice."
    return ""


def _take_line(
    line: int, cells: dict[str, str], found: dict[str, _Procedure], stations: set[str], faults: list[Fault]
) -> None:
    code = cells.get("code", "")
    if not code:
        faults.append(Fault(line, "code", "There is no code."))
        return
    if len(code) > 64:
        faults.append(Fault(line, "code", "More than 64 characters."))
        return
    again = found.get(code)
    if again is None:
        values = _values(line, cells, stations, faults)
        again = found[code] = _Procedure(line, values, [])
    elif not _is_step(cells):
        faults.append(
            Fault(line, "code", f"The code stands in line {again.line} already, and this is no step.")
        )
        return
    if _is_step(cells):
        again.steps.append(_step(line, cells, again.values, faults))


def _is_step(cells: dict[str, str]) -> bool:
    return any(cells.get(name) for name in ("step", "step_name", "step_modality", "step_minutes"))


def _values(line: int, cells: dict[str, str], stations: set[str], faults: list[Fault]) -> dict[str, Any]:
    values: dict[str, Any] = {"name": cells.get("name", "")}
    if not values["name"]:
        faults.append(Fault(line, "name", "The first line of a code needs a name."))
    if len(values["name"]) > 200:
        faults.append(Fault(line, "name", "More than 200 characters."))
    if "modality" in cells:
        values["modality"] = _modality(line, "modality", cells["modality"], faults)
    if cells.get("minutes"):
        values["minutes"] = _minutes(line, "minutes", cells["minutes"], faults)
    if "stations" in cells:
        named = [one.strip() for one in cells["stations"].split("|") if one.strip()]
        for one in named:
            if one not in stations:
                faults.append(Fault(line, "stations", f"There is no station {one!r}; add it first."))
        values["stations"] = named
    return values


def _step(line: int, cells: dict[str, str], values: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    step: dict[str, Any] = {}
    if cells.get("step"):
        step["code"] = cells["step"][:64]
    step["name"] = cells.get("step_name") or values.get("name", "")
    if cells.get("step_modality"):
        step["modality"] = _modality(line, "step_modality", cells["step_modality"], faults)
    if cells.get("step_minutes"):
        step["minutes"] = _minutes(line, "step_minutes", cells["step_minutes"], faults)
    return step


def _modality(line: int, column: str, said: str, faults: list[Fault]) -> str:
    if said and not _MODALITY.match(said):
        faults.append(
            Fault(line, column, f"{said[:20]!r} is no modality; write it as DICOM does, such as CT.")
        )
    return said[:16]


def _minutes(line: int, column: str, said: str, faults: list[Fault]) -> int:
    if not said.isdecimal() or not 1 <= int(said) <= 1440:
        faults.append(Fault(line, column, f"{said[:20]!r} is no number of minutes from 1 to 1440."))
        return 20
    return int(said)


def dump() -> str:
    """The catalogue as such a file, which `take_over` reads back to the same rows."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in ProcedureDefinition.objects.filter(temporary=False).order_by("code"):
        first = [row.code, row.name, row.modality, row.minutes, "|".join(row.stations)]
        steps = row.steps if isinstance(row.steps, list) else []
        for number, step in enumerate(steps or [{}]):
            kept = [step.get(name, "") for name in ("code", "name", "modality", "minutes")]
            writer.writerow([*(first if number == 0 else [row.code, "", "", "", ""]), *kept])
    return out.getvalue()
