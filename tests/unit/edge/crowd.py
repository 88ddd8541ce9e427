"""A tick loop with very many sessions, a clock that says a slice is over after a few steps, and a transport without network."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.core.clock import Now
from chatgrpc.core.effects import Admission
from chatgrpc.core.entries import Membership, StoredEvent
from chatgrpc.core.events import event_chunk
from chatgrpc.core.limits import Limits
from chatgrpc.core.receipts import Raised
from chatgrpc.core.sequencer import Delivery
from chatgrpc.core.session import Timings
from chatgrpc.core.visibility import Interval
from chatgrpc.core.write import Write
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.connection import Connection, Connections
from chatgrpc.edge.loop import Edge
from chatgrpc.edge.ordering import Progress
from chatgrpc.edge.slices import SLICE_S
from chatgrpc.edge.transport import Inbound, StreamId, StreamOpened, StreamStatus
from chatgrpc.edge.watermarks import Watermarks
from chatgrpc.limit_settings import LimitSettings
from chatgrpc.metrics import Metrics
from chatgrpc.v1 import chat_pb2, session_pb2

CHAT = "g.0000000000000000000001"
STEPS_PER_SLICE = 10
KINDS_OF_WORK = 8
"""Of a tick and of a look at what time does, which may fall into one turn of the event loop."""
STEPS_PER_TURN_MAX = KINDS_OF_WORK * (STEPS_PER_SLICE + 2)


class Clock:
    """Each look at it is a step, and takes its time."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self) -> float:
        """Seconds."""
        self.steps += 1
        return self.steps * SLICE_S / STEPS_PER_SLICE


class Wire:
    """A transport whose peers take everything at once, and keep it."""

    def __init__(self) -> None:
        self.inbound = Inbound()
        self.sent: dict[StreamId, list[session_pb2.ServerFrame]] = {}
        self.held: set[StreamId] = set()
        self.closed: dict[StreamId, StreamStatus] = {}
        self.takes_more = True
        """Streams are writable again after a message."""
        self._wake_up: Callable[[], None] = lambda: None
        self._wakes_when_writable = False

    def on_input(self, wake_up: Callable[[], None]) -> None:
        """See the contract."""
        self._wake_up = wake_up

    def came(self) -> None:
        """`inbound` was changed."""
        self._wake_up()

    def wake_when_writable(self) -> None:
        """See the contract."""
        self._wakes_when_writable = True
        if self.inbound.writable:
            self._wake_up()

    def drain(self) -> Inbound:
        """See the contract."""
        self._wakes_when_writable = False
        inbound, self.inbound = self.inbound, Inbound()
        return inbound

    def write(self, messages: Iterable[tuple[StreamId, bytes]]) -> None:
        """See the contract."""
        for stream, message in messages:
            self._keep(stream, message)
            if self.takes_more:
                self.inbound.writable.append(stream)
                if self._wakes_when_writable:
                    self._wake_up()

    def let_in(self, stream: StreamId) -> None:
        """See the contract."""

    def hold(self, stream: StreamId) -> None:
        """See the contract."""
        self.held.add(stream)

    def release(self, stream: StreamId) -> None:
        """See the contract."""
        self.held.discard(stream)

    def close(self, stream: StreamId, status: StreamStatus, last: bytes = b"") -> None:
        """See the contract."""
        self._keep(stream, last)
        self.closed[stream] = status

    def _keep(self, stream: StreamId, message: bytes) -> None:
        self.sent.setdefault(stream, []).extend(session_pb2.ConnectResponse.FromString(message).frames)


