"""The longest tick of a node with very many sessions, when something happens that concerns most of them at once.

`python -m benchmarks.ticks` opens sessions on a real tick loop, whose transport takes everything at once, and prints for each
event how many ticks it took and the longest of them, by the clock and by the processor's time, which on a busy machine says
what the tick itself did. While a tick runs nothing else does: no other stream is read, no call answered. It exits with 1 if a
tick took more than 50 ms of the processor's time.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterable
from time import perf_counter, thread_time
from typing import Any, cast

from chatgrpc.core.clock import Now
from chatgrpc.core.effects import Admission
from chatgrpc.core.entries import Membership, StoredEvent
from chatgrpc.core.events import event_chunk
from chatgrpc.core.limits import Limits
from chatgrpc.core.sequencer import Delivery
from chatgrpc.core.session import Session, Timings
from chatgrpc.core.visibility import Interval
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.connection import Connection, Connections
from chatgrpc.edge.loop import Edge
from chatgrpc.edge.ordering import Progress
from chatgrpc.edge.slices import Slice
from chatgrpc.edge.transport import Inbound, StreamId, StreamStatus
from chatgrpc.metrics import Metrics
from chatgrpc.ports.lease_clock import lease_clock_ms, now
from chatgrpc.process.run import tune_interpreter
from chatgrpc.v1 import chat_pb2, session_pb2

TOKEN_MS = 10**9
TICK_MAX_S = 0.05
EVENT = chat_pb2.ChatEvent(sender_user_id="somebody", sent_at_ms=1, message_id=bytes(16))
EVENT.content.text.text = "See you at the station at half past seven, and bring the tickets!"


class Wire:
    """A transport whose peers take everything."""

    def __init__(self) -> None:
        self.messages = 0
        self._taken: list[StreamId] = []
        self._wakes_when_writable = False
        self._wake_up: Callable[[], None] = lambda: None

    def on_input(self, wake_up: Callable[[], None]) -> None:
        """See the contract."""
        self._wake_up = wake_up

    def wake_when_writable(self) -> None:
        """See the contract."""
        self._wakes_when_writable = True
        if self._taken:
            asyncio.get_running_loop().call_soon(self._wake_up)

    def drain(self) -> Inbound:
        """See the contract."""
        self._wakes_when_writable = False
        taken, self._taken = self._taken, []
        return Inbound(writable=taken)

    def write(self, messages: Iterable[tuple[StreamId, bytes]]) -> None:
        """See the contract."""
        if not self._taken and self._wakes_when_writable:
            asyncio.get_running_loop().call_soon(self._wake_up)
        streams = [stream for stream, _ in messages]
        self._taken += streams
        self.messages += len(streams)

    def let_in(self, stream: StreamId) -> None:
        """See the contract."""

    def hold(self, stream: StreamId) -> None:
        """See the contract."""

    def release(self, stream: StreamId) -> None:
        """See the contract."""

    def close(self, stream: StreamId, status: StreamStatus, last: bytes = b"") -> None:
        """See the contract."""


class Owners:
    """An ordering, and the log that it makes: all chats have as many events as it says."""

    def __init__(self) -> None:
        self.next = Progress([], [])
        self.head_seq = 1

    def pump(self, now_ms: int) -> Progress:
        """See the port."""
        progress, self.next = self.next, Progress([], [])
        return progress

    def pass_time(self, now_ms: int) -> None:
        """See the port."""

    def session_closed(self, session_id: str) -> None:
        """See the port."""

    async def settle(self) -> None:
        """See the port."""

    async def membership(self, user_id: str, chat_id: str) -> Membership:
        """See the port."""
        return Membership(chat_id, (Interval(1),), self.head_seq)

    async def read_after(self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """See the port."""
        return [StoredEvent(seq, event(chat_id, seq)) for seq in range(after_seq + 1, up_to_seq + 1)]


class Nobody:
    """An audience of nobody."""

    def pass_time(self, now_ms: int) -> bool:
        """See the protocol."""
        return False

    def members_changed(self, chat_id: str) -> None:
        """See the protocol."""

    def disconnected(self, connection: Connection, at: Now) -> None:
        """See the protocol."""


def event(chat_id: str, seq: int) -> bytes:
    """A message, serialized."""
    EVENT.chat_id, EVENT.seq = chat_id, seq
    return EVENT.SerializeToString()


class Crowd:
    """The sessions; number `n` is in chats `n`, `n + 1`, … and in one of a few that are large."""

    def __init__(self, sessions: int, chats: int, chats_each: int, members: int) -> None:
        self.wire, self.owners = Wire(), Owners()
        self.chat_ids = [f"g.{number}" for number in range(chats)]
        self.large = dict[str, list[str]]((f"l.{number}", []) for number in range(max(1, sessions // members)))
        self.ticks: list[float] = []
        self.worked: list[float] = []
        self.longest_s = 0.0
        limits, timings, metrics = Limits(), Timings(), Metrics()
        self.edge = Edge(
            self.wire,
            cast("Any", self.owners),
            Connections(),
            cast("Any", Nobody()),
            cast("Any", None),
            cast("Any", _Unsaved()),
            cast("Any", self.owners),
            limits,
            timings,
            metrics,
            DamageBook(metrics),
            now,
            _fail,
            streams_max=sessions,
            slow_reader_timeout_ms=30_000,
        )
        for name in ("_run_tick", "_keep_house"):
            setattr(self.edge, name, self._timed(getattr(self.edge, name)))
        large = list(self.large)
        for number in range(sessions):
            mine = [self.chat_ids[(number + other) % chats] for other in range(chats_each)] + [large[number % len(large)]]
            self.large[mine[-1]].append(f"u{number}")
            self._open(number, mine, limits, timings)

    def _open(self, number: int, chat_ids: list[str], limits: Limits, timings: Timings) -> None:
        session = Session(f"s{number}", "token", limits, timings, lease_clock_ms())
        positions = [session_pb2.ChatPosition(chat_id=chat_id, seq=1) for chat_id in chat_ids]
        hello = session_pb2.Hello(device_id="phone", positions=positions)
        session.receive(session_pb2.ClientFrame(request_id=1, hello=hello), lease_clock_ms())
        memberships = [Membership(chat_id, (Interval(1),), 1) for chat_id in chat_ids]
        at = now()
        session.admitted(Admission(f"u{number}", at.wall_ms + TOKEN_MS, memberships, {}, [], "sync"), at)
        session.take_output(at.monotonic_ms)
        connection = Connection(number + 1, session)
        self.edge.connections.add(connection)
        self.edge.connections.register(connection)

    def _timed(self, work: Callable[[], None]) -> Callable[[], None]:
        def timed() -> None:
            started_s, began_s = perf_counter(), thread_time()
            work()
            self.ticks.append(perf_counter() - started_s)
            self.worked.append(thread_time() - began_s)

        return timed

    async def play(self, what: str, progress: Progress, messages: int) -> None:
        """Lets the loop hear of something, and prints what it cost once so many messages are out (0: once it is still)."""
        self.ticks.clear()
        self.worked.clear()
        started_s, self.wire.messages = perf_counter(), 0
        self.owners.next = progress
        self.edge.wake_up()
        await asyncio.sleep(0)
        while self.wire.messages < messages or self.edge._tick_scheduled:  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # what it waits for has no event, and the loop must not know that it is watched
        ticks, worked = sorted(self.ticks), sorted(self.worked)
        self.longest_s = max(self.longest_s, worked[-1])
        print(
            f"{what:<48} {len(ticks):>5} ticks in {perf_counter() - started_s:6.2f} s,"
            f" longest {ticks[-1] * 1000:6.1f} ms, p99 {ticks[len(ticks) * 99 // 100] * 1000:6.1f} ms;"
            f" of the processor {worked[-1] * 1000:6.1f} ms, p99 {worked[len(worked) * 99 // 100] * 1000:6.1f} ms"
        )


class _Unsaved:
    def note_some(self, slice_: Slice) -> bool:
        return False

    async def save(self) -> None:
        """Has nothing to save."""


def _fail(defect: BaseException) -> None:
    raise defect


async def run(sessions: int, chats: int, chats_each: int, members: int) -> float:
    """Plays all events, one after the other; returns what the longest tick took of the processor's time, in seconds."""
    tune_interpreter()
    crowd = Crowd(sessions, chats, chats_each, members)
    crowd.edge.start()
    await crowd.play("nothing", Progress([], []), 0)
    heads = dict.fromkeys(crowd.chat_ids, 1)
    await crowd.play(f"{chats:,} heads that all know", Progress([], [], heads), 0)
    deliveries = [
        Delivery(chat_id, 2, event_chunk(event(chat_id, 2)), tuple(users), "", changes_members=False)
        for chat_id, users in crowd.large.items()
    ]
    one = deliveries[:1]
    await crowd.play(f"a message to {len(one[0].recipients):,}", Progress([], one), len(one[0].recipients))
    await crowd.play(
        f"{len(deliveries) - 1} such messages at once", Progress([], deliveries[1:]), sessions - len(one[0].recipients)
    )
    crowd.owners.head_seq = 2
    heads = dict.fromkeys(crowd.chat_ids[:: max(1, chats_each)], 2)
    await crowd.play(f"{len(heads):,} heads that a session each missed", Progress([], [], heads), sessions)
    return crowd.longest_s


def main() -> int:
    """Parses the command line, and plays."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ticks", description=__doc__)
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--chats", type=int, default=10_000)
    parser.add_argument("--chats-each", type=int, default=20, help="of a session, besides a large one")
    parser.add_argument("--members", type=int, default=1_000, help="of a large chat")
    return int(asyncio.run(run(**vars(parser.parse_args()))) > TICK_MAX_S)


if __name__ == "__main__":
    sys.exit(main())
