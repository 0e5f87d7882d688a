"""What a rehearsal's hospital can do: its procedures, its scanners, and the words of its reports, all our own."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

SCHEME = "RH"
"""Coding scheme of the procedure codes."""


@dataclass(frozen=True, slots=True)
class Procedure:
    """A line of the catalogue. `findings` describes the healthy case, sentence by sentence."""

    code: str
    name: str
    modality: str
    minutes: int
    reasons: tuple[str, ...]
    findings: tuple[str, ...]
    healthy: str


@dataclass(frozen=True, slots=True)
class Station:
    """A scanner: its AE title, modality and room."""

    ae_title: str
    modality: str
    room: str

    @property
    def name(self) -> str:
        """How the schedule calls it."""
        return f"Rehearsal {self.ae_title}"


STATIONS = (
    Station("RH_CT1", "CT", "Rehearsal 1"),
    Station("RH_MR1", "MR", "Rehearsal 2"),
    Station("RH_DX1", "DX", "Rehearsal 3"),
    Station("RH_CR1", "CR", "Rehearsal 4"),
    Station("RH_US1", "US", "Rehearsal 5"),
)

PROCEDURES = (
    Procedure(
        "RH-CT-HEAD", "CT head without contrast", "CT", 15,
        ("Fall at home, headache since", "Sudden weakness of the left arm", "Confusion, new since yesterday"),
        (
            "The ventricles are of normal width and in the midline.",
            "Grey and white matter are well told apart.",
            "No fresh blood inside or outside the brain.",
            "The skull vault is whole.",
        ),
        "No acute change inside the skull.",
    ),
    Procedure(
        "RH-CT-CHEST", "CT chest with contrast", "CT", 20,
        ("Cough for three months", "Follow-up of a nodule", "Shortness of breath when climbing stairs"),
        (
            "Both lungs are evenly aerated, without consolidation.",
            "No enlarged lymph nodes in the mediastinum.",
            "Heart and great vessels are of normal size.",
            "No fluid in the pleural spaces.",
        ),
        "No sign of disease in lungs and mediastinum.",
    ),
    Procedure(
        "RH-MR-BRAIN", "MR brain", "MR", 30,
        ("First seizure", "Progressive loss of hearing on the right", "Memory complaints for half a year"),
        (
            "Normal signal of cortex and white matter.",
            "The cisterns and ventricles are free.",
            "No restricted diffusion.",
        ),
        "Normal MR of the brain.",
    ),
    Procedure(
        "RH-MR-KNEE", "MR knee right", "MR", 25,
        ("Twisted knee at football", "Locking of the joint"),
        (
            "Cruciate and collateral ligaments are continuous.",
            "Both menisci have sharp edges and low signal.",
            "A trace of fluid in the joint, within the normal.",
        ),
        "No tear of meniscus or ligament.",
    ),
    Procedure(
        "RH-DX-CHEST", "Chest radiograph, two views", "DX", 10,
        ("Fever and cough", "Before an operation", "Chest pain when breathing in"),
        (
            "Both lungs are expanded and clear.",
            "The outline of the heart is of normal size.",
            "The costophrenic angles are free.",
        ),
        "No infiltrate, no congestion.",
    ),
    Procedure(
        "RH-CR-KNEE", "Knee radiograph, two views", "CR", 10,
        ("Fall from a bicycle", "Pain on load"),
        (
            "The joint space is of normal width.",
            "No line of fracture.",
            "No loose body.",
        ),
        "No bony injury.",
    ),
    Procedure(
        "RH-US-ABDOMEN", "Ultrasound upper abdomen", "US", 20,
        ("Pain below the right ribs", "Raised liver enzymes"),
        (
            "The liver has an even echo and a smooth edge.",
            "The bile ducts are not widened.",
            "Right kidney of normal size, without stasis.",
        ),
        "Unremarkable upper abdomen.",
    ),
)  # fmt: skip

ADDENDA = (
    "The earlier images have meanwhile become available; the finding is unchanged against them.",
    "Discussed with the referring physician by telephone.",
    "A control in three months is recommended.",
)


def report_of(procedure: Procedure, lesion: tuple[str, int] | None, rng: Random) -> tuple[str, str]:
    """Findings and impression. `lesion` is its site and its diameter in millimetres, or None."""
    sentences = [procedure.findings[0], *rng.sample(procedure.findings[1:], k=len(procedure.findings) - 1)]
    if lesion is None:
        return "\n".join(sentences), procedure.healthy
    site, diameter = lesion
    sentences.insert(1, f"In the {site}: a focal change of {diameter} mm.")
    impression = f"Focal change ({site}, {diameter} mm). A follow-up or further work-up is advised."
    return "\n".join(sentences), impression
