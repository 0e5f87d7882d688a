"""An archive with objects in it, and callers with and without the right to see them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from common.clock import now
from common.roles import create_token
from pacs.dicomweb import base
from pacs.matching import name_keys, parse_date, parse_time
from pacs.models import Instance, Series, Study
from pacs.storage import part10
from pacs.storage.volume import Volume, relative_path


class Archive:
    """Puts data sets into the volume and the index, the way the indexer does."""

    def add(self, ds: Dataset) -> Instance:
        """Store a data set as it would be written to a file."""
        buffer = BytesIO()
        dcmwrite(buffer, ds, enforce_file_format=True)
        return self.add_file(buffer.getvalue())

    def add_file(self, raw: bytes) -> Instance:
        """Store a Part 10 file; its preamble and meta group become ours, its data set stays."""
        meta, offset = part10.read_prefix(raw)
        origin = part10.origin_of(meta)
        prefix = part10.prefix(origin)
        ds = dcmread(BytesIO(raw), stop_before_pixels=True, force=True)
        study, _ = Study.objects.get_or_create(
            study_instance_uid=str(ds.get("StudyInstanceUID") or "1.2.826.0.9"), defaults=_study(ds)
        )
        series, _ = Series.objects.get_or_create(
            study=study,
            series_instance_uid=str(ds.get("SeriesInstanceUID") or "1.2.826.0.9.1"),
            defaults=_series(ds),
        )
        path = relative_path(study.study_instance_uid + series.series_instance_uid, origin.sop_instance_uid)
        volume = Volume("files")
        volume.place(path, prefix + raw[offset:])
        volume.sync()
        row = Instance.objects.create(
            series=series,
            sop_instance_uid=origin.sop_instance_uid,
            sop_class_uid=origin.sop_class_uid,
            transfer_syntax_uid=origin.transfer_syntax_uid,
            instance_number=ds.get("InstanceNumber"),
            rows=ds.get("Rows"),
            columns=ds.get("Columns"),
            bits_allocated=ds.get("BitsAllocated"),
            number_of_frames=ds.get("NumberOfFrames"),
            path=path,
            size=len(prefix) + len(raw) - offset,
            data_set_offset=len(prefix),
            sha256=hashlib.sha256(raw[offset:]).hexdigest(),
            received_at=now(),
        )
        series.number_of_series_related_instances += 1
        series.save()
        study.number_of_study_related_instances += 1
        study.number_of_study_related_series = study.series.count()
        if series.modality and series.modality not in study.modalities_in_study:
            study.modalities_in_study.append(series.modality)
        study.save()
        return row


def _text(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "")


def _study(ds: Dataset) -> dict[str, Any]:
    alphabetic, ideographic, phonetic = name_keys(_text(ds, "PatientName"))
    return {
        "patient_id": _text(ds, "PatientID"),
        "issuer_of_patient_id": _text(ds, "IssuerOfPatientID"),
        "patient_name": _text(ds, "PatientName"),
        "patient_name_search": alphabetic,
        "patient_name_ideographic_search": ideographic,
        "patient_name_phonetic_search": phonetic,
        "patient_birth_date": _text(ds, "PatientBirthDate"),
        "patient_sex": _text(ds, "PatientSex"),
        "accession_number": _text(ds, "AccessionNumber"),
        "study_id": _text(ds, "StudyID"),
        "study_description": _text(ds, "StudyDescription"),
        "referring_physician_name": _text(ds, "ReferringPhysicianName"),
        "referring_physician_name_search": name_keys(_text(ds, "ReferringPhysicianName"))[0],
        "study_date": parse_date(ds.StudyDate) if ds.get("StudyDate") else None,
        "study_time": parse_time(ds.StudyTime) if ds.get("StudyTime") else None,
        "received_at": now(),
        "last_instance_at": now(),
    }


def _series(ds: Dataset) -> dict[str, Any]:
    item = (ds.get("RequestAttributesSequence") or [Dataset()])[0]
    return {
        "modality": _text(ds, "Modality"),
        "series_number": ds.get("SeriesNumber"),
        "series_description": _text(ds, "SeriesDescription"),
        "body_part_examined": _text(ds, "BodyPartExamined"),
        "scheduled_procedure_step_id": _text(item, "ScheduledProcedureStepID"),
        "requested_procedure_id": _text(item, "RequestedProcedureID"),
        "received_at": now(),
    }


@pytest.fixture
def archive(db: None, settings: Any, tmp_path: Any) -> Iterator[Archive]:
    """An empty archive in a folder of the test."""
    settings.DATA_DIR = tmp_path
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
