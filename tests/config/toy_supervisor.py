"""A supervisor over toy processes in a process of its own: `python -m tests.config.toy_supervisor RUN_FILE NAME…`."""

import sys
from pathlib import Path

from config import supervisor
from config.doors import _listen
from config.processes import Process


def main(run_file: Path, names: list[str]) -> None:
    """Run until signalled, with patience cut short so that tests need not wait."""
    supervisor.STOP_SECONDS = 1.0
    supervisor.SILENCE = 1.0
    table = tuple(Process(name, f"tests.config.toys:{name}", ("toy",)) for name in names)
    supervisor.Supervisor(
        table,
        {"toy": _listen("127.0.0.1", 0)},
        run_file,
        command=lambda process: [sys.executable, "-m", "tests.config.toys", process.name],
    ).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
