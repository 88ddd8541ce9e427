"""The transport over grpc.aio.

Every read and write of grpc.aio is a coroutine that starts one batch of the C core and waits for one future. A task awaiting it
would cost a second trip through the event loop per message, and a queue or an event a third. So no task reads or writes here:
the coroutine is advanced by hand, from `write()` and `drain()` themselves and from the callback of its future. The one task
of a stream is the one in which grpc.aio runs the handler; it sleeps until the stream ends. `python -m benchmarks.transport`
measures what that is worth.

A read or write under way is never cancelled, except when a stream is cut: the core completes it when the call ends.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import TypeAlias

import grpc

from chatgrpc.edge.call_cutter import CallCutter
from chatgrpc.edge.errors import TOO_MANY_STRANGERS, trailers_of
from chatgrpc.edge.flood_watch import Delivered
from chatgrpc.edge.interceptors import bearer_token
from chatgrpc.edge.shares import Shares, address_of
from chatgrpc.edge.transport import Inbound, StreamId, StreamOpened, StreamStatus

SERVICE = "chatgrpc.v1.SessionService"
METHOD = "Connect"

_OK = StreamStatus("OK", "", "")

_Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
_Advancing: TypeAlias = Coroutine[asyncio.Future[None], None, bytes | None]


class GrpcTransport:
    """Implements `edge.transport.Transport` for `chatgrpc.v1.SessionService/Connect`."""

    def __init__(
        self,
        *,
        inbox_bytes_max: int,
        close_timeout_s: float,
        delivered: Delivered | None = None,
        silent_per_address_max: int = 2_000,
        cutter: CallCutter | None = None,
    ) -> None:
        """Belongs to the event loop that is running.

        Args:
            inbox_bytes_max: a stream with this many bytes unread is not read on.
            close_timeout_s: how long a peer may take to read what `close()` leaves for it.
            delivered: is told of each stream and message.
            silent_per_address_max: streams of one address whose devices are not let in yet, whatever they have said; more are
                refused.
            cutter: ends streams whose peers do not read their end.
        """
        self._cutter = cutter or CallCutter()
        self.inbox_bytes_max = inbox_bytes_max
        self._close_timeout_s = close_timeout_s
        self.delivered = delivered or Delivered()
        self._strangers = Shares(silent_per_address_max)
        self._loop = asyncio.get_running_loop()
        self._streams: dict[StreamId, _Stream] = {}
        self._next_id = 1
        self._inbound = Inbound()
        self._unread: list[_Stream] = []
        self._wake_up: Callable[[], None] = _nobody
        self._woken = False
        self._wakes_when_writable = False

    def register(self, server: grpc.aio.Server, service: str = SERVICE, method: str = METHOD) -> None:
        """Makes the server, which must not have started, hand the streams of a bidirectional method to this transport."""
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))

    @property
    def stream_count(self) -> int:
        """Streams whose end has not been reported."""
        return len(self._streams)

    def on_input(self, wake_up: Callable[[], None]) -> None:
        """See `Transport.on_input`."""
        self._wake_up = wake_up
        if self._woken:
            wake_up()

    def wake_when_writable(self) -> None:
        """See `Transport.wake_when_writable`."""
        self._wakes_when_writable = True
        if self._inbound.writable:
            self.notify()

    def drain(self) -> Inbound:
        """See `Transport.drain`."""
        inbound, self._inbound = self._inbound, Inbound()
        unread, self._unread = self._unread, []
        self._woken = self._wakes_when_writable = False
        for stream in unread:
            if stream.inbox:
                inbound.received.append((stream.id, stream.inbox))
                stream.inbox = []
                stream.inbox_bytes = 0
                stream.read_on()
        return inbound

    def write(self, messages: Iterable[tuple[StreamId, bytes]]) -> None:
        """See `Transport.write`."""
        streams = self._streams
        for stream_id, message in messages:
            stream = streams.get(stream_id)
            if stream is not None and stream.status is None:
                stream.write(message)

    def let_in(self, stream: StreamId) -> None:
        """See `Transport.let_in`."""
        if known := self._streams.get(stream):
            self._give_place_back(known)

    def hold(self, stream: StreamId) -> None:
        """See `Transport.hold`."""
        if held := self._streams.get(stream):
            held.held = True

    def release(self, stream: StreamId) -> None:
        """See `Transport.release`."""
        if released := self._streams.get(stream):
            released.held = False
            released.read_on()

    def close(self, stream: StreamId, status: StreamStatus, last: bytes = b"") -> None:
        """See `Transport.close`."""
        assert status.code in grpc.StatusCode.__members__, f"{status.code} is not a status code"
        closing = self._streams.get(stream)
        if closing is None or closing.status is not None:
            return
        closing.inbox = []
        self._end(closing, status, last)

    async def _serve(self, _: object, context: _Context) -> None:
        if not self._strangers.take(address_of(context.peer())):
            code, message = TOO_MANY_STRANGERS.code, TOO_MANY_STRANGERS.message
            await context.abort(code, message, trailers_of(code, TOO_MANY_STRANGERS.reason, message))
        stream = self._open(context)
        try:
            await stream.ended
        finally:
            self._give_place_back(stream)
            self._report_closed(stream)
        if stream.status is not None and stream.status is not _OK:
            code, reason, message = grpc.StatusCode[stream.status.code], stream.status.reason, stream.status.message
            context.set_code(code)
            context.set_details(message)
            if code is not grpc.StatusCode.OK:
                context.set_trailing_metadata(trailers_of(code, reason, message))

    def _open(self, context: _Context) -> "_Stream":
        task = asyncio.current_task(self._loop)
        assert task is not None
        stream = _Stream(self._next_id, self, context, task, self._loop.create_future())
        self._next_id += 1
        self._streams[stream.id] = stream
        token = bearer_token(context.invocation_metadata())
        self.delivered.opened(stream.peer)
        task.add_done_callback(lambda _: self.delivered.closed(stream.peer))
        self._inbound.opened.append(StreamOpened(stream.id, stream.peer, token))
        self.notify()
        stream.read_on()
        return stream

    def _end(self, stream: "_Stream", status: StreamStatus, last: bytes) -> None:
        timer = self._loop.call_later(self._close_timeout_s, self._cut, stream)
        stream.task.add_done_callback(lambda _: timer.cancel())
        stream.end(status, last)

    def _give_place_back(self, stream: "_Stream") -> None:
        if stream.is_stranger:
            stream.is_stranger = False
            self._strangers.give_back(address_of(stream.peer))

    def _report_closed(self, stream: "_Stream") -> None:
        if self._streams.pop(stream.id, None) is None:
            return
        self._inbound.closed.append(stream.id)
        self.notify()

    # What a stream tells its transport.

    def notify(self) -> None:
        """There is something to drain."""
        if not self._woken:
            self._woken = True
            self._wake_up()

    def has_read(self, stream: "_Stream") -> None:
        """The first message since the last drain is in the stream's inbox."""
        self._unread.append(stream)
        self.notify()

    def has_written(self, stream: "_Stream") -> None:
        """The stream is writable."""
        self._inbound.writable.append(stream.id)
        if self._wakes_when_writable:
            self.notify()

    def has_finished(self, stream: "_Stream") -> None:
        """The peer will send nothing more."""
        if stream.id in self._streams:
            self._inbound.finished.append(stream.id)
            self.notify()

    def has_broken(self, stream: "_Stream") -> None:
        """The call is over."""
        self._report_closed(stream)
        self._end(stream, _OK, b"")

    def _cut(self, stream: "_Stream") -> None:
        self._cutter.cut(stream.task, stream.let_go)


