"""A peer that speaks just enough HTTP/2 (RFC 9113) over a plain socket to misbehave in ways that no gRPC library would."""

import asyncio
import contextlib
import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x7
END_STREAM, END_HEADERS = 0x1, 0x4

_METHOD = "/chatgrpc.v1.SessionService/Connect"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame (§4.1)."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def grpc_message(payload: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A length-prefixed message; `length` lies about it."""
    return struct.pack(">BI", compressed, len(payload) if length is None else length) + payload


def open_stream(stream: int = 1) -> bytes:
    """HEADERS of a call to the session service; every field a literal without indexing (RFC 7541 §6.2.2)."""
    fields = {":method": "POST", ":scheme": "http", ":path": _METHOD, ":authority": "test"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    block = b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode() for name, value in fields.items()
    )
    return frame(HEADERS, END_HEADERS, stream, block)


class Http2Peer:
    """One connection. Sends what it is told to, and reads only when told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int) -> "Http2Peer":
        """Opens a connection and sends nothing."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, *parts: bytes) -> None:
        """Sends the bytes."""
        self._writer.write(b"".join(parts))
        await self._writer.drain()

    async def start(self) -> None:
        """The preface and empty settings."""
        await self.send(PREFACE, frame(SETTINGS, 0, 0))

    async def frame(self) -> tuple[int, int, int, bytes]:
        """The next frame: kind, flags, stream, payload."""
        head = await self._reader.readexactly(9)
        payload = await self._reader.readexactly(int.from_bytes(head[:3]))
        return head[3], head[4], int.from_bytes(head[5:]), payload

    async def until_closed(self) -> None:
        """Reads until the other side has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65_536):
                pass

    def reset(self) -> None:
        """Ends the connection by a TCP RST."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self) -> None:
        """Ends the connection."""
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
