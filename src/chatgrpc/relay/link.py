"""One link: a stream between two nodes from its Hello to its end, the same for who dialled and who accepted."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import grpc
import structlog

from chatgrpc import background
from chatgrpc.core.lanes import Forwarded
from chatgrpc.core.links import HeadIs, Heads, HeadsHeard, Message
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.metrics import Metrics
from chatgrpc.relay.codec import Decoder, MalformedBatchError, parse_batch
from chatgrpc.relay.outbox import Outbox
from chatgrpc.v1 import chat_pb2

PROTOCOL_VERSION_MIN: Final = 1
"""Raised once no node that speaks less can be beside one of this version: an upgrade rolls from one version to the next."""
PROTOCOL_VERSION_MAX: Final = 2
"""2: `HeadIs` may say that a chat is damaged; what is forwarded was looked at (`core.shape.check_unknown_fields`)."""
HEADS_MAX: Final = 10_000
"""Chats in one frame of heads; more are sent in several."""

_SAYS_DAMAGED: Final = 2
_CHECKS_UNKNOWN: Final = 2
PULSE_S: Final = 0.5
_PULSES_A_BEAT: Final = 2
_QUIET_PULSES_MAX: Final = 6
"""After three seconds without a sign of life the link is dead. Pulses are counted, and not seconds, so that a process that
stood still for a while does not take its own silence for the peer's."""
_FULL_PULSES_MAX: Final = 20
"""After ten seconds in which nothing was taken for the peer the link is of no use."""

_log = structlog.get_logger(__name__)


class LinkEndedError(Exception):
    """The stream is over; says why."""


