"""The MLLP process as `run mllp` starts it, over the test's database: `python -m … DATABASE PORT`."""

import os
import socket
import sys


def main() -> None:
    database, port = sys.argv[1], int(sys.argv[2])
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django
    from django.conf import settings

    settings.DATABASES["default"]["NAME"] = database
    django.setup()
    from common.process import Context
    from integration.hl7v2 import listener

    door = socket.create_server(("127.0.0.1", port), backlog=128)
    ctx = Context("mllp", {"mllp": door}, status_fd=1)
    ctx.stop_on_signals()
    listener.main(ctx)


if __name__ == "__main__":
    main()
