"""Names, identifiers, roles, audit and alerts."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import AnonymousUser, Group, User
from django.db import DatabaseError, transaction
from hypothesis import given
from hypothesis import strategies as st

from common import alerts, audit
from common.clock import now
from common.models import Alert, ApiToken, AuditEvent
from common.names import clean_component, parse_pn, same_person_name, search_form
from common.roles import bearer, create_token, has_role, roles_of
from common.uids import is_loose_uid, is_uid, new_uid, uuid7


@given(st.lists(st.text(max_size=20).map(clean_component), min_size=5, max_size=5))
def test_a_name_written_and_read_is_the_same(parts):
    text = "^".join(parts).rstrip("^")
    assert str(parse_pn(text)) == text


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("SOMMER^CLARA", "Sommer^Clara^Maria", True),
        ("Müller^Jörg", "MULLER^JORG", True),
        ("Sommer^C", "Sommer^Clara", True),
        ("Sommer^Karl", "Sommer^Clara", False),
        ("Sommer", "Sommer^Clara", True),
        ("Winter^Clara", "Sommer^Clara", False),
        ("", "Sommer^Clara", None),
        ("Yamada^Tarou=山田^太郎", "=山田^太郎", True),
        ("=山田^太郎", "Yamada^Tarou", None),
        ("Sommer-Berg^Clara", "Sommer Berg^Clara", True),
    ],
)
def test_names_are_compared_as_a_clerk_would(one, other, same):
    assert same_person_name(one, other) is same


def test_search_form_folds_case_accents_and_separators():
    assert search_form("Ñandú^José=X") == "nandu jose x"


def test_uids_are_checked_before_they_are_believed():
    assert is_uid(new_uid()) and is_uid("1.2.840.10008.1.1")
    assert not any(is_uid(u) for u in ("", "1..2", "1.02", "1.2/3", "1.2\n", "1" * 65, "../etc", "1.2."))
    assert is_loose_uid("1.02") and not is_loose_uid("1.2\x00")
    ids = [uuid7() for _ in range(100)]
    assert {i.version for i in ids} == {7} and len(set(ids)) == 100


@pytest.mark.django_db
def test_roles_are_groups_and_nobody_has_one_by_default():
    user = User.objects.create_user("someone")
    assert roles_of(AnonymousUser()) == roles_of(user) == frozenset()
    user.groups.add(
        Group.objects.get_or_create(name="clerk")[0], Group.objects.get_or_create(name="choir")[0]
    )
    user = User.objects.get()
    assert (
        roles_of(user) == {"clerk"} and has_role(user, "clerk", "analyst") and not has_role(user, "analyst")
    )
    user.is_active = False
    assert roles_of(user) == frozenset()


@pytest.mark.django_db
def test_a_token_opens_until_it_expires_or_is_revoked():
    text = create_token("viewer", "radiologist")
    token = ApiToken.objects.get()
    assert text not in str(vars(token)) and bearer(text) == token
    assert bearer(text + "x") is None
    ApiToken.objects.update(expires_at=now() - timedelta(seconds=1))
    assert bearer(text) is None
    ApiToken.objects.update(expires_at=now() + timedelta(days=1), revoked_at=now())
    assert bearer(text) is None
    with pytest.raises(ValueError, match="There is no role"):
        create_token("other", "king")


@pytest.mark.django_db
def test_audit_rows_can_neither_be_changed_nor_removed():
    audit.record("user:1", "read", "patient", patients=[uuid7()])
    with pytest.raises(DatabaseError), transaction.atomic():
        AuditEvent.objects.update(actor="nobody")
    with pytest.raises(DatabaseError), transaction.atomic():
        AuditEvent.objects.all().delete()
    assert AuditEvent.objects.get().actor == "user:1"


@pytest.mark.django_db
def test_an_alert_is_opened_once_and_recovers_once():
    assert alerts.raise_alert("outbox:his", "HIS does not answer")
    assert not alerts.raise_alert("outbox:his", "HIS does not answer")
    assert [a.key for a in alerts.open_alerts()] == ["outbox:his"]
    assert alerts.recover("outbox:his") and not alerts.recover("outbox:his")
    assert alerts.raise_alert("outbox:his", "again")
    assert Alert.objects.count() == 2
