"""A device that speaks the protocol frame by frame, and checks at every frame what the protocol promises.

It is not the client library: it has no outbox, no store and no retries of its own, so a test decides what happens when.
"""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from chatgrpc.core.fold import apply_event
from chatgrpc.core.ids import direct_chat_id, is_chat_id
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from tests.support.server import channel

TIMEOUT_S = 20.0
_ACK_WAIT_S = 1.0
_NOT_ANSWERED = frozenset({"ack", "mark_read", "typing", "watch_chats"})


class ProtocolError(AssertionError):
    """The server broke a promise."""


class DisconnectedError(Exception):
    """The stream ended; `disconnect` is the last frame, if there was one."""

    def __init__(self, disconnect: session_pb2.Disconnect | None, status: grpc.StatusCode | None = None) -> None:
        super().__init__(f"{disconnect} {status}")
        self.disconnect = disconnect
        self.status = status


@dataclass
class Held:
    """What a device holds, and would keep on disk: it outlives its streams."""

    events: dict[str, dict[int, chat_pb2.ChatEvent]] = field(default_factory=dict)
    cursors: dict[str, int] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    """How far the user has read on this device."""
    chats: dict[str, chat_pb2.Chat] = field(default_factory=dict)
    """Each chat as the server told of it, and as the events since have made of it."""
    receipts: dict[tuple[str, str], chat_pb2.Receipt] = field(default_factory=dict)
    """Marks by chat and user."""
    sync_token: str = ""

    def texts(self, chat_id: str) -> list[str]:
        """Texts of a chat's messages, in order of seq."""
        return [
            event.content.text.text
            for _, event in sorted(self.events.get(chat_id, {}).items())
            if event.content.HasField("text")
        ]


