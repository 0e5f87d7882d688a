"""`manage.py interface [SOURCE]`: the interface specification of a source, from its live profile, as Markdown."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from integration.hl7v2 import specification
from integration.models import Source


class Command(BaseCommand):
    help = "Print what a source may send and where we look for each value; without a name, the defaults."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("source", nargs="?", help="the source's name")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["source"]:
            self.stdout.write(specification.defaults())
            return
        source = Source.objects.filter(name=options["source"]).first()
        if source is None:
            names = ", ".join(Source.objects.values_list("name", flat=True)) or "none"
            raise CommandError(f"There is no source {options['source']!r}; there are: {names}.")
        self.stdout.write(specification.of_source(source))
