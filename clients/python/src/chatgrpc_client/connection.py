"""One stream over grpc.aio: moves frames between the wire and a `Session`, and tells it the time."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Protocol

import grpc
import grpc.aio

from chatgrpc.grpc_calls import end_call
from chatgrpc.v1 import session_pb2, session_pb2_grpc

from .effects import Ending, Next, Received
from .outbox import OutboxEntry
from .protocol import Session
from .store import QueuedMessage

CLOSE_TIMEOUT_S = 1.0
FRAME_OVERHEAD_BYTES = 8
DEFAULT_FRAMES_PER_BATCH_MAX = 256
DEFAULT_BATCH_BYTES_MAX = 512 * 1024

Stream = grpc.aio.StreamStreamCall[session_pb2.ConnectRequest, session_pb2.ConnectResponse]


class Owner(Protocol):
    """Whose session it is: keeps what arrives and holds what is to be sent."""

    def on_received(self, received: Received) -> Coroutine[Any, Any, Ending | None]:
        """Stores what a batch brought; returns an ending if the session must end because of it."""
        ...

    async def contents(self, entries: Iterable[OutboxEntry]) -> Mapping[bytes, QueuedMessage]:
        """Reads messages of the outbox, by client message id."""
        ...

    async def token(self) -> str:
        """A token that is valid now; raises ChatError if none can be had."""
        ...


class Connection:
    """Runs one session on one stream."""

    def __init__(
        self,
        session: Session,
        owner: Owner,
        explain: Callable[[grpc.aio.AioRpcError], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`explain` says why the call failed, for people."""
        self._session = session
        self._owner = owner
        self._explain = explain
        self._clock = clock
        self._wake_writer = asyncio.Event()
        self._wake_watch = asyncio.Event()
        self._refresh: asyncio.Task[None] | None = None
        self._taking: asyncio.Task[Ending | None] | None = None
        self._failure: BaseException | None = None
        self._closing = False

    def wake(self) -> None:
        """The session has something to write, or its deadlines changed."""
        self._wake_writer.set()
        self._wake_watch.set()

    def close(self) -> None:
        """Ends the session in an orderly way: `run` flushes the acknowledgements and returns."""
        self._closing = True
        self.wake()

    def fail(self, failure: BaseException) -> None:
        """Something that the session cannot do without failed: `run` raises this, unless it ends first."""
        self._failure = self._failure or failure
        self.wake()

    async def run(self, stub: "session_pb2_grpc.SessionServiceAsyncStub", token: str) -> Ending:
        """Opens the stream and stays until the session ends; returns why it did.

        Raises:
            ChatError: its owner could not store or read what had to be, or `fail` said so.
        """
        call: Stream = stub.Connect(metadata=(("authorization", f"Bearer {token}"),))
        reader = asyncio.create_task(self._read(call))
        writer = asyncio.create_task(self._write(call))
        watch = asyncio.create_task(self._watch())
        try:
            ending = await self._until_over(call, reader, writer, watch)
        finally:
            if self._taking is not None:
                await asyncio.wait({self._taking})
            self._session.end()
            end_call(call)
            tasks = [task for task in (reader, writer, watch, self._refresh) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._taking is not None:
            self._taking.result()  # raises, if the last of what came could not be stored
        return ending

    async def _until_over(
        self, call: Stream, reader: "asyncio.Task[Ending]", writer: "asyncio.Task[None]", watch: "asyncio.Task[Ending]"
    ) -> Ending:
        await asyncio.wait({reader, watch}, return_when=asyncio.FIRST_COMPLETED)
        if reader.done():
            return await reader
        ending = await watch
        self._closing = True
        self.wake()
        await self._finish(call, reader, writer)
        return ending

    async def _read(self, call: Stream) -> Ending:
        while True:
            try:
                response = await call.read()
            except grpc.aio.AioRpcError as error:
                return self._failed(error)
            except grpc.aio.BaseError as error:
                return Ending(Next.BACK_OFF, f"the call failed: {type(error).__name__}")
            if not isinstance(response, session_pb2.ConnectResponse):
                return Ending(Next.BACK_OFF, "the server ended the stream without saying why")
            received = self._session.receive(response.frames, self._clock())
            # A task of its own: what was taken off the wire is stored and told, also if the session ends meanwhile.
            self._taking = asyncio.create_task(self._owner.on_received(received))
            ending = await asyncio.shield(self._taking)
            if received.ending is not None or ending is not None:
                return received.ending or ending or Ending(Next.BACK_OFF, "")
            self.wake()

    async def _watch(self) -> Ending:
        """Waits until time ends the session, or `close` does. Apart from writing, which a dead peer can hold up."""
        while not self._closing:
            if self._failure is not None:
                raise self._failure
            ending = self._session.check(self._clock())
            if ending is not None:
                return ending
            await self._sleep(self._wake_watch, self._session.check_at_s())
        return Ending(Next.RECONNECT, "the client is closed")

    async def _write(self, call: Stream) -> None:
        """Writes what there is to write, until the stream takes no more or is being closed."""
        try:
            while not self._closing:
                now_s = self._clock()
                self._refresh_token_if_due(now_s)
                taken = self._session.take(now_s)
                frames = taken.frames
                if taken.sends:
                    frames = frames + await self._send_frames(taken.sends)
                for batch in self._batches(frames):
                    await call.write(batch)
                if not frames:
                    await self._sleep(self._wake_writer, self._session.take_at_s(now_s))
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            return  # the stream is over, and the reader learns why
        except Exception as error:
            self.fail(error)  # a session that sends no more must not look as if it went on

    async def _send_frames(self, sends: list[tuple[int, OutboxEntry]]) -> list[session_pb2.ClientFrame]:
        messages = await self._owner.contents(entry for _, entry in sends)
        frames = []
        for request_id, entry in sends:
            message = messages.get(entry.client_message_id)
            if message is None:
                self._session.withdraw(request_id)  # settled by its event since it was taken
                continue
            send = session_pb2.SendMessage(content=message.content)
            if message.to_user_id:
                send.user_id = message.to_user_id
            else:
                send.chat_id = message.chat_id
            send.key.client_message_id = entry.client_message_id
            send.key.seen_seq = entry.seen_seq or 0
            frames.append(session_pb2.ClientFrame(request_id=request_id, send=send))
        return frames

    def _batches(self, frames: list[session_pb2.ClientFrame]) -> Iterator[session_pb2.ConnectRequest]:
        """Packs frames into batches within the limits of the server."""
        limits = self._session.limits
        frames_max = limits.frames_per_batch_max or DEFAULT_FRAMES_PER_BATCH_MAX
        bytes_max = limits.batch_bytes_max or DEFAULT_BATCH_BYTES_MAX
        batch, batch_bytes = session_pb2.ConnectRequest(), 0
        for frame in frames:
            frame_bytes = frame.ByteSize() + FRAME_OVERHEAD_BYTES
            if batch.frames and (len(batch.frames) >= frames_max or batch_bytes + frame_bytes > bytes_max):
                yield batch
                batch, batch_bytes = session_pb2.ConnectRequest(), 0
            batch.frames.append(frame)
            batch_bytes += frame_bytes
        if batch.frames:
            yield batch

    async def _sleep(self, wake: asyncio.Event, until_s: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, until_s - self._clock())):
                await wake.wait()
        except TimeoutError:
            pass
        wake.clear()

    def _refresh_token_if_due(self, now_s: float) -> None:
        if self._session.token_due(now_s) and (self._refresh is None or self._refresh.done()):
            self._refresh = asyncio.create_task(self._refresh_token())

    async def _refresh_token(self) -> None:
        try:
            self._session.refresh_token(await self._owner.token())
        except Exception:  # the provider is the user's code; the session goes on with the token it has
            self._session.token_failed(self._clock())
        self.wake()

    async def _finish(self, call: Stream, reader: "asyncio.Task[Ending]", writer: "asyncio.Task[None]") -> None:
        """Half-closes after the last acknowledgements, and gives the server a moment to take them."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.wait({writer})
                for batch in self._batches(self._session.take_acks()):
                    await call.write(batch)
                await call.done_writing()
                await asyncio.wait({reader})
        except (TimeoutError, grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            return  # a call that never reached a server fails here too, and in another way

    def _failed(self, error: grpc.aio.AioRpcError) -> Ending:
        message = self._explain(error)
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return Ending(Next.STOP, message, session_pb2.DISCONNECT_CODE_UNAUTHENTICATED)
        return Ending(Next.BACK_OFF, message)
