"""M7 at a chat's owner: what was under way when an earlier send of its stream failed does not overtake that one."""

from itertools import count

import pytest

from chatgrpc.core.active_chat import Ticket
from chatgrpc.core.door import ReadIntervals
from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.limits import Limits, Rate
from chatgrpc.core.refusal import after_failed_send, store_silent
from chatgrpc.core.send_order import FailedSends
from chatgrpc.core.sequencer import Lookup
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2
from tests.unit.core.test_door import DIRECT, GROUP, NOW, Owner, group, long_chat, text

AFTER = chat_pb2.ERROR_CODE_AFTER_FAILED_SEND
FAILED = chat_pb2.ERROR_CODE_UNAVAILABLE


def of_stream(write: Write, stream_id: str = "stream") -> Write:
    write.stream_id = stream_id
    return write


def bob(number: int, seen_seq: int = 41, stream_id: str = "stream") -> Write:
    return of_stream(text(DIRECT, "bob", number, seen_seq), stream_id)


@pytest.fixture
def owner() -> Owner:
    """Of a chat of 41 messages, that is loaded."""
    owner = Owner(long_chat())
    owner.submit("warm it", text(DIRECT, "bob", 1_000, seen_seq=40))
    assert owner.seq("warm it") == 41
    return owner


def codes(owner: Owner, tickets: list[Ticket]) -> list[chat_pb2.ErrorCode.ValueType]:
    return [owner.code(ticket) for ticket in tickets]


def test_behind_a_look_up_that_fails(owner: Owner) -> None:
    owner.shard.submit(1, bob(1, seen_seq=20), NOW)
    (lookup,) = owner.requests()
    assert isinstance(lookup, Lookup)
    owner.shard.submit(2, bob(2), NOW)
    owner.shard.submit("other's", of_stream(text(DIRECT, "alice", 3, 41), "other"), NOW)
    owner.shard.submit("other stream", bob(4, stream_id="another"), NOW)
    owner.shard.look_up_failed(lookup, None, NOW)
    owner.submit(5, bob(5))
    assert codes(owner, [1, 2, 5]) == [FAILED, AFTER, AFTER]
    assert (owner.seq("other's"), owner.seq("other stream")) == (42, 43)
    for number in (1, 2, 5):
        owner.submit(f"{number} again", bob(number))
    assert [owner.seq(f"{number} again") for number in (1, 2, 5)] == [44, 45, 46]


def test_behind_one_that_was_too_much() -> None:
    owner = Owner(long_chat(), limits=Limits(writes_waiting_bytes_per_chat_max=5_000))
    owner.submit("warm it", text(DIRECT, "bob", 1_000, seen_seq=40))
    large = bob(2)
    large.content.text.text = "x" * 4_000
    for number, write in ((1, bob(1)), (2, large), (3, large_as(3)), (4, bob(4))):
        owner.shard.submit(number, write, NOW)
    owner.submit(5, bob(5))
    assert [owner.seq(number) for number in (1, 2)] == [42, 43]
    assert codes(owner, [3, 4, 5]) == [FAILED, AFTER, AFTER], "though there was room for 4"


@pytest.mark.parametrize("works", [True, False])
def test_one_that_found_no_room_does_not_hold_up_those_that_came_before_it(works: bool) -> None:
    """It fails at once, and they wait: for a look-up here. Whatever comes of that, they are first."""
    owner = Owner(long_chat(), limits=Limits(writes_waiting_bytes_per_chat_max=5_000))
    owner.submit("warm it", text(DIRECT, "bob", 1_000, seen_seq=40))
    owner.shard.submit(1, bob(1, seen_seq=20), NOW)
    (lookup,) = owner.requests()
    assert isinstance(lookup, Lookup)
    owner.shard.submit(2, bob(2), NOW)
    owner.shard.submit(3, large_as(3, "y" * 6_000), NOW)
    if works:
        owner.rows.answer(owner.shard, lookup, NOW)
        owner.answer()
        assert [owner.seq(number) for number in (1, 2)] == [42, 43]
        again = [3]
    else:
        owner.shard.look_up_failed(lookup, None, NOW)
        owner.answer()
        assert codes(owner, [1, 2]) == [FAILED, AFTER]
        again = [1, 2, 3]
    assert owner.code(3) == FAILED
    for number in again:
        owner.shard.submit(f"{number} again", large_as(3) if number == 3 else bob(number), NOW)
    owner.submit("the next", bob(4))
    assert owner.seq("the next") == 45
    assert [owner.seq(f"{number} again") for number in again] == [45 - len(again) + place for place in range(len(again))]


