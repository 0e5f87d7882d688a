"""Numbers of our own making, for what a sender leaves out; all fit DICOM's SH (16 characters)."""

from django.db import connection


def _next() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nextval('ris_number')")
        return int(cursor.fetchone()[0])


def accession_number() -> str:
    """A new accession number, such as `OA00000042`."""
    return f"OA{_next():08d}"


def requested_procedure_id() -> str:
    """A new Requested Procedure ID, such as `RP00000043`."""
    return f"RP{_next():08d}"


def scheduled_procedure_step_id() -> str:
    """A new Scheduled Procedure Step ID, such as `SP00000044`."""
    return f"SP{_next():08d}"
