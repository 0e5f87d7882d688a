"""`manage.py token create NAME --role R`: a bearer token for `/dicomweb`, `/fhir` and `/metrics`."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from common.clock import now
from common.models import ApiToken
from common.roles import Role, create_token


class Command(BaseCommand):
    help = "Make, list or revoke bearer tokens. A new one is printed once; only its SHA-256 is kept."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        create = actions.add_parser("create", help="make a token and print it")
        create.add_argument("name")
        create.add_argument("--role", required=True, choices=Role.values)
        create.add_argument("--days", type=int, default=365, help="how long it is valid (default 365)")
        actions.add_parser("list", help="names, roles and states")
        actions.add_parser("revoke", help="end a token at once").add_argument("name")

    def handle(self, *args: Any, **options: Any) -> None:
        getattr(self, "_" + options["action"])(options)

    def _create(self, options: dict[str, Any]) -> None:
        if ApiToken.objects.filter(name=options["name"]).exists():
            raise CommandError(f"There is a token named {options['name']!r}; choose another name.")
        if options["days"] < 1:
            raise CommandError("--days must be 1 or more.")
        self.stdout.write(create_token(options["name"], options["role"], options["days"]))

    def _list(self, options: dict[str, Any]) -> None:
        for token in ApiToken.objects.order_by("name"):
            state = "revoked" if token.revoked_at else "expired" if token.expires_at < now() else "valid"
            self.stdout.write(f"{token.name}\t{token.role}\t{state}\tuntil {token.expires_at:%Y-%m-%d}")

    def _revoke(self, options: dict[str, Any]) -> None:
        done = ApiToken.objects.filter(name=options["name"], revoked_at__isnull=True).update(revoked_at=now())
        if not done:
            raise CommandError(f"There is no valid token named {options['name']!r}.")
        self.stdout.write(f"{options['name']} is revoked.")
