"""Raw HTTP/2: what a peer does that no gRPC library would, and streams opened at a rate that none would reach.

Flow control is kept where a test needs the server to take what it is sent; the answers' headers are not decoded.
"""

import asyncio
import contextlib
import gzip
import math
import struct
from collections.abc import Iterable
from typing import Self

from tests.contract.http2_peer import (
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Http2Peer,
    frame,
    grpc_message,
)
from tests.robustness.bad_input.support_stream import CONNECT, FrameStream

DATA, PRIORITY, PING, WINDOW_UPDATE, CONTINUATION = 0x0, 0x2, 0x6, 0x8, 0x9
ACK = 0x1
CANCEL = struct.pack(">I", 0x8)
INITIAL_WINDOW = 65_535
FRAME_BYTES_MAX = 16_384


def headers(stream: int, path: str = CONNECT, flags: int = END_HEADERS, **more: str) -> bytes:
    """HEADERS of a gRPC call; `more` are further fields, or others for the pseudo-header `method`."""
    fields = {":method": more.pop("method", "POST"), ":scheme": "http", ":path": path, ":authority": "test"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    fields |= {name.replace("_", "-"): value for name, value in more.items()}
    return frame(HEADERS, flags, stream, b"".join(_literal(name, value) for name, value in fields.items() if value))


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    """DATA frames of this content."""
    pieces = [payload[start : start + FRAME_BYTES_MAX] for start in range(0, len(payload), FRAME_BYTES_MAX)]
    return b"".join(frame(DATA, flags, stream, piece) for piece in pieces)


def gzip_bomb(size: int) -> bytes:
    """A compressed gRPC message that becomes this many bytes."""
    return grpc_message(gzip.compress(bytes(size)), compressed=1)


class Sender:
    """One connection that keeps to the server's flow control, so that it can send for long, and grants as much as it reads."""

    def __init__(self, peer: Http2Peer) -> None:
        self.peer = peer
        self.closed = asyncio.Event()
        """The server has closed the connection, or said it will (GOAWAY)."""
        self.ended: set[int] = set()
        """Streams that the server has ended."""
        self.heard: set[int] = set()
        """Streams on which something was received."""
        self.kept: dict[int, bytearray] = {}
        """What came on streams that read for themselves (`RawStream`)."""
        self.owed = 0
        """Bytes of it that were not granted anew."""
        self._windows: dict[int, int] = {}
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, port: int) -> "Sender":
        """Opens a connection, with preface and settings."""
        peer = await Http2Peer.connect(port)
        await peer.start()
        return cls(peer)

    async def send_data(self, stream: int, payload: bytes) -> None:
        """Sends content as flow control allows; gives up when the stream or the connection ends."""
        while payload and not self.is_over(stream):
            size = min(len(payload), self._window(0), self._window(stream), FRAME_BYTES_MAX)
            if size > 0:
                self._windows[0], self._windows[stream] = self._window(0) - size, self._window(stream) - size
                await self.peer.send(frame(DATA, 0, stream, payload[:size]))
                payload = payload[size:]
                continue
            async with self._changed:
                await self._changed.wait()

    async def open(self, stream: int, message: bytes, *, then_reset: bool = False) -> None:
        """Opens a stream and sends a message on it, and perhaps resets it, all in one go. The message must be short."""
        payload = grpc_message(message)
        while self._window(0) < len(payload) and not self.closed.is_set():
            await self.until_changed()
        self._windows[0] = self._window(0) - len(payload)
        resetting = frame(RST_STREAM, 0, stream, CANCEL) if then_reset else b""
        await self.peer.send(headers(stream), frame(DATA, 0, stream, payload), resetting)

    async def until_heard(self, stream: int) -> None:
        """Waits until something was received on the stream, or it is over."""
        async with self._changed:
            await self._changed.wait_for(lambda: stream in self.heard or self.is_over(stream))

    async def reset(self, stream: int) -> None:
        """Resets a stream, and forgets it."""
        self.heard.discard(stream)
        self.ended.discard(stream)
        self._windows.pop(stream, None)
        await self.peer.send(frame(RST_STREAM, 0, stream, CANCEL))

    async def grant(self, stream: int, size: int) -> None:
        """Lets the server send so many bytes more, on the stream and on the connection."""
        await self.peer.send(_window_update(0, size), _window_update(stream, size))

    async def until_changed(self) -> None:
        """Waits for the server's next frame."""
        async with self._changed:
            await self._changed.wait()

    async def until_ended(self, stream: int) -> None:
        """Waits until the server has ended the stream, or the connection."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.is_over(stream))

    def is_over(self, stream: int) -> bool:
        """The server has ended the stream, or the connection."""
        return stream in self.ended or self.closed.is_set()

    async def close(self) -> None:
        """Drops the connection."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self.peer.close()

    def _window(self, stream: int) -> int:
        return self._windows.setdefault(stream, INITIAL_WINDOW)

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                kind, flags, stream, payload = await self.peer.frame()
                async with self._changed:
                    await self._take(kind, flags, stream, payload)
                    self._changed.notify_all()
        self.closed.set()
        async with self._changed:
            self._changed.notify_all()

    async def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._windows[stream] = self._window(stream) + int.from_bytes(payload)
        elif kind == SETTINGS and not flags & ACK:
            await self.peer.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            await self.peer.send(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.closed.set()
        elif kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
            self.ended.add(stream)
        if kind == DATA:
            self.heard.add(stream)
        if kind == DATA and stream in self.kept:
            self.kept[stream] += payload
            self.owed += len(payload)
        elif kind == DATA and payload:
            await self.grant(stream, len(payload))


class RawStream(FrameStream):
    """A session on a connection of its own that reads only when a test does: what is not asked for stays in the server."""

    def __init__(self, sender: Sender, bytes_per_s: float = math.inf) -> None:
        """`bytes_per_s` is the rate at which it lets the server send."""
        super().__init__()
        self.sender = sender
        self._bytes_per_s = bytes_per_s
        sender.kept[1] = bytearray()

    @classmethod
    async def connect(cls, port: int, bytes_per_s: float = math.inf) -> "RawStream":
        """Opens connection and stream."""
        stream = cls(await Sender.connect(port), bytes_per_s)
        await stream.sender.peer.send(headers(1))
        return stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.sender.close()

    async def send(self, *batches: bytes) -> None:
        """See `FrameStream.send`."""
        for batch in batches:
            await self.sender.send_data(1, grpc_message(batch))

    async def receive(self) -> bytes | None:
        """See `FrameStream.receive`."""
        if (prefix := await self._exactly(5)) is None:
            return None
        return await self._exactly(int.from_bytes(prefix[1:]))

    async def _exactly(self, size: int) -> bytes | None:
        sender = self.sender
        kept = sender.kept[1]
        while len(kept) < size:
            if sender.is_over(1):
                return None
            owed, sender.owed = sender.owed, 0
            if owed:
                await asyncio.sleep(owed / self._bytes_per_s)
                await sender.grant(1, owed)
            else:
                await sender.until_changed()
        taken = bytes(kept[:size])
        del kept[:size]
        return taken


def preface(*parts: bytes) -> bytes:
    """A connection that begins as it should, and goes on with these."""
    return b"".join((PREFACE, frame(SETTINGS, 0, 0), *parts))


def streams_from(first: int = 1) -> Iterable[int]:
    """Ids of a client's streams: odd, and rising."""
    return range(first, 2**31, 2)


def _window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


def _literal(name: str, value: str) -> bytes:
    """A field without indexing (RFC 7541 §6.2.2)."""
    return b"\0" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 0x7F:
        return bytes((len(raw),)) + raw
    rest, out = len(raw) - 0x7F, bytearray((0x7F,))
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes((*out, rest)) + raw
