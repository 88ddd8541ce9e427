"""Who is shown online, to whom, and for how long after they left."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chatgrpc.core.clock import Now
from chatgrpc.core.limits import Limits
from chatgrpc.core.presence import LINGER_MS, PresenceBook


def at(now_ms: int, wall_ahead_ms: int = 0) -> Now:
    return Now(now_ms + wall_ahead_ms, now_ms)


def test_a_user_is_online_with_their_first_session() -> None:
    book = PresenceBook(Limits())
    assert book.connected("alice")
    assert not book.connected("alice"), "a second device is no news"
    assert book.presence("alice", at(1_000_000)).online


def test_a_user_lingers_before_they_are_shown_offline() -> None:
    book = PresenceBook(Limits())
    book.connected("alice")
    book.disconnected("alice", at(1_000))
    assert list(book.take_offline(now_ms=1_000 + LINGER_MS - 1)) == []
    assert book.presence("alice", at(1_000_000)).online
    assert list(book.take_offline(now_ms=1_000 + LINGER_MS)) == ["alice"]
    presence = book.presence("alice", at(1_000_000))
    assert not presence.online
    assert presence.last_seen_ms == 1_000


def test_of_many_who_left_those_who_are_not_taken_stay_for_the_next_time() -> None:
    book = PresenceBook(Limits())
    for user_id in ("alice", "bob", "carol", "dave"):
        book.connected(user_id)
        book.disconnected(user_id, at(1_000))
    assert next(book.take_offline(now_ms=1_000_000)) == "alice"
    assert not book.presence("alice", at(1_000_000)).online
    assert book.presence("bob", at(1_000_000)).online, "nobody was told otherwise yet"
    assert not book.connected("carol"), "she is back, which is no news"
    assert list(book.take_offline(now_ms=1_000_000)) == ["bob", "dave"]


def test_a_step_of_the_wall_clock_keeps_nobody_online_and_does_not_move_when_they_left() -> None:
    book = PresenceBook(Limits())
    for user_id, ahead_ms in (("alice", 7_200_000), ("bob", -3_600_000), ("carol", 0)):
        book.connected(user_id)
        book.disconnected(user_id, at(5_000, ahead_ms))
    assert sorted(book.take_offline(5_000 + LINGER_MS)) == ["alice", "bob", "carol"]
    now = at(9_000)  # the wall clock is right again
    assert [book.presence(user_id, now).last_seen_ms for user_id in ("alice", "bob", "carol")] == [5_000] * 3


def test_a_device_that_changes_networks_does_not_flicker() -> None:
    book = PresenceBook(Limits())
    book.connected("alice")
    book.disconnected("alice", at(1_000))
    assert not book.connected("alice"), "they were shown online all the time"
    assert list(book.take_offline(now_ms=1_000_000)) == []
    assert book.presence("alice", at(1_000_000)).online
    assert book.presence("alice", at(1_000_000)).last_seen_ms == 0


def test_the_latest_to_leave_are_remembered() -> None:
    book = PresenceBook(Limits(last_seen_max=2))
    for number, user_id in enumerate(["alice", "bob", "alice", "carol"]):
        book.connected(user_id)
        book.disconnected(user_id, at(number + 1))
    assert len(list(book.take_offline(now_ms=1_000_000))) == 3
    assert [book.presence(user_id, at(1_000_000)).last_seen_ms for user_id in ("alice", "bob", "carol")] == [3, 0, 4]


def test_watching_replaces_what_was_watched() -> None:
    book = PresenceBook(Limits())
    book.watch("w1", ["alice", "bob", "alice"])
    book.watch("w2", ["alice"])
    assert set(book.watchers("alice")) == {"w1", "w2"}
    book.watch("w1", ["bob"])
    assert book.watchers("alice") == ("w2",)
    book.unwatch("w2")
    assert book.watchers("alice") == ()
    assert book.watchers("bob") == ("w1",)
    book.unwatch("w2")
    book.watch_also("w1", ["carol", "bob"])
    assert book.watched("w1") == {"bob", "carol"}
    book.unwatch("w1")
    assert book.watched("w1") == set()
    assert book.watchers("bob") == book.watchers("carol") == ()


class Coming(RuleBasedStateMachine):
    """Users come and go; what watchers were told last is what a fresh look shows."""

    def __init__(self) -> None:
        super().__init__()
        self.book = PresenceBook(Limits())
        self.sessions = {"alice": 0, "bob": 0}
        self.left_at_ms = {"alice": -LINGER_MS, "bob": -LINGER_MS}
        self.told = {"alice": False, "bob": False}
        self.now_ms = 1

    @rule(user_id=st.sampled_from(["alice", "bob"]))
    def connect(self, user_id: str) -> None:
        self.sessions[user_id] += 1
        if self.book.connected(user_id):
            assert not self.told[user_id], "shown online twice"
            self.told[user_id] = True

    @precondition(lambda self: any(self.sessions.values()))
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        user_id = data.draw(st.sampled_from([user_id for user_id, count in self.sessions.items() if count]))
        self.sessions[user_id] -= 1
        self.left_at_ms[user_id] = self.now_ms
        self.book.disconnected(user_id, at(self.now_ms))

    @rule(passed_ms=st.integers(1, LINGER_MS))
    def pass_time(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        for user_id in self.book.take_offline(self.now_ms):
            assert self.told[user_id], "shown offline twice"
            self.told[user_id] = False

    @invariant()
    def told_is_what_is(self) -> None:
        for user_id, count in self.sessions.items():
            online = count > 0 or self.now_ms < self.left_at_ms[user_id] + LINGER_MS
            assert self.book.presence(user_id, at(self.now_ms)).online == online
            assert self.told[user_id] == online


Coming.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestComing = Coming.TestCase
