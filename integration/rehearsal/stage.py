"""What a rehearsal adds to the engine for its run: a source, destinations, scanners, procedures, users; and takes away.

All of it is marked temporary. One rehearsal runs at a time on a data directory, under fixed names, so that what a
killed run left behind is taken over by the next one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import InterfaceError, OperationalError, connection, transaction

from common import alerts, cause
from common.models import ApiToken, Site
from common.roles import Role, create_token
from common.store import unit_of_work
from integration.delivery import alert_key
from integration.models import Destination, MirrorState, OutboxItem, Source
from integration.rehearsal.catalogue import PROCEDURES, STATIONS
from integration.rehearsal.his import APPLICATION, FACILITY
from integration.rehearsal.receivers import LOOPBACK, FhirReceiver, HisReceiver
from pacs.models import ApplicationEntity
from ris.models import Practitioner, ProcedureDefinition, ScheduledProcedureStep
from ris.models import Station as StationRow
from ris.models.schedule import StepStatus
from ris.services import steps
from ris.transitions import ON_WORKLIST

logger = logging.getLogger(__name__)

SOURCE = "rehearsal"
HIS, FHIR = "rehearsal-his", "rehearsal-fhir"
RADIOLOGIST, CLERK = "rehearsal.radiologist", "rehearsal.clerk"
TOKEN = "rehearsal"

CLEAR_SECONDS = 30.0

# Short bounds: the peers are in this process, and a worker that is killed keeps its item only so long.
_BOUNDS = {
    "connect_seconds": 1.0,
    "write_seconds": 2.0,
    "ack_seconds": 3.0,
    "retry_seconds": 0.5,
    "retry_seconds_most": 4.0,
}


class Refused(Exception):
    """A rehearsal must not or cannot run here; the text says why."""


@dataclass(frozen=True)
class Cast:
    """The users who act in the rehearsal."""

    radiologist: Any
    clerk: Any
    token: str
    """The radiologist's bearer token for `/dicomweb` and `/fhir`."""


