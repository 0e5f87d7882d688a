"""Programs of others that tests speak with. `python -m tests.peer_programs` installs what is missing, where allowed."""

from __future__ import annotations

import os
import shutil
import subprocess

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


def find(program: str) -> str | None:
    """The path of a program, also where an ordinary user's PATH does not look."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/bin")


def main() -> None:
    """Install the Debian packages of missing programs when this is root on a Debian; else say what will be skipped."""
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
