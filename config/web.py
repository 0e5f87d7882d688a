"""The web process: gunicorn with threads on the socket that the supervisor bound."""

from __future__ import annotations

import os
from typing import Any

from gunicorn.app.base import BaseApplication

from common.process import Context


class _Web(BaseApplication):  # type: ignore[misc]
    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        super().__init__()

    def load_config(self) -> None:
        settings: dict[str, Any] = {
            "bind": [f"fd://{self.ctx.sockets['http'].fileno()}"],
            "worker_class": "gthread",
            "workers": int(os.environ.get("ORDERLY_WEB_WORKERS", "2")),
            "threads": int(os.environ.get("ORDERLY_WEB_THREADS", "8")),
            "timeout": 60,
            "graceful_timeout": 15,
            "keepalive": 5,
            "accesslog": None,  # request lines carry patient ids
            "errorlog": "-",
            "loglevel": "warning",
            "control_socket_disable": True,
            "forwarded_allow_ips": os.environ.get("ORDERLY_PROXIES", "127.0.0.1,::1"),
            "post_worker_init": lambda worker: self.ctx.ready(),
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        from config.wsgi import application  # in the worker: nothing of the database is open before the fork

        return application


def main(ctx: Context) -> None:
    """Serve every web page and REST door until told to stop."""
    _Web(ctx).run()
