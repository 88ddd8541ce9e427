"""The tick loop: drains every stream, runs the core over what came, hands the store one group, flushes every stream once.

A tick starts as soon as there is input and no tick is running, so an idle node answers a lone message at once; under load a
tick takes in whatever came during the last one, which is what makes group commits and shared writes possible. A stream gets all
that it is to get in one message, in the tick in which the transport will take it: holding it back for company bought nothing in
any shape of load that was measured. Everything runs on the event loop's thread.

What a tick does for each of its streams it does for as many as there is time for (`slices`), and the next tick goes on; what
came first is done first. What is made known while too much of that is left waits in the transport, or at whoever says it.
"""

import asyncio
import contextlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from google.protobuf.message import DecodeError

from chatgrpc import background
from chatgrpc.core.clock import Now
from chatgrpc.core.disconnect import Ended
from chatgrpc.core.effects import (
    Admit,
    Effect,
    End,
    FetchPage,
    Marked,
    ShowTyping,
    Submit,
    VerifyToken,
    Watch,
)
from chatgrpc.core.event_feed import FeedRead
from chatgrpc.core.limits import Limits
from chatgrpc.core.receipts import Raised
from chatgrpc.core.sequencer import Answer, Delivery
from chatgrpc.core.session import Session, State, Timings, compare_numbers
from chatgrpc.core.write import Write
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.admission import Admissions
from chatgrpc.edge.alarms import Alarms
from chatgrpc.edge.audience import Audience
from chatgrpc.edge.connection import Connection, Connections
from chatgrpc.edge.gathered_marks import GatheredMarks
from chatgrpc.edge.in_slices import in_slices
from chatgrpc.edge.ordering import Ordering
from chatgrpc.edge.revocations import TakenAway, ending
from chatgrpc.edge.session_reader import SessionReader
from chatgrpc.edge.slices import Backlog, Slice
from chatgrpc.edge.transport import Inbound, StreamId, StreamOpened, StreamStatus, Transport
from chatgrpc.edge.turns import Turns
from chatgrpc.edge.watermarks import Watermarks
from chatgrpc.metrics import Metrics
from chatgrpc.ports.chat_log import ChatReader
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.tokens import Claims
from chatgrpc.trouble import Trouble
from chatgrpc.v1 import chat_pb2, session_pb2

_HOUSEKEEPING_INTERVAL_S = 0.05
_SAVE_INTERVAL_MS = 1_000
_BEHIND_STEPS = 50_000
"""While so much of what became known is not told yet, nothing more is taken in."""
_WRITTEN_TOGETHER = 16
"""Messages handed to the transport at a time: it takes about as long to start a write as to make the message."""
_READ_TIMEOUT_S = 5.0
"""A chat of which nothing comes for as long is left alone for a while, and the device's other chats are read."""
_NODE_FULL = Ended(
    session_pb2.DISCONNECT_CODE_OVERLOADED,
    "This node has as many streams as it takes. Go to another node, or try later.",
    "NODE_FULL",
)


class _NodeFullError(Exception):
    """There is no place for one more stream."""


@dataclass(frozen=True, slots=True)
class _Request:
    """Who waits for a write: a stream's request."""

    connection: Connection
    request_id: int
    write: Write
    submitted_at_ms: int


