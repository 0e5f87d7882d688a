"""multipart/related read from a stream in pieces of any size."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacs.dicomweb.multipart import BadMultipart, read, write


def parts(raw: bytes, mark: str = "b", size: int = 7) -> list[tuple[dict[str, str], bytes]]:
    return [(part.headers, b"".join(part.content)) for part in read(BytesIO(raw).read, mark, size)]


@given(
    contents=st.lists(st.binary(max_size=200), max_size=5),
    size=st.integers(1, 300),
)
def test_what_was_written_is_read_again(contents: list[bytes], size: int) -> None:
    mark = "orderly-0123456789abcdef"
    raw = b"".join(write((("application/dicom", [content]) for content in contents), mark))
    assert [content for _, content in parts(raw, mark, size)] == contents


def test_a_preamble_an_epilogue_and_spaces_behind_the_boundary_are_passed_over() -> None:
    raw = b"hello\r\n--b  \r\nContent-Type: x/y\r\nOther: z\r\n\r\nbody\r\n--b--\r\nbye"
    assert parts(raw) == [({"content-type": "x/y", "other": "z"}, b"body")]


def test_content_that_looks_like_a_boundary_stays() -> None:
    body = b"--b\r\n-b\r\n--\r\n--a"
    assert parts(b"--b\r\n\r\n" + body + b"\r\n--b--") == [({}, body)]


def test_a_part_left_unread_is_skipped() -> None:
    raw = b"--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--"
    assert len(list(read(BytesIO(raw).read, "b", 5))) == 2


@pytest.mark.parametrize(
    "raw",
    [b"", b"--b", b"--b\r\n", b"--b\r\n\r\ncut off", b"--b\r\nA: b", b"--b\r\n" + b"x" * 40_000],
    ids=["empty", "boundary", "line", "content", "headers", "long headers"],
)
def test_a_body_that_ends_too_early_is_refused(raw: bytes) -> None:
    with pytest.raises(BadMultipart):
        parts(raw, size=4096)
