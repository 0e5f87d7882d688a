"""STOW-RS: kept whole or refused by name, by the same spool as C-STORE."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from django.test import Client
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from pacs.dicomweb.multipart import write
from pacs.models import Instance, Study
from tests.conftest import sample
from tests.pacs.dicomweb.conftest import Archive
from tests.pacs.dicomweb.test_wado import image, url

MARK = "a-boundary"
KIND = f'multipart/related; type="application/dicom"; boundary="{MARK}"'


def file(ds: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def post(client: Client, *contents: bytes, path: str = "studies", kind: str = KIND, **headers: str) -> Any:
    body = b"".join(write((("application/dicom", [content]) for content in contents), MARK))
    headers.setdefault("sec-fetch-site", "same-origin")
    return client.post(f"/dicomweb/{path}", body, content_type=kind, headers=headers)


def test_what_is_stored_is_found_and_comes_back_unchanged(archive: Archive, reader: Client) -> None:
    one, two = file(image()), file(image(SOPInstanceUID="1.2.3.5"))
    response = post(reader, one, two)
    assert response.status_code == 200
    assert [item["00081155"]["Value"] for item in response.json()["00081199"]["Value"]] == [
        ["1.2.3.4"],
        ["1.2.3.5"],
    ]
    archive.index()
    row = Instance.objects.get(sop_instance_uid="1.2.3.4")
    again = reader.get(url(row), headers={"accept": "application/dicom"})
    assert dcmread(BytesIO(b"".join(again.streaming_content))) == dcmread(BytesIO(one))
    assert len(reader.get("/dicomweb/studies/1.2.3/instances").json()) == 2


def test_every_sample_of_others_is_stored(archive: Archive, reader: Client) -> None:
    paths = sorted(sample("dicom", "ts").glob("*.dcm"))
    for path in paths:
        response = post(reader, path.read_bytes())
        assert response.status_code == 200, (path.name, response.content)


def test_good_parts_are_kept_when_others_are_not(archive: Archive, reader: Client) -> None:
    whole = file(image())
    response = post(reader, b"no file at all" * 20, whole[:-10], whole)
    assert response.status_code == 202
    document = response.json()
    assert len(document["00081199"]["Value"]) == 1
    assert [item["00081197"]["Value"][0] for item in document["00081198"]["Value"]] == [0xC000, 0xC000]
    archive.index()
    assert Instance.objects.count() == 1


def test_nothing_kept_is_409(archive: Archive, reader: Client) -> None:
    assert post(reader, b"no file").status_code == 409


def test_an_object_of_another_study_than_the_addressed_one_is_refused(
    archive: Archive, reader: Client
) -> None:
    assert post(reader, file(image()), path="studies/1.2.3").status_code == 200
    response = post(reader, file(image(SOPInstanceUID="1.2.3.5")), path="studies/9.9.9")
    assert response.status_code == 409
    [failed] = response.json()["00081198"]["Value"]
    assert failed["00081197"]["Value"] == [0xA900]


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2.3/4", "a.b.c"])
def test_a_uid_of_other_characters_is_refused(archive: Archive, reader: Client, uid: str) -> None:
    raw = file(image(SOPInstanceUID="9.8.7.6.5.4.3.2.1"))
    hostile = raw.replace(b"9.8.7.6.5.4.3.2.1\0", uid.encode().ljust(18, b"\0"))
    assert hostile != raw
    assert post(reader, hostile).status_code == 409
    archive.index()
    assert not Study.objects.exists()


def test_a_body_of_another_kind_is_415_and_a_broken_one_400(archive: Archive, reader: Client) -> None:
    assert post(reader, b"x", kind="application/json").status_code == 415
    assert post(reader, b"x", kind='multipart/related; type="application/dicom"').status_code == 415
    response = reader.post(
        "/dicomweb/studies",
        b"--a-boundary\r\n\r\n",
        content_type=KIND,
        headers={"sec-fetch-site": "same-origin"},
    )
    assert response.status_code == 400


@pytest.mark.parametrize("role", ["clerk", "referrer", "analyst"])
def test_who_makes_no_images_stores_none(archive: Archive, browser: Callable[..., Client], role: str) -> None:
    assert post(browser(role), file(image())).status_code == 403


def test_a_page_of_another_site_cannot_write_but_a_token_can(
    archive: Archive, reader: Client, token: str
) -> None:
    whole = file(image())
    assert post(reader, whole, **{"sec-fetch-site": "cross-site"}).status_code == 403
    assert post(reader, whole, **{"sec-fetch-site": "none", "origin": "http://evil"}).status_code == 403
    assert post(reader, whole, origin="http://evil").status_code == 403
    response = post(Client(), whole, **{"sec-fetch-site": "cross-site", "authorization": f"Bearer {token}"})
    assert response.status_code == 200
