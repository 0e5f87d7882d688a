"""Accept headers as clients really write them, and what is chosen for them."""

import pytest

from pacs.dicomweb.negotiation import Choice, choose_frames, choose_object, media_ranges, takes_json

EXPLICIT, RLE, JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"


@pytest.mark.parametrize(
    "header",
    [
        'multipart/related; type="application/octet-stream"; transfer-syntax=*',
        "multipart/related; type=application/octet-stream; transfer-syntax=*",
        'multipart/related;type="application/octet-stream";transfer-syntax="*"',
        "Multipart/Related ; Type = application/octet-stream ; Transfer-Syntax = *",
    ],
)
def test_quoted_or_not_the_type_is_read(header: str) -> None:
    [entry] = media_ranges(header)
    assert (entry.type, entry.inner, entry.transfer_syntax) == (
        "multipart/related",
        "application/octet-stream",
        "*",
    )


def test_ranges_are_ordered_by_quality_and_zero_means_no() -> None:
    header = "text/html;q=0, image/png;q=0.5, image/jpeg"
    assert [entry.type for entry in media_ranges(header)] == ["image/jpeg", "image/png"]


@pytest.mark.parametrize("header", ["", ";;;", "nonsense", '"', "a/b;q=x;=;c"])
def test_what_cannot_be_read_is_passed_over(header: str) -> None:
    assert media_ranges(header)


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("application/dicom+json", True),
        ("application/json", True),
        ("*/*", True),
        ("text/html,application/xhtml+xml,*/*;q=0.8", True),
        ('multipart/related; type="application/dicom+xml"', False),
    ],
)
def test_json_is_taken_or_not(header: str, taken: bool) -> None:
    assert takes_json(media_ranges(header)) is taken


@pytest.mark.parametrize(
    ("header", "syntax", "choice"),
    [
        ("", RLE, Choice(False)),
        ('multipart/related; type="application/dicom"', RLE, Choice(False)),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', RLE, Choice(False)),
        (f'multipart/related; type="application/dicom"; transfer-syntax={EXPLICIT}', RLE, Choice(True)),
        (f'multipart/related; type="application/dicom"; transfer-syntax={JPEG}', RLE, None),
        ("application/dicom", RLE, Choice(False, multipart=False)),
        ("text/html", RLE, None),
        ('multipart/related; type="image/jpeg"', RLE, None),
    ],
)
def test_objects_are_chosen(header: str, syntax: str, choice: Choice | None) -> None:
    assert choose_object(media_ranges(header), syntax) == choice


@pytest.mark.parametrize(
    ("header", "syntax", "choice"),
    [
        ("", RLE, Choice(False)),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", RLE, Choice(False)),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", EXPLICIT, Choice(True)),
        ('multipart/related; type="application/octet-stream"', RLE, Choice(True)),
        ('multipart/related; type="application/octet-stream"', EXPLICIT, Choice(True)),
        ('multipart/related; type="image/dicom-rle"', RLE, Choice(False)),
        ('multipart/related; type="image/jpeg"', RLE, None),
        ('multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50', JPEG, Choice(False)),
        ("image/jpeg", JPEG, Choice(False, multipart=False)),
        ("application/octet-stream", EXPLICIT, Choice(True, multipart=False)),
        ("text/html", EXPLICIT, None),
    ],
)
def test_frames_are_chosen(header: str, syntax: str, choice: Choice | None) -> None:
    assert choose_frames(media_ranges(header), syntax) == choice
