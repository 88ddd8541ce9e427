"""Keeps a device connected: runs session after session, stores what arrives, sends what waits.

`Client` is its public face.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from chatgrpc.v1 import chat_pb2, session_pb2, session_pb2_grpc

from .backoff import Backoff
from .bearer import checked_token
from .config import ClientConfig, TokenProvider
from .connection import Connection
from .effects import Ending, Next, Received, Record
from .events import (
    ChatOpened,
    ConnectionState,
    MessageCommitted,
    MessageDelayed,
    MessageFailed,
    PresenceChanged,
    ReceiptChanged,
    SyncComplete,
    TypingChanged,
)
from .exceptions import (
    ChatError,
    ClientClosedError,
    DiskError,
    SessionStoppedError,
    TemporaryError,
    WrongUserError,
    request_error,
    stop_error,
)
from .feed import EventStream
from .hub import Hub
from .node_channel import NodeChannel
from .outbox import Outbox, OutboxEntry
from .protocol import POSITIONS_MAX, Session, SessionState, hello
from .questions import Questions
from .scout import Scout
from .store import Applied, QueuedMessage, Store, now_ms
from .store_thread import StoreThread

CLOSE_TIMEOUT_S = 3.0
HURRY_AFTER_S = 1.0
OWN_EVENT_TIMEOUT_S = 2.0
"""How long a reader waits for its own acknowledged write to come back; then the server is asked instead."""
_REFUSED_TOKENS_MAX = 2
"""One after the other, each another one."""
_PASSING_REFUSALS = frozenset({"TOKEN_EXPIRED", "TOKEN_REVOKED"})
"""Reasons for which a token is refused that was good, so that whoever renews it gives a better one."""
_NEWER_TOKEN_AFTER_S = 1.1

log = logging.getLogger("chatgrpc_client")


@dataclass(frozen=True, slots=True)
class _Synced:
    """A SyncComplete that waits behind events that are not acknowledged."""

    sync_token: str


class Engine:
    """One device of one user, from opening to closing."""

    def __init__(self, config: ClientConfig, token: TokenProvider, store: Store, node: NodeChannel) -> None:
        self.store = StoreThread(store)
        self.outbox = Outbox(())
        self.cursors: dict[str, int] = {}
        """The last seq stored, by chat."""
        self.hub = Hub()
        self.questions = Questions(self.hub, config.request_timeout_s)
        self._config = config
        self._token = token
        self._device_id = store.device_id
        self._node = node
        self._scout = Scout(node, config, token)
        self._backoff = Backoff(config.backoff_base_s, config.backoff_cap_s)
        self._session: Session | None = None
        self._link: Connection | None = None
        self._run_task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._asks_for_token = False
        self._hurry = asyncio.Event()
        self._outgoing: dict[bytes, asyncio.Future[chat_pb2.SendResult]] = {}
        self._keyless: list[OutboxEntry] = []
        self._keys = asyncio.Lock()
        self._settling = 0
        """Answers to sends that arrived, and are not on disk yet."""
        self._delayed: dict[bytes, TemporaryError] = {}
        """Of messages that wait: what the server last said of them."""
        self._own_seqs: dict[str, int] = {}
        """By chat: the last own write that is acknowledged and that the disk does not hold yet."""
        self._read_marks: dict[str, int] = {}
        self._watched: session_pb2.WatchChats | None = None
        self._outbox_is_stale = False
        """The disk failed: memory may lack messages of which it does not say that they are settled."""
        self._unacknowledged: deque[Record | _Synced] = deque()
        """With `manual_ack`: what the consumer has not acknowledged, in order of arrival."""
        self._received: dict[str, int] = {}
        self._manual = asyncio.Lock()

    # --- life

    async def open(self) -> None:
        """Reads the state from disk and begins to connect."""
        await self._read_outbox()
        positions = await self.store.call(Store.positions)
        self.cursors.update((chat_id, seq) for chat_id, (seq, _) in positions.items())
        self.cursors.update(await self.store.call(Store.ended_positions))
        self.hub.begin(await self.store.call(Store.last_arrival))
        self._run_task = asyncio.create_task(self._run(), name="chatgrpc-client")

    async def close(self) -> None:
        """Flushes the acknowledgements, ends the session and closes the store."""
        self._closing = True
        if self._link is not None:
            self._link.close()
        elif self._run_task is not None:
            self._run_task.cancel()
        if self._run_task is not None:
            await asyncio.wait({self._run_task}, timeout=CLOSE_TIMEOUT_S)
            self._run_task.cancel()
            await asyncio.gather(self._run_task, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._end(ClientClosedError("the client is closed; messages that wait go out when this device connects again"))
        await self.store.close()

    async def _run(self) -> None:
        try:
            await self._connect_until_stopped()
        except ChatError as error:
            self._stop(error)
        except Exception as error:
            log.exception("a defect of the client stopped it")
            self._stop(ChatError(f"a defect of the client stopped it: {type(error).__name__}"))

    def _stop(self, error: ChatError) -> None:
        self.hub.connection_is(ConnectionState.STOPPED, str(error), error=error)
        self._end(error)

    def _end(self, error: ChatError) -> None:
        self.hub.stop(error)
        self.questions.fail(error)
        for future in self._outgoing.values():
            if not future.done():
                future.set_exception(error)
        self._outgoing.clear()

    async def _connect_until_stopped(self) -> None:
        refused = 0  # tokens that were refused one after the other
        while True:
            self.hub.connection_is(ConnectionState.CONNECTING, self.hub.connection.message)
            try:
                ending, token = await self._connect_once()
            except DiskError as error:  # nothing of what came is acknowledged; it comes again
                self._outbox_is_stale = True
                ending, token = Ending(Next.BACK_OFF, str(error)), ""
            if self._closing:
                return
            if ending.next is Next.STOP:
                is_token = ending.code == session_pb2.DISCONNECT_CODE_UNAUTHENTICATED
                if not is_token or refused == _REFUSED_TOKENS_MAX:
                    raise stop_error(ending.code, ending.message)
                if ending.reason == "TOKEN_REVOKED":
                    # It must be newer than the revocation, and issuers count seconds: one of the same second is not.
                    await asyncio.sleep(_NEWER_TOKEN_AFTER_S)
                waiting = await self._refused(token, ending)
                if waiting is None:
                    refused += 1
                    continue
                ending, token = waiting, ""
            was_live = self.hub.connection.state is ConnectionState.LIVE
            if was_live:
                self._backoff.reset()
                refused = 0
            if token:  # else the node was not even called
                self._node.move()
            at_once = ending.next is Next.RECONNECT and was_live
            delay_s = ending.wait_s if at_once else self._backoff.next_delay_s(ending.wait_s)
            log.info("session ended", extra={"code": ending.code, "retry_in_s": round(delay_s, 3)})
            self.hub.connection_is(ConnectionState.WAITING, ending.message, delay_s)
            await self._wait(delay_s, min(delay_s, ending.wait_s + HURRY_AFTER_S))

    async def _wait(self, delay_s: float, hurried_s: float) -> None:
        """Waits, but no longer than `hurried_s` once there is something new to send: its author looks on."""
        self._hurry.clear()
        await asyncio.sleep(hurried_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s - hurried_s):
                await self._hurry.wait()

    async def _refused(self, token: str, ending: Ending) -> Ending | None:
        """The server refused a token: None if there is another one now, else how to wait for that.

        Raises:
            SessionStoppedError: there will be none.
        """
        wait_for = "and another one is waited for"
        try:
            if await self._token() != token:
                return None
            if not self._config.waits_for_token or ending.reason not in _PASSING_REFUSALS:
                raise stop_error(ending.code, ending.message)
        except SessionStoppedError:
            raise
        except Exception as error:  # the provider is the user's code, and may succeed later
            wait_for = f"and no other could be had: {error}"
        return Ending(Next.BACK_OFF, f"the server refuses the token ({ending.message.rstrip('.')}), {wait_for}")

    async def _connect_once(self) -> tuple[Ending, str]:
        self._asks_for_token = True
        try:
            token = checked_token(await self._token())
        except SessionStoppedError:
            raise
        except Exception as error:  # the provider is the user's code, and may succeed later
            return Ending(Next.BACK_OFF, f"no token could be had: {error}"), ""
        finally:
            self._asks_for_token = False
        if self._outbox_is_stale:
            await self._read_outbox()
        number = await self.store.call(Store.next_connection_number, now_ms())
        # In one go, and last: what a consumer has stored from here on (`manual_ack`), this session is told.
        positions, ended, sync_token = await self.store.call(
            lambda store: (store.positions(), store.ended_positions(), store.sync_token())
        )
        session = self._new_session(positions, ended, sync_token, number)
        link = Connection(session, self, self._node.explain)
        self._session, self._link = session, link
        self.questions.attach(session, link.wake)
        if self._closing:
            return Ending(Next.STOP, ""), token
        try:
            return await link.run(session_pb2_grpc.SessionServiceStub(self._node.channel), token), token
        finally:
            self._received = session.cursors
            self._session = self._link = None
            self.questions.detach()

    def _new_session(
        self,
        positions: Mapping[str, tuple[int, int]],
        ended: Mapping[str, int],
        sync_token: str | None,
        connection_number: int,
    ) -> Session:
        """A session that names the chats which go on: one may have been in more groups than a Hello may name.

        Of more than fit into one those that are the longest: of the others less is sent again.
        """
        named = dict(islice(positions.items(), POSITIONS_MAX))
        unnamed = {chat_id: seq for chat_id, (seq, _) in islice(positions.items(), POSITIONS_MAX, None)}
        from_head = sync_token is None and not self._config.replay_all
        start_at = session_pb2.START_AT_HEAD if from_head else session_pb2.START_AT_ACKNOWLEDGED
        session = Session(
            hello(
                self._device_id,
                self._config.device_name,
                named,
                sync_token or "",
                start_at,
                connection_number,
                ephemeral=self._config.ephemeral,
            ),
            self._config.user_id,
            self.outbox,
            asyncio.get_running_loop().time(),
            unnamed=unnamed | dict(ended),
            received=self._received if self._config.manual_ack else None,
            unstored=sum(isinstance(record, chat_pb2.ChatEvent) for record in self._unacknowledged),
            sends_in_flight_max=self._config.sends_in_flight_max,
            connect_timeout_s=self._config.connect_timeout_s,
            answer_timeout_s=self._config.answer_timeout_s,
            own_ack_delay_s=self._config.own_ack_delay_s,
        )
        for chat_id, seq in self._read_marks.items():
            session.mark_read(chat_id, seq)
        self._read_marks.clear()
        if self._watched is not None:
            session.watch(self._watched)
        return session

    # --- what arrives (connection.Owner)

    async def on_received(self, received: Received) -> Ending | None:
        """See `connection.Owner`."""
        session = self._session
        assert session is not None
        self._settling = len(received.committed) + len(received.refused)
        if received.welcome is not None:
            self._welcome(received.welcome)
        if self._config.manual_ack:
            await self._receive_unacknowledged(received)
        elif received.records or received.receipts or received.sync_token is not None:
            await self._store_records(received.records, received.receipts, received.sync_token)
        await self._settle_sends(received)
        self._signal_news(received)
        if received.drain_after_s is not None:
            self._try(self._learn_before_leaving(received.drain_after_s))
        for ticket, frame in received.answers:
            self.questions.answered(ticket, frame)
        await self.give_keys()
        for entry in received.seen_seq_too_old:
            self._start(self._rekey(entry, session))
        if received.seen_seq_ahead:
            return await self._forget_chats(received.seen_seq_ahead, session)
        chat_id = self._scout.wanted_for(received.unavailable, asyncio.get_running_loop().time())
        if chat_id is not None:
            self._try(self._leave_for_better_node(chat_id, session))
        return None

    async def _leave_for_better_node(self, chat_id: str, session: Session) -> None:
        if await self._scout.find(chat_id) and session is self._session:
            session.leave(asyncio.get_running_loop().time())
            self._wake()

    def _welcome(self, welcome: session_pb2.Welcome) -> None:
        if welcome.user_id != self._config.user_id:
            raise WrongUserError(f"the token is {welcome.user_id}'s, and this is a device of {self._config.user_id}")
        self.hub.connection_is(ConnectionState.SYNCING)

    async def _store_records(
        self, records: Sequence[Record], receipts: Sequence[chat_pb2.Receipt], sync_token: str | None
    ) -> None:
        """Stores, then acknowledges, then tells."""
        applied = await self.store.call(Store.apply, records, receipts, sync_token)
        events = [record for record in records if isinstance(record, chat_pb2.ChatEvent)]
        for record in records:
            if isinstance(record, chat_pb2.ChatEvent):
                self._holds(record.chat_id, record.seq)
            else:
                self._holds(record.chat.chat_id, record.next_seq - 1)
                self.hub.signal((ChatOpened, record.chat.chat_id), ChatOpened(record.chat))
        if events and self._session is not None:
            self._session.stored(events, asyncio.get_running_loop().time())
            self._wake()
        if events and not self._config.manual_ack:
            self.hub.arrived(applied.arrival, events)
        self._settle_own(applied)
        self.hub.notify()

    def _holds(self, chat_id: str, seq: int) -> None:
        self.cursors[chat_id] = seq
        if seq >= self._own_seqs.get(chat_id, 0):
            self._own_seqs.pop(chat_id, None)

    def _settle_own(self, applied: Applied) -> None:
        for client_message_id, result in applied.settled:
            self.outbox.settle(client_message_id)
            self._committed(client_message_id, result)

    async def _receive_unacknowledged(self, received: Received) -> None:
        """Keeps what arrived in memory until the consumer acknowledges it; the server's window bounds it."""
        for record in received.records:
            self._unacknowledged.append(record)
            if isinstance(record, chat_pb2.ChatEvent):
                self.hub.push(record)
                self._settle_unacknowledged(record, received)
        if received.receipts:
            await self.store.call(Store.apply, (), received.receipts, None)
        if received.sync_token is not None:
            self._unacknowledged.append(_Synced(received.sync_token))
        await self.acknowledge(None)

    def _settle_unacknowledged(self, event: chat_pb2.ChatEvent, received: Received) -> None:
        if event.sender_user_id != self._config.user_id:
            return
        entry = self.outbox.settle(event.client_message_id)
        if entry is not None:
            result = chat_pb2.SendResult(
                chat_id=event.chat_id, seq=event.seq, message_id=event.message_id, sent_at_ms=event.sent_at_ms
            )
            received.committed.append((entry, result))

    async def acknowledge(self, event: chat_pb2.ChatEvent | None) -> None:
        """Stores and acknowledges everything that arrived up to this event, and what is not an event behind it."""
        async with self._manual:
            records: list[Record] = []
            sync_token = None
            taken = 0
            waiting = self._unacknowledged
            if not any(record is event for record in waiting):
                event = None  # acknowledged before, perhaps by a call that was cancelled while it waited for the disk
            for record in waiting:
                if event is None and isinstance(record, chat_pb2.ChatEvent):
                    break
                taken += 1
                if isinstance(record, _Synced):
                    sync_token = record.sync_token
                    continue
                records.append(record)
                if record is event:
                    event = None
            if not taken:
                return
            await self._store_records(records, (), sync_token)
            for _ in range(taken):  # only now: what the disk did not take is stored by whoever asks again
                waiting.popleft()

    async def _settle_sends(self, received: Received) -> None:
        for entry, error in received.delayed:
            delay = request_error(error)
            assert isinstance(delay, TemporaryError)
            self._delayed[entry.client_message_id] = delay
            signal = MessageDelayed(entry.client_message_id, entry.chat_id, delay)
            self.hub.signal((MessageDelayed, entry.client_message_id), signal)
        if not received.committed and not received.refused:
            return
        refused = [(entry.client_message_id, error) for entry, error in received.refused]
        await self.store.call(Store.settle, [entry.client_message_id for entry, _ in received.committed], refused)
        for entry, result in received.committed:
            self._committed(entry.client_message_id, result)
        for entry, error in received.refused:
            failure = request_error(error)
            self._delayed.pop(entry.client_message_id, None)
            self.hub.signal(
                (MessageFailed, entry.client_message_id), MessageFailed(entry.client_message_id, entry.chat_id, failure)
            )
            future = self._outgoing.pop(entry.client_message_id, None)
            if future is not None and not future.done():
                future.set_exception(failure)
        self._settling = 0
        self.hub.notify()

    def own_write(self, chat_id: str, seq: int) -> None:
        """A write of this user, through this client, is in the log up to here: what is read from now on must hold it."""
        if seq > self.cursors.get(chat_id, 0):
            self._own_seqs[chat_id] = max(seq, self._own_seqs.get(chat_id, 0))

    async def holds_own_writes(self, chat_id: str) -> bool:
        """Whether the disk holds every acknowledged write of this client to a chat.

        An acknowledgement may come before the event itself, which is on its way; waits a moment for it, unless there is no
        session, or its consumer decides when it is stored (`manual_ack`).
        """
        try:
            async with asyncio.timeout(OWN_EVENT_TIMEOUT_S):
                while chat_id in self._own_seqs and self._session is not None and not self._config.manual_ack:
                    await self.hub.moved()
        except (TimeoutError, ChatError):
            pass
        return chat_id not in self._own_seqs

    def _committed(self, client_message_id: bytes, result: chat_pb2.SendResult) -> None:
        self._delayed.pop(client_message_id, None)
        self.own_write(result.chat_id, result.seq)
        future = self._outgoing.pop(client_message_id, None)
        if future is not None and not future.done():
            future.set_result(result)
        self.hub.signal((MessageCommitted, client_message_id), MessageCommitted(client_message_id, result))

    def _signal_news(self, received: Received) -> None:
        for receipt in received.receipts:
            self.hub.signal((ReceiptChanged, receipt.chat_id, receipt.user_id), ReceiptChanged(receipt))
        for signal in received.signals:
            if isinstance(signal, session_pb2.Presence):
                self.hub.signal((PresenceChanged, signal.user_id), PresenceChanged(signal))
            else:
                self.hub.signal((TypingChanged, signal.chat_id, signal.user_id), TypingChanged(signal))
        if received.sync_token is not None:
            self._live()

    def _live(self) -> None:
        self._node.live()
        self._try(self._node.learn())
        self.hub.signal(SyncComplete, SyncComplete())
        self.hub.connection_is(ConnectionState.LIVE)

    async def _learn_before_leaving(self, leaving_in_s: float) -> None:
        """Asks once more which nodes there are, since the list may be as old as the session. The server jittered the time."""
        await asyncio.sleep(leaving_in_s / 2)
        await self._node.learn()

    async def contents(self, entries: Iterable[OutboxEntry]) -> Mapping[bytes, QueuedMessage]:
        """See `connection.Owner`."""
        return await self.store.call(Store.queued, [entry.client_message_id for entry in entries])

    async def token(self) -> str:
        """See `connection.Owner`."""
        return await self._token()

    # --- what goes out

    async def enqueue(self, message: QueuedMessage) -> "asyncio.Future[chat_pb2.SendResult]":
        """Stores a message and sends it as soon as may be; the future tells what became of it."""
        entry = await self.store.call(Store.queue, message)
        future: asyncio.Future[chat_pb2.SendResult] = asyncio.get_running_loop().create_future()
        future.add_done_callback(retrieve)
        self._add_to_outbox(entry)  # also of a client that stopped: what is on disk waits, and who asks must hear so
        if self.hub.stopped is not None:
            future.set_exception(self.hub.stopped)
            return future
        self._outgoing[message.client_message_id] = future
        self._hurry.set()
        if self._keyless:
            self._start(self.give_keys())  # meanwhile: if the disk fails now, the message is kept all the same
        self._wake()
        return future

    @property
    def unsettled(self) -> int:
        """How many messages wait to be sent, for an answer, or for the answer to be on disk and told."""
        return len(self.outbox) + self._settling

    @property
    def why_waiting(self) -> str:
        """Why messages wait, for people; empty if it is not known."""
        if self._asks_for_token:
            return "no token has been given yet"
        return self.hub.connection.message or next((str(error) for error in self._delayed.values()), "")

    async def _read_outbox(self) -> None:
        """Takes what waits from the disk."""
        entries = await self.store.call(Store.outbox_entries)
        self.outbox = Outbox(())
        self._keyless.clear()
        self._settling = 0
        for entry in entries:
            self._add_to_outbox(entry)
        self._outbox_is_stale = False

    def _add_to_outbox(self, entry: OutboxEntry) -> None:
        if self.outbox.get(entry.client_message_id) is not None:
            return  # it was read from the disk meanwhile
        self.outbox.add(entry)
        if entry.seen_seq is None:
            self._keyless.append(entry)

    async def give_keys(self) -> None:
        """Gives messages their `seen_seq` as soon as it is known whether the device holds their chat."""
        if not self._keyless:
            return
        async with self._keys:
            session = self._session
            if session is None:
                return
            keys: list[tuple[OutboxEntry, int]] = []
            for entry in self._keyless:
                if entry.chat_id in session.cursors:
                    keys.append((entry, session.cursors[entry.chat_id]))
                elif session.state is SessionState.LIVE:
                    keys.append((entry, 0))
            if not keys:
                return
            await self.store.call(Store.set_seen_seq, [(entry.client_message_id, seq) for entry, seq in keys])
            for entry, seq in keys:
                entry.seen_seq = seq
            self._keyless = [entry for entry in self._keyless if entry.seen_seq is None]
        self._wake()

    async def _rekey(self, entry: OutboxEntry, session: Session) -> None:
        """Finds out whether a message is in the log, when its `seen_seq` is too old for the server to look.

        An earlier try, if it was committed, was so before now, so it stands at or below the head of now. Events of this user
        settle their messages as they are stored: if the message still waits when the device holds everything up to that
        head, it is not in the log.
        """
        try:
            page = await self.questions.ask(
                session_pb2.ClientFrame(fetch_history=session_pb2.FetchHistory(chat_id=entry.chat_id, limit=1))
            )
        except ChatError:
            return  # the next session begins anew
        head_seq = page.history_page.events[-1].seq if page.history_page.events else 0
        while session.cursors.get(entry.chat_id, 0) < head_seq:
            if session is not self._session:
                return
            await self.hub.moved()
        if self.outbox.get(entry.client_message_id) is not entry or session is not self._session:
            return
        seen_seq = session.cursors.get(entry.chat_id, 0)
        await self.store.call(Store.set_seen_seq, [(entry.client_message_id, seen_seq)])
        if self.outbox.get(entry.client_message_id) is entry:
            self.outbox.rekeyed(entry.client_message_id, seen_seq)
            self._wake()

    async def _forget_chats(self, entries: Iterable[OutboxEntry], session: Session) -> Ending:
        """The server's log is shorter than ours: it was replaced. What it has now counts."""
        for chat_id in {entry.chat_id for entry in entries}:
            log.warning("the server lost events that this device holds; it starts the chat anew", extra={"chat_id": chat_id})
            await self.store.call(Store.forget_chat, chat_id)
            self.cursors.pop(chat_id, None)
            self._own_seqs.pop(chat_id, None)
            session.cursors.pop(chat_id, None)
            for entry in self.outbox.entries():
                if entry.chat_id == chat_id and entry.seen_seq is not None:
                    entry.seen_seq = None
                    self._keyless.append(entry)
        return Ending(Next.RECONNECT, "the server's log of a chat was replaced")

    def known_up_to(self, chat_id: str, seq: int) -> int:
        """The seq, or the last one known of the chat, if that is below: what comes later is not read yet."""
        received = self._received if self._session is None else self._session.cursors
        known = max(self.cursors.get(chat_id, 0), received.get(chat_id, 0), self._own_seqs.get(chat_id, 0))
        return min(seq, known) if known else seq

    def mark_read(self, chat_id: str, seq: int) -> None:
        """Sends a stored read mark; without a session it goes with the next one."""
        if self._session is None:
            self._read_marks[chat_id] = max(seq, self._read_marks.get(chat_id, 0))
            return
        self._session.mark_read(chat_id, seq)
        self._wake()

    def typing(self, chat_id: str, kind: session_pb2.TypingKind.ValueType) -> None:
        """Says that the user is typing, if there is a session."""
        if self._session is not None and self._session.state is SessionState.LIVE:
            self._session.typing(chat_id, kind)
            self._wake()

    def watch(self, chat_ids: Sequence[str], user_ids: Sequence[str] = ()) -> None:
        """Says which chats are on the screen, and with whom, on this session and all later ones."""
        self._watched = session_pb2.WatchChats(chat_ids=chat_ids, user_ids=user_ids)
        if self._session is not None:
            self._session.watch(self._watched)
            self._wake()

    def open_stream(self) -> EventStream:
        """Makes an iterator of events."""
        if not self._config.manual_ack:
            return self.hub.open_stream(self._read_arrived)
        waiting = [record for record in self._unacknowledged if isinstance(record, chat_pb2.ChatEvent)]
        return self.hub.open_stream(None, waiting)

    async def _read_arrived(self, after: int, up_to: int, limit: int) -> list[tuple[int, chat_pb2.ChatEvent]]:
        return await self.store.call(Store.arrived, after, up_to, limit)

    def _wake(self) -> None:
        if self._link is not None:
            self._link.wake()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        """Does it meanwhile; a session for which it failed ends, and the next one begins anew."""
        self._meanwhile(work, self._end_session)

    def _try(self, work: Coroutine[None, None, None]) -> None:
        """Does meanwhile what a session can do without: if it fails, that goes on."""
        self._meanwhile(work, _log_defect)

    def _meanwhile(self, work: Coroutine[None, None, None], if_it_fails: Callable[[BaseException], None]) -> None:
        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            failure = None if task.cancelled() else task.exception()
            if failure is not None:
                if_it_fails(failure)

        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(done)

    def _end_session(self, failure: BaseException) -> None:
        if self._link is not None:
            self._link.fail(failure)


def _log_defect(failure: BaseException) -> None:
    log.error("a defect of the client: what it does beside its session failed", exc_info=failure)


def retrieve(future: "asyncio.Future[Any]") -> None:
    """Marks a failure as seen: not everybody waits for the outcome."""
    if not future.cancelled():
        future.exception()
