"""The rules of the house that a program can check: floors, languages, docstrings, addresses, migrations."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import call_command

REPOSITORY = Path(__file__).resolve().parent.parent

# From the top down: a floor imports itself and those after it.
FLOORS = ["config", "integration", "worklist", "ris", "pacs", "common"]
WIRE_FORMATS = {"hl7", "hl7apy", "pydicom", "pynetdicom", "fhir"}  # none of them in ris
PYDICOM_ROOMS = ("pacs/", "worklist/", "integration/rehearsal/")


def product_files() -> list[Path]:
    """Every Python file of the six floors."""
    return sorted(path for floor in FLOORS for path in (REPOSITORY / floor).rglob("*.py"))


def imports(path: Path, root: Path = REPOSITORY) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in the file, wherever it stands, and of import_module("…")."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module or ""]))
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def _called(node: ast.Call) -> str:
    return str(getattr(node.func, "attr", getattr(node.func, "id", "")))


def climbing(path: Path, root: Path = REPOSITORY) -> list[str]:
    """The imports of this file that go up, as `file:line module`."""
    name = path.relative_to(root)
    above = FLOORS[: FLOORS.index(name.parts[0])]
    return [
        f"{name}:{line} {module}" for line, module in imports(path, root) if module.partition(".")[0] in above
    ]


def tracked_files() -> list[Path]:
    """The text files of the repository."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git clone")
    paths = [REPOSITORY / name for name in listed.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def test_no_import_climbs_the_floors() -> None:
    wrong = [text for path in product_files() for text in climbing(path)]
    assert not wrong, "an import points up; publish an event or let the upper floor plug in:\n" + "\n".join(
        wrong
    )


def test_the_reader_of_imports_sees_every_form(tmp_path: Path) -> None:
    path = tmp_path / "common" / "x.py"
    path.parent.mkdir()
    path.write_text(
        "import ris.models\n"
        "def f():\n"
        "    from pacs import events\n"
        "    import_module('config.site')\n"
        "from . import clock\n"
    )
    found = {module for _, module in imports(path, tmp_path)}
    assert found == {"ris.models", "pacs", "pacs.events", "config.site", "common", "common.clock"}
    assert len(climbing(path, tmp_path)) == 4


def test_ris_knows_no_wire_format() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} {module}"
        for path in product_files()
        if path.relative_to(REPOSITORY).parts[0] == "ris"
        for line, module in imports(path)
        if module.partition(".")[0] in WIRE_FORMATS
    ]
    assert not wrong, "ris decides and never translates:\n" + "\n".join(wrong)


def test_pydicom_stays_in_its_rooms() -> None:
    wrong = [
        f"{name}:{line}"
        for path in product_files()
        if not (name := path.relative_to(REPOSITORY).as_posix()).startswith(PYDICOM_ROOMS)
        for line, module in imports(path)
        if module.partition(".")[0] == "pydicom"
    ]
    assert not wrong, "data sets are built in pacs and worklist:\n" + "\n".join(wrong)


def test_every_module_says_what_lives_in_it() -> None:
    silent = [
        str(path.relative_to(REPOSITORY))
        for path in [*product_files(), *sorted((REPOSITORY / "tests").rglob("*.py"))]
        if "migrations" not in path.parts
        and path.stat().st_size
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, "a module begins with a docstring:\n" + "\n".join(silent)


def test_no_file_names_a_path_of_one_machine() -> None:
    machine = re.compile(r"(?<![\w.])/(?:work|root|Users|mnt/c)/\w")
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in tracked_files()
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
        )
        if machine.search(line) and path.suffix not in (".min.js", ".map")
    ]
    assert not wrong, "a path that only one machine has:\n" + "\n".join(wrong)


def test_no_file_names_a_package_registry() -> None:
    registries = re.compile(
        "|".join(["pypi" + r"\.org", "python" + "hosted", "npm" + r"js\.org", "--index" + "-url"])
    )
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in tracked_files()
        if path.name not in ("Makefile",)
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
        )
        if registries.search(line)
    ]
    assert not wrong, "a package registry's address:\n" + "\n".join(wrong)


@pytest.mark.django_db
def test_every_model_has_its_migration() -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=1)
