"""The product's settings over a data directory and a database cluster of the test session's own."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path


def _clean_up(home: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(home, ignore_errors=True)


if "ORDERLY_TEST_HOME" not in os.environ:  # the session's first process; xdist's workers inherit it
    # Not pytest's tmp_path: run by root, the server's user must be able to reach its cluster.
    home = Path(tempfile.mkdtemp(prefix="orderly-tests-"))
    home.chmod(0o755)
    os.environ["ORDERLY_TEST_HOME"] = str(home)
    os.environ["ORDERLY_TEST_OWNER"] = str(os.getpid())
    atexit.register(_clean_up, home, os.getpid())
    for name in [name for name in os.environ if name.startswith("ORDERLY_") and "TEST" not in name]:
        if name != "ORDERLY_POSTGRES_BIN":
            del os.environ[name]
    os.environ.pop("DATABASE_URL", None)

TEST_HOME = Path(os.environ["ORDERLY_TEST_HOME"])
os.environ["ORDERLY_DATA_DIR"] = str(TEST_HOME / "data")
os.environ["ORDERLY_POSTGRES_HOME"] = str(TEST_HOME / "postgres")
os.environ["ORDERLY_DB_POOL"] = "0"  # a thread's connection is its own: what a test leaves open is seen
os.environ["ORDERLY_LOG_LEVEL"] = os.environ.get("ORDERLY_TEST_LOG", "WARNING")

from config.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # fast; the product keeps Django's
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
