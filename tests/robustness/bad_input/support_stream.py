"""A stream that sends bytes as they are, whatever they are, and says how the server answered and ended it."""

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import grpc

from chatgrpc.edge.errors import ERROR_DOMAIN, error_info_of
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from tests.support.server import channel

CONNECT = "/chatgrpc.v1.SessionService/Connect"
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stream ended."""

    status: grpc.StatusCode
    reason: str
    """`ErrorInfo.reason`; empty if there was none."""
    disconnect: session_pb2.Disconnect | None
    frames: list[session_pb2.ServerFrame] = field(default_factory=list)
    """All that came, the Disconnect included."""

    def kinds(self) -> list[str]:
        """What came, by kind."""
        return [frame.WhichOneof("body") or "" for frame in self.frames]


class FrameStream:
    """What a stream says and hears, frame by frame; how bytes go is the subclass's."""

    def __init__(self) -> None:
        self._frames: list[session_pb2.ServerFrame] = []
        self._unread: deque[session_pb2.ServerFrame] = deque()

    async def send(self, *batches: bytes) -> None:
        """Sends messages; those after the stream's end are dropped."""
        raise NotImplementedError

    async def receive(self) -> bytes | None:
        """The next message; None at the stream's end."""
        raise NotImplementedError

    async def send_frames(self, *frames: session_pb2.ClientFrame) -> None:
        """Sends frames in one batch."""
        await self.send(batch_of(*frames))

    async def open(self, token: str, device_id: str = "device") -> session_pb2.Welcome:
        """Says Hello (as request 1) and reads up to the Welcome."""
        await self.send_frames(hello(token, device_id))
        return (await self.until("welcome")).welcome

    async def next_frame(self) -> session_pb2.ServerFrame | None:
        """The next frame; None at the stream's end."""
        async with asyncio.timeout(TIMEOUT_S):
            while not self._unread:
                message = await self.receive()
                if message is None:
                    return None
                self._unread.extend(session_pb2.ConnectResponse.FromString(message).frames)
                self._frames += self._unread
        return self._unread.popleft()

    async def until(self, kind: str, request_id: int | None = None) -> session_pb2.ServerFrame:
        """The next frame of this kind, and with this request id if one is given; those before it are passed over."""
        while (frame := await self.next_frame()) is not None:
            if frame.WhichOneof("body") == kind and request_id in {None, frame.request_id}:
                return frame
        raise AssertionError(f"the stream ended before a {kind}: {self._frames[-1:]}")

    async def answer(self, request_id: int) -> session_pb2.ServerFrame:
        """The answer to a request; what was pushed before it is passed over."""
        while (frame := await self.next_frame()) is not None:
            if frame.request_id == request_id:
                return frame
        raise AssertionError(f"the stream ended before an answer to {request_id}: {self._frames[-1:]}")


class BareStream(FrameStream):
    """One call of SessionService.Connect by grpc.aio, on a connection of its own unless given one."""

    def __init__(
        self, address: str, metadata: Sequence[tuple[str, str]] = (), shared_channel: grpc.aio.Channel | None = None
    ) -> None:
        super().__init__()
        self._own_channel = channel(address) if shared_channel is None else None
        opened_on = shared_channel or self._own_channel
        assert opened_on is not None
        self.call: Any = opened_on.stream_stream(CONNECT)(metadata=tuple(metadata))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send(self, *batches: bytes) -> None:
        """See `FrameStream.send`."""
        for batch in batches:
            try:
                await self.call.write(batch)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
                return

    async def receive(self) -> bytes | None:
        """See `FrameStream.receive`."""
        try:
            message = await self.call.read()
        except grpc.aio.AioRpcError:
            return None
        return None if message is grpc.aio.EOF else bytes(message)

    async def outcome(self) -> Outcome:
        """Reads to the end, which the server must make."""
        while await self.next_frame() is not None:
            pass
        async with asyncio.timeout(TIMEOUT_S):
            info = error_info_of(await self.call.trailing_metadata())
            status = await self.call.code()
        assert info is None or info.domain == ERROR_DOMAIN
        last = self._frames[-1] if self._frames else session_pb2.ServerFrame()
        disconnect = last.disconnect if last.HasField("disconnect") else None
        return Outcome(status, info.reason if info is not None else "", disconnect, self._frames)

    async def close(self) -> None:
        """Drops the stream without a word."""
        self.call.cancel()
        if self._own_channel is not None:
            await self._own_channel.close()


def batch_of(*frames: session_pb2.ClientFrame) -> bytes:
    """A serialized ConnectRequest."""
    return session_pb2.ConnectRequest(frames=frames).SerializeToString()


def hello(token: str, device_id: str = "device", request_id: int = 1, **fields: Any) -> session_pb2.ClientFrame:
    """A Hello."""
    return session_pb2.ClientFrame(request_id=request_id, hello=session_pb2.Hello(device_id=device_id, token=token, **fields))


def send(
    to: str, text: str, request_id: int = 0, seen_seq: int = 0, client_message_id: bytes | None = None
) -> session_pb2.ClientFrame:
    """A text, to a chat id (`d.…`, `g.…`, `s.…`) or a user id."""
    message = session_pb2.SendMessage(content=content_pb2.Content(text=content_pb2.TextContent(text=text)))
    message.key.CopyFrom(chat_pb2.WriteKey(client_message_id=client_message_id or os.urandom(16), seen_seq=seen_seq))
    if to[1:2] == ".":
        message.chat_id = to
    else:
        message.user_id = to
    return session_pb2.ClientFrame(request_id=request_id, send=message)


def fetch(chat_id: str, request_id: int = 0) -> session_pb2.ClientFrame:
    """Asks for the newest page."""
    return session_pb2.ClientFrame(request_id=request_id, fetch_history=session_pb2.FetchHistory(chat_id=chat_id, limit=100))


def heartbeat(request_id: int = 0) -> session_pb2.ClientFrame:
    """A Heartbeat."""
    return session_pb2.ClientFrame(request_id=request_id, heartbeat=session_pb2.Heartbeat())
