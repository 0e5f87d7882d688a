"""The embedded PostgreSQL: made, shared, adopted, recovered and refused, with the real binaries."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import postgres
from config.postgres import Cluster, PostgresError, database_settings, parse_url, run_dir_of

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory with a space in its path, and its cluster beside it."""
    base = Path(tempfile.mkdtemp(prefix="orderly pg "))
    base.chmod(0o755)
    monkeypatch.setenv("ORDERLY_POSTGRES_HOME", str(base / "home of it"))
    yield base / "data"
    shutil.rmtree(base, ignore_errors=True)


def kill_hard(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass
        time.sleep(0.01)


def revive(cluster: Cluster) -> None:
    """As the supervisor does: again and again, while the dead server's backends end."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return cluster.revive()
        except PostgresError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_new_cluster_has_the_database_and_a_second_start_finds_its_rows(data_dir: Path) -> None:
    with Cluster(data_dir).running() as cluster, cluster._connect() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        names = [row[0] for row in connection.execute("SELECT datname FROM pg_database")]
        assert "orderly" in names
        assert connection.execute("SHOW fsync").fetchone()[0] == "on"
        assert connection.execute("SHOW listen_addresses").fetchone()[0] == ""
    assert not cluster.is_running()
    with Cluster(data_dir).running() as cluster, cluster._connect() as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone()[0] == 42


def test_the_socket_is_closed_to_other_users(data_dir: Path) -> None:
    with Cluster(data_dir, durable=False).running() as cluster:
        assert cluster.run.stat().st_mode & 0o777 == 0o700
        assert cluster.data.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try to log in as somebody else")
def test_a_user_without_an_entry_in_the_map_is_not_let_in(data_dir: Path) -> None:
    stranger = next(p for p in pwd.getpwall() if p.pw_uid != 0 and p.pw_name not in ("nobody", "orderly"))
    with Cluster(data_dir, durable=False).running() as cluster:
        cluster.run.chmod(0o755)
        for socket in cluster.run.iterdir():
            socket.chmod(0o777)
        psql = postgres._reachable_copy(postgres.find_binaries()).bin / "psql"
        tried = subprocess.run(
            [psql, "-h", cluster.run, "-U", "app", "-c", "SELECT 1", "postgres"],
            user=stranger.pw_uid,
            group=stranger.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            cwd="/",
        )
    assert tried.returncode != 0
    assert "Peer authentication failed" in tried.stderr


def test_the_last_user_out_stops_the_server(data_dir: Path) -> None:
    first, second = Cluster(data_dir, durable=False), Cluster(data_dir, durable=False)
    first.enter()
    second.enter()
    first.leave()
    assert second.is_running()
    second.leave()
    assert not second.is_running()


def test_a_server_whose_owner_was_killed_is_adopted(data_dir: Path) -> None:
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from config.postgres import Cluster\n"
            "c = Cluster(Path(sys.argv[1])); c.enter(); print(c.pid(), flush=True); time.sleep(60)",
            data_dir,
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    with Cluster(data_dir).running() as cluster:
        assert cluster.pid() == pid
    assert not cluster.is_running()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel of Linux")
def test_a_server_that_was_to_die_with_its_owner_does(data_dir: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from config.postgres import Cluster\n"
        "c = Cluster(Path(sys.argv[1])); c.enter(die_with_us=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, data_dir], cwd=REPOSITORY)
    cluster = Cluster(data_dir)
    deadline = time.monotonic() + 30
    while (cluster.data / "postmaster.pid").exists():  # the last thing that a server takes away
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not cluster.is_running()


def test_a_killed_server_is_started_again_with_all_committed_rows(data_dir: Path) -> None:
    with Cluster(data_dir).running() as cluster:
        with cluster._connect() as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        pid = cluster.pid()
        assert pid
        kill_hard(pid)
        assert cluster.pid() is None
        revive(cluster)
        with cluster._connect() as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone()[0] == 1000


def test_a_stale_pid_file_that_names_another_program_does_not_stop_the_start(data_dir: Path) -> None:
    with Cluster(data_dir).running() as cluster:
        content = (cluster.data / "postmaster.pid").read_text()
        pid = cluster.pid()
        assert pid
        kill_hard(pid)
    account = postgres._account(cluster.data)
    other = subprocess.Popen(["sleep", "60"], cwd="/", **postgres._as(account))
    try:
        rest = content.partition("\n")[2]
        (cluster.data / "postmaster.pid").write_text(f"{other.pid}\n{rest}")
        cluster = Cluster(data_dir)
        with cluster.running():
            assert cluster.is_running()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_cluster_half_made_when_the_machine_went_down_is_made_anew(data_dir: Path) -> None:
    cluster = Cluster(data_dir, durable=False)
    (cluster.home / "data.new").mkdir(parents=True)
    (cluster.home / "data.new" / "PG_VERSION").write_text("18\n")
    with cluster.running():
        assert cluster.is_running()


def test_a_cluster_of_another_major_version_is_refused_with_its_number(data_dir: Path) -> None:
    cluster = Cluster(data_dir, durable=False)
    cluster.data.mkdir(parents=True)
    (cluster.data / "PG_VERSION").write_text("9\n")
    with pytest.raises(PostgresError, match="made by PostgreSQL 9"), cluster.running():
        pass


def test_a_postgresql_of_the_machine_can_stand_in(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = [one for one in postgres._candidates() if not one.from_wheel]
    if not machine:
        pytest.skip("no PostgreSQL on this machine besides the wheel's: apt-get install postgresql")
    monkeypatch.setenv("ORDERLY_POSTGRES_BIN", str(machine[0].bin))
    with Cluster(data_dir, durable=False).running() as cluster, cluster._connect() as connection:
        version = int(connection.execute("SHOW server_version_num").fetchone()[0]) // 10000
        assert version == machine[0].major


def test_a_folder_without_postgresql_is_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERLY_POSTGRES_BIN", "/nowhere")
    with (
        pytest.raises(PostgresError, match="ORDERLY_POSTGRES_BIN names /nowhere"),
        Cluster(data_dir).running(),
    ):
        pass


def test_a_place_where_nothing_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PostgresError, match="file.* cannot be made or used"):
        Cluster(tmp_path / "file" / "data").enter()


def test_a_socket_path_too_long_for_the_kernel_is_moved_to_a_short_one() -> None:
    assert run_dir_of(Path("/srv/orderly")) == Path("/srv/orderly/run")
    assert len(str(run_dir_of(Path("/srv") / ("x" * 120)))) < 60
    assert "," not in str(run_dir_of(Path("/srv/a,b")))


@pytest.mark.skipif(os.geteuid() != 0, reason="as another user the cluster lies in the data directory itself")
class TestAsRoot:
    """Run by root, the cluster lies apart from the data directory, and each must know the other."""

    @pytest.fixture
    def places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.delenv("ORDERLY_POSTGRES_HOME")
        base = Path(tempfile.mkdtemp(prefix="orderly-root-"))
        base.chmod(0o755)
        monkeypatch.setattr(postgres, "ROOT_HOME", base)
        yield tmp_path
        shutil.rmtree(base)

    def test_a_data_directory_that_was_moved_finds_its_cluster(self, places: Path) -> None:
        with Cluster(places / "one", durable=False).running() as first:
            pass
        (places / "one").rename(places / "two")
        assert Cluster(places / "two").home == first.home

    def test_a_data_directory_that_was_emptied_gets_a_new_cluster(self, places: Path) -> None:
        with Cluster(places / "one", durable=False).running() as cluster, cluster._connect() as connection:
            connection.execute("CREATE TABLE kept (n int)")
        shutil.rmtree(places / "one")
        with Cluster(places / "one", durable=False).running() as cluster, cluster._connect() as connection:
            assert connection.execute("SELECT to_regclass('kept')").fetchone()[0] is None

    def test_the_database_of_an_ordinary_user_is_not_taken_for_empty(self, places: Path) -> None:
        made = places / "one" / "postgres" / "data"
        made.mkdir(parents=True)
        (made / "PG_VERSION").write_text("18\n")
        os.chown(made, pwd.getpwnam("nobody").pw_uid, -1)
        with (
            pytest.raises(PostgresError, match="belongs to the user nobody"),
            Cluster(places / "one").running(),
        ):
            pass


def test_database_url_is_read_into_djangos_words() -> None:
    found = parse_url("postgresql://us%40er:p%3Aw@db.example:6432/rad%20is?sslmode=require")
    assert (found["USER"], found["PASSWORD"]) == ("us@er", "p:w")
    assert (found["HOST"], found["PORT"], found["NAME"]) == ("db.example", "6432", "rad is")
    assert found["OPTIONS"] == {"sslmode": "require"}


def test_database_url_of_another_database_is_refused() -> None:
    with pytest.raises(PostgresError, match="not a PostgreSQL address"):
        parse_url("mysql://localhost/x")


def test_settings_are_computed_without_starting_or_making_anything(tmp_path: Path) -> None:
    found = database_settings(tmp_path / "nothing", None, pool_size=4)
    assert found["OPTIONS"]["pool"]["timeout"] <= 5
    assert not (tmp_path / "nothing").exists()
