"""An archive with objects in it, and callers with and without the right to see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from common.roles import create_token
from pacs import indexing
from pacs.dicomweb import base
from pacs.models import Instance
from pacs.storage import part10, spool


class Archive:
    """Takes objects the way the DICOM door does: through the spool and the indexer."""

    def add(self, ds: Dataset) -> Instance:
        """Store a data set as it would be written to a file."""
        buffer = BytesIO()
        dcmwrite(buffer, ds, enforce_file_format=True)
        return self.add_file(buffer.getvalue())

    def add_file(self, raw: bytes) -> Instance:
        """Store a Part 10 file; its preamble and meta group become ours, its data set stays."""
        meta, offset = part10.read_prefix(raw)
        origin = part10.origin_of(meta)
        ds = dcmread(BytesIO(raw), stop_before_pixels=True)  # as senders do: files with another UID exist
        origin = replace(origin, sop_instance_uid=str(ds.SOPInstanceUID))
        incoming = spool.mine().begin(origin)
        incoming.write(raw[offset:])
        incoming.commit()
        self.index()
        return Instance.objects.get(sop_instance_uid=origin.sop_instance_uid)

    def index(self) -> None:
        """Let the indexer take what lies in the spool."""
        while indexing.index_once():
            pass


@pytest.fixture
def archive(db: None, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """An empty archive in a folder of the test."""
    settings.DATA_DIR = tmp_path
    monkeypatch.setattr(spool, "_mine", None)
    base._accesses.forget()
    yield Archive()


@pytest.fixture
def user(db: None) -> Callable[..., Any]:
    """A user with roles: `user("radiologist")`."""

    def make(*roles: str) -> Any:
        made = get_user_model().objects.create_user(f"u-{'-'.join(roles) or 'none'}", password="x")
        made.groups.set([Group.objects.get_or_create(name=role)[0] for role in roles])
        return made

    return make


@pytest.fixture
def browser(user: Callable[..., Any]) -> Callable[..., Client]:
    """A logged-in browser: `browser("radiologist")`."""

    def make(*roles: str) -> Client:
        client = Client()
        client.force_login(user(*roles))
        return client

    return make


@pytest.fixture
def reader(browser: Callable[..., Client]) -> Client:
    """A radiologist's browser."""
    return browser("radiologist")


@pytest.fixture
def token(db: None) -> str:
    """A radiologist's bearer token."""
    return create_token("reader", "radiologist")