class Call(Protocol):
    """A grpc.aio stream of bytes: a client's call, or a server's context."""

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`."""
        ...

    async def write(self, message: bytes, /) -> None:
        """Sends, and waits until there is room for the next."""
        ...


class Stream:
    """A call with errors of our own."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.heard = relay_pb2.Hello()
        """The Hello that was heard last."""
        self.version = PROTOCOL_VERSION_MIN
        """What both ends speak, once the other one's Hello was heard."""

    async def read(self) -> bytes | None:
        """The next message; None at the end.

        Raises:
            LinkEndedError: the call is over.
        """
        try:
            message = await self._call.read()
        except Exception as error:
            raise LinkEndedError(_reason(error)) from error
        if message is grpc.aio.EOF:
            return None
        assert isinstance(message, bytes)
        return message

    async def write(self, message: bytes) -> None:
        """Sends, and waits until there is room for the next.

        Raises:
            LinkEndedError: the call is over.
        """
        try:
            await self._call.write(message)
        except Exception as error:
            raise LinkEndedError(_reason(error)) from error

    async def say_hello(self, node_id: str, to_node_id: str, challenge: bytes = b"", proof: bytes = b"") -> None:
        """Sends the first frame; see `relay.proof` for what the nodes of a cluster with a secret put into it.

        Raises:
            LinkEndedError: the call is over.
        """
        hello = relay_pb2.Hello(
            protocol_version=PROTOCOL_VERSION_MIN,
            protocol_version_max=PROTOCOL_VERSION_MAX,
            node_id=node_id,
            to_node_id=to_node_id,
            challenge=challenge,
            proof=proof,
        )
        await self.write(relay_pb2.LinkBatch(frames=[relay_pb2.LinkFrame(hello=hello)]).SerializeToString())

    async def hear_hello(self, node_id: str) -> str:
        """Reads the first frame, to `node_id`; returns whom it is from. `version` is then what is spoken.

        Raises:
            LinkEndedError: the call is over, or was meant for another node.
            MalformedBatchError: it is not a Hello.
        """
        message = await self.read()
        if message is None:
            raise LinkEndedError("it was ended before its Hello")
        frames = parse_batch(message).frames
        if len(frames) != 1 or frames[0].WhichOneof("body") != "hello":
            raise MalformedBatchError("a link begins with a Hello")
        hello = self.heard = frames[0].hello
        lowest, highest = hello.protocol_version, max(hello.protocol_version, hello.protocol_version_max)
        self.version = min(PROTOCOL_VERSION_MAX, highest)
        if self.version < max(PROTOCOL_VERSION_MIN, lowest):
            raise LinkEndedError(
                f"it speaks versions {lowest} to {highest} of the protocol between nodes, and this node {PROTOCOL_VERSION_MIN} "
                f"to {PROTOCOL_VERSION_MAX}: upgrade by way of a version that speaks with both"
            )
        if hello.to_node_id != node_id:
            raise LinkEndedError("it is for another incarnation of the node")
        return hello.node_id

    async def finish(self) -> bool:
        """Says that nothing more will be sent; True if the peer then ends the call, False if that is left to us.

        Raises:
            LinkEndedError: the call is over.
        """
        if not isinstance(self._call, grpc.aio.StreamStreamCall):
            return False
        try:
            await self._call.done_writing()
        except Exception as error:
            raise LinkEndedError(_reason(error)) from error
        return True


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """A link as its node sees it. Counts are of this link: they begin anew when it was cut."""

    node_id: str
    """The other node."""
    connected: bool
    connected_ms: int = 0
    """How long it has been up."""
    queued_messages: int = 0
    queued_bytes: int = 0
    sent_messages: int = 0
    received_messages: int = 0
    dropped_messages: int = 0
    """Since too much was waiting."""
    rtt_ms: float | None = None
    """Time to the other node and back, its event loop included; None if none was measured yet."""


class Link:
    """A link after the Hellos."""

    def __init__(
        self,
        node_id: str,
        stream: Stream,
        queue_bytes_max: int,
        receive: Callable[[str, list[Message]], None],
        metrics: Metrics,
        caught_up: Callable[[], Awaitable[None]],
    ) -> None:
        """`receive` is called with the node's id and what a batch carried, until the link has ended; nothing more is read
        before `caught_up` returns."""
        self.node_id = node_id
        self._stream = stream
        self._receive = receive
        self._caught_up = caught_up
        self._waits = False  # until this node has caught up
        self._metrics = metrics
        self._outbox = Outbox(queue_bytes_max)
        self._decoder = Decoder(sender_checks_unknown=stream.version >= _CHECKS_UNKNOWN)
        self._began_at_s = time.monotonic()
        self._sent_messages = 0
        self._received_messages = 0
        self._dropped_messages = 0
        self._rtt_ms: float | None = None
        self._quiet_pulses = 0
        self._full_pulses = 0
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Why it ended."""

    def send(self, message: Message) -> None:
        """Queues or drops."""
        if isinstance(message, Heads | HeadsHeard) and len(message.heads) > HEADS_MAX:
            heads = list(message.heads.items())
            for start in range(0, len(heads), HEADS_MAX):
                self.send(type(message)(dict(heads[start : start + HEADS_MAX])))
            return
        if isinstance(message, HeadIs) and message.damaged and self._stream.version < _SAYS_DAMAGED:
            return  # it would be read as a chat without events; its question is given up in time
        if self._stream.version < _SAYS_DAMAGED:
            message = _for_version_1(message)
        if not self._outbox.put(message):
            self._dropped_messages += 1
            self._metrics.relay_dropped[type(message).__name__].inc()

    def end(self, why: str) -> None:
        """Ends it at once: nothing is received after this."""
        if not self.ended.done():
            self.ended.set_result(why)

    def close(self) -> None:
        """Lets it end when everything that waits was sent."""
        self._outbox.close()

    @property
    def age_s(self) -> float:
        """How long it has been up."""
        return time.monotonic() - self._began_at_s

    def status(self) -> LinkStatus:
        """How it is."""
        return LinkStatus(
            self.node_id,
            connected=True,
            connected_ms=int(self.age_s * 1000),
            queued_messages=self._outbox.messages,
            queued_bytes=self._outbox.bytes,
            sent_messages=self._sent_messages,
            received_messages=self._received_messages,
            dropped_messages=self._dropped_messages,
            rtt_ms=self._rtt_ms,
        )

    async def run(self) -> str:
        """Carries messages until it ends; returns why it did."""
        tasks = [background.start(part, self._failed) for part in (self._read(), self._write(), self._watch())]
        for task in tasks:
            task.add_done_callback(self._is_over)
        try:
            await asyncio.wait([self.ended])
        finally:
            self.end("its call was cancelled")  # unless somebody knows better
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self.ended.result()

    def _is_over(self, task: asyncio.Task[None]) -> None:
        """A part that was cancelled by gRPC, which does so when the call is."""
        if task.cancelled():
            self.end("its call was cancelled")

    def _failed(self, defect: BaseException) -> None:
        """One of the link's tasks ended by a mistake of ours. Without it the link is no use: it ends, and is dialled again."""
        _log.error("relay_link_failed", peer=self.node_id, exc_info=defect)
        self.end("one of its parts failed")

    async def _read(self) -> None:
        try:
            while (message := await self._stream.read()) is not None and not self.ended.done():
                self._take(message)
                self._waits = True
                await self._caught_up()
                self._waits = False
            self.end("the other node ended it")
        except (LinkEndedError, MalformedBatchError) as error:
            self.end(str(error))
        except Exception:
            _log.exception("relay_receive_failed", peer=self.node_id)
            self.end("a message from it could not be handled")

    def _take(self, message: bytes) -> None:
        self._quiet_pulses = 0
        batch = parse_batch(message)
        self._metrics.relay_bytes_in.inc(len(message))
        messages = self._decoder.decode(batch)
        if messages:
            self._received_messages += len(messages)
            self._metrics.relay_messages_in.inc(len(messages))
            self._receive(self.node_id, messages)
        else:
            self._take_beats(batch)

    def _take_beats(self, batch: relay_pb2.LinkBatch) -> None:
        """Beats travel in batches of their own."""
        for frame in batch.frames:
            if not frame.HasField("beat"):
                continue
            if frame.beat.echo:
                self._rtt_ms = max(0.0, (_now_us() - frame.beat.at_us) / 1000)
            else:
                self._outbox.put_echo(frame.beat.at_us)

    async def _write(self) -> None:
        try:
            while (batch := await self._outbox.take()) is not None:
                self._metrics.relay_bytes_out.inc(len(batch))
                self._metrics.relay_messages_out.inc(self._outbox.sent_messages - self._sent_messages)
                self._sent_messages = self._outbox.sent_messages
                await self._stream.write(batch)
            if not await self._stream.finish():
                self.end("closed")
        except LinkEndedError as error:
            self.end(str(error))

    async def _watch(self) -> None:
        """Sends beats; ends the link if the peer sends none, or takes nothing."""
        pulses = 0
        while True:
            if pulses % _PULSES_A_BEAT == 0:
                self._outbox.put_beat(_now_us())
            pulses += 1
            await asyncio.sleep(PULSE_S)
            if not self._waits:
                self._quiet_pulses += 1
            self._full_pulses = self._full_pulses + 1 if self._outbox.is_full else 0
            if self._quiet_pulses >= _QUIET_PULSES_MAX:
                self.end(f"nothing was heard of it for {_QUIET_PULSES_MAX * PULSE_S:g} s")
            if self._full_pulses >= _FULL_PULSES_MAX:
                self.end(f"it read nothing for {_FULL_PULSES_MAX * PULSE_S:g} s")


def _for_version_1(message: Message) -> Message:
    """Nodes of version 1.0 fail on an error code that they do not know, so they are sent one of its kind that they do know."""
    if isinstance(message, Forwarded) and isinstance(message.outcome, chat_pb2.Error):
        code = message.outcome.code
        if code > chat_pb2.ERROR_CODE_RATE_LIMITED or chat_pb2.ERROR_CODE_NOT_FOUND < code < chat_pb2.ERROR_CODE_UNAVAILABLE:
            known = chat_pb2.Error(
                code=chat_pb2.ERROR_CODE_UNAVAILABLE
                if code > chat_pb2.ERROR_CODE_UNAVAILABLE
                else chat_pb2.ERROR_CODE_FORBIDDEN,
                message=message.outcome.message,
                retry_after_ms=message.outcome.retry_after_ms,
            )
            return replace(message, outcome=known)
    return message


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


def _now_us() -> int:
    return time.monotonic_ns() // 1000