class Owners:
    """An ordering, and the log that it makes: each chat has as many events as it says."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.submitted: list[Write] = []
        self.pumped = 0
        self.head_seq = 1

    def submit(self, ticket: object, session_id: str, write: Write, now_ms: int) -> None:
        """See the port."""
        self.submitted.append(write)

    def pump(self, now_ms: int) -> Progress:
        """See the port."""
        self.pumped += 1
        return self.progress.pop(0) if self.progress else Progress([], [])

    def pass_time(self, now_ms: int) -> None:
        """See the port."""

    def session_closed(self, session_id: str) -> None:
        """See the port."""

    async def settle(self) -> None:
        """See the port."""

    async def membership(self, user_id: str, chat_id: str) -> Membership:
        """See `ports.chat_log`."""
        return Membership(chat_id, (Interval(1),), self.head_seq)

    async def read_after(self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """See `ports.chat_log`."""
        return [StoredEvent(seq, event(chat_id, seq)) for seq in range(after_seq + 1, up_to_seq + 1)]


class _Nobody:
    """An audience that concerns nobody."""

    def pass_time(self, now_ms: int) -> bool:
        """See the protocol."""
        return False

    def members_changed(self, chat_id: str) -> None:
        """See the protocol."""

    def disconnected(self, connection: Connection, at: Now) -> None:
        """See the protocol."""


def event(chat_id: str, seq: int) -> bytes:
    """A message, serialized."""
    told = chat_pb2.ChatEvent(chat_id=chat_id, seq=seq, sender_user_id="somebody", sent_at_ms=1, message_id=bytes(16))
    told.content.text.text = "See you at the station."
    return told.SerializeToString()


class Crowd:
    """The sessions of users `u0`, `u1`, …, all of them members of one chat."""

    def __init__(self, sessions: int, streams_max: int = LimitSettings().streams_max) -> None:
        self.wire, self.owners, self.clock = Wire(), Owners(), Clock()
        self.now = Now(1_000_000, 1_000_000)
        self._limits, self._timings = Limits(), Timings()
        metrics = self.metrics = Metrics()
        store = MemoryStore()
        watermarks = Watermarks(
            store.receipts, store.cursors, self._limits, lambda _: None, self._mark_raised, lambda: self.now
        )
        self.edge = Edge(
            self.wire,
            cast("Any", self.owners),
            Connections(),
            cast("Any", _Nobody()),
            cast("Any", None),
            watermarks,
            cast("Any", self.owners),
            self._limits,
            self._timings,
            metrics,
            DamageBook(metrics),
            lambda: self.now,
            _fail,
            streams_max=streams_max,
            slow_reader_timeout_ms=30_000,
            clock_s=self.clock,
        )
        for number in range(sessions):
            self.open(number)

    def _mark_raised(self, raised: Raised) -> None:
        self.edge.raised.add(raised)

    def open(self, number: int) -> Connection:
        """One more, which holds what there is."""
        self.edge._open(StreamOpened(number, "peer", "token"), self.now.monotonic_ms)
        connection = self.edge.connections.get(number)
        assert connection is not None
        session = connection.session
        positions = [session_pb2.ChatPosition(chat_id=CHAT, seq=self.owners.head_seq)]
        hello = session_pb2.Hello(device_id="phone", positions=positions)
        session.receive(session_pb2.ClientFrame(request_id=1, hello=hello), self.now.monotonic_ms)
        memberships = [Membership(CHAT, (Interval(1),), self.owners.head_seq)]
        far_ms = self.now.wall_ms + 10**9
        session.admitted(Admission(f"u{number}", far_ms, memberships, {}, [], "sync"), self.now)
        while session.take_output(self.now.monotonic_ms):
            pass
        self.edge.connections.register(connection)
        self.edge._set_alarm(connection)
        return connection

    def committed(self, *user_ids: str, events: int = 1) -> None:
        """More events of the chat are told to these users, all at once."""
        deliveries = []
        for _ in range(events):
            self.owners.head_seq += 1
            seq = self.owners.head_seq
            deliveries.append(Delivery(CHAT, seq, event_chunk(event(CHAT, seq)), user_ids, "", changes_members=False))
        self.owners.progress.append(Progress([], deliveries))
        self.edge.wake_up()

    def seqs(self, number: int) -> list[int]:
        """The events that a session was sent."""
        return [frame.event.seq for frame in self.wire.sent.get(number, []) if frame.HasField("event")]

    async def until(self, what: Callable[[], bool]) -> int:
        """Lets the loop go on until then; returns the most steps that it took in one turn."""
        most = 0
        async with asyncio.timeout(30):
            while not what():
                before = self.clock.steps
                await asyncio.sleep(0)
                most = max(most, self.clock.steps - before)
        return most


def _fail(defect: BaseException) -> None:
    raise defect