class _Stream:
    """One call: what was read and not yet drained, the read and the write under way, and how it ends."""

    __slots__ = (
        *("context", "ended", "held", "id", "inbox", "inbox_bytes"),
        *("is_stranger", "last", "peer", "reading", "status", "task", "transport", "writing"),
    )

    def __init__(
        self,
        stream_id: StreamId,
        transport: GrpcTransport,
        context: _Context,
        task: asyncio.Task[object],
        ended: asyncio.Future[None],
    ) -> None:
        self.id = stream_id
        self.transport = transport
        self.context: _Context | None = context
        self.peer: str = context.peer()
        self.is_stranger = True
        self.task = task
        self.ended = ended
        self.inbox: list[bytes] = []
        self.inbox_bytes = 0
        self.held = False
        self.reading: _Advancing | None = None
        self.writing: _Advancing | None = None
        self.status: StreamStatus | None = None
        self.last = b""

    def read_on(self) -> None:
        """Starts the next read, unless one is under way or must not be."""
        if (
            self.reading is None
            and self.status is None
            and not self.held
            and self.inbox_bytes < self.transport.inbox_bytes_max
            and self.context is not None
        ):
            self.reading = self.context.read()
            self._advance_read()

    def write(self, message: bytes) -> None:
        """Starts the write of a message."""
        assert self.writing is None, "a message was written to a stream that was not writable"
        if self.context is not None:
            self.writing = self.context.write(message)
            self._advance_write()

    def end(self, status: StreamStatus, last: bytes) -> None:
        """Ends the stream after the write under way and after `last`."""
        self.status = status
        self.last = last
        if self.writing is None:
            self._write_last()

    def let_go(self) -> None:
        """Drops every reference to the call."""
        for under_way in (self.reading, self.writing):
            if under_way is not None:
                under_way.close()
        self.reading = self.writing = self.context = None
        self.task.cancel()

    def _advance_read(self, completed: asyncio.Future[None] | None = None) -> None:
        if self.reading is None:
            _disregard(completed)
            return
        del completed  # else what it raises refers to this frame, and this frame to what holds it: a circle
        try:
            future = self.reading.send(None)
        except StopIteration as done:
            self._has_read(done.value)
        except Exception:  # whatever the core calls it: the call is over
            self.reading = None
            if self.status is None and not self.ended.done():
                self.transport.has_broken(self)
        else:
            future.add_done_callback(self._advance_read)

    def _has_read(self, message: object) -> None:
        self.reading = None
        if self.status is not None or self.ended.done():
            return
        if message is grpc.aio.EOF:
            self.transport.has_finished(self)
            return
        assert isinstance(message, bytes)
        self.inbox.append(message)
        self.inbox_bytes += len(message)
        self.transport.delivered.message(self.peer, len(message))
        if len(self.inbox) == 1:
            self.transport.has_read(self)
        self.read_on()

    def _advance_write(self, completed: asyncio.Future[None] | None = None) -> None:
        if self.writing is None:
            _disregard(completed)
            return
        del completed  # as above
        try:
            future = self.writing.send(None)
        except StopIteration:
            self.writing = None
            if self.status is None:
                self.transport.has_written(self)
            else:
                self._write_last()
        except Exception:  # as above
            self.writing = None
            self._has_ended()
        else:
            future.add_done_callback(self._advance_write)

    def _write_last(self) -> None:
        last, self.last = self.last, b""
        if last:
            self.write(last)
        else:
            self._has_ended()

    def _has_ended(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def _disregard(completed: asyncio.Future[None] | None) -> None:
    """Looks at how a batch of a call that was let go of ended, lest asyncio complains that nobody did."""
    if completed is not None and not completed.cancelled():
        completed.exception()


def _nobody() -> None:
    """Stands in until somebody wants to be woken."""
