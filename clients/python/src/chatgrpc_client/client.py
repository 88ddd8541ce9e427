"""The public face of a device: send, receive, look back.

```python
async with Client(ClientConfig(address="127.0.0.1:15551", user_id="alice", data_dir=Path("alice")), token) as client:
    outgoing = await client.send("hello", user_id="bob")   # on disk: it goes out, whatever happens
    result = await outgoing.sent                           # committed, at result.seq
    async for event in client.events():
        ...
```
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from chatgrpc.core.ids import direct_chat_id, self_chat_id
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2

from .config import ClientConfig, TokenProvider
from .datadir import DataDir, new_device_id
from .engine import Engine, retrieve
from .events import ConnectionChanged, ConnectionState, LogEvent
from .exceptions import ClientClosedError, DataDirError, OutboxFullError, RequestTimeoutError, TooLargeError
from .feed import EventStream
from .node_channel import NodeChannel
from .one_by_one import Outcome, send_one_by_one
from .store import ChatState, HistoryPage, QueuedMessage, Store, now_ms
from .to_its_end import to_its_end
from .unary import Caller, Devices, Groups, Profiles
from .wording import messages

CONTENT_BYTES_MAX = 512 * 1024
"""Larger content would not fit into a batch; the server's limit of a text is lower."""
HISTORY_REQUESTS_MAX = 2
_FORWARD_COUNT_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that is on disk and on its way."""

    client_message_id: bytes
    chat_id: str
    _future: "asyncio.Future[chat_pb2.SendResult]" = field(repr=False)

    @property
    def sent(self) -> "asyncio.Future[chat_pb2.SendResult]":
        """Awaitable: the result when the message is committed. Each call makes one that may be cancelled, or dropped.

        Raises:
            RequestError: the server refused it for ever; it is marked as failed.
            SessionStoppedError, ClientClosedError: the client stopped first; the message waits in the outbox.
        """
        awaitable = asyncio.shield(self._future)
        awaitable.add_done_callback(retrieve)  # who drops it learns of a refusal by `MessageFailed`; asyncio must not complain
        return awaitable

    @property
    def settled(self) -> bool:
        """Whether it is known what became of the message, as far as this client will learn it."""
        return self._future.done()


class Client:
    """One device of one user. Use as an async context manager; methods other than the constructor need it to be open."""

    def __init__(self, config: ClientConfig, token_provider: TokenProvider) -> None:
        self.config = config
        self._token = token_provider
        self._data_dir: DataDir | None = None
        self._node: NodeChannel | None = None
        self._engine_or_none: Engine | None = None
        self._history_requests = asyncio.Semaphore(HISTORY_REQUESTS_MAX)

    # --- life

    async def __aenter__(self) -> Self:
        """Opens the device's folder and begins to connect; does not wait for the server.

        Raises:
            DataDirLockedError: another process uses the folder.
            WrongUserError: the folder is another user's.
            DataDirError: the folder cannot be used.
            CertificatesError: the file of trusted certificates cannot be used.
        """
        config = self.config
        data_dir = DataDir(config.data_dir)
        try:
            store = await to_its_end(asyncio.to_thread(_open_store, config, data_dir), Store.close)
            try:
                node = NodeChannel(config)
            except BaseException:
                store.close()
                raise
        except BaseException:
            data_dir.close()
            raise
        engine = Engine(config, self._token, store, node)
        caller = self._caller = Caller(node, config, self._token)
        self.device_id = store.device_id
        self.groups = Groups(caller, engine.cursors.get, engine.own_write)
        self.devices = Devices(caller)
        self.profiles = Profiles(caller)
        self._data_dir, self._node, self._engine_or_none = data_dir, node, engine
        try:
            await engine.open()
        except BaseException:  # a disk that fails now: whoever tries again must find the folder unlocked
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Acknowledges what is stored, ends the session, and lets others use the folder. What waits stays in the outbox.

        Within seconds, and to its end also if whoever closes is cancelled meanwhile.
        """
        await to_its_end(self._close())

    async def _close(self) -> None:
        engine, self._engine_or_none = self._engine_or_none, None
        try:
            if engine is not None:
                await engine.close()
        finally:
            try:
                if self._node is not None:
                    await self._node.close()
            finally:
                if self._data_dir is not None:
                    self._data_dir.close()

    @property
    def _engine(self) -> Engine:
        if self._engine_or_none is None:
            raise ClientClosedError("the client is not open")
        return self._engine_or_none

    # --- the connection

    @property
    def user_id(self) -> str:
        """Whose device it is."""
        return self.config.user_id

    @property
    def connection(self) -> ConnectionChanged:
        """Where the client is with the server now."""
        return self._engine.hub.connection

    async def wait_until_live(self, timeout_s: float) -> None:
        """Waits until the device is up to date.

        Raises:
            RequestTimeoutError: that took longer.
            SessionStoppedError: the server does not want this device.
        """
        engine = self._engine
        try:
            async with asyncio.timeout(timeout_s):
                while engine.hub.connection.state is not ConnectionState.LIVE:
                    await engine.hub.moved()
        except TimeoutError:
            reason = engine.hub.connection.message or "no answer"
            raise RequestTimeoutError(f"not connected within {timeout_s:g} s: {reason}") from None

    def events(self) -> EventStream:
        """What happened since the client was opened, and goes on happening; see `events`.

        With `manual_ack`: all that is not acknowledged; `acknowledge` each event when it is dealt with. Ends when the client is
        closed; raises the error that stopped the client otherwise.
        """
        return self._engine.open_stream()

    async def acknowledge(self, event: LogEvent) -> None:
        """With `manual_ack`: this event, and all yielded before it, are dealt with. On disk when this returns.

        Raises:
            DiskError: the disk did not take it; none of it is acknowledged until this is called again, or for a later event.
        """
        assert self.config.manual_ack, "only with ClientConfig.manual_ack"
        await asyncio.shield(asyncio.ensure_future(self._engine.acknowledge(event.event)))

    # --- sending

    async def send(
        self,
        content: str | content_pb2.Content,
        *,
        chat_id: str = "",
        user_id: str = "",
        reply_to_seq: int = 0,
        forward_count: int = 0,
    ) -> Outgoing:
        """Sends a text, or any content, to a chat or to a user; the message is on disk when this returns.

        Raises:
            ValueError: neither or both of `chat_id` and `user_id` are given.
            OutboxFullError: too many messages wait.
            DiskError: the disk did not take it; it will not be sent.
            TooLargeError: the content does not fit into a frame.
        """
        engine = self._engine
        if bool(chat_id) == bool(user_id):
            raise ValueError("give either chat_id or user_id")
        if isinstance(content, str):
            content = content_pb2.Content(text=content_pb2.TextContent(text=content))
        if reply_to_seq or forward_count:
            content.reply_to_seq, content.forward_count = reply_to_seq, forward_count
        if content.ByteSize() > CONTENT_BYTES_MAX:
            raise TooLargeError(chat_pb2.ERROR_CODE_TOO_LARGE, f"the message is larger than {CONTENT_BYTES_MAX} bytes")
        if len(engine.outbox) >= self.config.outbox_messages_max:
            raise OutboxFullError(f"{len(engine.outbox)} messages wait to be sent already; wait until some are")
        message = QueuedMessage(os.urandom(16), chat_id or direct_chat_id(self.user_id, user_id), user_id, content, now_ms())
        future = await asyncio.shield(asyncio.ensure_future(engine.enqueue(message)))
        return Outgoing(message.client_message_id, message.chat_id, future)

    async def edit(self, chat_id: str, seq: int, text: str) -> Outgoing:
        """Gives an own message a new text."""
        return await self.send(content_pb2.Content(edit=content_pb2.EditContent(target_seq=seq, text=text)), chat_id=chat_id)

    async def react(self, chat_id: str, seq: int, emoji: str) -> Outgoing:
        """Reacts to a message; an empty emoji takes the reaction back."""
        reaction = content_pb2.ReactionContent(target_seq=seq, emoji=emoji)
        return await self.send(content_pb2.Content(reaction=reaction), chat_id=chat_id)

    async def delete(self, chat_id: str, seq: int) -> Outgoing:
        """Deletes a message for everyone."""
        return await self.send(content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=seq)), chat_id=chat_id)

    async def hide(self, chat_id: str, seqs: Sequence[int]) -> Outgoing:
        """Hides messages from this user only, on all devices that they have now.

        One that comes later begins at the end of the self chat, where this is said, and shows them, unless it begins with
        `replay_all`.
        """
        hide = content_pb2.HideContent(chat_id=chat_id, seqs=seqs)
        return await self.send(content_pb2.Content(hide=hide), user_id=self.user_id)

    async def forward(self, event: chat_pb2.ChatEvent, *, chat_id: str = "", user_id: str = "") -> Outgoing:
        """Sends the content of a message to another chat."""
        content = content_pb2.Content()
        content.CopyFrom(event.content)
        content.reply_to_seq = 0
        content.forward_count = min(event.content.forward_count + 1, _FORWARD_COUNT_MAX)
        return await self.send(content, chat_id=chat_id, user_id=user_id)

    async def waiting_messages(self) -> list[QueuedMessage]:
        """The messages that are not committed yet, oldest first."""
        return await self._engine.store.call(Store.outbox_messages, failed=False)

    async def failed_messages(self) -> list[QueuedMessage]:
        """The messages that the server refused for ever, oldest first; `error` says why."""
        return await self._engine.store.call(Store.outbox_messages, failed=True)

    async def discard(self, client_message_id: bytes) -> None:
        """Forgets a failed message."""
        await self._engine.store.call(Store.discard, client_message_id)

    async def wait_until_sent(self, timeout_s: float) -> None:
        """Waits until no message waits any more: each is committed, or refused for ever (`failed_messages`).

        Raises:
            RequestTimeoutError: that took longer.
            SessionStoppedError: the server does not want this device, and something waits.
        """
        engine = self._engine
        try:
            async with asyncio.timeout(timeout_s):
                while engine.unsettled:
                    await engine.hub.moved()
        except TimeoutError:
            reason = engine.why_waiting or "no answer"
            raise RequestTimeoutError(f"{messages(engine.unsettled)} not sent within {timeout_s:g} s: {reason}") from None

    @property
    def why_waiting(self) -> str:
        """Why messages wait, for people: the connection, or what the server said of one of them; empty if neither is known."""
        return self._engine.why_waiting

    async def send_without_session(self) -> AsyncIterator[Outcome]:
        """Sends what waits by one call each, in order, and yields what became of each. For a client that stopped.

        Raises:
            ChatError: one got no answer; it and those behind it wait.
        """
        assert self._engine.hub.stopped is not None, "a session sends what waits"
        async for outcome in send_one_by_one(self._caller, self._engine.store):
            yield outcome

    async def mark_read(self, chat_id: str, seq: int) -> None:
        """The user has read the chat up to here; sent now, or with the next session. No further than the device knows of it."""
        seq = self._engine.known_up_to(chat_id, seq)
        if await self._engine.store.call(Store.raise_own_read_mark, chat_id, seq):
            self._engine.mark_read(chat_id, seq)

    def typing(self, chat_id: str, kind: session_pb2.TypingKind.ValueType = session_pb2.TYPING_KIND_TEXT) -> None:
        """The user is typing; say it again every few seconds while they do."""
        self._engine.typing(chat_id, kind)

    def watch(self, chat_ids: Sequence[str], user_ids: Sequence[str] = ()) -> None:
        """These chats are on the screen: the presence of their members is told from now on.

        With those of `user_ids` a direct chat is on the screen, which nobody may have made yet. Until somebody does, it is told
        that they are online while they have this user on their screen likewise, and they are shown the same. Give its chat id
        (`direct_chat_id`) too: it is watched from when somebody makes it.
        """
        self._engine.watch(chat_ids, user_ids)

    # --- looking back

    def direct_chat_id(self, user_id: str) -> str:
        """The chat with another user, whether it exists or not; with oneself, the self chat."""
        return direct_chat_id(self.user_id, user_id)

    @property
    def self_chat_id(self) -> str:
        """The chat of the user's own settings and notes."""
        return self_chat_id(self.user_id)

    async def chat(self, chat_id: str) -> ChatState | None:
        """A chat as the device holds it; None if it does not. Holds what this client wrote to it and was told is committed."""
        await self._engine.holds_own_writes(chat_id)
        return await self._engine.store.call(Store.chat, chat_id)

    async def unread(self, chat_id: str) -> int:
        """How many messages of others that this device holds the user has read on no device."""
        await self._holds_own_writes(chat_id)
        return await self._engine.store.call(Store.unread, chat_id)

    async def chats(self) -> list[ChatState]:
        """All chats that the device holds."""
        ids = await self._engine.store.call(Store.chat_ids)
        states = [await self.chat(chat_id) for chat_id in ids]
        return [state for state in states if state is not None]

    async def message(self, chat_id: str, seq: int) -> chat_pb2.ChatEvent | None:
        """One event, if the device holds it; an own message is held from the moment at which it is known to be committed."""
        await self._engine.holds_own_writes(chat_id)
        return await self._engine.store.call(Store.event, chat_id, seq)

    async def hidden(self, chat_id: str) -> set[int]:
        """Seqs of the messages of a chat that the user hid, on whichever device, as far as this one knows.

        Pages leave these out, but not the edits of them and the reactions to them, which are events of their own.
        """
        await self._engine.holds_own_writes(self.self_chat_id)
        return await self._engine.store.call(Store.hidden, chat_id)

    async def held_history(self, chat_id: str, *, limit: int = 20) -> HistoryPage | None:
        """The newest page as far as it is on disk, without asking the server; None if the device does not hold the chat."""
        await self._holds_own_writes(chat_id)
        return await self._engine.store.call(Store.page_before, chat_id, 0, limit, partial=True)

    async def history(self, chat_id: str, *, before: int = 0, after: int = 0, around: int = 0, limit: int = 20) -> HistoryPage:
        """A page of history: the newest, or the events just below, just above or around a seq.

        Served from disk as far as it is held there contiguously, else asked of the server and kept. What this client wrote and
        was told is committed is in the page to which it belongs. What it hid so is not (with `manual_ack`: once that event is
        acknowledged).

        Raises:
            ValueError: more than one place is given, or a negative one, or no event is asked for.
            RequestError: the server refused it.
            RequestTimeoutError: there was no answer in time.
        """
        if sum(map(bool, (before, after, around))) > 1:
            raise ValueError("give at most one of before, after, around")
        if limit < 1 or min(before, after, around) < 0:
            raise ValueError("a page has at least one event, and seqs are not negative")
        store = self._engine.store
        if await self._holds_own_writes(chat_id) and not after and not around:
            held = await store.call(Store.page_before, chat_id, before, limit)
            if held is not None:
                return held
        request = session_pb2.FetchHistory(chat_id=chat_id, limit=limit)
        if before:
            request.before_seq = before
        elif after:
            request.after_seq = after
        elif around:
            request.around_seq = around
        async with self._history_requests:
            answer = await self._engine.questions.ask(session_pb2.ClientFrame(fetch_history=request))
        page = answer.history_page
        below_seq = before
        if page.events and (not before or after or around):
            below_seq = page.events[-1].seq + 1
        return await store.call(Store.save_page, page, below_seq)

    async def _holds_own_writes(self, chat_id: str) -> bool:
        """See `Engine.holds_own_writes`; also of what hides messages of the chat, which stands in the self chat."""
        await self._engine.holds_own_writes(self.self_chat_id)
        return await self._engine.holds_own_writes(chat_id)


def _open_store(config: ClientConfig, data_dir: DataDir) -> Store:
    store = Store(data_dir.store_path, config.user_id, config.device_id or new_device_id())
    if config.device_id and store.device_id != config.device_id:
        store.close()
        raise DataDirError(f"{config.data_dir} is device {store.device_id}, not {config.device_id}; use another folder")
    return store
