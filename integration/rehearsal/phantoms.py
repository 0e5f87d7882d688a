"""Phantom images for rehearsals: schematic anatomy with a lesion, as a scanner would send it for a worklist entry.

`scan` takes the data set of a worklist answer and gives back the images of one study: a volume of a head,
chest or abdomen for CT and MR, radiographs by projection for CR, DX and MG, a cine of a fan for US. All of
it is drawn from analytic bodies in millimetres; nothing stems from a patient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from common.uids import new_uid

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Lesion:
    """What is wrong with the phantom, for the report that will be written."""

    site: str
    diameter_mm: int


@dataclass(frozen=True, slots=True)
class PhantomStudy:
    """The images of one study, in the order in which they were made."""

    images: list[Dataset]
    lesion: Lesion | None
    region: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """How much is scanned: 24 slices of 256 pixels make 3 MB and take about a quarter of a second."""

    slices: int = 24
    size: int = 256
    frames: int = 16


def scan(
    answer: Dataset,
    *,
    at: datetime,
    seed: int = 0,
    lesion: bool = True,
    protocol: Protocol = Protocol(),
    uid: Callable[[], str] = new_uid,
) -> PhantomStudy:
    """Make the images of a worklist entry.

    `answer` is what the worklist said (PS3.4 K.6): identifiers, names, UIDs and the step are taken from it,
    also when the caller put a wrong one there. `at` is the local time of the scan. The same seed gives the
    same anatomy; `lesion=False` gives a healthy one, for a prior. UIDs of series and images come from `uid`.
    """
    step = answer.get("ScheduledProcedureStepSequence") or [Dataset()]
    modality = str(step[0].get("Modality") or answer.get("Modality") or "OT").upper()
    words = " ".join(
        str(text or "")
        for text in (
            answer.get("RequestedProcedureDescription"),
            step[0].get("ScheduledProcedureStepDescription"),
        )
    ).lower()
    region = region_of(words, modality)
    making = _Making(answer, step[0], modality, region, at, uid, seed, lesion, protocol)
    images = list(_MAKERS.get(modality, _secondary_capture)(making))
    return PhantomStudy(images, making.found, region)


_REGIONS = (
    ("BREAST", ("mammo", "breast", "brust")),
    ("HEAD", ("head", "brain", "skull", "cerebr", "crani", "neuro", "kopf", "sch\u00e4del", "hirn")),
    ("CHEST", ("chest", "thorax", "lung", "pulmo", "heart", "cardiac", "cor ", "rib")),
    ("KNEE", ("knee", "knie", "leg", "tibia", "femur", "ankle", "foot", "extrem", "hand", "wrist", "elbow")),
    ("ABDOMEN", ("abdom", "liver", "pelvi", "kidney", "renal", "bauch", "urinary", "spine", "lumbar")),
)
_USUAL = {"CT": "HEAD", "MR": "HEAD", "CR": "CHEST", "DX": "CHEST", "US": "ABDOMEN", "MG": "BREAST"}


def region_of(description: str, modality: str) -> str:
    """The body region that the words of a procedure name, else the usual one of the modality."""
    text = description.lower()
    for region, words in _REGIONS:
        if any(word in text for word in words):
            return region
    return _USUAL.get(modality, "HEAD")


# --- Bodies ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Body:
    """An ellipsoid in millimetres, patient axes (x to the left, y to the back, z to the head); later ones
    are painted over earlier ones. `ripple` waves its edge in the plane; `turn` is degrees about z."""

    tissue: str
    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    turn: float = 0.0
    ripple: float = 0.0


HOUNSFIELD = {
    "air": -1000, "fat": -95, "scalp": 40, "skull": 900, "csf": 8, "cortex": 38, "white": 29, "ventricle": 6,
    "nucleus": 38, "falx": 45, "sinus": -950, "eye": 12, "muscle": 52, "lung": -850, "vessel": 42, "heart": 46,
    "blood": 44, "bone": 620, "marrow": 190, "liver": 58, "spleen": 50, "kidney": 33, "pelvis": 12, "gut": 28,
    "gas": -880, "disc": 85, "halo": 20, "lesion": 74, "nodule": 38, "metastasis": 18,
}  # fmt: skip
T1_SIGNAL = {
    "air": 4, "fat": 900, "scalp": 820, "skull": 70, "csf": 130, "cortex": 390, "white": 580, "ventricle": 120,
    "nucleus": 440, "falx": 330, "sinus": 10, "eye": 150, "muscle": 360, "lung": 25, "vessel": 90, "heart": 330,
    "blood": 110, "bone": 90, "marrow": 620, "liver": 480, "spleen": 340, "kidney": 370, "pelvis": 140,
    "gut": 330, "gas": 8, "disc": 280, "halo": 330, "lesion": 270, "nodule": 300, "metastasis": 240,
}  # fmt: skip
T2_SIGNAL = {
    "air": 4, "fat": 620, "scalp": 540, "skull": 50, "csf": 980, "cortex": 520, "white": 370, "ventricle": 1000,
    "nucleus": 400, "falx": 220, "sinus": 10, "eye": 1010, "muscle": 190, "lung": 20, "vessel": 60, "heart": 250,
    "blood": 70, "bone": 60, "marrow": 380, "liver": 230, "spleen": 430, "kidney": 520, "pelvis": 940,
    "gut": 420, "gas": 8, "disc": 560, "halo": 720, "lesion": 830, "nodule": 620, "metastasis": 560,
}  # fmt: skip


def head(rng: np.random.Generator, lesion: bool) -> tuple[list[Body], Lesion | None]:
    """A head: scalp, skull, cerebrospinal fluid, rippled cortex, white matter, ventricles, nuclei."""
    s = 1.0 + float(rng.uniform(-0.04, 0.04))
    bodies = [
        Body("scalp", (0, 0, 0), (80 * s, 98 * s, 92 * s)),
        Body("skull", (0, 0, 0), (74 * s, 92 * s, 86 * s)),
        Body("csf", (0, 0, 0), (68 * s, 86 * s, 80 * s)),
        Body("cortex", (0, 0, 1), (65 * s, 82 * s, 77 * s), ripple=0.025),
        Body("white", (0, 0, 2), (54 * s, 70 * s, 66 * s), ripple=0.07),
        Body("falx", (0, -52 * s, 34), (1.2, 30 * s, 42 * s)),
        Body("falx", (0, 58 * s, 30), (1.2, 22 * s, 40 * s)),
        Body("sinus", (13 * s, -78 * s, -44), (11, 9, 13)),
        Body("sinus", (-13 * s, -78 * s, -44), (11, 9, 13)),
        Body("eye", (32 * s, -80 * s, -34), (12, 12, 12)),
        Body("eye", (-32 * s, -80 * s, -34), (12, 12, 12)),
        Body("nucleus", (15 * s, -8, 6), (8, 14, 12), turn=-14),
        Body("nucleus", (-15 * s, -8, 6), (8, 14, 12), turn=14),
        Body("ventricle", (9 * s, -22 * s, 16), (6, 19, 12), turn=-16),
        Body("ventricle", (-9 * s, -22 * s, 16), (6, 19, 12), turn=16),
        Body("ventricle", (16 * s, 26 * s, 12), (6, 17, 10), turn=22),
        Body("ventricle", (-16 * s, 26 * s, 12), (6, 17, 10), turn=-22),
        Body("ventricle", (0, -2, 2), (2.5, 11, 9)),
    ]
    if not lesion:
        return bodies, None
    side = 1 if rng.random() < 0.5 else -1
    back = bool(rng.random() < 0.4)
    radius = float(rng.uniform(7, 11))
    place = (side * 33.0 * s, (34.0 if back else -30.0) * s, float(rng.uniform(10, 26)))
    bodies.append(Body("halo", place, (radius + 6, radius + 6, radius + 6), ripple=0.06))
    bodies.append(Body("lesion", place, (radius, radius, radius)))
    lobe = "parietal" if back else "frontal"
    return bodies, Lesion(f"{'left' if side > 0 else 'right'} {lobe} lobe", round(2 * radius))


def chest(rng: np.random.Generator, lesion: bool) -> tuple[list[Body], Lesion | None]:
    """A chest: lungs with vessels, heart, aorta, spine; ribs are added slice by slice."""
    s = 1.0 + float(rng.uniform(-0.05, 0.05))
    bodies = [
        Body("fat", (0, 0, 0), (178 * s, 122 * s, 400)),
        Body("muscle", (0, 0, 0), (166 * s, 110 * s, 400)),
        Body("lung", (76 * s, 4, 0), (66 * s, 88 * s, 150)),
        Body("lung", (-76 * s, 4, 0), (68 * s, 90 * s, 150)),
        Body("liver", (-64 * s, 4, -168), (90 * s, 84 * s, 70)),
        Body("spleen", (84 * s, 26, -170), (56 * s, 52 * s, 56)),
        Body("heart", (26 * s, -26, -58), (58 * s, 50 * s, 62), turn=24),
        Body("muscle", (0, 12, 60), (30 * s, 44 * s, 110)),
        Body("blood", (4, -18, 40), (15, 15, 44)),
        Body("blood", (24 * s, 46, 0), (12, 12, 240)),
        Body("gas", (0, 6, 110), (8, 9, 70)),
        Body("bone", (0, 72, 0), (22, 18, 400)),
        Body("marrow", (0, 71, 0), (18, 14, 400)),
        Body("csf", (0, 93, 0), (9, 8, 400)),
        Body("bone", (0, -104 * s, 30), (16, 5, 90)),
    ]
    for _ in range(70):
        side = 1 if rng.random() < 0.5 else -1
        far = float(rng.uniform(0.1, 0.95))
        angle = float(rng.uniform(0, 2 * math.pi))
        thick = 1.2 + 4.5 * (1 - far)
        place = (
            side * (76 + 58 * far * math.cos(angle) - 18 * (1 - far)) * s,
            4 + 76 * far * math.sin(angle),
            float(rng.uniform(-110, 100)),
        )
        bodies.append(Body("vessel", place, (thick, thick, thick * float(rng.uniform(2, 7)))))
    if not lesion:
        return bodies, None
    side = 1 if rng.random() < 0.5 else -1
    upper = bool(rng.random() < 0.6)
    radius = float(rng.uniform(7, 13))
    place = (side * 92.0 * s, float(rng.uniform(-30, 20)), 44.0 if upper else -40.0)
    bodies.append(Body("nodule", place, (radius, radius, radius), ripple=0.08))
    site = f"{'left' if side > 0 else 'right'} {'upper' if upper else 'lower'} lobe of the lung"
    return bodies, Lesion(site, round(2 * radius))


def abdomen(rng: np.random.Generator, lesion: bool) -> tuple[list[Body], Lesion | None]:
    """An upper abdomen: liver, spleen, kidneys, stomach, bowel, great vessels, spine."""
    s = 1.0 + float(rng.uniform(-0.05, 0.05))
    bodies = [
        Body("fat", (0, 0, 0), (172 * s, 120 * s, 400)),
        Body("muscle", (0, 0, 0), (156 * s, 104 * s, 400)),
        Body("fat", (0, -12, -20), (142 * s, 88 * s, 400)),
        Body("muscle", (34 * s, 74, -20), (26, 20, 300)),
        Body("muscle", (-34 * s, 74, -20), (26, 20, 300)),
    ]
    for _ in range(26):
        place = (float(rng.uniform(-100, 110)), float(rng.uniform(-66, 6)), float(rng.uniform(-150, -30)))
        radius = float(rng.uniform(11, 19))
        bodies.append(Body("gut", place, (radius * 1.5, radius, radius), turn=float(rng.uniform(0, 180))))
        if rng.random() < 0.4:
            bodies.append(
                Body("gas", (place[0], place[1] - radius * 0.4, place[2]), (radius * 0.7, radius * 0.4, 8))
            )
    bodies += [
        Body("liver", (-68 * s, -8, 30), (80 * s, 82 * s, 82), ripple=0.015),
        Body("liver", (0, -42, 44), (66 * s, 38 * s, 44)),
        Body("pelvis", (-46 * s, -46, -14), (13, 19, 22)),
        Body("gut", (66 * s, -36, 40), (46, 38, 44), turn=30),
        Body("gas", (62 * s, -56, 44), (32, 14, 30)),
        Body("spleen", (108 * s, 36, 42), (30, 46, 48), turn=-24),
        Body("kidney", (70 * s, 56, -14), (29, 27, 54), turn=20),
        Body("pelvis", (60 * s, 54, -14), (11, 9, 22)),
        Body("kidney", (-70 * s, 56, -26), (29, 27, 54), turn=-20),
        Body("pelvis", (-60 * s, 54, -26), (11, 9, 22)),
        Body("blood", (12, 34, 0), (11, 11, 300)),
        Body("blood", (-20, 34, 0), (13, 10, 300)),
        Body("bone", (0, 70, 0), (26, 21, 400)),
        Body("marrow", (0, 69, 0), (22, 17, 400)),
        Body("csf", (0, 95, 0), (10, 9, 400)),
        Body("bone", (0, 110, 0), (6, 12, 400)),
    ]
    if not lesion:
        return bodies, None
    radius = float(rng.uniform(9, 16))
    place = (-88.0 * s, float(rng.uniform(-30, 24)), float(rng.uniform(14, 40)))
    bodies.append(Body("metastasis", place, (radius, radius, radius), ripple=0.05))
    return bodies, Lesion("right lobe of the liver", round(2 * radius))


Anatomy = Callable[[np.random.Generator, bool], tuple[list[Body], "Lesion | None"]]
_ANATOMIES: dict[str, Anatomy] = {"HEAD": head, "CHEST": chest, "ABDOMEN": abdomen}
_FIELD_MM = {"HEAD": 240.0, "CHEST": 400.0, "ABDOMEN": 380.0}
_EXTENT_MM = {"HEAD": (-52.0, 68.0), "CHEST": (-110.0, 110.0), "ABDOMEN": (-90.0, 80.0)}


def paint(bodies: list[Body], values: dict[str, int], x: Floats, y: Floats, z: float) -> Floats:
    """One transverse slice at height z; x and y are the coordinates of its pixels in millimetres."""
    image = np.full(x.shape, float(values["air"]), np.float32)
    for body in bodies:
        dz = (z - body.center[2]) / body.radii[2]
        if abs(dz) >= 1:
            continue
        dx, dy = x - np.float32(body.center[0]), y - np.float32(body.center[1])
        if body.turn:
            c, s = math.cos(math.radians(body.turn)), math.sin(math.radians(body.turn))
            dx, dy = c * dx + s * dy, c * dy - s * dx
        far = (dx / np.float32(body.radii[0])) ** 2 + (dy / np.float32(body.radii[1])) ** 2
        edge: Any = np.float32(1 - dz * dz)
        if body.ripple:
            angle = np.arctan2(dy, dx)
            wave = np.sin(11 * angle + z / 9) + 0.6 * np.sin(23 * angle - z / 5)
            edge = edge * (1 + np.float32(2 * body.ripple) * wave)
        image[far < edge] = values[body.tissue]
    return image


def _ribs(image: Floats, bodies: list[Body], value: float, x: Floats, y: Floats, z: float) -> None:
    """Ribs cut obliquely: spots on the chest wall whose places wander with the height."""
    wall = bodies[1].radii
    far = np.sqrt((x / wall[0]) ** 2 + (y / wall[1]) ** 2)
    front = y / wall[1]
    phase = np.sin((z + 55 * front + 8 * np.abs(x) / wall[0]) * (2 * math.pi / 26))
    image[(far > 0.88) & (far < 0.955) & (phase > 0.35) & (front > -0.8)] = value


# --- From bodies to data sets ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Making:
    """All that one scan knows."""

    answer: Dataset
    step: Dataset
    modality: str
    region: str
    at: datetime
    uid: Callable[[], str]
    seed: int
    lesion: bool
    protocol: Protocol
    found: Lesion | None = None
    frame_of_reference_uid: str = ""
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.frame_of_reference_uid = self.uid()
        self.rng = np.random.default_rng([self.seed, 1])

    def anatomy_rng(self) -> np.random.Generator:
        """A generator at its start: every series of a study draws the same anatomy from it."""
        return np.random.default_rng([self.seed, 0])

    def series(self, number: int, description: str, sop_class: str, modality: str = "") -> Dataset:
        """A data set with everything that the images of a series share."""
        answer, step = self.answer, self.step
        ds = Dataset()
        ds.SpecificCharacterSet = answer.get("SpecificCharacterSet") or "ISO_IR 100"
        for keyword in _COPIED:
            if keyword in answer:
                ds[keyword] = answer[keyword]
        for keyword in _TYPE_2:
            if keyword not in ds:
                setattr(ds, keyword, "")
        ds.StudyID = str(answer.get("RequestedProcedureID") or "")
        ds.StudyDescription = str(
            answer.get("RequestedProcedureDescription") or step.get("ScheduledProcedureStepDescription") or ""
        )
        if answer.get("RequestedProcedureCodeSequence"):
            ds.ProcedureCodeSequence = answer.RequestedProcedureCodeSequence
        ds.RequestAttributesSequence = [self._request()]
        ds.PerformedProcedureStepStartDate = ds.StudyDate = ds.SeriesDate = self.at.strftime("%Y%m%d")
        ds.PerformedProcedureStepStartTime = ds.StudyTime = ds.SeriesTime = self.at.strftime("%H%M%S")
        ds.AcquisitionDate, ds.AcquisitionTime = ds.StudyDate, ds.StudyTime
        ds.ContentDate, ds.ContentTime = ds.StudyDate, ds.StudyTime
        ds.PerformedProcedureStepID = str(step.get("ScheduledProcedureStepID") or "")
        ds.PerformingPhysicianName = step.get("ScheduledPerformingPhysicianName") or ""
        ds.SOPClassUID = sop_class
        ds.SeriesInstanceUID = self.uid()
        ds.SeriesNumber = number
        ds.SeriesDescription = description
        ds.Modality = modality or self.modality
        ds.BodyPartExamined = self.region
        ds.Manufacturer = "Orderly"
        ds.ManufacturerModelName = f"Phantom {ds.Modality}"
        ds.DeviceSerialNumber = "0"
        ds.SoftwareVersions = "1"
        ds.InstitutionName = "Rehearsal Hospital"
        ds.StationName = str(step.get("ScheduledStationName") or "")[:16]
        ds.OperatorsName = "Rehearsal^Technologist"
        ds.PatientPosition = "HFS"
        ds.BurnedInAnnotation = "NO"
        ds.InstanceNumber = 1
        return ds

    def _request(self) -> Dataset:
        item = Dataset()
        for keyword in ("RequestedProcedureID", "RequestedProcedureDescription"):
            if self.answer.get(keyword):
                item[keyword] = self.answer[keyword]
        for keyword in (
            "ScheduledProcedureStepID",
            "ScheduledProcedureStepDescription",
            "ScheduledProtocolCodeSequence",
        ):
            if self.step.get(keyword):
                item[keyword] = self.step[keyword]
        return item

    def image(self, series: Dataset, number: int, pixels: NDArray[Any]) -> Dataset:
        """One image of a series: a copy with its own UID, its pixels and a file meta group."""
        ds = Dataset()
        for elem in series:
            ds.add(copy(elem))  # a shared element would change in every image of the series
        ds.SOPInstanceUID = self.uid()
        ds.InstanceNumber = number
        ds.SamplesPerPixel = 1
        ds.Rows, ds.Columns = pixels.shape[-2:]
        ds.BitsAllocated = pixels.dtype.itemsize * 8
        ds.BitsStored = ds.get("BitsStored") or ds.BitsAllocated
        ds.HighBit = ds.BitsStored - 1
        ds.PixelRepresentation = 1 if pixels.dtype.kind == "i" else 0
        ds.PhotometricInterpretation = ds.get("PhotometricInterpretation") or "MONOCHROME2"
        raw = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"))).tobytes()
        ds.PixelData = raw + b"\0" * (len(raw) % 2)
        ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        return ds


_COPIED = (
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientSize",
    "PatientWeight",
    "MedicalAlerts",
    "Allergies",
    "AdmissionID",
    "StudyInstanceUID",
    "ReferencedStudySequence",
)
_TYPE_2 = (
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
)


def _volume(making: _Making, values: dict[str, int], noise: float) -> Iterator[tuple[float, Floats]]:
    """The slices of the region, feet first: z in millimetres and pixel values with grain."""
    anatomy = _ANATOMIES.get(making.region, head)
    region = making.region if making.region in _ANATOMIES else "HEAD"
    bodies, making.found = anatomy(making.anatomy_rng(), making.lesion)
    size, count = making.protocol.size, making.protocol.slices
    spacing = _FIELD_MM[region] / size
    line = ((np.arange(size) - (size - 1) / 2) * spacing).astype(np.float32)
    x, y = np.meshgrid(line, line)
    low, high = _EXTENT_MM[region]
    thickness = (high - low) / count
    for at in range(count):
        z = low + (at + 0.5) * thickness
        image = paint(bodies, values, x, y, z)
        if region == "CHEST":
            _ribs(image, bodies, values["bone"], x, y, z)
        yield z, _softened(image) + _grain(making.rng, image.shape, noise)


def _grain(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Floats:
    """Noise averaged over 2 x 2 neighbours, which gives the grain of a reconstruction."""
    raw = rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma * 2)
    return (
        (raw + np.roll(raw, 1, -1) + np.roll(raw, 1, -2) + np.roll(np.roll(raw, 1, -1), 1, -2)) / 4
    ).astype(np.float32)


def _softened(image: Floats) -> Floats:
    """Edges as a detector sees them: a 3 x 3 mean in both directions."""
    rows = (np.roll(image, 1, 0) + 2 * image + np.roll(image, -1, 0)) / 4
    return ((np.roll(rows, 1, 1) + 2 * rows + np.roll(rows, -1, 1)) / 4).astype(np.float32)


def _plane(making: _Making, ds: Dataset, z: float, thickness: float) -> None:
    """Image Plane and Frame of Reference (PS3.3 C.7.6.2, C.7.4.1) of a transverse slice."""
    region = making.region if making.region in _ANATOMIES else "HEAD"
    spacing = _FIELD_MM[region] / making.protocol.size
    corner = -(making.protocol.size - 1) / 2 * spacing
    ds.FrameOfReferenceUID = making.frame_of_reference_uid
    ds.PositionReferenceIndicator = ""
    ds.ImagePositionPatient = [f"{corner:.4f}", f"{corner:.4f}", f"{z:.4f}"]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [f"{spacing:.6f}", f"{spacing:.6f}"]
    ds.SliceThickness = f"{thickness:.4f}"
    ds.SpacingBetweenSlices = f"{thickness:.4f}"
    ds.SliceLocation = f"{z:.4f}"


def _thickness(making: _Making) -> float:
    low, high = _EXTENT_MM.get(making.region, _EXTENT_MM["HEAD"])
    return (high - low) / making.protocol.slices


_CT_WINDOW = {"HEAD": (40, 80), "CHEST": (-550, 1500), "ABDOMEN": (50, 360)}


def _ct(making: _Making) -> Iterator[Dataset]:
    """One transverse series in Hounsfield units (PS3.3 C.8.2.1)."""
    series = making.series(2, f"{making.region.title()} 5.0 axial", CTImageStorage)
    series.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    series.KVP, series.XRayTubeCurrent, series.ExposureTime = 120, 220, 500
    series.ConvolutionKernel, series.GantryDetectorTilt = "PHANTOM", 0
    series.DataCollectionDiameter, series.ReconstructionDiameter = 500, _FIELD_MM.get(making.region, 240.0)
    series.AcquisitionNumber = 1
    series.RescaleIntercept, series.RescaleSlope, series.RescaleType = 0, 1, "HU"
    series.WindowCenter, series.WindowWidth = _CT_WINDOW.get(making.region, (40, 80))
    for number, (z, values) in enumerate(_volume(making, HOUNSFIELD, 3.6), 1):
        pixels = np.clip(np.rint(values), -1024, 3071).astype(np.int16)
        ds = making.image(series, number, pixels)
        _plane(making, ds, z, _thickness(making))
        yield ds


def _mr(making: _Making) -> Iterator[Dataset]:
    """Two transverse series, T1 and T2 weighted (PS3.3 C.8.3.1)."""
    weightings = (("T1 SE", T1_SIGNAL, 550, 11, 1, 12.0), ("T2 TSE", T2_SIGNAL, 4600, 96, 15, 18.0))
    for order, (name, values, repetition, echo, train, noise) in enumerate(weightings, 1):
        series = making.series(order + 1, f"{name} axial", MRImageStorage)
        series.ImageType = ["ORIGINAL", "PRIMARY", "M", "SE"]
        series.ScanningSequence, series.SequenceVariant, series.ScanOptions = "SE", "SK", ""
        series.MRAcquisitionType, series.SequenceName = "2D", name
        series.RepetitionTime, series.EchoTime, series.EchoTrainLength = repetition, echo, train
        series.MagneticFieldStrength, series.FlipAngle, series.NumberOfAverages = "1.5", 90, 1
        series.ImagedNucleus, series.ImagingFrequency = "1H", "63.87"
        series.WindowCenter, series.WindowWidth = (450, 900) if order == 1 else (520, 1040)
        series.BitsStored = 12
        for number, (z, signal) in enumerate(_volume(making, values, noise), 1):
            # A receiving coil is more sensitive near its elements: a gentle slope over the field.
            shade = np.linspace(1.06, 0.94, signal.shape[0], dtype=np.float32)[:, None]
            ds = making.image(
                series, number, np.clip(np.rint(np.abs(signal) * shade), 0, 4095).astype(np.uint16)
            )
            _plane(making, ds, z, _thickness(making))
            yield ds


# --- Radiographs -----------------------------------------------------------------------------------------

_ATTENUATION = {"air": 0.0, "fat": 0.0185, "lung": 0.0052, "bone": 0.046, "marrow": 0.026, "gas": 0.001}
_SOFT = 0.0206  # 1/mm, every tissue that the table does not name


def project(bodies: list[Body], u: Floats, z: Floats, along: int) -> Floats:
    """The attenuation of parallel rays along x (0) or y (1): each body changes what lies around it.

    A body's contribution is its chord times the difference to its surroundings, taken as soft tissue inside
    the trunk, as lung for vessels and nodules.
    """
    total = np.zeros(u.shape, np.float32)
    across = 1 - along
    for at, body in enumerate(bodies):
        own = _ATTENUATION.get(body.tissue, _SOFT)
        around = 0.0 if at == 0 else _SOFT
        if (
            body.tissue in ("vessel", "nodule", "heart", "liver", "spleen")
            or body.tissue == "muscle"
            and at > 1
        ):
            around = _ATTENUATION["lung"]
        if body.tissue == "muscle" and at == 1:
            around = _ATTENUATION["fat"]
        inside = (
            1
            - ((u - body.center[across]) / body.radii[across]) ** 2
            - ((z - body.center[2]) / body.radii[2]) ** 2
        )
        total += (own - around) * 2 * body.radii[along] * np.sqrt(np.clip(inside, 0, None))
    return total


def _rib_shadows(u: Floats, z: Floats, half_width: float) -> Floats:
    """Rib pairs as curved bands, the front ones steeper, each with denser edges."""
    shadow = np.zeros(u.shape, np.float32)
    out = np.clip(np.abs(u) / half_width, 0, 1)
    for rib in range(10):
        top = 128 - rib * 25
        for slope, weight in ((-12 - 34 * out**2.2, 1.0), (-70 + 46 * (1 - out) ** 1.4 - 12, 0.55)):
            distance = np.abs(z - (top + slope)) / 6.0
            band = (distance < 1) & (out > 0.16) & (out < 0.985)
            shadow += np.where(band, weight * (0.16 + 0.14 * distance**4), 0).astype(np.float32)
    return shadow


def _chest_view(making: _Making, size: tuple[int, int], lateral: bool) -> Floats:
    bodies, making.found = chest(making.anatomy_rng(), making.lesion)
    rows, columns = size
    width_mm, height_mm = (320.0, 390.0) if lateral else (380.0, 390.0)
    u, z = np.meshgrid(
        np.linspace(-width_mm / 2, width_mm / 2, columns, dtype=np.float32),
        np.linspace(height_mm / 2 - 10, -height_mm / 2 - 10, rows, dtype=np.float32),
    )
    total = project(bodies, u, z, 0 if lateral else 1)
    if lateral:
        total += _rib_shadows(u * 1.2, z, 150.0) * 0.7
    else:
        total += _rib_shadows(u, z, 152.0)
        for side in (-1, 1):
            line = 150 + 0.10 * np.abs(u) - 12 * np.exp(-(((np.abs(u) - 70) / 40) ** 2))
            clavicle = (np.abs(z - line) < 6) & (side * u > 12) & (side * u < 140)
            total += np.where(clavicle, 0.22, 0).astype(np.float32)
    discs = (np.abs(u - (72 if lateral else 0)) < 20) & (np.mod(z + 400, 27) < 4)
    return total - np.where(discs, 0.14, 0).astype(np.float32)


def _knee_view(making: _Making, size: tuple[int, int], lateral: bool) -> Floats:
    """Femur and tibia with shafts, condyles and cortex; the lesion is a lucency below the plateau."""
    rows, columns = size
    u, z = np.meshgrid(
        np.linspace(-95, 95, columns, dtype=np.float32), np.linspace(120, -120, rows, dtype=np.float32)
    )
    soft = np.sqrt(np.clip(1 - (u / (58 + 0.08 * z)) ** 2, 0, None)) * 2 * 55 * _SOFT

    def bone(half: NDArray[Any]) -> Floats:
        inside = np.clip(half**2 - u**2, 0, None)
        inner = np.clip((half - 4.5) ** 2 - u**2, 0, None)
        return (2 * np.sqrt(inside) * 0.030 - 2 * np.sqrt(inner) * 0.016).astype(np.float32)

    femur = 15 + 24 / (1 + np.exp((z - 34) / 7))
    tibia = 13 + 24 / (1 + np.exp((-z - 24) / 7))
    gap = 3 + 2.5 * np.exp(-((u / 7) ** 2))
    total = soft + np.where(z > gap, bone(femur), 0) + np.where(z < -gap, bone(tibia), 0)
    fibula = np.clip(6.0**2 - (u + (24 if lateral else 38)) ** 2, 0, None)
    total += np.where(z < -22, np.sqrt(fibula) * 0.04, 0)
    if making.lesion:
        far = np.hypot((u + 17) / 9, (z + 20) / 11)
        total -= np.where(far < 1, 0.30 * np.sqrt(np.clip(1 - far**2, 0, None)), 0)
        total += np.where((far > 1) & (far < 1.18), 0.10, 0)
        making.found = Lesion("lateral tibial plateau", 22)
    grain = _grain(np.random.default_rng(7), u.shape, 0.02)
    return (total + np.where(np.abs(u) < 36, grain, 0)).astype(np.float32)


def _breast_view(making: _Making, size: tuple[int, int], _lateral: bool) -> Floats:
    rows, columns = size
    u, z = np.meshgrid(
        np.linspace(0, 180, columns, dtype=np.float32), np.linspace(120, -120, rows, dtype=np.float32)
    )
    inside = np.clip(1 - (u / 120) ** 2 - (z / 95) ** 2, 0, None)
    thickness = 48 * np.minimum(1, inside * 4) ** 0.5
    rng = making.anatomy_rng()
    gland = np.zeros(u.shape, np.float32)
    for _ in range(60):
        cu, cz = float(rng.uniform(30, 95)), float(rng.normal(0, 26))
        long, short = float(rng.uniform(6, 26)), float(rng.uniform(1.5, 6))
        angle = math.atan2(cz, 112 - cu) + float(rng.normal(0, 0.3))
        du, dz = u - cu, z - cz
        a, b = du * math.cos(angle) - dz * math.sin(angle), du * math.sin(angle) + dz * math.cos(angle)
        gland += np.exp(-((a / long) ** 2) - (b / short) ** 2)
    total = thickness * (0.045 + 0.012 * np.tanh(gland))
    if making.lesion:
        far = np.hypot(u - 62, z - 18) * (1 + 0.15 * np.sin(9 * np.arctan2(z - 18, u - 62)))
        total += np.where(far < 8, 0.35 * np.sqrt(np.clip(1 - (far / 8) ** 2, 0, None)), 0)
        for _ in range(12):
            total += np.where(np.hypot(u - rng.normal(62, 6), z - rng.normal(18, 6)) < 0.5, 0.5, 0)
        making.found = Lesion("upper outer quadrant", 16)
    return total.astype(np.float32)


_VIEWS = {"CHEST": _chest_view, "KNEE": _knee_view, "BREAST": _breast_view}
_VIEW_NAMES = {"CHEST": ("PA", "LL"), "KNEE": ("AP", "LL"), "BREAST": ("CC", "")}


def _radiographs(making: _Making) -> Iterator[Dataset]:
    """CR, DX or MG: one or two views of 12 bits, bone bright (PS3.3 A.2, A.26, A.27)."""
    region = making.region if making.region in _VIEWS else "CHEST"
    making.region = region
    scale = making.protocol.size / 256
    rows, columns = round(520 * scale), round(480 * scale)
    sop_class = {
        "CR": ComputedRadiographyImageStorage,
        "DX": DigitalXRayImageStorageForPresentation,
        "MG": DigitalMammographyXRayImageStorageForPresentation,
    }[making.modality]
    names = [name for name in _VIEW_NAMES[region] if name]
    series: Dataset | None = None
    for number, name in enumerate(names, 1):
        if series is None or making.modality != "CR":
            series = making.series(number, f"{region.title()} {name}", sop_class)
        attenuation = _VIEWS[region](making, (rows, columns), number == 2)
        top = float(np.percentile(attenuation, 99.5)) or 1.0
        noise = _grain(making.rng, attenuation.shape, 14.0)
        pixels = np.clip(3600 * (attenuation / top) ** 0.8 + 120 + noise, 0, 4095).astype(np.uint16)
        series.BitsStored = 12
        series.WindowCenter, series.WindowWidth = 2048, 3900
        series.ViewPosition = name
        _radiograph_modules(making, series, 380.0 / columns)
        yield making.image(series, number, pixels)


def _radiograph_modules(making: _Making, ds: Dataset, spacing: float) -> None:
    ds.ImageType = ["DERIVED" if making.modality != "CR" else "ORIGINAL", "PRIMARY"]
    ds.ImagerPixelSpacing = [f"{spacing:.5f}", f"{spacing:.5f}"]
    ds.PixelSpacing = ds.ImagerPixelSpacing
    ds.PatientOrientation = ["A", "R"] if making.modality == "MG" else ["L", "F"]
    ds.KVP, ds.ExposureInuAs, ds.DistanceSourceToDetector = 28 if making.modality == "MG" else 110, 2500, 1800
    ds.pop("PatientPosition", None)
    if making.modality == "CR":
        ds.PlateType, ds.CassetteSize = "PHANTOM", "35CMX43CM"
        return
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape, ds.LossyImageCompression = "IDENTITY", "00"
    ds.ImageLaterality = "R" if making.modality == "MG" else "U"
    ds.DetectorType, ds.DetectorConfiguration = "DIRECT", "AREA"
    ds.AcquisitionContextSequence = []
    region = {"CHEST": ("51185008", "Chest"), "KNEE": ("72696002", "Knee"), "BREAST": ("76752008", "Breast")}
    ds.AnatomicRegionSequence = [_code(*region[making.region])]
    if making.modality == "MG":
        ds.PositionerType, ds.OrganExposed, ds.BodyPartThickness = "MAMMOGRAPHIC", "BREAST", 48
        ds.BreastImplantPresent, ds.PartialView = "NO", "NO"
        view = _code("399162004", "cranio-caudal")
        view.ViewModifierCodeSequence = []
        ds.ViewCodeSequence = [view]
    else:
        ds.PositionerType = "NONE"


def _code(value: str, meaning: str, scheme: str = "SCT") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


# --- Ultrasound ------------------------------------------------------------------------------------------


def _us(making: _Making) -> Iterator[Dataset]:
    """A cine of a curved array over the liver and the right kidney, breathing (PS3.3 A.7, C.8.5)."""
    making.region = "ABDOMEN" if making.region not in ("BREAST",) else making.region
    rng, count = making.rng, making.protocol.frames
    rows, columns = round(making.protocol.size * 1.5), making.protocol.size * 2
    depth_mm, apex_mm, half = 150.0, 52.0, math.radians(34)
    pixel = (depth_mm + 8) / rows
    u, v = np.meshgrid(
        ((np.arange(columns) - columns / 2) * pixel).astype(np.float32),
        (np.arange(rows) * pixel).astype(np.float32),
    )
    radius, angle = np.hypot(u, v + apex_mm) - apex_mm, np.arctan2(u, v + apex_mm)
    fan = (radius > 2) & (radius < depth_mm) & (np.abs(angle) < half)
    speckle = _speckle(rng)
    lines, samples = speckle.shape
    line = np.clip(((angle + half) / (2 * half) * (lines - 1)), 0, lines - 1).astype(np.int32)
    size = float(rng.uniform(9, 14))
    place = (float(rng.uniform(-26, -12)), float(rng.uniform(52, 66)))
    frames = []
    for number in range(count):
        shift = 5.0 * math.sin(2 * math.pi * number / count)
        echo = _echogenicity(u, v - shift, place if making.lesion else None, size)
        deep = np.clip((radius - shift + 8) / (depth_mm + 24) * (samples - 1), 0, samples - 1).astype(
            np.int32
        )
        level = echo * speckle[line, deep] * np.exp(-np.clip(radius - 60, 0, None) / 260)
        shown = 62 * np.log10(1 + 40 * level) * fan + rng.integers(0, 4, u.shape) * fan
        frames.append(np.clip(shown, 0, 255).astype(np.uint8))
    if making.lesion:
        making.found = Lesion("right lobe of the liver", round(2 * size))
    series = making.series(1, "Upper abdomen", UltrasoundMultiFrameImageStorage)
    series.pop("PatientPosition", None)
    series.ImageType = ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"]
    series.NumberOfFrames, series.FrameTime, series.CineRate = count, "50", 20
    series.FrameIncrementPointer = 0x00181063
    series.StartTrim, series.StopTrim, series.LossyImageCompression = 1, count, "00"
    series.PatientOrientation = ""
    series.TransducerType = "CURVED LINEAR"
    series.SequenceOfUltrasoundRegions = [_us_region(rows, columns, pixel)]
    yield making.image(series, 1, np.stack(frames))


def _speckle(rng: np.random.Generator) -> Floats:
    """Fully developed speckle over (scan line, depth): the magnitude of smoothed complex noise."""
    parts = []
    for _ in range(2):
        noise = rng.standard_normal((192, 700), dtype=np.float32)
        for axis, width in ((0, 3), (1, 4)):
            total = noise.copy()
            for by in range(1, width):
                total += np.roll(noise, by, axis)
            noise = total / math.sqrt(width)
        parts.append(noise)
    return np.hypot(parts[0], parts[1]).astype(np.float32)


def _echogenicity(u: Floats, v: Floats, cyst: tuple[float, float] | None, size: float) -> Floats:
    """How strongly each place scatters: liver, vessels, kidney with a bright sinus, diaphragm, and a cyst."""

    def inside(cu: float, cv: float, ru: float, rv: float) -> NDArray[np.bool_]:
        return np.asarray(((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2 < 1)

    echo = np.full(u.shape, 0.42, np.float32)
    echo[v < 12] = 0.75
    echo[inside(42, 92, 40, 24)] = 0.26
    echo[inside(42, 92, 22, 9)] = 0.95
    for cu, cv, r in ((-30.0, 88.0, 6.0), (4.0, 64.0, 4.0), (-48.0, 60.0, 3.5), (-8.0, 100.0, 5.0)):
        echo[inside(cu, cv, r * 1.8, r)] = 0.02
        ring = inside(cu, cv, r * 1.8 + 1.6, r + 1.6) & ~inside(cu, cv, r * 1.8, r)
        echo[ring] = 0.8
    arc = np.abs(np.hypot(u + 10, v - 20) - 112)
    echo[arc < 1.8] = 2.2
    echo[np.hypot(u + 10, v - 20) > 114] *= 0.5
    if cyst:
        cu, cv = cyst
        behind = (np.abs(u - cu) < size * 0.8) & (v > cv)
        echo[behind] *= 1.7
        echo[inside(cu, cv, size, size)] = 0.012
    return echo


def _us_region(rows: int, columns: int, pixel_mm: float) -> Dataset:
    """The calibrated region (PS3.3 C.8.5.5): two-dimensional tissue, centimetres a pixel."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 0
    item.RegionLocationMinX0, item.RegionLocationMinY0 = 0, 0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = columns - 1, rows - 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = pixel_mm / 10
    return item


def _secondary_capture(making: _Making) -> Iterator[Dataset]:
    """What a modality without a phantom of its own sends: one captured slice, under its own name."""
    making.protocol = Protocol(slices=3, size=making.protocol.size)
    series = making.series(1, "Captured image", SecondaryCaptureImageStorage)
    series.ConversionType, series.ImageType = "SYN", ["DERIVED", "SECONDARY"]
    series.PatientOrientation = ""
    _, values = list(_volume(making, T1_SIGNAL, 10.0))[1]
    yield making.image(series, 1, np.clip(values / 4, 0, 255).astype(np.uint8))


_MAKERS: dict[str, Callable[[_Making], Iterator[Dataset]]] = {
    "CT": _ct,
    "MR": _mr,
    "CR": _radiographs,
    "DX": _radiographs,
    "MG": _radiographs,
    "US": _us,
}
