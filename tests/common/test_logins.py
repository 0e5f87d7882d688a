"""Guessing passwords has to wait: longer each time, never for ever, and never for somebody else."""

import threading
from datetime import timedelta

import pytest
from django.db import connections
from django.test import Client, RequestFactory

from common import logins
from common.clock import now
from common.logins import FREE, MOST_SECONDS, TooEarly
from common.models import AuditEvent, LoginTries
from tests import factories as make

HERE, THERE = "10.1.0.7", "10.1.0.8"


class Clock:
    """A clock that a test moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = now()
        monkeypatch.setattr(logins, "now", lambda: self.now)

    def on(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.django_db
def test_the_wait_begins_after_some_failures_grows_and_is_bounded(clock: Clock):
    waits = []
    for _ in range(FREE + 12):
        failures, wait = logins.count("eva", HERE)
        waits.append(wait)
        clock.on(wait)
    assert waits[: FREE - 1] == [0] * (FREE - 1)
    assert waits[FREE - 1 : FREE + 3] == [4, 8, 16, 32]
    assert waits[-1] == MOST_SECONDS and failures == FREE + 12


@pytest.mark.django_db
def test_a_try_that_comes_too_early_is_told_how_long_to_wait_and_counts_for_nothing(clock: Clock):
    for _ in range(FREE):
        logins.count("eva", HERE)
    for _ in range(3):
        with pytest.raises(TooEarly) as early:
            logins.count("Eva ", HERE)  # the same name, however it is written
        assert early.value.seconds == 4
    clock.on(3)
    with pytest.raises(TooEarly):
        logins.count("eva", HERE)
    clock.on(2)
    assert logins.count("eva", HERE) == (FREE + 1, 8)


@pytest.mark.django_db
def test_nobody_else_waits_and_time_or_the_right_password_ends_it(clock: Clock):
    for _ in range(FREE):
        logins.count("eva", HERE)
    assert logins.count("eva", THERE) == (1, 0)
    assert logins.count("adam", HERE) == (1, 0)
    clock.on(logins.FORGOTTEN.total_seconds() + 1)
    assert logins.count("eva", HERE) == (1, 0)
    logins.forget("eva", HERE)
    assert LoginTries.objects.count() == 0  # also the others', which are long past
    assert logins.count("eva", HERE) == (1, 0)


@pytest.mark.django_db
def test_a_free_try_that_read_its_clock_earlier_and_comes_later_is_not_turned_away(clock: Clock):
    for number in range(1, FREE):
        assert logins.count("eva", HERE) == (number, 0)
        clock.on(-0.001)


@pytest.mark.django_db(transaction=True)
def test_many_tries_at_once_are_all_counted():
    passed, early = [], []
    begin = threading.Barrier(12)

    def guess() -> None:
        try:
            begin.wait(30)
            passed.append(logins.count("eva", HERE))
        except TooEarly:
            early.append(1)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=guess) for _ in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert (len(passed), len(early)) == (FREE, 12 - FREE)


@pytest.mark.django_db
def test_the_login_page_says_how_long_and_does_not_look_at_the_password(clock: Clock):
    eva = make.user("eva")
    client = Client(REMOTE_ADDR=HERE)

    def entered(password: str, who: Client = client) -> object:
        return who.post("/login/", {"username": "eva", "password": password})

    for _ in range(FREE - 1):
        assert entered("wrong").status_code == 200
    last = entered("wrong")
    assert last.status_code == 429 and last["Retry-After"] == "4"
    assert b"do not fit together" in last.content and b"before the next try" in last.content
    refused = entered(make.PASSWORD)  # right, but too early
    assert refused.status_code == 429 and b"not looked at" in refused.content
    assert entered(make.PASSWORD, Client(REMOTE_ADDR=THERE)).status_code == 302
    clock.on(5)
    assert entered(make.PASSWORD).status_code == 302
    assert not LoginTries.objects.exists()
    told = AuditEvent.objects.filter(what="account").order_by("id")
    assert [e.action for e in told] == ["login failed"] * FREE + ["login"] * 2
    assert told[FREE - 1].detail == {"failures": FREE, "wait_seconds": 4}
    assert told[0].object_ids == [eva.pk] or told[0].object_ids == [str(eva.pk)]
    assert told[0].address == HERE and told[0].actor == "anonymous"


@pytest.mark.django_db
def test_a_name_nobody_has_waits_just_the_same_and_is_written_nowhere(clock: Clock):
    client = Client(REMOTE_ADDR=HERE)
    for _ in range(FREE):
        answer = client.post("/login/", {"username": "hunter2hunter2", "password": "x"})
    assert answer.status_code == 429
    said = str(list(AuditEvent.objects.values())) + str(list(LoginTries.objects.values()))
    assert "hunter2" not in said


def test_only_a_named_proxy_may_say_for_whom_it_asks(monkeypatch: pytest.MonkeyPatch):
    def asked(peer: str, forwarded: str) -> str:
        request = RequestFactory().get("/", REMOTE_ADDR=peer, HTTP_X_FORWARDED_FOR=forwarded)
        return logins.address_of(request)

    assert asked("10.9.0.1", "10.1.0.7") == "10.9.0.1"
    monkeypatch.setenv("ORDERLY_PROXIES", "10.9.0.1, 10.9.0.2")
    assert asked("10.9.0.1", "10.1.0.7") == "10.1.0.7"
    assert asked("10.9.0.1", "6.6.6.6, 10.1.0.7, 10.9.0.2") == "10.1.0.7"
    assert asked("10.9.0.1", "nonsense") == "10.9.0.1"
    assert asked("10.1.0.9", "6.6.6.6") == "10.1.0.9"