@contextmanager
def staged(his: HisReceiver, fhir: FhirReceiver) -> Iterator[Cast]:
    """The stage is set inside this block. Raises Refused on a live site, or while another rehearsal runs."""
    if Site.objects.filter(live=True).exists():
        raise Refused(
            "This site is live ([site] live = true): a rehearsal would put made-up patients among real ones. "
            "Rehearse on a test system."
        )
    with _only_one(Path(settings.DATA_DIR)):
        cast = _set_up(his, fhir)
        try:
            yield cast
        finally:
            _clear_away_for_sure()


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    lock = os.open(data_dir / "rehearse.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Refused("Another rehearsal runs on this data directory; wait until it is over.") from None
    try:
        yield
    finally:
        os.close(lock)


@transaction.atomic
def _set_up(his: HisReceiver, fhir: FhirReceiver) -> Cast:
    _forget_deliveries()
    Source.objects.update_or_create(
        name=SOURCE,
        defaults={
            "application": APPLICATION,
            "facility": FACILITY,
            "address": LOOPBACK,
            "enabled": True,
            "temporary": True,
            "profile": {},
        },
    )
    common = {"enabled": True, "temporary": True, "failures": 0, "circuit_open_until": None}
    Destination.objects.update_or_create(
        name=HIS,
        defaults={
            **common,
            "kind": Destination.Kind.HL7,
            "host": LOOPBACK,
            "port": his.port,
            "messages": ["ORU", "ORM"],
            "settings": {**_BOUNDS, "processing_id": "T", "receiving_application": APPLICATION},
        },
    )
    Destination.objects.update_or_create(
        name=FHIR,
        defaults={**common, "kind": Destination.Kind.FHIR, "url": fhir.url, "settings": dict(_BOUNDS)},
    )
    for station in STATIONS:
        ApplicationEntity.objects.update_or_create(
            title=station.ae_title,
            host=LOOPBACK,
            defaults={
                "services": ["echo", "store", "worklist", "mpps"],
                "description": "Rehearsal",
                "enabled": True,
                "temporary": True,
            },
        )
        StationRow.objects.update_or_create(
            name=station.name,
            defaults={
                "ae_title": station.ae_title,
                "modality": station.modality,
                "room": station.room,
                "temporary": True,
            },
        )
    for procedure in PROCEDURES:
        ProcedureDefinition.objects.update_or_create(
            code=procedure.code,
            defaults={
                "name": procedure.name,
                "modality": procedure.modality,
                "minutes": procedure.minutes,
                "temporary": True,
            },
        )
    radiologist = _user(RADIOLOGIST, Role.RADIOLOGIST, "Rehearsal^Radiologist", "RHR1")
    ApiToken.objects.filter(name=TOKEN).delete()
    return Cast(
        radiologist=radiologist,
        clerk=_user(CLERK, Role.CLERK, "Rehearsal^Clerk", "RHC1"),
        token=create_token(TOKEN, Role.RADIOLOGIST, days=1, user=radiologist),
    )


def _user(name: str, role: Role, person_name: str, number: str) -> Any:
    """A user who cannot log in (no password) and has one role."""
    users = get_user_model().objects
    user = users.filter(username=name).first() or users.create_user(name)
    user.set_unusable_password()
    user.is_active = True
    user.save()
    user.groups.set([Group.objects.get_or_create(name=role.value)[0]])
    Practitioner.objects.update_or_create(
        user=user, defaults={"person_name": person_name, "identifier": number}
    )
    return user


def _clear_away_for_sure() -> None:
    """Clear away, also when the database is just coming back; what stays all the same, the next run takes over."""
    deadline = time.monotonic() + CLEAR_SECONDS
    while True:
        try:
            return _clear_away()
        except (OperationalError, InterfaceError) as error:
            connection.close()
            if time.monotonic() > deadline:
                logger.error(
                    "the rehearsal's temporary rows stay: the database is away (%s)", type(error).__name__
                )
                return None
            time.sleep(0.5)


@transaction.atomic
def _clear_away() -> None:
    """What messages and reports refer to stays, switched off; the rest goes."""
    Source.objects.filter(name=SOURCE).update(enabled=False)
    Destination.objects.filter(name__in=(HIS, FHIR)).update(
        enabled=False, failures=0, circuit_open_until=None
    )
    _forget_deliveries()
    ApplicationEntity.objects.filter(temporary=True, title__in=[s.ae_title for s in STATIONS]).delete()
    StationRow.objects.filter(temporary=True, name__in=[s.name for s in STATIONS]).delete()
    ProcedureDefinition.objects.filter(temporary=True, code__in=[p.code for p in PROCEDURES]).delete()
    ApiToken.objects.filter(name=TOKEN).delete()
    get_user_model().objects.filter(username__in=(RADIOLOGIST, CLERK)).update(is_active=False)
    _cancel_what_is_left()


def _cancel_what_is_left() -> None:
    """Orders of this and earlier runs that were never performed leave the worklist, as after a run that was ended."""
    open_steps = ScheduledProcedureStep.objects.filter(
        procedure__request__source=SOURCE, status__in=ON_WORKLIST
    ).values_list("pk", flat=True)
    for step_id in open_steps:
        with unit_of_work(cause.system("rehearsal")) as unit:
            steps.move(step_id, StepStatus.CANCELED, "clerk", unit)


def _forget_deliveries() -> None:
    """Nothing may wait for peers that are gone: what is queued for them is taken out, their alerts end.

    What the FHIR receiver was told is forgotten, too: the next run's is another server.
    """
    waiting = (OutboxItem.State.QUEUED, OutboxItem.State.PARKED)
    OutboxItem.objects.filter(destination__name__in=(HIS, FHIR), state__in=waiting).update(
        state=OutboxItem.State.SKIPPED, last_error="The rehearsal is over."
    )
    MirrorState.objects.filter(destination__name=FHIR).delete()
    for destination in Destination.objects.filter(name__in=(HIS, FHIR)):
        alerts.recover(alert_key(destination))
