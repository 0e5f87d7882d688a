"""What the radiologist looks at over HTTP before reading, and what FHIR says afterwards, by a token of the run."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from common.clock import now
from integration.rehearsal.doors import Doors
from integration.rehearsal.scanners import Scan

HTTP_SECONDS = 30.0
ACCEPTED_AGAIN = (429, 502, 503, 504)


@dataclass(slots=True)
class Look:
    """One request in the viewer's log."""

    what: str
    at: datetime
    seconds: float


@dataclass
class Viewer:
    """A client of `/dicomweb` and `/fhir/r4`. `complaints` are answers that contradict the scanners' logs."""

    doors: Doors
    token: str
    log: list[Look] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open_study(self, scan: Scan) -> None:
        """Search the study's images (QIDO-RS) and look at one of them (rendered). Raises GaveUp."""
        uid = scan.study_uid
        found = json.loads(
            self._get("search", f"/dicomweb/studies/{uid}/instances", "application/dicom+json") or b"[]"
        )
        uids = {_value(item, "00080018") for item in found}
        if uids != {image.sop_instance_uid for image in scan.images}:
            self.complaints.append(
                f"QIDO-RS finds {len(uids)} images of study {uid}, {len(scan.images)} were sent"
            )
        image = scan.images[len(scan.images) // 2]
        place = (
            f"/dicomweb/studies/{uid}/series/{image.series_instance_uid}/instances/{image.sop_instance_uid}"
        )
        if not self._get("rendered", f"{place}/rendered", "image/jpeg").startswith(b"\xff\xd8"):
            self.complaints.append(f"image {image.sop_instance_uid} is not shown as JPEG")

    def shown_by_fhir(self, scan: Scan) -> None:
        """Ask our FHIR door for the study. Raises GaveUp."""
        value = urllib.parse.quote(f"urn:dicom:uid|urn:oid:{scan.study_uid}", safe="")
        raw = self._get("FHIR", f"/fhir/r4/ImagingStudy?identifier={value}", "application/fhir+json")
        bundle = json.loads(raw or b"{}")
        found = [
            e["resource"]
            for e in bundle.get("entry", [])
            if e.get("search", {}).get("mode", "match") == "match"
        ]
        if [one.get("numberOfInstances") for one in found] != [len(scan.images)]:
            self.complaints.append(
                f"FHIR shows {len(found)} studies {scan.study_uid}, or another number of its images"
            )

    def _get(self, what: str, path: str, accept: str) -> bytes:
        """A body; empty for an answer that is no success, which is a complaint. Asked again while web is away."""

        def ask() -> tuple[bytes] | None:
            url = f"http://{self.doors.host}:{self.doors.port('http')}{path}"
            headers = {"Authorization": f"Bearer {self.token}", "Accept": accept}
            began = time.perf_counter()
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(url, headers=headers), timeout=HTTP_SECONDS
                ) as answer:
                    body = answer.read()
            except urllib.error.HTTPError as error:
                if error.code in ACCEPTED_AGAIN:
                    return None
                self.complaints.append(f"{what}: HTTP {error.code} for {path.partition('?')[0]}")
                return (b"",)
            except (OSError, http.client.HTTPException):
                return None
            self.log.append(Look(what, now(), time.perf_counter() - began))
            return (body,)

        return self.doors.wait_for(ask, f"{what} over HTTP")[0]


def _value(item: dict[str, Any], tag: str) -> str:
    values = item.get(tag, {}).get("Value") or [""]
    return str(values[0])
