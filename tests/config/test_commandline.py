"""What happens around every command: the data directory, the database, the secret, the tokens."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from io import StringIO
from pathlib import Path
from urllib.parse import quote

import pytest
from django.core.management import CommandError, call_command

from common.models import ApiToken
from common.roles import bearer
from config.commandline import database_for, take_data_dir
from config.postgres import Cluster
from tests.engine import REPOSITORY, Engine


def manage(data_dir: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORDERLY_")}
    kept["DJANGO_SETTINGS_MODULE"] = "config.settings"
    return subprocess.run(
        [sys.executable, "manage.py", *words, "--data", str(data_dir)],
        cwd=REPOSITORY,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_data_directory_may_stand_anywhere_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERLY_DATA_DIR", "before")
    assert take_data_dir(["manage.py", "--data", "/srv/a b", "migrate"]) == ["manage.py", "migrate"]
    assert os.environ["ORDERLY_DATA_DIR"] == "/srv/a b"
    assert take_data_dir(["manage.py", "serve", "--data=/srv/c", "--http", "0"]) == [
        "manage.py",
        "serve",
        "--http",
        "0",
    ]
    assert os.environ["ORDERLY_DATA_DIR"] == "/srv/c"


def test_a_command_that_asks_for_help_starts_no_database(tmp_path: Path) -> None:
    with database_for(["manage.py", "migrate", "--help"]) as cluster:
        assert cluster is None


def test_the_secret_key_is_random_kept_and_closed_to_others(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    for data_dir in (first, second, first):
        assert manage(data_dir, "check").returncode == 0
    keys = [(one / "secret.key").read_text() for one in (first, second)]
    assert keys[0] != keys[1]
    assert min(map(len, keys)) >= 50
    assert stat.S_IMODE((first / "secret.key").stat().st_mode) == 0o600


def test_a_command_without_serve_has_its_database_for_its_duration() -> None:
    engine = Engine()
    try:
        home = {"ORDERLY_POSTGRES_HOME": engine.environment["ORDERLY_POSTGRES_HOME"]}
        assert manage(engine.data_dir, "migrate", "-v0", **home).returncode == 0
        made = manage(engine.data_dir, "token", "create", "nurse", "--role", "clerk", **home)
        assert made.stdout.startswith("ord_")
        assert "nurse\tclerk\tvalid" in manage(engine.data_dir, "token", "list", **home).stdout
        assert not (engine.base / "postgres" / "data" / "postmaster.pid").exists()
    finally:
        engine.close()


def test_a_server_of_ones_own_is_used_where_database_url_names_it() -> None:
    engine = Engine()
    try:
        home = Path(engine.environment["ORDERLY_POSTGRES_HOME"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ORDERLY_POSTGRES_HOME", str(home))
            cluster = Cluster(engine.data_dir, durable=False)
        with cluster.running():
            url = f"postgresql://app@/orderly?host={quote(str(home / 'run'))}"
            elsewhere = engine.base / "elsewhere"
            assert manage(elsewhere, "migrate", "-v0", DATABASE_URL=url).returncode == 0
            made = manage(elsewhere, "token", "create", "nurse", "--role", "clerk", DATABASE_URL=url)
            assert made.stdout.startswith("ord_")
            assert not (elsewhere / "postgres").exists()
            assert not (elsewhere / "postgres.home").exists()
    finally:
        engine.close()


def test_without_any_postgresql_a_command_says_what_to_do(tmp_path: Path) -> None:
    done = manage(
        tmp_path / "data", "migrate", ORDERLY_POSTGRES_BIN="/nowhere", ORDERLY_POSTGRES_HOME=str(tmp_path)
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Database: ORDERLY_POSTGRES_BIN names /nowhere")
    assert "Traceback" not in done.stderr


@pytest.mark.django_db
class TestTokens:
    def test_a_token_is_printed_once_and_kept_as_a_digest(self) -> None:
        out = StringIO()
        call_command("token", "create", "viewer", "--role", "radiologist", stdout=out)
        text = out.getvalue().strip()
        assert bearer(text) == ApiToken.objects.get(name="viewer")
        assert text not in str(ApiToken.objects.values_list().get())

    def test_a_revoked_token_opens_nothing(self) -> None:
        out = StringIO()
        call_command("token", "create", "viewer", "--role", "radiologist", stdout=out)
        call_command("token", "revoke", "viewer", stdout=StringIO())
        assert bearer(out.getvalue().strip()) is None

    def test_a_name_is_taken_once(self) -> None:
        call_command("token", "create", "viewer", "--role", "radiologist", stdout=StringIO())
        with pytest.raises(CommandError, match="choose another name"):
            call_command("token", "create", "viewer", "--role", "radiologist", stdout=StringIO())