class Device:
    """One device of one user; `connect` as often as you like."""

    def __init__(self, address: str, token: str, device_id: str, held: Held | None = None) -> None:
        self.held = held or Held()
        self.device_id = device_id
        self.user_id = ""
        self.frames: asyncio.Queue[session_pb2.ServerFrame] = asyncio.Queue()
        """Every frame but events and heartbeats, in order."""
        self.heartbeats: list[session_pb2.Heartbeat] = []
        """Those that the server sent of its own accord."""
        self.endings: list[DisconnectedError] = []
        """How each of its streams ended."""
        self.failure: BaseException | None = None
        """What ended a stream that the device itself could not bear, such as a broken promise."""
        self.auto_ack = True
        self.on_event: Callable[[chat_pb2.ChatEvent], None] = lambda event: None
        self.address = address
        """Where the next `connect` goes."""
        self.next_address: Callable[[], str] | None = None
        """If there is one, each `connect` goes where it says."""
        self.heard_at_s = 0.0
        """When the server last said something, by the monotonic clock."""
        self.token = token
        self.name = ""
        self._request_ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[session_pb2.ServerFrame]] = {}
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()  # grpc.aio takes one write at a time
        self._acknowledging: set[asyncio.Task[None]] = set()
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._ended: DisconnectedError | None = None
        self._synced = False
        self._may_read = asyncio.Event()
        self._may_read.set()
        self.ephemeral = False
        self.connection_number = 0
        """What the next Hello says; 0 = nothing, as a device that does not know of it."""

    @property
    def is_open(self) -> bool:
        """There is a stream, as far as the device knows."""
        return self._channel is not None and self._ended is None

    @property
    def receipts(self) -> dict[tuple[str, str], chat_pb2.Receipt]:
        """The marks that the device holds, by chat and user."""
        return self.held.receipts

    async def __aenter__(self) -> "Device":
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # The stream.

    async def connect(self, start_at: session_pb2.StartAt.ValueType = session_pb2.START_AT_UNSPECIFIED) -> session_pb2.Welcome:
        """Opens a stream with the cursors held; returns the Welcome.

        Raises:
            DisconnectedError: the server does not let the device in.
        """
        await self.close()
        self.address = self.next_address() if self.next_address is not None else self.address
        self._ended = None
        self._synced = False
        self._request_ids = itertools.count(1)
        self._channel = channel(self.address)
        connect = self._channel.stream_stream(
            "/chatgrpc.v1.SessionService/Connect",
            request_serializer=session_pb2.ConnectRequest.SerializeToString,
            response_deserializer=session_pb2.ConnectResponse.FromString,
        )
        self._call = connect()
        self._reader = asyncio.create_task(self._read())
        hello = session_pb2.Hello(
            device_id=self.device_id,
            device_name=self.name,
            token=self.token,
            positions=[
                session_pb2.ChatPosition(chat_id=chat_id, seq=seq, read_seq=self.held.read.get(chat_id, 0))
                for chat_id, seq in self.held.cursors.items()
            ],
            start_at=start_at,
            sync_token=self.held.sync_token,
            connection_number=self.connection_number,
            ephemeral=self.ephemeral,
        )
        answer = await self.request(session_pb2.ClientFrame(hello=hello))
        self.user_id = answer.welcome.user_id
        return answer.welcome

    async def close(self) -> None:
        """Drops the stream, without a word."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def stop_reading(self) -> None:
        """Leaves what comes unread, so that it piles up on the way and at last in the server; until `read_on`."""
        self._may_read.clear()

    def read_on(self) -> None:
        """Reads again."""
        self._may_read.set()

    async def write(self, *frames: session_pb2.ClientFrame) -> None:
        """Sends frames in one batch."""
        call = self._call
        try:
            async with self._writing:
                await call.write(session_pb2.ConnectRequest(frames=frames))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            if self._call is not call:
                raise DisconnectedError(None) from error  # another task has connected anew meanwhile
            if self._may_read.is_set():
                await self.until_ended()  # the server may have said why
            raise self._ended or DisconnectedError(None) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise DisconnectedError(None) from error  # so grpc.aio says that another task has closed the stream

    async def request(self, frame: session_pb2.ClientFrame) -> session_pb2.ServerFrame:
        """Sends a request; returns its answer."""
        return await (await self.post(frame))

    async def post(self, frame: session_pb2.ClientFrame) -> "asyncio.Future[session_pb2.ServerFrame]":
        """Sends a request; returns what its answer will be."""
        (answer,) = await self.post_together([frame])
        return answer

    async def post_together(self, frames: Iterable[session_pb2.ClientFrame]) -> "list[asyncio.Future[session_pb2.ServerFrame]]":
        """Sends frames in one batch, those that may be answered as requests; returns what their answers will be."""
        numbered, answers = [], []
        for original in frames:
            frame = session_pb2.ClientFrame()
            frame.CopyFrom(original)
            numbered.append(frame)
            if frame.WhichOneof("body") not in _NOT_ANSWERED:
                frame.request_id = next(self._request_ids)
                answer = self._answers[frame.request_id] = asyncio.get_running_loop().create_future()
                answers.append(answer)
        await self.write(*numbered)
        return answers

    # What people do.

    def compose(self, to: str, text: str, client_message_id: bytes | None = None) -> session_pb2.ClientFrame:
        """A text message to a chat id, or to a user id; send it again as it is for a repetition."""
        send = session_pb2.SendMessage(content=content_pb2.Content(text=content_pb2.TextContent(text=text)))
        send.key.client_message_id = client_message_id or os.urandom(16)
        chat_id = to if is_chat_id(to) else direct_chat_id(self.user_id, to)
        send.key.seen_seq = self.held.cursors.get(chat_id, 0)
        if is_chat_id(to):
            send.chat_id = to
        else:
            send.user_id = to
        return session_pb2.ClientFrame(send=send)

    async def send(self, to: str, text: str) -> chat_pb2.SendResult:
        """Sends a text; returns when it is committed."""
        answer = await self.request(self.compose(to, text))
        if not answer.HasField("sent"):
            raise AssertionError(f"not sent: {answer.error}")
        return answer.sent

    async def send_content(self, chat_id: str, content: content_pb2.Content) -> session_pb2.ServerFrame:
        """Sends any content; returns the answer, SendResult or Error."""
        return await self.request(self.compose_content(chat_id, content))

    def compose_content(self, chat_id: str, content: content_pb2.Content) -> session_pb2.ClientFrame:
        """Any content to a chat; send it again as it is for a repetition."""
        key = chat_pb2.WriteKey(client_message_id=os.urandom(16), seen_seq=self.held.cursors.get(chat_id, 0))
        return session_pb2.ClientFrame(send=session_pb2.SendMessage(chat_id=chat_id, key=key, content=content))

    async def ack(self, chat_id: str, seq: int) -> None:
        """Acknowledges a chat up to `seq`; for devices without `auto_ack`."""
        await self.write(session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id=chat_id, seq=seq)))

    async def mark_read(self, chat_id: str, seq: int) -> None:
        """Says that the user has read up to `seq`."""
        self.held.read[chat_id] = max(self.held.read.get(chat_id, 0), seq)
        await self.write(session_pb2.ClientFrame(mark_read=session_pb2.MarkRead(chat_id=chat_id, seq=seq)))

    async def typing(self, chat_id: str, kind: session_pb2.TypingKind.ValueType = session_pb2.TYPING_KIND_TEXT) -> None:
        """Says that the user is typing."""
        await self.write(session_pb2.ClientFrame(typing=session_pb2.Typing(chat_id=chat_id, kind=kind)))

    async def watch(self, *chat_ids: str, user_ids: Sequence[str] = ()) -> None:
        """Says which chats are on the screen, and with whom a direct chat is."""
        watch = session_pb2.WatchChats(chat_ids=chat_ids, user_ids=user_ids)
        await self.write(session_pb2.ClientFrame(watch_chats=watch))

    async def heartbeat(self) -> session_pb2.Heartbeat:
        """Asks for a heartbeat; when it is there, the server has taken every frame sent before.

        But a mark in a chat that the device does not hold yet may wait until the server has looked the chat up.
        """
        return (await self.request(session_pb2.ClientFrame(heartbeat=session_pb2.Heartbeat()))).heartbeat

    async def history(self, request: session_pb2.FetchHistory) -> session_pb2.ServerFrame:
        """Asks for a page; returns the answer, HistoryPage or Error."""
        return await self.request(session_pb2.ClientFrame(fetch_history=request))

    async def refresh(self, token: str) -> session_pb2.ServerFrame:
        """Hands over a newer token; returns the answer, TokenRefreshed or Error."""
        return await self.request(session_pb2.ClientFrame(refresh_token=session_pb2.RefreshToken(token=token)))

    def taken(self) -> list[session_pb2.ServerFrame]:
        """Takes out of `frames` what is there."""
        return [self.frames.get_nowait() for _ in range(self.frames.qsize())]

    async def until(self, condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Waits until something is true of what the device has received.

        Raises:
            DisconnectedError: the stream ended before.
            TimeoutError: it did not become true in time.
        """
        async with asyncio.timeout(timeout_s), self._changed:
            while not condition():
                if self._ended is not None:
                    raise self._ended
                await self._changed.wait()

    async def until_held(self, chat_id: str, seq: int, timeout_s: float = TIMEOUT_S) -> None:
        """Waits until the device holds the chat up to `seq`."""
        await self.until(lambda: self.held.cursors.get(chat_id, 0) >= seq, timeout_s)

    async def synced(self) -> None:
        """Waits for the SyncComplete of this stream, for as long as anything comes before it."""
        while not self._synced:
            heard_at_s = self.heard_at_s
            try:
                await self.until(lambda: self._synced)
            except TimeoutError:
                if self.heard_at_s == heard_at_s:
                    raise

    async def until_ended(self, timeout_s: float = TIMEOUT_S) -> DisconnectedError:
        """Waits for the stream's end; returns how it ended."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: self._ended is not None)
        assert self._ended is not None
        return self._ended

    # Frames.

    async def _read(self) -> None:
        last: session_pb2.Disconnect | None = None
        try:
            async for response in self._call:
                self.heard_at_s = time.monotonic()
                acks: dict[str, int] = {}
                for frame in response.frames:
                    if last is not None:
                        raise ProtocolError("a frame after the Disconnect")
                    last = self._take(frame, acks)
                if acks and self.auto_ack:
                    # Not for ever: what is being written may wait until the server reads on, and that until what comes is read.
                    acknowledging = asyncio.create_task(self._acknowledge(acks))
                    self._acknowledging.add(acknowledging)
                    acknowledging.add_done_callback(self._acknowledging.discard)
                    await asyncio.wait({acknowledging}, timeout=_ACK_WAIT_S)
                await self._notify()
                await self._may_read.wait()
            ended = DisconnectedError(last, await self._call.code())
        except grpc.aio.AioRpcError as error:
            ended = DisconnectedError(last, error.code())
        except asyncio.CancelledError:
            ended = DisconnectedError(None)
            raise
        except BaseException as error:
            ended = DisconnectedError(None)
            ended.__cause__ = self.failure = error
            raise
        finally:
            self._ended = ended
            self.endings.append(ended)
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(ended)
                    future.exception()  # nobody may be waiting for it any more
            self._answers.clear()
            await self._notify()

    async def _acknowledge(self, acks: dict[str, int]) -> None:
        frames = [session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id=chat_id, seq=seq)) for chat_id, seq in acks.items()]
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # what is unread tells why it ended
            async with self._writing:
                await self._call.write(session_pb2.ConnectRequest(frames=frames))

    def _take(self, frame: session_pb2.ServerFrame, acks: dict[str, int]) -> session_pb2.Disconnect | None:
        kind = frame.WhichOneof("body")
        if kind == "event":
            self._take_event(frame.event)
            acks[frame.event.chat_id] = frame.event.seq
            return None
        if kind == "receipt":
            self._take_receipt(frame.receipt)
        elif kind == "chat_opened":
            opened = frame.chat_opened
            self.held.chats[opened.chat.chat_id] = opened.chat
            self.held.cursors[opened.chat.chat_id] = opened.next_seq - 1
        elif kind == "sync_complete":
            self.held.sync_token = frame.sync_complete.sync_token
            self._synced = True
        if kind != "heartbeat":
            self.frames.put_nowait(frame)
        elif not frame.request_id:
            self.heartbeats.append(frame.heartbeat)
        if frame.request_id:
            answer = self._answers.pop(frame.request_id)
            if not answer.done():  # nobody may be waiting for it any more
                answer.set_result(frame)
        return frame.disconnect if kind == "disconnect" else None

    def _take_event(self, event: chat_pb2.ChatEvent) -> None:
        expected = self.held.cursors.get(event.chat_id, 0) + 1
        if event.seq != expected:
            raise ProtocolError(f"{self.device_id}: {event.chat_id} {event.seq} came where {expected} is next")
        self.held.cursors[event.chat_id] = event.seq
        self.held.events.setdefault(event.chat_id, {})[event.seq] = event
        apply_event(self.held.chats.setdefault(event.chat_id, chat_pb2.Chat(chat_id=event.chat_id)), event)
        self.on_event(event)

    def _take_receipt(self, receipt: chat_pb2.Receipt) -> None:
        known = self.held.receipts.setdefault((receipt.chat_id, receipt.user_id), receipt)
        known.delivered_seq = max(known.delivered_seq, receipt.delivered_seq)
        known.read_seq = max(known.read_seq, receipt.read_seq)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def next_frame(device: Device, kind: str, timeout_s: float = TIMEOUT_S) -> session_pb2.ServerFrame:
    """The next frame of this kind; those before it are dropped."""
    async with asyncio.timeout(timeout_s):
        async for frame in _frames(device):
            if frame.WhichOneof("body") == kind:
                return frame
    raise AssertionError("unreachable")


async def _frames(device: Device) -> AsyncIterator[session_pb2.ServerFrame]:
    while True:
        yield await device.frames.get()
