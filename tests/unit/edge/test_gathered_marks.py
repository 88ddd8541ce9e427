"""Of marks that rise often the last is told, now and then; and each that rose is told."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from chatgrpc.core.receipts import Mark, Raised
from chatgrpc.edge.gathered_marks import GatheredMarks
from chatgrpc.edge.slices import Slice
from chatgrpc.v1 import session_pb2
from tests.unit.edge.crowd import CHAT, STEPS_PER_SLICE, Clock, Crowd


def raised(user_id: str, delivered_seq: int, from_seq: int) -> Raised:
    return Raised(Mark(CHAT, user_id, delivered_seq, 0, 1), from_seq, 0)


def test_a_mark_that_rose_again_is_told_once_from_where_it_rose_first() -> None:
    told: list[Raised] = []
    gathered = GatheredMarks(told.append)
    for one in (raised("alice", 3, 1), raised("bob", 2, 0), raised("alice", 7, 3)):
        gathered.add(one)
    assert not gathered.tell_some(Slice(Clock()))
    assert told == [raised("alice", 7, 1), raised("bob", 2, 0)]
    assert not gathered.tell_some(Slice(Clock()))
    assert len(told) == 2


def test_many_are_told_a_few_at_a_time() -> None:
    told: list[Raised] = []
    gathered, clock = GatheredMarks(told.append), Clock()
    for number in range(3 * STEPS_PER_SLICE):
        gathered.add(raised(f"u{number}", 1, 0))
    assert gathered.tell_some(Slice(clock))
    assert len(told) <= STEPS_PER_SLICE
    while gathered.tell_some(Slice(clock)):
        pass
    assert [one.mark.user_id for one in told] == [f"u{number}" for number in range(3 * STEPS_PER_SLICE)]


def test_those_that_are_about_to_count_as_stored_are_told_first() -> None:
    told: list[Raised] = []
    gathered = GatheredMarks(told.append)
    gathered.add(raised("alice", 3, 1))
    gathered.add(raised("bob", 2, 0))
    gathered.tell_of([Mark(CHAT, "bob", 2, 0, 1), Mark(CHAT, "carol", 2, 0, 1)])
    assert told == [raised("bob", 2, 0)]


# In the loop.


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    crowd = Crowd(2)
    crowd.edge.start()
    yield crowd
    await crowd.edge.stop(1)


@pytest.fixture
def told(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    told: list[tuple[str, int, int]] = []

    def tell(raised: Raised) -> None:
        told.append((raised.mark.user_id, raised.mark.delivered_seq, raised.mark.read_seq))

    monkeypatch.setattr(crowd.edge.audience, "mark_raised", tell, raising=False)
    return told


async def push(crowd: Crowd, events: int) -> None:
    """So many events are committed and pushed to both."""
    crowd.committed("u0", "u1", events=events)
    await crowd.until(lambda: all(len(crowd.seqs(number)) == events for number in (0, 1)))


def say(crowd: Crowd, number: int, *frames: session_pb2.ClientFrame) -> None:
    """The device sends each as a batch of its own."""
    batches = [session_pb2.ConnectRequest(frames=[frame]).SerializeToString() for frame in frames]
    crowd.wire.inbound.received.append((number, batches))
    crowd.wire.came()


def ack(seq: int) -> session_pb2.ClientFrame:
    return session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id=CHAT, seq=seq))


def read(seq: int) -> session_pb2.ClientFrame:
    return session_pb2.ClientFrame(mark_read=session_pb2.MarkRead(chat_id=CHAT, seq=seq))


async def test_of_what_a_device_says_often_the_last_word_is_told(crowd: Crowd, told: list[tuple[str, int, int]]) -> None:
    await push(crowd, events=5)
    say(crowd, 0, ack(2), ack(3), read(3), ack(6), read(5))
    say(crowd, 1, ack(4))
    await crowd.until(lambda: len(told) >= 2)
    assert told == [("u0", 6, 5), ("u1", 4, 0)]
    say(crowd, 1, ack(5))
    await crowd.until(lambda: len(told) == 3)
    assert told[2:] == [("u1", 5, 0)]


async def test_what_a_device_said_before_its_stream_broke_is_told(crowd: Crowd, told: list[tuple[str, int, int]]) -> None:
    await push(crowd, events=5)
    crowd.wire.inbound.closed.append(0)
    say(crowd, 0, ack(6))
    await crowd.until(lambda: bool(told))
    assert told == [("u0", 6, 0)]


async def test_what_devices_said_before_the_server_stopped_is_told(crowd: Crowd, told: list[tuple[str, int, int]]) -> None:
    await push(crowd, events=5)
    say(crowd, 0, ack(6))
    await crowd.until(lambda: bool(cast("Any", crowd.edge)._watermarks._acknowledged))
    await crowd.edge.stop(1)
    assert told == [("u0", 6, 0)]


async def test_a_mistake_in_telling_one_costs_no_other(
    crowd: Crowd, told: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = crowd.edge.audience.mark_raised

    def fail_for_u0(raised: Raised) -> None:
        if raised.mark.user_id == "u0":
            raise RuntimeError("injected")
        tell(raised)

    monkeypatch.setattr(crowd.edge.audience, "mark_raised", fail_for_u0)
    await push(crowd, events=5)
    say(crowd, 0, ack(6))
    say(crowd, 1, ack(6))
    await crowd.until(lambda: bool(told))
    assert told == [("u1", 6, 0)]
