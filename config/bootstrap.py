"""Makes `.venv` and installs the pinned requirements into it: run by any Python 3, before anything is there.

`python3 config/bootstrap.py base` or `dev`; it does nothing when they are installed already.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time

OLDEST, NEWEST = (3, 11), (3, 13)
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(HERE, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")


def main(wanted):
    """Bring `.venv` to what requirements/<wanted>.txt says."""
    if not works(PYTHON):
        make_environment()
    elif installed(wanted) or wanted == "base" and installed("dev"):  # dev holds all of base
        return
    install(os.path.join(HERE, "requirements", wanted + ".txt"))
    with open(stamp(wanted), "w") as file:
        file.write(digest(wanted))


def installed(wanted):
    """Whether these requirements, as they are now, were installed."""
    return read(stamp(wanted)) == digest(wanted)


def stamp(wanted):
    """The file that remembers what was installed."""
    return os.path.join(VENV, "orderly-" + wanted)


def digest(wanted):
    """The requirements as a short text that changes with them."""
    return hashlib.sha256(read(os.path.join(HERE, "requirements", wanted + ".txt")).encode()).hexdigest()


def make_environment():
    """A fresh `.venv` of the newest Python that serves."""
    python = find_python()
    say("Making .venv with " + python)
    if os.path.isdir(VENV):
        shutil.rmtree(VENV)
    made = subprocess.run([python, "-m", "venv", VENV], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if made.returncode == 0 and works(PYTHON, "import pip"):
        return
    # Debian leaves ensurepip out of python3; a pip of the system can fill the environment from outside.
    shutil.rmtree(VENV, ignore_errors=True)
    if works(python, "import pip"):
        subprocess.run([python, "-m", "venv", "--without-pip", VENV], check=True)
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        say("Installing python3-venv")
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run(["apt-get", "install", "-y", "-qq", "python3-venv"], check=False)
        if subprocess.run([python, "-m", "venv", VENV]).returncode == 0:
            return
    sys.exit(
        python
        + " cannot make an environment. Install its venv module (Debian: apt-get install python3-venv)."
    )


def find_python():
    """The path of a Python from 3.11 to 3.13: this one, else one on the PATH."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and works(found):
            return found
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    sys.exit(f"Orderly needs Python 3.11 to 3.13, and only {here} is here. Install one of them.")


def install(requirements):
    """pip, with a line for every package, and all it said when it fails."""
    with open(requirements) as file:
        total = sum(1 for line in file if "==" in line and not line.startswith((" ", "#")))
    say(f"Installing up to {total} packages")
    began, said, seen = time.time(), [], 0
    base = (
        [PYTHON, "-m", "pip"]
        if works(PYTHON, "import pip")
        else [sys.executable, "-m", "pip", "--python", PYTHON]
    )
    command = [*base, "install", "--disable-pip-version-check", "--no-input", "-r", requirements]
    pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    for line in pip.stdout or ():
        said.append(line)
        if line.startswith(("Collecting ", "Requirement already satisfied: ")):
            seen += 1
            name = line.replace("Requirement already satisfied:", "").split()[0 if line[0] == "R" else 1]
            progress(f"  {seen:3d}  {name.split('==')[0]}")
        elif line.startswith("Installing collected"):
            progress("  unpacking")
    progress("")
    if pip.wait():
        sys.stderr.write("".join(said[-40:]))
        sys.exit("The packages could not be installed; what pip said stands above.")
    say(f"Installed in {time.time() - began:.0f} s")


def works(python, code="pass"):
    """Whether this Python runs this code."""
    try:
        return (
            subprocess.run(
                [python, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ).returncode
            == 0
        )
    except OSError:
        return False


def progress(text):
    """One line that is written over, on a terminal; plain lines elsewhere would be too many."""
    if sys.stdout.isatty():
        sys.stdout.write("\r\x1b[K" + text[:100])
        sys.stdout.flush()


def say(text):
    """A line that stays."""
    print(text, flush=True)


def read(path):
    """The text of a file, or nothing."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "base")
