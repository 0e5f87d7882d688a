"""A report version as a PDF page, for destinations that want the document beside or instead of text.

The same facts give the same bytes. The fonts draw Latin, Greek and Cyrillic; a site adds files for other scripts
with the setting `pdf_fonts`. A character that no font can draw refuses the document: nothing is left out unseen.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from fpdf import FPDF
from fpdf.errors import FPDFException
from fpdf.fonts import TTFFont

from common.clock import to_site
from common.names import PersonName, parse_pn

_FONT = "Fira Sans"
_MARGIN_MM = 20
_LINE_MM = 5.2
_TITLES = {"findings": "Findings", "impression": "Impression", "addendum": "Addendum"}
_STATUS = {
    "PRELIMINARY": "Preliminary report",
    "FINAL": "Report",
    "ADDENDED": "Report with addendum",
    "CORRECTED": "Corrected report",
    "RETRACTED": "Retracted report",
}


class CannotDraw(Exception):
    """The document cannot be made; the text says what to do and quotes nothing of it."""


def report_pdf(
    facts: Mapping[str, Any],
    sections: Sequence[tuple[str, Sequence[str]]],
    facility: str = "",
    fonts: Sequence[str] = (),
) -> bytes:
    """An A4 document of a report version: who, what, when, the sections, who signed.

    `facts` are those of integration/outbox.py, `sections` what results.sections made of them, `fonts` paths of
    TrueType files for other scripts. Raises CannotDraw.
    """
    try:
        page = _Page(facility, fonts)
        _head(page, facts)
        for name, lines in sections:
            page.put_title(_TITLES.get(name, name.capitalize()))
            for line in lines:
                page.put_text(line)
        _foot(page, facts["report"])
        return page.finished(datetime.fromisoformat(facts["report"]["signed_at"]))
    except (FPDFException, OSError) as error:
        raise CannotDraw(
            f"The PDF could not be made ({type(error).__name__}); look at `pdf_fonts`."
        ) from None


def _head(page: "_Page", facts: Mapping[str, Any]) -> None:
    patient, order, procedure = facts["patient"], facts["order"], facts["procedure"]
    page.put_heading(_STATUS.get(facts["report"]["status"], "Report"))
    person = parse_pn(patient["name"])
    whole = person.display()  # with the ideographic name, where a font draws it
    page.put_row(
        "Patient", whole if page.draws(whole) else PersonName(alphabetic=person.alphabetic).display()
    )
    page.put_row("Born, sex", "  ".join(p for p in (_day(patient["birth_date"]), patient["sex"]) if p))
    first = next(iter(patient["identifiers"]), None)
    if first:
        page.put_row("Patient ID", "  ".join(p for p in (first["value"], first["namespace"]) if p))
    page.put_row("Examination", procedure["meaning"] or procedure["description"] or procedure["code_value"])
    page.put_row("Performed", _moment(facts["started"]))
    page.put_row("Accession", order["accession"])
    page.put_row("Requested by", parse_pn(order["requested_by"]).display() if order["requested_by"] else "")


def _foot(page: "_Page", report: Mapping[str, Any]) -> None:
    page.put_gap()
    page.put_row("Signed by", parse_pn(report["signer_name"]).display())
    page.put_row("Signed at", _moment(report["signed_at"]))
    page.put_row("Version", str(report["number"]))


class _Page(FPDF):
    """An A4 document with our fonts, laid out from top to bottom."""

    def __init__(self, facility: str, fonts: Sequence[str]) -> None:
        super().__init__(format="A4")
        self._facility = facility
        folder = files("fontpkg_fira_sans") / "files"
        self.add_font(_FONT, "", str(folder / "FiraSans-Regular.ttf"))
        self.add_font(_FONT, "B", str(folder / "FiraSans-Bold.ttf"))
        for number, path in enumerate(fonts):
            self.add_font(f"other{number}", "", path)
        if fonts:
            self.set_fallback_fonts([f"other{number}" for number in range(len(fonts))], exact_match=False)
        self._drawn = {
            code for font in self.fonts.values() if isinstance(font, TTFFont) for code in font.cmap
        }
        self.set_text_shaping(True)
        self.set_margins(_MARGIN_MM, _MARGIN_MM, _MARGIN_MM)
        self.set_auto_page_break(True, _MARGIN_MM)
        self.set_creator("Orderly")
        self.add_page()

    def header(self) -> None:
        self._put_block(self._facility, 9)
        self.ln(2)

    def footer(self) -> None:
        self.set_y(-_MARGIN_MM + 5)
        self.set_font(_FONT, "", 8)
        self.cell(0, 4, f"Page {self.page_no()} of {{nb}}", align="R")

    def put_heading(self, text: str) -> None:
        self._put_block(text, 16, "B", 9)
        self.ln(2)

    def put_title(self, text: str) -> None:
        self.ln(4)
        self._put_block(text, 11, "B", 6)

    def put_text(self, text: str) -> None:
        self._put_block(text, 10.5)

    def put_row(self, name: str, value: str) -> None:
        """One row of the head; a row without a value is left out."""
        if not value:
            return
        self.set_font(_FONT, "B", 9.5)
        self.cell(32, _LINE_MM, name)
        self._put_block(value, 9.5)

    def put_gap(self) -> None:
        self.ln(6)

    def draws(self, text: str) -> bool:
        """Whether the fonts have every character."""
        return all(ord(c) in self._drawn for c in _plain_text(text))

    def finished(self, at: datetime) -> bytes:
        """The document; `at` is when it says it was made."""
        self.set_creation_date(at.astimezone(UTC))
        return bytes(self.output())

    def _put_block(self, text: str, size: float, style: str = "", height: float = _LINE_MM) -> None:
        self.set_font(_FONT, style, size)
        self.multi_cell(0, height, self._checked(text), new_x="LMARGIN", new_y="NEXT", align="L")

    def _checked(self, text: str) -> str:
        plain = _plain_text(text)
        lacking = {c for c in plain if ord(c) not in self._drawn}
        if lacking:
            raise CannotDraw(
                f"No font draws {len(lacking)} of its characters (the first is of the script "
                f"{unicodedata.name(min(lacking), 'unknown').split()[0]}); name a TrueType file in `pdf_fonts`, "
                "or send text."
            )
        return plain


def _plain_text(text: str) -> str:
    """Composed characters, spaces of any width as spaces, and nothing that draws nothing."""
    return "".join(_plain(c) for c in unicodedata.normalize("NFC", text.expandtabs(4)))


def _plain(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Zs":
        return " "
    return "" if kind in ("Cc", "Cf") else character


def _day(text: str) -> str:
    return "-".join(p for p in (text[:4], text[4:6], text[6:8]) if p) if text.isdigit() else text


def _moment(text: str) -> str:
    if not text or len(text) == 10:
        return text
    moment = datetime.fromisoformat(text)
    return f"{(to_site(moment) if moment.tzinfo else moment):%Y-%m-%d %H:%M}"
