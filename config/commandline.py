"""What happens around every command: the data directory is chosen, the database is there while it runs."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from config.processes import TABLE

# `serve` looks after the database itself, `demo` runs `serve`, `rehearse` needs one that runs; the others here never
# speak to it.
WITHOUT_DATABASE = {
    "serve",
    "demo",
    "rehearse",
    "help",
    "version",
    "check",
    "diffsettings",
    "collectstatic",
    "findstatic",
    "startapp",
    "makemessages",
    "compilemessages",
    "testserver",
    "bench",
}


def main(argv: list[str]) -> None:
    """Run `manage.py COMMAND …`; `--data DIR` before or after the command names the data directory."""
    argv = take_data_dir(argv)
    if argv[1:2] == ["run"] and any(process.headless for process in TABLE if process.name in argv[2:3]):
        os.environ["ORDERLY_HEADLESS"] = "1"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    from config.postgres import PostgresError

    try:
        with database_for(argv):
            from django.core.management import execute_from_command_line

            execute_from_command_line(argv)
    except PostgresError as trouble:
        sys.exit(f"Database: {trouble}")
    except KeyboardInterrupt:
        sys.exit(130)  # as the shell says it: ended by Ctrl-C


def take_data_dir(argv: list[str]) -> list[str]:
    """`argv` without `--data DIR`, which goes into the environment: settings are read before any command."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--data":
            os.environ["ORDERLY_DATA_DIR"] = next(words, "") or sys.exit("--data needs a directory after it.")
        elif word.startswith("--data="):
            os.environ["ORDERLY_DATA_DIR"] = word.partition("=")[2]
        elif word == "--":
            return [*kept, word, *words]
        else:
            kept.append(word)
    return kept


def database_for(argv: list[str]) -> AbstractContextManager[object]:
    """The embedded database for the duration of a command that needs it; one that runs already is adopted."""
    command = argv[1] if len(argv) > 1 else "help"
    helping = {"--help", "-h", "--version"} & set(argv)
    supervised = "ORDERLY_SUPERVISED" in os.environ  # the supervisor looks after the database
    if command in WITHOUT_DATABASE or helping or supervised or os.environ.get("DATABASE_URL"):
        return nullcontext()
    from config.postgres import Cluster

    base = Path(__file__).resolve().parent.parent
    return Cluster(Path(os.environ.get("ORDERLY_DATA_DIR", base / "var"))).running()
