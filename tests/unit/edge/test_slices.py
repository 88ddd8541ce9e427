"""What concerns all sessions of a node at once is done a few at a time, in order, and for each exactly once."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from chatgrpc.core.clock import Now
from chatgrpc.core.effects import Admission
from chatgrpc.core.entries import Membership
from chatgrpc.core.visibility import Interval
from chatgrpc.edge.ordering import Progress
from chatgrpc.edge.slices import Backlog, Slice
from chatgrpc.edge.transport import StreamOpened
from chatgrpc.ports.lease_clock import now
from chatgrpc.v1 import session_pb2
from tests.unit.edge.crowd import CHAT, STEPS_PER_SLICE, STEPS_PER_TURN_MAX, Clock, Crowd

SESSIONS = 300


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    crowd = Crowd(SESSIONS)
    crowd.edge.start()
    yield crowd
    await crowd.edge.stop(1)


def everybody() -> tuple[str, ...]:
    return tuple(f"u{number}" for number in range(SESSIONS))


def test_a_backlog_goes_on_where_it_stopped() -> None:
    done: list[str] = []

    def work(name: str) -> Iterator[None]:
        for number in range(STEPS_PER_SLICE):
            done.append(f"{name}{number}")
            yield

    backlog, clock = Backlog(), Clock()
    backlog.add(work("a"), STEPS_PER_SLICE)
    backlog.add(work("b"), STEPS_PER_SLICE)
    assert backlog.steps == 2 * STEPS_PER_SLICE
    stretches = 0
    while backlog.go_on(Slice(clock)):
        stretches += 1
        assert len(done) <= stretches * STEPS_PER_SLICE
    assert stretches >= 1
    assert done == [f"{name}{number}" for name in "ab" for number in range(STEPS_PER_SLICE)]
    assert not backlog
    assert backlog.steps == 0


def test_a_pass_that_raises_is_over() -> None:
    def work() -> Iterator[None]:
        yield
        raise RuntimeError("injected")

    backlog = Backlog()
    backlog.add(work(), 7)
    with pytest.raises(RuntimeError, match="injected"):
        backlog.go_on(Slice(Clock()))
    assert not backlog
    assert backlog.steps == 0


async def test_g2_events_reach_thousands_a_few_at_a_time_and_in_order(crowd: Crowd) -> None:
    for _ in range(3):
        crowd.committed(*everybody())
    most = await crowd.until(lambda: all(crowd.seqs(number)[-1:] == [4] for number in range(SESSIONS)))
    assert most <= STEPS_PER_TURN_MAX
    assert all(crowd.seqs(number) == [2, 3, 4] for number in range(SESSIONS))


async def test_g4_who_comes_while_an_event_is_told_gets_it_once(crowd: Crowd) -> None:
    crowd.committed(*everybody(), "u2000", "u3000")
    await asyncio.sleep(0)
    crowd.open(2000)  # holds the event, which is still to be told to it
    crowd.owners.head_seq -= 1
    crowd.open(3000)  # does not
    crowd.owners.head_seq += 1
    await crowd.until(lambda: all(crowd.seqs(number) == [2] for number in (*range(SESSIONS), 3000)))
    assert crowd.seqs(2000) == []


async def test_g4_missed_events_of_thousands_are_read_a_few_at_a_time(crowd: Crowd) -> None:
    crowd.owners.head_seq = 2
    crowd.owners.progress.append(Progress([], [], {CHAT: 2, **{f"g.{number}": 9 for number in range(100)}}))
    crowd.edge.wake_up()
    most = await crowd.until(lambda: all(crowd.seqs(number) for number in range(SESSIONS)))
    assert most <= STEPS_PER_TURN_MAX
    assert all(crowd.seqs(number) == [2] for number in range(SESSIONS))


async def test_heads_are_told_after_the_events_that_came_before_them(crowd: Crowd) -> None:
    crowd.committed(*everybody())
    crowd.owners.progress.append(Progress([], [], {CHAT: 2}))
    await crowd.until(lambda: not crowd.owners.progress and all(crowd.seqs(number) for number in range(SESSIONS)))
    connections = [crowd.edge.connections.get(number) for number in range(SESSIONS)]
    assert not any(connection is None or connection.session.feed.is_behind for connection in connections)


def a_send(request_id: int) -> bytes:
    frame = session_pb2.ClientFrame(request_id=request_id)
    frame.send.chat_id = CHAT
    frame.send.content.text.text = "hi"
    frame.send.key.client_message_id = request_id.to_bytes(16, "big")
    return session_pb2.ConnectRequest(frames=[frame]).SerializeToString()


async def test_frames_of_thousands_are_taken_a_few_at_a_time(crowd: Crowd) -> None:
    crowd.wire.inbound.received += [(number, [a_send(2), a_send(3)]) for number in range(SESSIONS)]
    crowd.wire.came()
    most = await crowd.until(lambda: len(crowd.owners.submitted) == 2 * SESSIONS)
    assert most <= STEPS_PER_TURN_MAX
    assert not crowd.wire.held


async def test_what_a_hello_says_of_thousands_of_chats_is_taken_in_a_few_at_a_time(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_ids = [f"g.{number:022}" for number in range(3_000)]
    positions = [session_pb2.ChatPosition(chat_id=chat_id, seq=5) for chat_id in chat_ids]
    hello = session_pb2.Hello(device_id="phone", positions=positions)
    memberships = [Membership(chat_id, (Interval(1),), 5) for chat_id in chat_ids]

    class Admissions:
        async def admit(self, *_: object) -> Admission:
            return Admission("joins everything", crowd.now.wall_ms + 10**9, memberships, {}, [], "sync")

    noted: list[str] = []
    monkeypatch.setattr(crowd.edge, "_admissions", Admissions())
    monkeypatch.setattr(crowd.edge, "_note_mark", lambda connection, chat_id, held_seq, read_seq, now: noted.append(chat_id))
    frames = [session_pb2.ClientFrame(request_id=1, hello=hello)]
    crowd.wire.inbound.opened.append(StreamOpened(SESSIONS, "peer", "token"))
    crowd.wire.inbound.received.append((SESSIONS, [session_pb2.ConnectRequest(frames=frames).SerializeToString()]))
    crowd.wire.came()
    at_once = 0
    async with asyncio.timeout(30):
        while len(noted) < len(chat_ids):
            before = len(noted)
            await asyncio.sleep(0)
            at_once = max(at_once, len(noted) - before)
    assert at_once <= STEPS_PER_SLICE + 2
    assert noted == chat_ids


async def test_thousands_of_streams_that_break_are_forgotten_a_few_at_a_time(crowd: Crowd) -> None:
    crowd.wire.inbound.received += [(number, [a_send(2)]) for number in range(SESSIONS)]
    crowd.wire.inbound.closed += range(SESSIONS)
    crowd.wire.came()
    most = await crowd.until(lambda: not len(crowd.edge.connections))
    assert most <= STEPS_PER_TURN_MAX
    assert len(crowd.owners.submitted) == SESSIONS  # what came before the end counts


async def test_thousands_of_deadlines_pass_a_few_at_a_time(crowd: Crowd) -> None:
    crowd.now = Now(crowd.now.monotonic_ms + 40_000, crowd.now.wall_ms + 40_000)
    most = await crowd.until(lambda: all(crowd.wire.sent.get(number) for number in range(SESSIONS)))
    assert most <= STEPS_PER_TURN_MAX
    assert all(crowd.wire.sent[number][0].HasField("heartbeat") for number in range(SESSIONS))
    crowd.now = Now(crowd.now.monotonic_ms + 80_000, crowd.now.wall_ms + 80_000)
    most = await crowd.until(lambda: len(crowd.wire.closed) == SESSIONS)
    assert most <= STEPS_PER_TURN_MAX


async def test_thousands_of_readers_that_stopped_are_ended_a_few_at_a_time(crowd: Crowd) -> None:
    crowd.wire.takes_more = False
    crowd.committed(*everybody())
    await crowd.until(lambda: all(crowd.seqs(number) for number in range(SESSIONS)))
    crowd.now = Now(crowd.now.monotonic_ms + 30_000, crowd.now.wall_ms + 30_000)
    most = await crowd.until(lambda: len(crowd.wire.closed) == SESSIONS)
    assert most <= STEPS_PER_TURN_MAX


async def test_thousands_of_streams_are_drained_and_ended_a_few_at_a_time(crowd: Crowd) -> None:
    draining = asyncio.create_task(crowd.edge.drain(1))
    most = await crowd.until(draining.done)
    assert most <= STEPS_PER_TURN_MAX
    stopping = asyncio.create_task(crowd.edge.stop(1))
    most = await crowd.until(stopping.done)
    assert most <= STEPS_PER_TURN_MAX
    assert len(crowd.wire.closed) == SESSIONS
    assert all(crowd.wire.sent[number][-1].HasField("disconnect") for number in range(SESSIONS))


async def test_nothing_is_taken_in_while_very_much_is_still_to_be_told(crowd: Crowd) -> None:
    crowd.committed(*everybody(), events=200)
    await crowd.until(lambda: crowd.edge._news.steps >= 50_000)
    pumped = crowd.owners.pumped
    for request_id in (2, 3):
        crowd.wire.inbound.received.append((0, [a_send(request_id)]))
        crowd.wire.came()
        await crowd.until(lambda: not crowd.wire.inbound.received)
    assert crowd.edge._news.steps >= 50_000
    assert not crowd.owners.submitted
    assert crowd.wire.held == {0}  # it waits for its turn, and is not read before that
    await crowd.until(lambda: crowd.edge._news.steps < 50_000)
    assert crowd.owners.pumped == pumped
    await crowd.until(lambda: all(crowd.seqs(number)[-1:] == [201] for number in range(SESSIONS)))
    assert all(crowd.seqs(number) == list(range(2, 202)) for number in range(SESSIONS))
    assert [write.client_message_id[-1] for write in crowd.owners.submitted] == [2, 3]
    assert not crowd.wire.held


async def test_who_has_gone_is_shown_on_at_once_if_there_are_more(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    while crowd.edge._pass_time(now()):  # something else is left to do
        await asyncio.sleep(0)
    monkeypatch.setattr(crowd.edge.audience, "pass_time", lambda now_ms: True)
    assert crowd.edge._pass_time(now())
