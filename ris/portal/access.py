"""Who may see which study, judged with orders: plugged into the archive by ORDERLY_ACCESS_POLICY."""

from typing import Any

from django.db.models import Exists, OuterRef, QuerySet

from common.roles import Role, has_role
from pacs.access import READERS, Action, PlainArchive
from pacs.models import Study
from ris.models import Practitioner, StudyMatch
from ris.selectors import requests_of


class ByOrder(PlainArchive):
    """Staff as in a plain archive; a referrer reads the studies of the orders that name them, and changes none."""

    def may(self, user: Any, study: Study, action: Action) -> bool:
        """By role, else, for reading, by order."""
        if super().may(user, study, action):
            return True
        return action is Action.READ and self.scope(user).filter(pk=study.pk).exists()

    def scope(self, user: Any) -> QuerySet[Study]:
        """All studies for staff; those of their own orders for a referrer; none for others."""
        if has_role(user, *READERS) or not has_role(user, Role.REFERRER):
            return super().scope(user)
        live = StudyMatch.objects.filter(
            study=OuterRef("pk"),
            undone_at__isnull=True,
            procedure__request__in=requests_of(practitioner_of(user)).values("pk"),
        )
        return Study.objects.filter(Exists(live), hidden=False)


def practitioner_of(user: Any) -> Practitioner | None:
    """The practitioner that a user's account belongs to; a token's bearer is none."""
    if getattr(user, "pk", None) is None:
        return None
    return Practitioner.objects.filter(user_id=user.pk).first()
