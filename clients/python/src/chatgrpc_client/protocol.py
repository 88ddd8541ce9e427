"""One session with the server, from Hello to the end of its stream. No I/O: fed with frames and the clock.

The shell calls, as often as it likes: `receive` with what arrived; `stored` when the records of it are safe on disk; `take`
for what to write; `check` for what the passing of time means. `take_at_s` and `check_at_s` say when to call those two again
though nothing arrived. Peer input never raises: it ends in `Received.ending`.

Guarantees:

- Per chat the records handed out are contiguous, beginning after the position named in Hello or at `ChatOpened.next_seq`;
  duplicates are left out; a gap ends the session, since the server must never leave one (G4).
- An event is acknowledged only after `stored` named it.
- What waits to be written is bounded: marks, typing and watches are kept as latest values, sends by the outbox's window.

Times are seconds of one monotonic clock.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from chatgrpc.v1 import chat_pb2, session_pb2

from .effects import Ending, Next, Received, Taken, disconnected
from .outbox import Outbox, Verdict

SILENCE_FACTOR = 2.5
"""A side that heard nothing for so many heartbeat intervals gives the session up."""
DEFAULT_HEARTBEAT_MS = 30_000
REFRESH_MARGIN_S = 60.0
"""A token is renewed this long before it expires, or at half of its life if that is later."""
REFRESH_RETRY_S = 1.0
"""No token is asked for sooner after another."""
POSITIONS_MAX = 20_000
"""Chats that a Hello names, each in 50 bytes at most: it must fit into a batch, which is 1 MiB at most."""
_DELAYS = frozenset({chat_pb2.ERROR_CODE_RATE_LIMITED, chat_pb2.ERROR_CODE_CHAT_DAMAGED})
"""Refusals that can last, of which whoever wrote the message is told."""


class SessionState(Enum):
    """Where a session is."""

    OPENING = auto()
    """Hello is on its way; no Welcome yet."""
    SYNCING = auto()
    """The server sends what the device missed."""
    LIVE = auto()
    """The device has everything up to the moment of its Hello."""
    ENDED = auto()
    """Nothing is received or sent any more."""


@dataclass(slots=True)
class _Head:
    """The head of a chat that the server named and the device has not reached."""

    seq: int
    since_s: float


class Session:
    """The device's side of one stream."""

    def __init__(
        self,
        hello: session_pb2.Hello,
        user_id: str,
        outbox: Outbox,
        now_s: float,
        *,
        unnamed: Mapping[str, int] | None = None,
        received: Mapping[str, int] | None = None,
        unstored: int = 0,
        sends_in_flight_max: int = 64,
        connect_timeout_s: float = 15.0,
        answer_timeout_s: float = 30.0,
        own_ack_delay_s: float = 1.0,
    ) -> None:
        self.state = SessionState.OPENING
        self.limits = session_pb2.Limits()
        self._user_id = user_id
        self._outbox = outbox
        self._sends_in_flight_max = sends_in_flight_max
        self._own_ack_delay_s = own_ack_delay_s
        self._answer_timeout_s = answer_timeout_s
        self._stored = {position.chat_id: position.seq for position in hello.positions}
        self._stored.update(unnamed or {})
        """The last event stored, by chat; those that are over, or too many, are known here, though Hello does not name them."""
        self.cursors = dict(self._stored)
        """The last event received, by chat; with `received`, more may have been received before than Hello says."""
        self.cursors.update(received or {})
        self._unstored = unstored

        self._hello: session_pb2.Hello | None = hello
        self._last_request_id = 0
        self._requests: list[tuple[int, session_pb2.ClientFrame]] = []
        self._tickets: dict[int, int] = {}
        self._unanswered: dict[int, float] = {}
        """When each request was written, oldest first."""
        self._unavailable: dict[bytes, float] = {}
        """Messages that were refused as unavailable, by client message id, and when each was first sent on this stream."""
        self._last_ticket = 0
        self._acks: dict[str, int] = {}
        self._acks_due_s = 0.0
        self._own_acks: dict[str, int] = {}
        self._own_acks_due_s = 0.0
        self._ack_delay_s = 0.0
        self._unacknowledged_events = self._unacknowledged_bytes = 0
        """What was stored since the last acknowledgement."""
        self._read_marks: dict[str, int] = {}
        self._typing: dict[str, session_pb2.TypingKind.ValueType] = {}
        self._on_screen = session_pb2.WatchChats()
        self._watched: session_pb2.WatchChats | None = None
        """What is on the screen, as long as it is to be said."""

        self._connect_deadline_s = now_s + connect_timeout_s
        self._heartbeat_interval_s = 0.0
        self._heard_s = now_s
        self._said_s = now_s
        self._heads: dict[str, _Head] = {}
        self._reconnect_at_s: float | None = None
        self._reconnect_because = ""
        self._welcomed_s = 0.0
        self._server_time_ms = 0
        self._refresh_at_s: float | None = None
        self._refreshing = 0
        self._token_expires_s = 0.0

    # --- what arrives

    def receive(self, frames: Iterable[session_pb2.ServerFrame], now_s: float) -> Received:
        """Takes a batch. What follows an ending in it is passed over."""
        received = Received()
        self._heard_s = now_s
        for frame in frames:
            if self.state is SessionState.ENDED:
                break
            self._receive_frame(frame, received, now_s)
            if received.ending is not None:
                self.state = SessionState.ENDED
        return received

    def _receive_frame(self, frame: session_pb2.ServerFrame, received: Received, now_s: float) -> None:
        body = frame.WhichOneof("body")
        if self.state is SessionState.OPENING and body not in {"welcome", "disconnect", "error"}:
            received.ending = Ending(Next.BACK_OFF, f"the server sent {body} before its Welcome")
            return
        match body:
            case "event":
                self._event(frame.event, received, now_s)
            case "sent" | "error" | "history_page" | "token_refreshed":
                self._answer(frame, received, now_s)
            case "receipt":
                received.receipts.append(frame.receipt)
            case "presence":
                received.signals.append(frame.presence)
            case "typing":
                received.signals.append(frame.typing)
            case "heartbeat":
                self._heartbeat(frame.heartbeat, now_s)
            case "chat_opened":
                self._chat_opened(frame.chat_opened, received)
            case "sync_complete":
                self.state = SessionState.LIVE
                received.sync_token = frame.sync_complete.sync_token
            case "welcome":
                self._welcome(frame.welcome, received, now_s)
            case "drain":
                received.drain_after_s = frame.drain.reconnect_after_ms / 1000
                self._leave(now_s + received.drain_after_s, "the server is about to stop")
            case "disconnect":
                received.ending = disconnected(frame.disconnect)
            case _:
                pass  # a frame of a later version: the server sends none that must be understood without a feature

    def _welcome(self, welcome: session_pb2.Welcome, received: Received, now_s: float) -> None:
        if self.state is not SessionState.OPENING:
            received.ending = Ending(Next.BACK_OFF, "the server sent a second Welcome")
            return
        self.state = SessionState.SYNCING
        self.limits = welcome.limits
        self._ack_delay_s = welcome.ack_delay_ms / 1000
        self._heartbeat_interval_s = (welcome.heartbeat_interval_ms or DEFAULT_HEARTBEAT_MS) / 1000
        self._welcomed_s = now_s
        self._server_time_ms = welcome.server_time_ms
        self._token_lasts_until(welcome.token_expires_at_ms, now_s)
        limits = welcome.limits
        in_flight_max = limits.requests_in_flight_max or self._sends_in_flight_max
        self._outbox.connected(max(1, min(self._sends_in_flight_max, in_flight_max)), limits.sends_in_flight_bytes_max)
        received.welcome = welcome

    def _event(self, event: chat_pb2.ChatEvent, received: Received, now_s: float) -> None:
        cursor = self.cursors.get(event.chat_id)
        if cursor is None:
            received.ending = Ending(
                Next.BACK_OFF, f"the server sent an event of chat {event.chat_id}, which it had not opened"
            )
            return
        if event.seq <= cursor:
            stored_seq = self._stored.get(event.chat_id, 0)
            if event.seq <= stored_seq:
                self._acknowledge(event.chat_id, stored_seq, now_s)  # the server did not know it
            return
        if event.seq != cursor + 1:
            message = f"the server sent event {event.seq} of chat {event.chat_id} after event {cursor}"
            received.ending = Ending(Next.BACK_OFF, message)
            return
        self.cursors[event.chat_id] = event.seq
        self._unstored += 1
        head = self._heads.get(event.chat_id)
        if head is not None and event.seq >= head.seq:
            del self._heads[event.chat_id]
        elif head is not None:
            head.since_s = now_s
        received.records.append(event)

    def _chat_opened(self, opened: session_pb2.ChatOpened, received: Received) -> None:
        if opened.chat.chat_id in self._on_screen.chat_ids:
            self._watched = self._on_screen
        cursor = self.cursors.get(opened.chat.chat_id)
        if cursor is not None and opened.next_seq <= cursor + 1 and opened.head_seq >= cursor:
            return
        # A head below what the device holds: the server's log was lost or is another one. What it has now counts.
        self.cursors[opened.chat.chat_id] = opened.next_seq - 1
        self._heads.pop(opened.chat.chat_id, None)
        received.records.append(opened)

    def _answer(self, frame: session_pb2.ServerFrame, received: Received, now_s: float) -> None:
        asked_at_s = self._unanswered.pop(frame.request_id, now_s)
        if self._outbox.is_send(frame.request_id):
            self._answer_to_send(frame, received, asked_at_s, now_s)
            return
        ticket = self._tickets.pop(frame.request_id, None)
        if ticket is None:
            return
        if ticket != self._refreshing:
            received.answers.append((ticket, frame))
            return
        self._refreshing = 0
        if frame.HasField("token_refreshed"):
            self._token_lasts_until(frame.token_refreshed.token_expires_at_ms, now_s)
        else:
            self.token_failed(now_s)

    def _answer_to_send(self, frame: session_pb2.ServerFrame, received: Received, asked_at_s: float, now_s: float) -> None:
        if frame.HasField("sent"):
            entry = self._outbox.committed(frame.request_id)
            if entry is not None:
                self._unavailable.pop(entry.client_message_id, None)
                received.committed.append((entry, frame.sent))
            return
        verdict, entry = self._outbox.failed(frame.request_id, frame.error, now_s)
        if verdict is Verdict.WILL_RETRY and frame.error.code == chat_pb2.ERROR_CODE_UNAVAILABLE:
            sent_at_s = self._unavailable.setdefault(entry.client_message_id, asked_at_s)
            received.unavailable.append((entry, now_s - sent_at_s))
        elif verdict is Verdict.WILL_RETRY and frame.error.code in _DELAYS:
            received.delayed.append((entry, frame.error))
        elif verdict is Verdict.FINAL:
            self._unavailable.pop(entry.client_message_id, None)
            received.refused.append((entry, frame.error))
        elif verdict is Verdict.SEEN_SEQ_TOO_OLD:
            received.seen_seq_too_old.append(entry)
        elif verdict is Verdict.SEEN_SEQ_AHEAD:
            received.seen_seq_ahead.append(entry)
        elif verdict is Verdict.OUT_OF_STEP:
            received.ending = Ending(Next.RECONNECT, "the server waits for a message that it has")

    def _heartbeat(self, heartbeat: session_pb2.Heartbeat, now_s: float) -> None:
        for head in heartbeat.heads:
            if head.seq <= self.cursors.get(head.chat_id, 0):
                continue
            known = self._heads.get(head.chat_id)
            if known is None:
                self._heads[head.chat_id] = _Head(head.seq, now_s)
            else:
                known.seq = max(known.seq, head.seq)

    # --- what the device does

    def stored(self, events: Sequence[chat_pb2.ChatEvent], now_s: float) -> None:
        """These events are safe on disk, and each chat's earlier ones: they are acknowledged.

        That waits for company: as long as the server allows, for the user's own events longer, but never beyond half a window.
        """
        self._unstored -= len(events)
        for event in events:
            self._stored[event.chat_id] = event.seq
            if event.sender_user_id != self._user_id:
                self._acknowledge(event.chat_id, event.seq, now_s)
                self._own_acks.pop(event.chat_id, None)
            elif event.chat_id in self._acks:
                self._acks[event.chat_id] = event.seq
            else:
                if not self._own_acks:
                    self._own_acks_due_s = now_s + self._own_ack_delay_s
                self._own_acks[event.chat_id] = event.seq
        self._unacknowledged_events += len(events)
        self._unacknowledged_bytes += sum(event.ByteSize() for event in events)
        if self._is_window_half_full:
            self._acks_due_s = self._own_acks_due_s = now_s

    def _acknowledge(self, chat_id: str, seq: int, now_s: float) -> None:
        if not self._acks:
            self._acks_due_s = now_s + self._ack_delay_s
        self._acks[chat_id] = seq

    @property
    def _is_window_half_full(self) -> bool:
        events_max, bytes_max = self.limits.unacknowledged_events_max, self.limits.unacknowledged_bytes_max
        return bool(
            (events_max and self._unacknowledged_events >= events_max / 2)
            or (bytes_max and self._unacknowledged_bytes >= bytes_max / 2)
        )

    def request(self, frame: session_pb2.ClientFrame) -> int:
        """Queues a request other than a send; returns the ticket that its answer will carry."""
        self._last_ticket += 1
        self._requests.append((self._last_ticket, frame))
        return self._last_ticket

    def mark_read(self, chat_id: str, seq: int) -> None:
        """The user has read up to here."""
        self._read_marks[chat_id] = max(seq, self._read_marks.get(chat_id, 0))

    def typing(self, chat_id: str, kind: session_pb2.TypingKind.ValueType) -> None:
        """The user is typing."""
        self._typing[chat_id] = kind

    def watch(self, watched: session_pb2.WatchChats) -> None:
        """What is on the screen. It is said again for each of its chats that opens: until then the server does not know it."""
        self._on_screen = self._watched = watched

    def token_due(self, now_s: float) -> bool:
        """Whether it is time to fetch a newer token and hand it to `refresh_token`, or to report `token_failed`."""
        due = self._refresh_at_s is not None and now_s >= self._refresh_at_s
        return due and self.state in {SessionState.SYNCING, SessionState.LIVE}

    def refresh_token(self, token: str) -> None:
        """Hands over a newer token."""
        self._refresh_at_s = None
        frame = session_pb2.ClientFrame(refresh_token=session_pb2.RefreshToken(token=token))
        self._refreshing = self.request(frame)

    def token_failed(self, now_s: float) -> None:
        """No newer token could be had: try again at half of the time that is left."""
        self._refresh_at_s = now_s + max(REFRESH_RETRY_S, (self._token_expires_s - now_s) / 2)

    def withdraw(self, request_id: int) -> None:
        """A send that was taken is not written after all: it was settled meanwhile."""
        self._unanswered.pop(request_id, None)
        self._outbox.withdraw(request_id)

    def leave(self, now_s: float) -> None:
        """Another node is to be used from now on: `check` ends the session."""
        self._leave(now_s, "another node can pass on what this one cannot")

    def _leave(self, at_s: float, because: str) -> None:
        self._reconnect_at_s, self._reconnect_because = at_s, because

    def end(self) -> None:
        """The stream is over, or is being given up."""
        self.state = SessionState.ENDED
        self._outbox.disconnected()

    # --- what to write

    def take(self, now_s: float) -> Taken:
        """Everything that may be written now. Must be written before the next call, since request ids rise on the wire."""
        taken = Taken()
        if self._hello is not None:
            request_id = self._new_request_id()
            taken.frames.append(session_pb2.ClientFrame(request_id=request_id, hello=self._hello))
            self._hello = None
        if self.state in {SessionState.SYNCING, SessionState.LIVE}:
            self._take_latest_values(taken.frames)
            for ticket, frame in self._requests:
                frame.request_id = self._new_request_id()
                self._tickets[frame.request_id] = ticket
                self._unanswered[frame.request_id] = now_s
                taken.frames.append(frame)
            self._requests.clear()
            taken.sends = self._outbox.take(now_s, self._new_request_id)
            self._unanswered.update((request_id, now_s) for request_id, _ in taken.sends)
            self._take_acks(taken, now_s)
            if not taken.frames and not taken.sends and now_s >= self._said_s + self._heartbeat_interval_s:
                taken.frames.append(session_pb2.ClientFrame(heartbeat=session_pb2.Heartbeat()))
        if taken.frames or taken.sends:
            self._said_s = now_s
        return taken

    def _take_latest_values(self, frames: list[session_pb2.ClientFrame]) -> None:
        if self._watched is not None:
            frames.append(session_pb2.ClientFrame(watch_chats=self._watched))
            self._watched = None
        for chat_id, seq in self._read_marks.items():
            frames.append(session_pb2.ClientFrame(mark_read=session_pb2.MarkRead(chat_id=chat_id, seq=seq)))
        for chat_id, kind in self._typing.items():
            frames.append(session_pb2.ClientFrame(typing=session_pb2.Typing(chat_id=chat_id, kind=kind)))
        self._read_marks.clear()
        self._typing.clear()

    def _take_acks(self, taken: Taken, now_s: float) -> None:
        others_write = bool(taken.frames or taken.sends)
        if others_write or now_s >= self._acks_at_s():
            taken.frames[:0] = self._pop_acks()

    def _pop_acks(self) -> list[session_pb2.ClientFrame]:
        acks = {**self._own_acks, **self._acks}
        self._acks.clear()
        self._own_acks.clear()
        self._unacknowledged_events = self._unacknowledged_bytes = 0
        return [ack_frame(chat_id, seq) for chat_id, seq in acks.items()]

    def _acks_at_s(self) -> float:
        """When acknowledgements go out though nothing else does."""
        due_s = self._acks_due_s if self._acks else math.inf
        return min(due_s, self._own_acks_due_s) if self._own_acks else due_s

    def take_acks(self) -> list[session_pb2.ClientFrame]:
        """The acknowledgements that wait, for the end of a session; none before Welcome."""
        return self._pop_acks() if self.state in {SessionState.SYNCING, SessionState.LIVE} else []

    # --- the passing of time

    def check(self, now_s: float) -> Ending | None:
        """Why the session is over, if the passing of time ends it."""
        if self.state is SessionState.ENDED:
            return None
        if self.state is SessionState.OPENING:
            if now_s >= self._connect_deadline_s:
                return Ending(Next.BACK_OFF, "the server did not answer in time")
            return None
        if self._reconnect_at_s is not None and now_s >= self._reconnect_at_s:
            return Ending(Next.RECONNECT, self._reconnect_because)
        if now_s >= self._heard_s + self._silence_s:
            return Ending(Next.RECONNECT, "the server fell silent")
        if now_s >= self._answer_due_s():
            return Ending(Next.BACK_OFF, "the server did not answer a request in time")
        if self._heads_are_late(now_s):
            return Ending(Next.RECONNECT, "the server did not send events that it has")
        return None

    def check_at_s(self) -> float:
        """When `check` may have something that it has not now."""
        if self.state is SessionState.OPENING:
            return self._connect_deadline_s
        deadlines = [self._heard_s + self._silence_s, self._answer_due_s()]
        if self._reconnect_at_s is not None:
            deadlines.append(self._reconnect_at_s)
        deadlines += [head.since_s + self._heartbeat_interval_s for head in self._late_heads()]
        return min(deadlines)

    def take_at_s(self, now_s: float) -> float:
        """When `take` or `token_due` may have something that they have not now."""
        if self.state is SessionState.OPENING:
            return self._connect_deadline_s
        deadlines = [self._said_s + self._heartbeat_interval_s, self._acks_at_s()]
        if self._refresh_at_s is not None:
            deadlines.append(self._refresh_at_s)
        outbox_deadline_s = self._outbox.next_deadline_s(now_s)
        if outbox_deadline_s is not None:
            deadlines.append(outbox_deadline_s)
        return min(deadlines)

    @property
    def _silence_s(self) -> float:
        return self._heartbeat_interval_s * SILENCE_FACTOR

    def _answer_due_s(self) -> float:
        oldest = next(iter(self._unanswered.values()), None)
        return math.inf if oldest is None else oldest + self._answer_timeout_s

    def _late_heads(self) -> Iterable[_Head]:
        """Heads whose events are the server's to send; it rightly waits while the device has not stored what it got."""
        return () if self._unstored else self._heads.values()

    def _heads_are_late(self, now_s: float) -> bool:
        return any(now_s >= head.since_s + self._heartbeat_interval_s for head in self._late_heads())

    def _token_lasts_until(self, expires_at_ms: int, now_s: float) -> None:
        if not expires_at_ms:
            self._refresh_at_s = None
            return
        self._token_expires_s = self._welcomed_s + (expires_at_ms - self._server_time_ms) / 1000
        left_s = self._token_expires_s - now_s
        # The provider may have no newer one, and servers forgive some seconds past the end.
        self._refresh_at_s = now_s + max(REFRESH_RETRY_S, left_s / 2, left_s - REFRESH_MARGIN_S)

    def _new_request_id(self) -> int:
        self._last_request_id += 1
        return self._last_request_id


def ack_frame(chat_id: str, seq: int) -> session_pb2.ClientFrame:
    """Acknowledges a chat up to `seq`."""
    return session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id=chat_id, seq=seq))


def hello(
    device_id: str,
    device_name: str,
    positions: Mapping[str, tuple[int, int]],
    sync_token: str,
    start_at: session_pb2.StartAt.ValueType,
    connection_number: int,
    *,
    ephemeral: bool = False,
) -> session_pb2.Hello:
    """Opens a session; `positions` are the last seq held and the last seq read, by chat. The number rises with each stream."""
    return session_pb2.Hello(
        device_id=device_id,
        device_name=device_name,
        positions=[
            session_pb2.ChatPosition(chat_id=chat_id, seq=seq, read_seq=read_seq)
            for chat_id, (seq, read_seq) in positions.items()
        ],
        start_at=start_at,
        sync_token=sync_token,
        connection_number=connection_number,
        ephemeral=ephemeral,
    )
