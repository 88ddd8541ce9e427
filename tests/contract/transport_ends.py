"""Both ends of a transport under test: the edge that stands above it, and the peers at the other end of the wire."""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import pytest

from chatgrpc.edge.transport import StreamId, StreamOpened, StreamStatus, Transport
from tests.contract.http2_peer import DATA, RST_STREAM, Http2Peer, frame, grpc_message, open_stream

INBOX_BYTES_MAX = 64 * 1024
CLOSE_TIMEOUT_S = 0.3
MESSAGE_BYTES_MAX = 1024 * 1024
"""Longest message that the transport under test accepts from a peer."""

WAIT_S = 20.0
STALL_S = 0.5
"""A write that takes longer than this has been stopped by flow control. Too short, a test fails though nothing is wrong."""

PEER_WINDOW_BYTES_MAX = 512 * 1024
"""More than flow control of the kernel and HTTP/2 takes in before a peer that writes is stopped."""

Connect: TypeAlias = Callable[[], Awaitable[Http2Peer]]

OK = StreamStatus("OK", "", "")
REFUSED = StreamStatus("UNAUTHENTICATED", "TOKEN_EXPIRED", "The token has expired. Get a new one.")

Call: TypeAlias = grpc.aio.StreamStreamCall[bytes, bytes]


@dataclass
class Served:
    """A transport that is being served on a port of the loopback address."""

    transport: Transport
    port: int


class Edge:
    """The other user of the contract: drains, checks what it is told, and keeps it."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.opened: dict[StreamId, StreamOpened] = {}
        self.received: dict[StreamId, list[bytes]] = defaultdict(list)
        self.writable: Counter[StreamId] = Counter()
        self.closed: set[StreamId] = set()
        self.finished: set[StreamId] = set()
        self._woken = asyncio.Event()
        transport.on_input(self._wake_up)

    def _wake_up(self) -> None:
        assert not self._woken.is_set(), "woken twice between two drains"
        self._woken.set()

    @property
    def is_woken(self) -> bool:
        """Whether the transport has something to drain."""
        return self._woken.is_set()

    def drain(self) -> None:
        """Takes all that happened, and checks the order in which it is reported."""
        self._woken.clear()
        inbound = self.transport.drain()
        for opened in inbound.opened:
            assert opened.stream not in self.opened, "a stream was opened twice, or its name used again"
            self.opened[opened.stream] = opened
        seen = [stream for stream, _ in inbound.received]
        assert len(seen) == len(set(seen)), "a stream stands twice in what was received"
        for stream, messages in inbound.received:
            assert messages, "a stream stands in what was received without a message"
            assert stream in self.opened, "received before it was opened"
            assert stream not in self.closed, "received after it was closed"
            self.received[stream] += messages
        for stream in inbound.writable:
            assert stream in self.opened, "writable before it was opened"
            assert stream not in self.closed, "writable after it was closed"
            self.writable[stream] += 1
        for stream in inbound.finished:
            assert stream in self.opened, "finished before it was opened"
            assert stream not in self.closed | self.finished, "finished twice, or after it was closed"
            self.finished.add(stream)
            self.transport.close(stream, StreamStatus("OK", "", ""))
        for stream in inbound.closed:
            assert stream in self.opened, "closed before it was opened"
            assert stream not in self.closed, "closed twice"
            self.closed.add(stream)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Drains when woken until the condition holds."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.transport.wake_when_writable()
                await self._woken.wait()
                self.drain()

    async def drains_until_done(self, writing: asyncio.Task[None]) -> None:
        """Drains until a write that flow control had stopped has gone."""
        async with asyncio.timeout(WAIT_S):
            while not writing.done():
                self.transport.wake_when_writable()
                woken = asyncio.create_task(self._woken.wait())
                await asyncio.wait([writing, woken], return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                if self._woken.is_set():
                    self.drain()
        await writing

    async def opens(self) -> StreamId:
        """Waits for one more stream."""
        before = len(self.opened)
        await self.until(lambda: len(self.opened) > before)
        return list(self.opened)[before]

    async def receives(self, stream: StreamId, number: int) -> list[bytes]:
        """Waits until so many messages have been received from the stream."""
        await self.until(lambda: len(self.received[stream]) >= number)
        return self.received[stream]

    async def closes(self, *streams: StreamId) -> None:
        """Waits until the streams are closed."""
        await self.until(lambda: self.closed.issuperset(streams))

    async def writes(self, stream: StreamId, message: bytes) -> None:
        """Writes a message and waits until the stream is writable again."""
        before = self.writable[stream]
        self.transport.write([(stream, message)])
        await self.until(lambda: self.writable[stream] > before)


class Peer:
    """A device's connection to the transport."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._connect: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/chatgrpc.v1.SessionService/Connect"
        )

    def connect(
        self, token: str | None = None, *, compression: grpc.Compression | None = None, timeout_s: float | None = None
    ) -> Call:
        """Opens a stream, whose messages may be compressed, and which may last for so long."""
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        return self._connect(metadata=metadata, compression=compression, timeout=timeout_s)


async def read(call: Call) -> bytes:
    """The next message of the stream."""
    async with asyncio.timeout(WAIT_S):
        message = await call.read()
    assert isinstance(message, bytes), "the stream has ended"
    return message


async def read_to_end(call: Call) -> list[bytes]:
    """All messages up to the end of the stream."""
    messages = []
    with contextlib.suppress(grpc.aio.AioRpcError):  # how it ended is asked of the call
        async with asyncio.timeout(WAIT_S):
            while isinstance(message := await call.read(), bytes):
                messages.append(message)
    return messages


async def code_of(call: Call) -> grpc.StatusCode:
    """How the stream ended."""
    async with asyncio.timeout(WAIT_S):
        return await call.code()


async def write_until_stalled(call: Call, message: bytes, bytes_max: int) -> tuple[int, asyncio.Task[None]]:
    """Writes the message again and again until flow control stops it; gives the number that went and the one that waits."""
    for number in range(bytes_max // len(message)):
        writing = asyncio.ensure_future(call.write(message))
        done, _ = await asyncio.wait([writing], timeout=STALL_S)
        if not done:
            return number, writing
        await writing
    pytest.fail(f"the peer could write {bytes_max} bytes that nobody had read")


async def come_and_go(edge: Edge, connect: Connect, connections: int, streams: int) -> None:
    """Opens streams and drops them, half of them one by one, the other half by breaking the connection."""
    for _ in range(connections):
        connection = await connect()
        await connection.start()
        before = len(edge.opened)
        for name in range(1, 2 * streams, 2):
            await connection.send(open_stream(name), frame(DATA, 0, name, grpc_message(b"hello")))
            if name % 4 == 1:
                await connection.send(frame(RST_STREAM, 0, name, (8).to_bytes(4)))
        await edge.until(lambda before=before: len(edge.opened) - before >= streams // 2)  # type: ignore[misc]
        connection.reset()
    await edge.until(lambda: edge.closed == edge.opened.keys())
