"""Workers to be killed: `python -m tests.integration.outbound.worker_nursery DATABASE`.

For each line of standard input, a destination's id, it forks a worker that drains it until it is killed, and prints
the worker's process id. Forking a process that has everything imported makes hundreds of deaths affordable; it has
no database connection and no thread of its own to share.
"""

import os
import sys
import time


def main(database: str) -> None:
    import django
    from django.conf import settings

    django.setup()
    settings.DATABASES["default"]["NAME"] = database
    from integration import delivery

    print("ready", flush=True)
    for line in sys.stdin:
        destination_id = int(line)
        pid = os.fork()
        if pid == 0:
            while True:
                delivery.drain(destination_id)
                time.sleep(0.005)
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