class Edge:
    """All streams of this process."""

    def __init__(
        self,
        transport: Transport,
        ordering: Ordering,
        connections: Connections,
        audience: Audience,
        admissions: Admissions,
        watermarks: Watermarks,
        log: ChatReader,
        limits: Limits,
        timings: Timings,
        metrics: Metrics,
        book: DamageBook,
        now: Callable[[], Now],
        on_defect: Callable[[BaseException], None],
        *,
        streams_max: int,
        slow_reader_timeout_ms: int,
        clock_s: Callable[[], float] = perf_counter,
    ) -> None:
        """Wires the parts. `book` is told of mistakes that cost a stream, `on_defect` of those that may have cost more: the
        chats' state in memory may be half changed. More than `streams_max` streams are turned away, and one is ended that has
        not taken its last message for `slow_reader_timeout_ms`. `clock_s` says when a slice of work is over."""
        self.connections = connections
        self.audience = audience
        self.raised = GatheredMarks(self._tell_raised)
        self._transport = transport
        self._ordering = ordering
        self._admissions = admissions
        self._watermarks = watermarks
        self._reader = SessionReader(log, limits)
        self._catch_up_fails = Trouble("catch_up_failed")
        self._is_full = Trouble("streams_turned_away")
        self._limits = limits
        self._timings = timings
        self._metrics = metrics
        self._book = book
        self._now = now
        self._streams_max = streams_max
        self._slow_reader_timeout_ms = slow_reader_timeout_ms
        self._clock_s = clock_s
        self._on_defect = on_defect
        self._turns = Turns(transport, limits, self._run, self._give_up, self.wake_up, now)
        self._watching: OrderedDict[Connection, Watch] = OrderedDict()  # what was last said to be on the screen
        self._dirty: dict[Connection, None] = {}  # something to send, or to read for
        self._reported = Backlog()  # what the transport reported
        self._answers = Backlog()
        self._news = Backlog()  # events and heads that are not told to all whom they concern
        self._stated = Backlog()  # what Hellos said that devices hold
        self._finished: dict[Connection, None] = {}  # their devices send nothing more
        self._unwritable: dict[Connection, int] = {}  # since when, oldest first, as far as the transport was asked
        self._drained_at_ms = 0
        self._more_to_write = False  # something waits for a stream to be writable
        self._alarms = Alarms()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tick_scheduled = False
        self._housekeeping: asyncio.TimerHandle | None = None
        self._saved_at_ms = 0
        self._draining = False
        self._deserted = asyncio.Event()

    # Life.

    def start(self) -> None:
        """Begins to serve; call on the event loop."""
        self._transport.on_input(self.wake_up)
        self._keep_house()

    def wake_up(self) -> None:
        """Starts a tick soon, if none is about to start."""
        if not self._tick_scheduled:
            self._tick_scheduled = True
            asyncio.get_running_loop().call_soon(self._tick)

    async def drain(self, window_ms: int) -> None:
        """Sends every device a Drain, jittered over the window; streams that open from now on are turned away."""
        self._draining = True
        self._deserted.clear()
        async for connection in in_slices(list(self.connections), self._clock_s):
            connection.session.drain(secrets.randbelow(window_ms + 1), self._now_ms())
            self.touch(connection)
        if len(self.connections):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(window_ms / 1000):
                    await self._deserted.wait()

    async def stop(self, timeout_s: float) -> None:
        """Takes nothing more in, answers what was taken, ends every stream, stores the marks."""
        self._turns.stopping = self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ordering.settle()
                while self._answers or self._news or self._stated:  # noqa: ASYNC110  the ticks go on
                    await asyncio.sleep(0)
        async for connection in in_slices(list(self.connections), self._clock_s):
            self.end(connection, Ended(session_pb2.DISCONNECT_CODE_SHUTTING_DOWN))
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        await self._watermarks.note_all()
        while self.raised.tell_some(self._slice()):  # noqa: ASYNC110  there are more to tell
            await asyncio.sleep(0)
        await self._watermarks.save()

    def end(self, connection: Connection, ended: Ended) -> None:
        """Ends a stream for a reason of the server's."""
        self._run(connection, connection.session.end(ended), self._now())

    def end_device(self, user_id: str, device_id: str, ended: Ended) -> None:
        """Ends the device's stream, if it has one here."""
        connection = self.connections.of_device(user_id, device_id)
        if connection is not None:
            self.end(connection, ended)

    def end_revoked(self, user_id: str, taken: TakenAway) -> None:
        """Ends the user's streams whose device or token was taken away."""
        for connection in list(self.connections.of_user(user_id)):
            if connection.claims is not None:
                ended = ending(connection.claims, connection.session.device_id, taken)
                if ended is not None:
                    self.end(connection, ended)

    def touch(self, connection: Connection) -> None:
        """The connection's session was told something, and may want to read."""
        self._dirty[connection] = None
        self.wake_up()

    def _now_ms(self) -> int:
        return self._now().monotonic_ms

    def _slice(self) -> Slice:
        return Slice(self._clock_s)

    # A tick.

    def _tick(self) -> None:
        self._tick_scheduled = False
        try:
            self._run_tick()
        except Exception as defect:
            self._on_defect(defect)

    def _run_tick(self) -> None:
        started_s = perf_counter()
        now = self._now()
        now_ms = now.monotonic_ms
        if not self._reported:
            inbound = self._transport.drain()
            self._drained_at_ms = now_ms
            self._reported.add(self._take_in(inbound, now), 0)
        self._go_on(self._reported)
        if self._answers.steps + self._news.steps + self._stated.steps < _BEHIND_STEPS:
            self._receive(now)
            self._take_progress(now)
        self._go_on(self._answers)
        self._go_on(self._news)
        self._go_on(self._stated)
        self._flush(now_ms)
        self._metrics.tick_seconds.observe(perf_counter() - started_s)

    def _go_on(self, backlog: Backlog) -> None:
        if backlog and backlog.go_on(self._slice()):
            self.wake_up()

    def _take_in(self, inbound: Inbound, now: Now) -> Iterator[None]:
        """Takes in what the transport reported, step by step."""
        for opened in inbound.opened:
            self._open(opened, now.monotonic_ms)
            yield
        for stream, batches in inbound.received:
            connection = self.connections.get(stream)
            if connection is not None:
                self._turns.add(connection, batches)
            yield
        for stream in inbound.writable:
            connection = self.connections.get(stream)
            if connection is not None:
                connection.writable = True
                self._unwritable.pop(connection, None)
                self._dirty[connection] = None
            yield
        for stream in inbound.finished:
            connection = self.connections.get(stream)
            if connection is not None:
                self._finished[connection] = None
                self._dirty[connection] = None
            yield
        for stream in inbound.closed:
            connection = self.connections.get(stream)
            if connection is not None:
                self._turns.last(connection, self._now(), self._slice())
                self._forget(connection, self._now())
            yield

    def _open(self, opened: StreamOpened, now_ms: int) -> None:
        if len(self.connections) >= self._streams_max:
            self._turn_away(opened)
            return
        self._is_full.worked()
        session = Session(secrets.token_hex(8), opened.token, self._limits, self._timings, now_ms)
        connection = Connection(opened.stream, session)
        self.connections.add(connection)
        self._metrics.streams_live.set(len(self.connections))
        if self._draining:
            self.end(connection, Ended(session_pb2.DISCONNECT_CODE_SHUTTING_DOWN))
            return
        self._set_alarm(connection)

    def _turn_away(self, opened: StreamOpened) -> None:
        """Ends a stream that there is no place for. It gets no session, and takes no place while its peer reads its end."""
        last = session_pb2.ConnectResponse(frames=[_NODE_FULL.frame()]).SerializeToString()
        self._transport.close(opened.stream, StreamStatus(*_NODE_FULL.status()), last)
        self._metrics.disconnects[session_pb2.DisconnectCode.Name(_NODE_FULL.code)].inc()
        self._is_full.failed(_NodeFullError("limits.streams_max is reached"))

    def _receive(self, now: Now) -> None:
        """Takes some of what some streams sent; the rest waits for the next tick."""
        self._dirty |= dict.fromkeys(self._turns.take(now, self._slice()))
        slice_ = self._slice()
        while self._watching:
            self.audience.watch(*self._watching.popitem(last=False))
            if slice_.is_over:
                self.wake_up()
                break

    def _take_progress(self, now: Now) -> None:
        """Hears what owners have done: answers for those who asked, events for the devices of the members.

        An answer may be given before the events that came before it are delivered, as when the owner is another node.
        """
        progress = self._ordering.pump(now)
        if progress.answers:
            self._answers.add(self._answer(progress.answers), len(progress.answers))
        if progress.deliveries:
            self._news.add(self._deliver(progress.deliveries), sum(len(told.recipients) for told in progress.deliveries))
        if progress.heads:
            connections = list(self.connections)
            self._news.add(self._tell_heads(connections, progress.heads), len(connections))

    def _answer(self, answers: Iterable[Answer]) -> Iterator[None]:
        """Hands outcomes to those who asked, step by step."""
        for answer in answers:
            ticket = answer.ticket
            if isinstance(ticket, _Request):
                self._answer_request(ticket, answer.outcome)
            elif isinstance(ticket, asyncio.Future) and not ticket.done():
                ticket.set_result(answer.outcome)
            yield

    def _answer_request(self, request: _Request, outcome: chat_pb2.SendResult | chat_pb2.Error) -> None:
        connection = request.connection
        try:
            connection.session.answered(request.request_id, request.write, outcome)
        except Exception as defect:
            self._give_up(connection, defect)
        self._metrics.send_seconds.observe((self._now_ms() - request.submitted_at_ms) / 1000)
        self._dirty[connection] = None
        if isinstance(outcome, chat_pb2.Error):
            known = outcome.code in chat_pb2.ErrorCode.values()  # else an owner of a later version said it
            self._metrics.send_errors[chat_pb2.ErrorCode.Name(outcome.code) if known else "UNKNOWN"].inc()

    def _deliver(self, deliveries: Sequence[Delivery]) -> Iterator[None]:
        """Hands events to the devices of the members, step by step.

        Who comes meanwhile reads a head that is as high, or higher; their feed takes what it is handed here for a repetition.
        """
        of_user = self.connections.of_user
        for delivery in deliveries:
            for user_id in delivery.recipients:
                for connection in list(of_user(user_id)):
                    last = user_id == delivery.left_user_id
                    try:
                        connection.session.deliver(delivery.chat_id, delivery.seq, delivery.chunk, last)
                    except Exception as defect:
                        self._give_up(connection, defect)
                        continue
                    self._dirty[connection] = None
                yield
            if delivery.changes_members:
                self.audience.members_changed(delivery.chat_id)

    def _tell_heads(self, connections: Iterable[Connection], heads: Mapping[str, int]) -> Iterator[None]:
        """Tells sessions of heads, step by step. Who comes meanwhile asks for their chats' heads after these were stated."""
        for connection in connections:
            try:
                connection.session.note_heads(heads)
            except Exception as defect:
                self._give_up(connection, defect)
            if connection.session.feed.is_behind:
                self._dirty[connection] = None
            yield

    def _is_done(self, connection: Connection) -> bool:
        """The device sends nothing more, and all that it sent is answered: the rest of the output fits into one message."""
        session = connection.session
        return (
            not (connection.unread or connection.frames)
            and session.is_answered
            and session.backlog_bytes() <= self._limits.gathered_bytes_max // 2
            and len(session.events) < self._limits.frames_per_batch_max
        )

    def _give_up(self, connection: Connection, defect: BaseException) -> None:
        """Our own code tripped in the work for one stream, whoever said what it tripped over: that costs this stream alone."""
        self._book.defect("session", defect)
        if self.connections.get(connection.stream) is not connection:
            return
        try:
            self.end(connection, Ended(session_pb2.DISCONNECT_CODE_INTERNAL))
        except Exception as again:  # then without what it still had to say
            self._book.defect("session", again)
            self._transport.close(connection.stream, StreamStatus(*Ended(session_pb2.DISCONNECT_CODE_INTERNAL).status()))
            self._forget(connection, self._now())

    # Effects.

    def _run(self, connection: Connection, effects: Sequence[Effect], now: Now) -> None:
        for effect in effects:
            match effect:
                case Submit(request_id, write):
                    request = _Request(connection, request_id, write, now.monotonic_ms)
                    self._ordering.submit(request, connection.session.session_id, write, now)
                case Marked(chat_id, delivered_seq, read_seq):
                    self._note_mark(connection, chat_id, delivered_seq, read_seq, now)
                case Admit():
                    self._start(self._admit(connection, effect), connection)
                case FetchPage(request_id, wanted):
                    self._start(self._reader.page(connection.session, request_id, wanted), connection)
                case VerifyToken(request_id, token):
                    self._start(self._verify(connection, request_id, token), connection)
                case ShowTyping(chat_id, kind):
                    self.audience.typing(chat_id, connection, kind)
                case Watch():
                    self._watching[connection] = effect
                case End(ended):
                    self._end(connection, ended)

    def _note_marks(self, connection: Connection, marks: Iterable[Marked]) -> Iterator[None]:
        """Takes in what a Hello says that the device holds, step by step; they are true whether its stream lasts or not."""
        for mark in marks:
            try:
                self._note_mark(connection, mark.chat_id, mark.delivered_seq, mark.read_seq, self._now())
            except Exception as defect:
                self._give_up(connection, defect)
                return
            yield

    def _note_mark(self, connection: Connection, chat_id: str, delivered_seq: int, read_seq: int, now: Now) -> None:
        session = connection.session
        device_id = "" if session.ephemeral else session.device_id
        if not read_seq:
            self._watermarks.acknowledge(session.user_id, device_id, chat_id, delivered_seq)
            return
        if delivered_seq and device_id:
            self._watermarks.note_cursor(session.user_id, device_id, chat_id, delivered_seq)
        raised = self._watermarks.raise_mark(chat_id, session.user_id, delivered_seq, read_seq, now)
        if raised is not None:
            self.raised.add(raised)

    def _tell_raised(self, raised: Raised) -> None:
        try:
            self.audience.mark_raised(raised)
        except Exception as defect:  # the mark itself is noted
            self._book.defect("edge", defect)

    def _end(self, connection: Connection, ended: Ended) -> None:
        """Hands the rest of the output, which ends with the Disconnect, to the transport, and forgets the connection."""
        now = self._now()
        last = b""
        while message := connection.session.take_output(now.monotonic_ms):
            last += message
        code, reason, message_text = ended.status()
        self._transport.close(connection.stream, StreamStatus(code, reason, message_text), last)
        self._metrics.disconnects[session_pb2.DisconnectCode.Name(ended.code)].inc()
        self._forget(connection, now)

    def _forget(self, connection: Connection, now: Now) -> None:
        """The stream is over: nothing is sent on it any more. Writes of its device that are under way go on."""
        connection.session.closed()
        self._ordering.session_closed(connection.session.session_id)
        was_registered = connection.registered
        self.connections.remove(connection)
        self._metrics.streams_live.set(len(self.connections))
        if not len(self.connections):
            self._deserted.set()
        self._dirty.pop(connection, None)
        self._finished.pop(connection, None)
        self._unwritable.pop(connection, None)
        self._alarms.cancel(connection)
        self._watching.pop(connection, None)
        connection.unread.clear()
        connection.frames.clear()
        if was_registered:
            self.audience.disconnected(connection, now)

    async def _admit(self, connection: Connection, wanted: Admit) -> None:
        session = connection.session

        async def identified(claims: Claims) -> None:
            if session.state is not State.OPENING:
                return
            self._transport.let_in(connection.stream)
            session.user_id = claims.user_id
            connection.claims = claims
            standing = self.connections.of_device(session.user_id, session.device_id)
            if standing is not None and compare_numbers(session.connection_number, standing.session.connection_number) < 0:
                self.end(connection, Ended(session_pb2.DISCONNECT_CODE_REPLACED))  # its Hello was long under way
                return
            replaced = self.connections.register(connection)
            if replaced is not None:
                self.audience.disconnected(replaced, self._now())
                self.end(replaced, Ended(session_pb2.DISCONNECT_CODE_REPLACED))
            await self.audience.connected(connection)

        outcome = await self._admissions.admit(wanted, self._now(), identified, self._end_who_gave_way)
        if session.state is not State.OPENING:
            return
        if isinstance(outcome, Ended):
            self.end(connection, outcome)
            return
        now = self._now()
        effects = session.admitted(outcome, now)
        marks = [effect for effect in effects if isinstance(effect, Marked)]  # one of each chat; that may be thousands
        self._stated.add(self._note_marks(connection, marks), len(marks))
        self.wake_up()
        self._run(connection, [effect for effect in effects if not isinstance(effect, Marked)], now)
        self._run(connection, session.after_read(now.monotonic_ms), now)
        self._set_alarm(connection)

    async def _end_who_gave_way(self, user_id: str, device_id: str) -> None:
        if device_id in await self.audience.online_devices(user_id):
            code = session_pb2.DISCONNECT_CODE_TOO_MANY_DEVICES
            self.end_device(user_id, device_id, Ended(code, "Another device took the place of this ephemeral one."))
            await self.audience.end_elsewhere(user_id, device_id, code)

    async def _verify(self, connection: Connection, request_id: int, token: str) -> None:
        verified = await self._admissions.verify(token, connection.session.device_id, self._now().wall_ms)
        if isinstance(verified, chat_pb2.Error):
            connection.session.token_refused(request_id, verified)
            return
        if verified.user_id == connection.session.user_id:
            connection.claims = verified
        connection.session.token_verified(request_id, verified.user_id, verified.expires_at_ms, self._now())
        self._set_alarm(connection)

    async def _feed(self, connection: Connection, wanted: FeedRead) -> None:
        """Reads what the feed of a lagging device wants next. What cannot be read costs its chat, which is tried again."""
        session = connection.session
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                await self._reader.feed(session, wanted)
        except (StoreError, TimeoutError, DecodeError) as error:
            self._catch_up_fails.failed(error)
            session.read_failed(wanted)
        else:
            self._catch_up_fails.worked()
        self._metrics.catch_up_pages.inc()
        now = self._now()
        self._run(connection, session.after_read(now.monotonic_ms), now)
        self._set_alarm(connection)

    def _start(self, work: Coroutine[Any, Any, None], connection: Connection | None = None) -> None:
        """Runs work beside the ticks; what it puts out on the connection is flushed by the tick that follows."""

        def failed(defect: BaseException) -> None:
            if connection is None:
                self._book.defect("edge", defect)
            else:
                self._give_up(connection, defect)

        task = background.start(work, failed)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, connection))

    def _done(self, task: asyncio.Task[None], connection: Connection | None) -> None:
        self._tasks.discard(task)
        if connection is not None:
            self._dirty[connection] = None
        self.wake_up()

    # Output.

    def _flush(self, now_ms: int) -> None:
        """Sends what is ready on the streams that may be written to, and starts the reads that lagging devices wait for."""
        dirty, self._dirty = self._dirty, {}
        rest = self._send(dirty, lambda connection, messages: self._flush_one(connection, now_ms, messages))
        if rest or self._dirty:
            self._dirty = rest | self._dirty
            self.wake_up()

    def _send(
        self, connections: Iterable[Connection], take: Callable[[Connection, list[tuple[StreamId, bytes]]], None]
    ) -> dict[Connection, None]:
        """Sends what `take` adds for each of as many connections as there is time for; returns the others."""
        slice_ = self._slice()
        messages: list[tuple[StreamId, bytes]] = []
        remaining = iter(connections)
        for connection in remaining:
            try:
                take(connection, messages)
            except Exception as defect:
                self._give_up(connection, defect)
            if len(messages) >= _WRITTEN_TOGETHER:
                self._transport.write(messages)
                messages = []
            if slice_.is_over:
                break
        if messages:
            self._transport.write(messages)
        if self._more_to_write:
            self._more_to_write = False
            self._transport.wake_when_writable()
        return dict.fromkeys(remaining)

    def _flush_one(self, connection: Connection, now_ms: int, messages: list[tuple[StreamId, bytes]]) -> None:
        session = connection.session
        if session.state is State.ENDED:
            return
        while (wanted := session.next_read()) is not None:
            self._start(self._feed(connection, wanted), connection)
        if connection in self._finished and self._is_done(connection):
            self.end(connection, Ended(session_pb2.DISCONNECT_CODE_INPUT_ENDED))
            return
        if not session.events:
            return
        if not connection.writable:
            self._more_to_write = True
            return
        self._take_message(connection, now_ms, messages)

    def _take_message(self, connection: Connection, now_ms: int, messages: list[tuple[StreamId, bytes]]) -> None:
        session = connection.session
        message = session.take_output(now_ms)
        if not message:
            return
        messages.append((connection.stream, message))
        connection.writable = False
        self._unwritable[connection] = now_ms
        self._more_to_write |= bool(session.events) or session.feed.is_behind
        self.connections.with_control.pop(connection, None)
        if connection.held:
            self._turns.read_or_hold(connection)

    # Time.

    def _set_alarm(self, connection: Connection) -> None:
        if connection.session.state is not State.ENDED:
            self._alarms.set_by(connection, connection.session.deadline_ms)

    def _keep_house(self) -> None:
        """What time does: deadlines, readers that are too slow, control traffic that waited, marks to store."""
        self._housekeeping = asyncio.get_running_loop().call_later(_HOUSEKEEPING_INTERVAL_S, self._keep_house)
        try:
            left = self._pass_time(self._now())
        except Exception as defect:
            self._on_defect(defect)
            return
        if left:
            self._housekeeping.cancel()
            self._housekeeping = asyncio.get_running_loop().call_later(0, self._keep_house)

    def _pass_time(self, now: Now) -> bool:
        """Returns whether something is left to do at once."""
        now_ms = now.monotonic_ms
        left = self._ring(now_ms)
        left = self._end_slow_readers() or left
        left = self.audience.pass_time(now_ms) or left
        self._ordering.pass_time(now)
        for kind, count in self._turns.frames_in.items():
            self._metrics.frames_in[kind].inc(count)
        self._turns.frames_in.clear()
        left = self._watermarks.note_some(self._slice()) or left
        left = self.raised.tell_some(self._slice()) or left
        left = self._flush_control(now_ms) or left
        if self._dirty or self._unwritable:
            self.wake_up()
        if now_ms - self._saved_at_ms >= _SAVE_INTERVAL_MS:
            self._saved_at_ms = now_ms
            self._start(self._watermarks.save())
        return left

    def _ring(self, now_ms: int) -> bool:
        """Looks at connections whose time has come; returns whether there are more, as in the next two."""
        slice_ = self._slice()
        for connection in self._alarms.due(now_ms):
            try:
                self._pass_deadline(connection, now_ms)
            except Exception as defect:
                self._give_up(connection, defect)
            if slice_.is_over:
                return True
        return False

    def _end_slow_readers(self) -> bool:
        slice_ = self._slice()
        # If we stood still ourselves, nobody has asked the transport since.
        give_up_ms = self._drained_at_ms - self._slow_reader_timeout_ms
        while connection := next(iter(self._unwritable), None):
            if self._unwritable[connection] > give_up_ms:
                return False
            self.end(connection, Ended(session_pb2.DISCONNECT_CODE_SLOW_READER))
            self._unwritable.pop(connection, None)
            if slice_.is_over:
                return True
        return False

    def _flush_control(self, now_ms: int) -> bool:
        def take(connection: Connection, messages: list[tuple[StreamId, bytes]]) -> None:
            if connection.writable:
                self._take_message(connection, now_ms, messages)
            else:
                self.connections.show(connection)

        connections = self.connections
        waiting, connections.with_control = connections.with_control, {}
        rest = self._send(waiting, take)
        connections.with_control = rest | connections.with_control
        return bool(rest)

    def _pass_deadline(self, connection: Connection, now_ms: int) -> None:
        session = connection.session
        if session.state is State.ENDED:
            return
        if connection.held:
            session.excuse_silence(now_ms)
        effects = session.on_deadline(now_ms) if session.deadline_ms <= now_ms else ()
        self._set_alarm(connection)
        self._dirty[connection] = None
        self._run(connection, effects, self._now())
