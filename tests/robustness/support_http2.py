"""Raw HTTP/2: what a peer does that no gRPC library would, and streams opened at a rate that none would reach.

Flow control is kept where a test needs the server to take what it is sent; the answers' headers are not decoded.
"""

import asyncio
import contextlib
import gzip
import struct
from collections.abc import Iterable

from tests.contract.http2_peer import (
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Http2Peer,
    frame,
    grpc_message,
)
from tests.robustness.support_stream import CONNECT

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
    """One connection that keeps to the server's flow control and reads all it is sent, so that it can send for long."""

    def __init__(self, peer: Http2Peer) -> None:
        self.peer = peer
        self.closed = asyncio.Event()
        """The server has closed the connection, or said it will (GOAWAY)."""
        self.ended: set[int] = set()
        """Streams that the server has ended."""
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
        while payload and stream not in self.ended and not self.closed.is_set():
            size = min(len(payload), self._window(0), self._window(stream), FRAME_BYTES_MAX)
            if size > 0:
                self._windows[0], self._windows[stream] = self._window(0) - size, self._window(stream) - size
                await self.peer.send(frame(DATA, 0, stream, payload[:size]))
                payload = payload[size:]
                continue
            async with self._changed:
                await self._changed.wait()

    async def until_ended(self, stream: int) -> None:
        """Waits until the server has ended the stream, or the connection."""
        async with self._changed:
            await self._changed.wait_for(lambda: stream in self.ended or self.closed.is_set())

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
        elif kind == RST_STREAM or (kind == HEADERS and flags & 0x1):
            self.ended.add(stream)
        elif kind == DATA and payload:
            grant = struct.pack(">I", len(payload))
            await self.peer.send(frame(WINDOW_UPDATE, 0, 0, grant), frame(WINDOW_UPDATE, 0, stream, grant))


def preface(*parts: bytes) -> bytes:
    """A connection that begins as it should, and goes on with these."""
    return b"".join((PREFACE, frame(SETTINGS, 0, 0), *parts))


def streams_from(first: int = 1) -> Iterable[int]:
    """Ids of a client's streams: odd, and rising."""
    return range(first, 2**31, 2)


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
