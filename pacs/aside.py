"""What a person does with an object that was set aside: try it again, or leave it; its file is kept either way."""

from common.clock import now
from pacs import indexing
from pacs.models import SetAside


def try_again(row: SetAside) -> str:
    """Index the object as if it had just come; empty when it went well, else why not. Nothing is lost by trying."""
    try:
        return indexing.try_again(row)
    except (OSError, ValueError) as trouble:
        return f"its file cannot be read ({type(trouble).__name__})"


def leave(row: SetAside) -> None:
    """It needs nobody any more; row and file stay."""
    SetAside.objects.filter(pk=row.pk, state=SetAside.State.OPEN).update(
        state=SetAside.State.SOLVED, solved_at=now()
    )
