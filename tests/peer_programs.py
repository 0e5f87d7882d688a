"""Programs of others that tests speak with. `python -m tests.peer_programs` installs what is missing, where allowed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

DCMTK = "apt-get install dcmtk"
PEERS = {
    "echoscu": DCMTK,
    "findscu": DCMTK,
    "storescu": DCMTK,
    "storescp": DCMTK,
    "movescu": DCMTK,
    "getscu": DCMTK,
    "dcmsend": DCMTK,
    "dcmrecv": DCMTK,
    "dcmdump": DCMTK,
    "dcmodify": DCMTK,
    "dcmconv": DCMTK,
    "dcmcjpeg": DCMTK,
    "dcmdjpeg": DCMTK,
    "dump2dcm": DCMTK,
    "termscu": DCMTK,
    "wlmscpfs": DCMTK,
    "chromium": "apt-get install chromium",
    "strace": "apt-get install strace",
    "dciodvfy": "apt-get install dicom3tools",
    "openssl": "apt-get install openssl",
    "Orthanc": "apt-get install orthanc",
    "node": "apt-get install nodejs npm",
    "npm": "apt-get install nodejs npm",
}
# What `make test` needs; benches and slow tests may ask for more.
NEEDED = {
    "findscu": "dcmtk",
    "dciodvfy": "dicom3tools",
    "chromium": "chromium",
    "node": "nodejs",
    "npm": "npm",
}
# HL7 packages for Node.js, installed below var/ as their lock file says.
NPM_PEERS = Path(__file__).resolve().parent / "peers" / "npm"


def find(program: str) -> str | None:
    """The path of a program, also where an ordinary user's PATH does not look."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/bin")


def npm_modules() -> Path:
    """The folder of others' HL7 packages for Node.js, installed as the lock file says, once for each lock file.

    Raises FileNotFoundError without npm, CalledProcessError when it cannot install them.
    """
    npm = find("npm")
    if not npm:
        raise FileNotFoundError("npm")
    lock = (NPM_PEERS / "package-lock.json").read_bytes()
    cache = NPM_PEERS.parent.parent.parent / "var" / "test-peers"
    folder = cache / hashlib.sha256(lock).hexdigest()[:16]
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as made:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(NPM_PEERS / name, made)
            words = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(words, cwd=made, check=True, capture_output=True, timeout=300)
            try:
                (Path(made) / "node_modules").rename(folder)
            except OSError:  # another worker was faster
                if not folder.exists():
                    raise
    return folder


def main() -> None:
    """Install the Debian packages of missing programs when this is root on a Debian; else say what will be skipped."""
    _install_packages()
    try:
        npm_modules()
    except (OSError, subprocess.SubprocessError):
        print(
            f"HL7 packages of npm are missing: tests that need them are skipped ({PEERS['npm']})", flush=True
        )


def _install_packages() -> None:
    packages = sorted({package for program, package in NEEDED.items() if not find(program)})
    if not packages:
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"Installing {', '.join(packages)}", flush=True)
        quiet = {"DEBIAN_FRONTEND": "noninteractive", **os.environ}
        subprocess.run(["apt-get", "update", "-qq"], env=quiet, check=False)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], env=quiet, check=False
        )
    for program in NEEDED:
        if not find(program):
            print(f"{program} is missing: tests that need it are skipped ({PEERS[program]})", flush=True)


if __name__ == "__main__":
    main()