def large_as(number: int, said: str = "y" * 4_000) -> Write:
    write = bob(number)
    write.content.text.text = said
    return write


def test_behind_one_that_comes_too_often() -> None:
    owner = Owner(limits=Limits(direct_chats_rate=Rate(1, 60_000)))
    owner.submit("another's", of_stream(text(direct_chat_id("alice", "carol"), "alice", 1, 0, peer="carol")))
    owner.shard.submit(2, of_stream(text(DIRECT, "alice", 2, 0, peer="bob")), NOW)
    owner.submit(3, of_stream(text(DIRECT, "alice", 3, 0, peer="bob")))
    assert codes(owner, [2, 3]) == [chat_pb2.ERROR_CODE_RATE_LIMITED, AFTER]


def test_at_the_door_behind_a_read_that_fails() -> None:
    before = Owner()
    before.submit("create", group("alice", "bob"))
    owner = Owner(before.rows)
    read = ReadIntervals("bob", GROUP)
    owner.shard.submit(1, of_stream(text(GROUP, "bob", 1, 1)), NOW)
    assert owner.requests() == [read]
    owner.shard.submit(2, of_stream(text(GROUP, "bob", 2, 1)), NOW)
    owner.shard.intervals_failed(read)
    owner.submit(3, of_stream(text(GROUP, "bob", 3, 1)))
    assert codes(owner, [1, 2, 3]) == [FAILED, FAILED, AFTER]
    for number in (1, 2, 3):
        owner.submit(f"{number} again", of_stream(text(GROUP, "bob", number, 1)))
    assert [owner.seq(f"{number} again") for number in (1, 2, 3)] == [2, 3, 4]


def test_not_behind_one_that_is_refused_for_good(owner: Owner) -> None:
    owner.shard.submit("stranger's", of_stream(text(GROUP, "bob", 1, 0)), NOW)
    owner.submit(2, bob(2))
    assert owner.code("stranger's") == chat_pb2.ERROR_CODE_NOT_A_MEMBER
    assert owner.seq(2) == 42


def test_calls_of_their_own_hold_up_none(owner: Owner) -> None:
    owner.shard.submit(1, bob(1, seen_seq=20, stream_id=""), NOW)
    (lookup,) = owner.requests()
    assert isinstance(lookup, Lookup)
    owner.shard.look_up_failed(lookup, None, NOW)
    owner.submit(2, bob(2, stream_id=""))
    assert owner.code(1) == FAILED
    assert owner.seq(2) == 42


def test_how_many_are_remembered_is_bounded() -> None:
    failed = FailedSends()
    arrivals = count(1)

    def arrived(number: int, stream: int) -> Write:
        write = bob(number, stream_id=f"{stream}")
        write.arrival = next(arrivals)
        return write

    for stream in range(10_001):
        failed.refused(arrived(1, stream), store_silent())
    assert len(failed) == 10_000
    assert not failed.hold_up(arrived(2, 0)), "the longest unchanged was forgotten"
    second = arrived(2, 1)
    assert failed.hold_up(second)
    failed.refused(second, after_failed_send())
    assert not failed.hold_up(arrived(1, 1)), "the first one failed, not the one that it held up"
    assert not failed.hold_up(arrived(2, 1)), "that has come again"


def test_one_that_an_earlier_send_replaced_a_moment_ago_is_not_forgotten_as_the_longest_unchanged() -> None:
    failed = FailedSends()
    earlier, later, other = bob(1, stream_id="first"), bob(2, stream_id="first"), bob(1, stream_id="second")
    earlier.arrival, later.arrival, other.arrival = 1, 2, 3
    for write in (later, other, earlier):
        failed.refused(write, store_silent())
    for stream in range(9_999):
        write = bob(1, stream_id=f"{stream}")
        write.arrival = 10 + stream
        failed.refused(write, store_silent())
    assert failed.hold_up(later)
