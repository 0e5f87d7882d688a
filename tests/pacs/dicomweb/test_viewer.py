"""The simple viewer: who gets it, what it is told, and a browser that scrolls through a study with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from pydicom.dataset import Dataset

from common.models import AuditEvent
from integration.rehearsal.phantoms import Protocol, scan
from pacs.models import Study
from tests.pacs.dicomweb.conftest import Archive


def phantom(modality: str, uid: str = "1.2.7", **protocol: int) -> list[Dataset]:
    answer = Dataset()
    answer.SpecificCharacterSet = "ISO_IR 192"
    answer.PatientName, answer.PatientID, answer.StudyInstanceUID = "Muster^Anna", "P-<b>1</b>", uid
    answer.PatientBirthDate, answer.RequestedProcedureDescription = "19700131", f"{modality} head"
    step = Dataset()
    step.Modality = modality
    answer.ScheduledProcedureStepSequence = [step]
    wanted = Protocol(**{"slices": 12, "size": 128, "frames": 6, **protocol})
    return scan(answer, at=datetime(2026, 3, 1, 9, 30), seed=5, protocol=wanted).images


def test_the_contents_name_every_series_and_the_addresses_of_its_pictures(
    archive: Archive, reader: Client
) -> None:
    for ds in phantom("MR", slices=2, size=32):
        archive.add(ds)
    study = Study.objects.get()
    told = reader.get(f"/viewer/studies/{study.pk}").json()
    assert (told["patient"], told["born"], told["date"]) == ("Anna Muster", "1970-01-31", "2026-03-01")
    assert [(one["number"], one["kind"], len(one["images"])) for one in told["series"]] == [
        (2, "image", 2),
        (3, "image", 2),
    ]
    for one in told["series"]:
        assert reader.get(one["thumbnail"]).status_code == 200
        for image in one["images"]:
            assert reader.get(f"{image['url']}/rendered").status_code == 200


def test_the_page_is_for_those_who_may_see_the_study(
    archive: Archive, reader: Client, browser: Callable[..., Client]
) -> None:
    archive.add(phantom("CT", slices=1, size=32)[0])
    address = f"/viewer/?study={Study.objects.get().pk}"
    assert reader.get(address).status_code == 200
    assert browser("referrer").get(address).status_code == 404
    assert browser("analyst").get(address).status_code == 403
    assert Client().get(address).status_code == 302
    assert reader.get("/viewer/?study=1.2.3").status_code == 404
    assert reader.get("/viewer/").status_code == 200


def test_opening_a_study_leaves_an_audit_row(archive: Archive, reader: Client) -> None:
    archive.add(phantom("CT", slices=1, size=32)[0])
    study = Study.objects.get()
    reader.get(f"/viewer/?study={study.pk}")
    row = AuditEvent.objects.get(action="read")
    assert row.object_ids == [str(study.pk)]


# --- In a browser


@pytest.fixture
def page(
    transactional_db: None, archive: Archive, chromium: Any, live_server: Any, user: Callable[..., Any]
) -> Iterator[Any]:
    """A window logged in as a radiologist; an error of a script or a refused request fails the test."""
    client = Client()
    client.force_login(user("radiologist"))
    context = chromium.new_context(
        viewport={"width": 1180, "height": 820}, base_url=live_server.url, has_touch=True
    )
    cookie = client.cookies["sessionid"]
    context.add_cookies([{"name": "sessionid", "value": cookie.value, "url": live_server.url}])
    window = context.new_page()
    troubles: list[str] = []
    window.on("pageerror", lambda error: troubles.append(str(error)))
    window.on("response", lambda r: troubles.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    window.set_default_timeout(15_000)
    yield window
    context.close()
    assert not troubles


def shot(page: Any, name: str) -> None:
    folder = os.environ.get("ORDERLY_TEST_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def opened(page: Any, embed: bool = False) -> None:
    page.goto(f"/viewer/?study={Study.objects.get().pk}" + ("&embed=1" if embed else ""))
    page.wait_for_function("document.querySelector('.v').viewer.shown !== null")


def label(page: Any, corner: str) -> str:
    return str(page.locator(f".v-{corner}").inner_text())


def brightness(page: Any) -> float:
    """The mean of the canvas."""
    return float(
        page.evaluate(
            """() => { const c = document.querySelector('.v canvas');
               const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
               let sum = 0; for (let i = 0; i < d.length; i += 4) sum += d[i]; return sum / (d.length / 4); }"""
        )
    )


def test_a_volume_is_scrolled_through_by_wheel_and_keys(page: Any, archive: Archive) -> None:
    for ds in phantom("CT"):
        archive.add(ds)
    opened(page)
    assert label(page, "bl") == "Image 7 / 12"
    assert label(page, "tr").startswith("Anna Muster\nP-<b>1</b>")
    assert "C 40" in label(page, "br")
    assert brightness(page) > 5
    shot(page, "viewer-ct")
    page.mouse.move(700, 400)
    page.mouse.wheel(0, 100)
    page.wait_for_function("document.querySelector('.v-bl').textContent.startsWith('Image 9')")
    page.locator(".v").focus()
    page.keyboard.press("Home")
    assert label(page, "bl") == "Image 1 / 12"
    page.keyboard.press("ArrowUp")
    assert label(page, "bl") == "Image 1 / 12"
    page.keyboard.press("End")
    assert label(page, "bl") == "Image 12 / 12"


def test_presets_and_dragging_change_the_window(page: Any, archive: Archive) -> None:
    for ds in phantom("CT"):
        archive.add(ds)
    opened(page)
    before = brightness(page)
    page.locator(".v").focus()
    page.keyboard.press("3")
    page.wait_for_function("document.querySelector('.v-br').textContent.includes('W 2800')")
    page.wait_for_timeout(500)
    assert brightness(page) != pytest.approx(before, abs=1)
    shot(page, "viewer-ct-bone")
    page.mouse.move(600, 400)
    page.mouse.down()
    page.mouse.move(660, 400, steps=4)
    page.mouse.up()
    page.wait_for_function("!document.querySelector('.v-br').textContent.includes('W 2800')")
    page.keyboard.press("r")
    page.wait_for_function("document.querySelector('.v-br').textContent.includes('C 40')")


def test_series_are_chosen_by_their_thumbnails_and_a_cine_plays(page: Any, archive: Archive) -> None:
    for ds in phantom("MR", slices=4) + phantom("US"):
        archive.add(ds)
    opened(page, embed=True)
    buttons = page.locator(".v-series button")
    assert buttons.count() == 3
    page.wait_for_function("[...document.querySelectorAll('.v-series img')].every(i => i.naturalWidth > 0)")
    page.locator(".v-series button", has_text="Upper abdomen").click()
    page.wait_for_function("document.querySelector('.v-bl').textContent.endsWith('/ 6')")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('.v').viewer.image >= 3")
    page.get_by_role("button", name="Play").click()
    shot(page, "viewer-us-embedded")


def test_a_finger_scrolls(page: Any, archive: Archive) -> None:
    for ds in phantom("CT"):
        archive.add(ds)
    opened(page, embed=True)
    touch = page.context.new_cdp_session(page)
    for kind, y in (("touchStart", 200), ("touchMove", 260), ("touchMove", 420), ("touchEnd", None)):
        points = [] if y is None else [{"x": 600, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.wait_for_function("document.querySelector('.v').viewer.image > 7")


def test_what_cannot_be_shown_is_said(page: Any, archive: Archive) -> None:
    ds = phantom("CT", slices=1, size=32)[0]
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(ds, keyword)
    archive.add(ds)
    page.goto(f"/viewer/?study={Study.objects.get().pk}")
    page.get_by_text("This series has no pictures").wait_for()
