"""The session of one stream: a state machine without I/O.

The shell hands in frames, answers and the time, and runs the effects that come back; whatever is to be sent stands, ready for
the wire, in the session's output. A time that is one number is by the monotonic clock. Peer input never raises here: a request
that breaks a rule is answered by an `Error`, and input that breaks the protocol ends the session with a code of the disconnect
table.

States: `AWAITING_HELLO` → (Hello) `OPENING`: the token is verified, the device registered, the user's chats are read → `OPEN`:
requests are served, and the feed pushes events → `ENDED`.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from chatgrpc.core.clock import Now
from chatgrpc.core.disconnect import Code, Ended
from chatgrpc.core.effects import (
    NOTHING,
    Admission,
    Admit,
    Effect,
    End,
    FetchPage,
    Marked,
    ShowTyping,
    Submit,
    VerifyToken,
    Watch,
)
from chatgrpc.core.entries import Membership, StoredChat, StoredEvent
from chatgrpc.core.event_feed import EventFeed, FeedRead, Start
from chatgrpc.core.events import frame_chunk, history_chunk, sent_chunk
from chatgrpc.core.ids import CLIENT_MESSAGE_ID_BYTES, direct_chat_id, is_chat_id, is_device_id, is_user_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import after_failed_send, is_retryable
from chatgrpc.core.rules import MESSAGES
from chatgrpc.core.send_order import SendOrder
from chatgrpc.core.write import Write, copied
from chatgrpc.v1 import chat_pb2, session_pb2


@dataclass(frozen=True, slots=True)
class Timings:
    """Times of a session, in milliseconds."""

    hello_timeout_ms: int = 10_000
    heartbeat_interval_ms: int = 30_000
    ack_delay_ms: int = 100
    """So long a device may let acknowledgements wait for company."""
    max_age_ms: int = 0
    """After this the stream is drained and ended, so that load spreads over new nodes; 0 = never."""
    token_leeway_ms: int = 0
    """For so long after its expiry a token is still good, as it is for whoever comes with it."""
    drain_grace_ms: int = 30_000
    """Between a Drain and the end of the stream."""


class State(enum.Enum):
    """Where a session stands."""

    AWAITING_HELLO = enum.auto()
    OPENING = enum.auto()
    OPEN = enum.auto()
    ENDED = enum.auto()


_RETRY_FIRST_MS = 500
_RETRY_MAX_MS = 30_000
"""A chat that could not be read is read again after a while, twice as long after each failure."""
_EARLY_HEADS_MAX = 64
_LOOKED_AT_PER_WATCHED = 10
"""Of the chats that a device asks to watch, at most this many times those that it may watch are checked for membership."""
_SEQ_MAX = 2**63 - 1
_CHAT_ID_CHARS_MAX = 64
"""Longer than any id of a chat, so that nothing longer need be looked up."""
_SHOWN_TO = frozenset({State.OPENING, State.OPEN})


def compare_numbers(connection_number: int, other: int) -> int:
    """Which of two streams of a device is older, by the numbers in their Hellos: -1 the first, 1 the other, 0 = not known."""
    if not connection_number or not other:
        return 0
    return (connection_number > other) - (connection_number < other)


class Session:
    """One stream of one device."""

    def __init__(self, session_id: str, metadata_token: str | None, limits: Limits, timings: Timings, now_ms: int) -> None:
        self.session_id = session_id
        self.user_id = ""
        self.device_id = ""
        self.ephemeral = False
        """The device gives way to others, and its cursors are not kept."""
        self.connection_number = 0
        """Of two streams of the device the one with the lower number is the older; 0 = the device says nothing of it."""
        self.state = State.AWAITING_HELLO
        self.events: list[bytes] = []
        """Chunks to send, in order: events, answers."""
        self.control: dict[tuple[str, ...], bytes] = {}
        """Chunks of which only the latest of a key counts: receipts, presence, typing. They never force a flush."""
        self._counted = 0  # of `events`, from the first on, whose bytes are counted
        self._counted_bytes = 0
        self._control_bytes = 0
        self.feed = EventFeed(limits, self.events)
        self.deadline_ms = now_ms + timings.hello_timeout_ms
        """When `on_deadline` must be called."""
        self._limits = limits
        self._timings = timings
        self._metadata_token = metadata_token
        self._opened_at_ms = now_ms
        self._last_input_ms = now_ms
        self._last_output_ms = now_ms
        self._token_ends_ms = 0
        self._drained_at_ms: int | None = None
        self._drained_for: Code = session_pb2.DISCONNECT_CODE_MAX_AGE
        self._last_request_id = 0
        self._requests_in_flight = 0
        self._sends_in_flight_bytes = 0
        self._history_in_flight = 0
        self._refreshes_in_flight = 0
        self._hello_request_id = 0
        self._positions: dict[str, tuple[int, int]] = {}  # what the Hello said: chat -> held up to, read up to
        self._late_positions: dict[str, tuple[int, int]] = {}  # the same of chats whose membership is to be read first
        self._late_marks: list[Effect] = []  # of those that became known
        self._at_head = False
        self._early_heads: list[Mapping[str, int]] = []  # that were stated while the session was opened
        self._retries_ms: dict[str, int] = {}  # chat -> when it is read again
        self._early_frames: list[session_pb2.ClientFrame] = []
        self._sync_token: str | None = None
        self._send_order = SendOrder()
        self._typing_at_ms: dict[str, int] = {}
        self._typing_shown: set[str] = set()

    # Frames.

    def receive(self, frame: session_pb2.ClientFrame, now_ms: int) -> Sequence[Effect]:
        """Takes one frame of the device."""
        self._last_input_ms = now_ms
        if self.state is State.OPEN:
            return self._dispatch(frame, now_ms)
        if self.state is State.AWAITING_HELLO:
            return self._receive_hello(frame, now_ms)
        if self.state is State.OPENING:
            if len(self._early_frames) >= self._limits.frames_per_batch_max:
                return self.end(_violation("Too many frames before the Welcome; wait for it."))
            self._early_frames.append(frame)
        return NOTHING

    def _receive_hello(self, frame: session_pb2.ClientFrame, now_ms: int) -> Sequence[Effect]:
        if frame.WhichOneof("body") != "hello":
            return self.end(_violation("The first frame must be a Hello."))
        hello = frame.hello
        if not is_device_id(hello.device_id):
            return self.end(_violation("Hello.device_id must be 1 to 64 letters, digits and _ . -"))
        token = hello.token or self._metadata_token
        if not token:
            return self.end(
                Ended(
                    session_pb2.DISCONNECT_CODE_UNAUTHENTICATED,
                    "There is no token: set Hello.token, or send `authorization: Bearer TOKEN` as metadata.",
                    "TOKEN_MISSING",
                )
            )
        self.state = State.OPENING
        self.deadline_ms = now_ms + self._timings.heartbeat_interval_ms
        self.device_id = hello.device_id
        self._hello_request_id = self._last_request_id = frame.request_id
        self._positions = _positions(hello, self._limits.positions_max)
        self._at_head = hello.start_at == session_pb2.START_AT_HEAD
        self.connection_number = hello.connection_number
        self.ephemeral = hello.ephemeral
        name = hello.device_name.encode()[: self._limits.device_name_bytes_max].decode(errors="ignore")
        held = self._positions.keys()
        return [Admit(token, hello.device_id, name, hello.sync_token, hello.ephemeral, held, self._at_head)]

    def _dispatch(self, frame: session_pb2.ClientFrame, now_ms: int) -> Sequence[Effect]:
        request_id = frame.request_id
        if request_id:
            if request_id <= self._last_request_id:
                return self.end(_violation(f"request_id {request_id} does not rise above {self._last_request_id}."))
            self._last_request_id = request_id
        match frame.WhichOneof("body"):
            case "send":
                return self._send(request_id, frame.send)
            case "ack":
                ack = frame.ack
                chat_id = ack.chat_id
                acked = self.feed.ack(chat_id, ack.seq)
                return [Marked(chat_id, acked, 0)] if acked else NOTHING
            case "mark_read":
                return self._mark_read(frame.mark_read)
            case "typing":
                return self._typing(frame.typing, now_ms)
            case "heartbeat":
                if request_id:
                    self._answer(request_id, session_pb2.ServerFrame(heartbeat=self._heartbeat()))
                return NOTHING
            case "fetch_history":
                return self._fetch_history(request_id, frame.fetch_history)
            case "refresh_token":
                return self._refresh_token(request_id, frame.refresh_token)
            case "watch_chats":
                return [self._watch(frame.watch_chats)]
            case "hello":
                return self.end(_violation("A stream has one Hello."))
        return self._refuse(
            request_id,
            chat_pb2.ERROR_CODE_INVALID_ARGUMENT,
            "This version of the server does not know such a frame. Send those that its API has, or connect to a newer one.",
        )

    # Requests.

    def _send(self, request_id: int, send: session_pb2.SendMessage) -> Sequence[Effect]:
        if not request_id:
            return self.end(_violation("A SendMessage needs a request_id, to which its outcome can be given."))
        key = send.key
        client_message_id = key.client_message_id
        if len(client_message_id) != CLIENT_MESSAGE_ID_BYTES:
            return self._refuse(
                request_id,
                chat_pb2.ERROR_CODE_INVALID_ARGUMENT,
                "key.client_message_id must be 16 random bytes, kept for re-sends.",
            )
        peer_user_id = send.user_id
        if peer_user_id and is_user_id(peer_user_id):
            chat_id = direct_chat_id(self.user_id, peer_user_id)
        elif not is_chat_id(chat_id := send.chat_id):
            return self._refuse(request_id, chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "Set chat_id or user_id, in its proper form.")
        content = copied(send.content)
        if content.WhichOneof("body") not in MESSAGES:
            return self._refuse(
                request_id,
                chat_pb2.ERROR_CODE_UNSUPPORTED_CONTENT,
                "Changes of a chat go through ChatService; other content is unknown.",
            )
        if self._send_order.count >= self._limits.sends_in_order_max:
            return self.end(Ended(session_pb2.DISCONNECT_CODE_OVERLOADED, "Too many sends failed and have not come again."))
        if not self._send_order.admit(chat_id, client_message_id):
            self._answer(request_id, session_pb2.ServerFrame(error=after_failed_send()))
            return NOTHING
        if self._requests_in_flight >= self._limits.requests_in_flight_max:
            self._send_order.fail(chat_id, client_message_id)
            return self._too_many(request_id, f"{self._limits.requests_in_flight_max} requests")
        size_bytes = content.ByteSize()
        if self._sends_in_flight_bytes and self._sends_in_flight_bytes + size_bytes > self._limits.sends_in_flight_bytes_max:
            self._send_order.fail(chat_id, client_message_id)
            return self._too_many(request_id, f"{self._sends_in_flight_bytes:,} bytes of sends")
        self._requests_in_flight += 1
        self._sends_in_flight_bytes += size_bytes
        self._typing_at_ms.pop(chat_id, None)  # what is typed after the message is news again
        write = Write(chat_id, self.user_id, content, client_message_id, key.seen_seq, self.device_id, peer_user_id)
        write.stream_id, write.size_bytes = self.session_id, size_bytes
        return [Submit(request_id, write)]

    def answered(self, request_id: int, write: Write, outcome: chat_pb2.SendResult | chat_pb2.Error) -> None:
        """The outcome of a `Submit`."""
        self._requests_in_flight -= 1
        self._sends_in_flight_bytes -= write.size_bytes
        if isinstance(outcome, chat_pb2.SendResult):
            self._send_order.settle(write.chat_id, write.client_message_id)
            if self.state is not State.ENDED:
                self.events.append(sent_chunk(request_id, outcome))
            return
        if is_retryable(outcome):
            self._send_order.fail(write.chat_id, write.client_message_id)
        else:
            self._send_order.settle(write.chat_id, write.client_message_id)
        self._answer(request_id, session_pb2.ServerFrame(error=outcome))

    def _mark_read(self, mark: session_pb2.MarkRead) -> Sequence[Effect]:
        chat_id, seq = mark.chat_id, min(mark.seq, _SEQ_MAX)
        head_seq = self.feed.head_seq(chat_id)
        if seq > head_seq and self.feed.is_unclear(chat_id):  # of a chat made a moment ago another device may know already
            held_seq, read_seq = self._late_positions.get(chat_id, (0, 0))
            self._late_positions[chat_id] = held_seq, max(read_seq, seq)
        read_seq = min(seq, head_seq)  # perhaps read by pages, above what was pushed
        return [Marked(chat_id, 0, read_seq)] if read_seq else NOTHING

    def _typing(self, typing: session_pb2.Typing, now_ms: int) -> Sequence[Effect]:
        chat_id = typing.chat_id
        if not self.feed.knows(chat_id):
            return NOTHING
        if typing.kind == session_pb2.TYPING_KIND_STOPPED:
            if chat_id not in self._typing_shown:
                return NOTHING
            self._typing_shown.remove(chat_id)
            return [ShowTyping(chat_id, typing.kind)]
        told_ms = self._typing_at_ms.get(chat_id)
        if told_ms is not None and now_ms < told_ms + self._limits.typing_interval_ms:
            return NOTHING
        self._typing_at_ms[chat_id] = now_ms
        self._typing_shown.add(chat_id)
        kind = typing.kind
        if kind != session_pb2.TYPING_KIND_RECORDING:
            kind = session_pb2.TYPING_KIND_TEXT
        return [ShowTyping(chat_id, kind)]

    def _watch(self, watch: session_pb2.WatchChats) -> Watch:
        watched_max = self._limits.watched_chats_max
        looked_at = watch.chat_ids[: watched_max * _LOOKED_AT_PER_WATCHED]
        chat_ids = dict.fromkeys(list(dict.fromkeys(filter(self.feed.knows, looked_at)))[:watched_max])
        peer_user_ids: dict[str, None] = {}
        for user_id in watch.user_ids[: watched_max - len(chat_ids)]:
            if is_user_id(user_id) and user_id != self.user_id:
                peer_user_ids[user_id] = None
                if self.feed.knows(chat_id := direct_chat_id(self.user_id, user_id)):
                    chat_ids[chat_id] = None
        return Watch(tuple(chat_ids), tuple(peer_user_ids))

    def _fetch_history(self, request_id: int, request: session_pb2.FetchHistory) -> Sequence[Effect]:
        if not request_id:
            return self.end(_violation("A FetchHistory needs a request_id, to which the page can be given."))
        if self._history_in_flight >= self._limits.history_requests_in_flight_max:
            return self._too_many(request_id, f"{self._limits.history_requests_in_flight_max} requests")
        self._history_in_flight += 1
        return [FetchPage(request_id, copied(request))]

    def page_read(
        self, request_id: int, page: session_pb2.HistoryPage | chat_pb2.Error, events: list[StoredEvent] | None = None
    ) -> None:
        """The outcome of a `FetchPage`; `page` holds all but the events."""
        self._history_in_flight -= 1
        if isinstance(page, chat_pb2.Error):
            self._answer(request_id, session_pb2.ServerFrame(error=page))
            return
        if self.state is State.OPEN:
            self.events.append(history_chunk(request_id, page, [stored.event for stored in events or ()]))

    def _refresh_token(self, request_id: int, refresh: session_pb2.RefreshToken) -> Sequence[Effect]:
        if self._refreshes_in_flight >= self._limits.refreshes_in_flight_max:
            return self._too_many(request_id, f"{self._limits.refreshes_in_flight_max} requests")
        self._refreshes_in_flight += 1
        return [VerifyToken(request_id, refresh.token)]

    def token_verified(self, request_id: int, user_id: str, expires_at_ms: int, now: Now) -> None:
        """A newer token is valid, and says this of its bearer."""
        if user_id != self.user_id:
            message = "The token is another user's. The session goes on with the token it has."
            self.token_refused(request_id, chat_pb2.Error(code=chat_pb2.ERROR_CODE_TOKEN_INVALID, message=message))
            return
        self._refreshes_in_flight -= 1
        self._note_expiry(expires_at_ms, now)
        self._set_deadline(now.monotonic_ms)
        refreshed = session_pb2.TokenRefreshed(token_expires_at_ms=expires_at_ms)
        self._answer(request_id, session_pb2.ServerFrame(token_refreshed=refreshed))

    def token_refused(self, request_id: int, error: chat_pb2.Error) -> None:
        """A newer token is not valid, or cannot be checked now."""
        self._refreshes_in_flight -= 1
        self._answer(request_id, session_pb2.ServerFrame(error=error))

    # Opening.

    def admitted(self, admission: Admission, now: Now) -> Sequence[Effect]:
        """The device may come in. Deliveries that came since the Hello have been noted, so none is missed."""
        if self.state is not State.OPENING:
            return NOTHING
        self.state = State.OPEN
        self.user_id = admission.user_id
        self._note_expiry(admission.token_expires_at_ms, now)
        self._sync_token = admission.sync_token
        self._set_deadline(now.monotonic_ms)
        welcome = session_pb2.Welcome(
            session_id=self.session_id,
            user_id=admission.user_id,
            heartbeat_interval_ms=self._timings.heartbeat_interval_ms,
            limits=self._limits.frame(),
            token_expires_at_ms=admission.token_expires_at_ms,
            server_time_ms=now.wall_ms,
            ack_delay_ms=self._timings.ack_delay_ms,
        )
        welcome_frame = session_pb2.ServerFrame(request_id=self._hello_request_id, welcome=welcome)
        self.events.append(frame_chunk(welcome_frame))
        positions = {chat_id: held_seq for chat_id, (held_seq, _) in self._positions.items()}
        start = Start(positions, admission.acked, self._at_head)
        self.feed.open(admission.user_id, admission.memberships, start, admission.unknown)
        heads, self._early_heads = self._early_heads, []
        for some in heads:
            self.feed.note_heads(some)
        self.events += [frame_chunk(session_pb2.ServerFrame(receipt=receipt)) for receipt in admission.receipts]
        effects: list[Effect] = []
        for chat_id, position in self._positions.items():
            if self.feed.is_unclear(chat_id):
                self._late_positions[chat_id] = position
            else:
                effects += self._marks(chat_id, position)
        self._positions = {}
        self._note_sync()
        early, self._early_frames = self._early_frames, []
        for frame in early:
            effects += self.receive(frame, now.monotonic_ms)
        return effects

    def _marks(self, chat_id: str, position: tuple[int, int]) -> Sequence[Effect]:
        """The marks that follow from a device's position: what it holds was delivered, and perhaps read."""
        head_seq = self.feed.head_seq(chat_id)
        held_seq, read_seq = (min(seq, head_seq) for seq in position)
        return [Marked(chat_id, held_seq, read_seq)] if held_seq or read_seq else NOTHING

    # Events.

    def deliver(self, chat_id: str, seq: int, chunk: bytes, last: bool) -> None:
        """Takes a committed event of one of the user's chats; `last` if the user is no member after it."""
        if self.state is not State.ENDED:
            self.feed.deliver(chat_id, seq, chunk, last)

    def note_heads(self, heads: Mapping[str, int]) -> None:
        """Owners state that chats are committed up to here; finds out whether a push was lost. `heads` is not to be changed.

        While the session is opened its chats are not known yet, and a head of one may have been read already: it is kept.
        """
        if self.state is State.OPEN:
            self.feed.note_heads(heads)
        elif self.state is State.OPENING:
            self._early_heads.append(heads)
            if len(self._early_heads) > _EARLY_HEADS_MAX:
                self._early_heads = [_merged(self._early_heads)]

    def note_head(self, chat_id: str, seq: int) -> None:
        """The same of one chat."""
        self.note_heads({chat_id: seq})

    def note_membership(self, chat_id: str, seq: int) -> None:
        """The user's membership, as stored, changed last at `seq`; finds out whether the push that told was lost."""
        if self.state is State.OPEN:
            self.feed.note_membership(chat_id, seq)

    def next_read(self) -> FeedRead | None:
        """What the feed wants read next, unless too much waits to be sent already."""
        if self.state is not State.OPEN:
            return None
        wanted = None
        if self.feed.is_behind and self.backlog_bytes() <= self._limits.unacknowledged_bytes_max:
            wanted = self.feed.next_read()
        self._note_sync()
        return wanted

    def log_read(self, events: list[StoredEvent]) -> None:
        """The outcome of a `ReadLog`."""
        if self.state is State.OPEN:
            self.feed.log_read(events)

    def chat_loaded(self, stored: StoredChat) -> None:
        """The outcome of a `LoadChat`."""
        if self.state is State.OPEN:
            self.feed.chat_loaded(stored)

    def membership_read(self, chat_id: str, membership: Membership | None) -> None:
        """The outcome of a `ReadMembership`."""
        if self.state is State.OPEN:
            self.feed.membership_read(chat_id, membership)
            if chat_id in self._late_positions and not self.feed.is_unclear(chat_id):
                self._late_marks += self._marks(chat_id, self._late_positions.pop(chat_id))

    def read_failed(self, wanted: FeedRead) -> None:
        """What `next_read` asked for cannot be read now; it costs this chat, and no other."""
        if self.state is State.OPEN:
            self.feed.read_failed(wanted)

    def after_read(self, now_ms: int) -> Sequence[Effect]:
        """To be called after the outcome of each read: says when chats that could not be read are read again.

        Returns the marks that the device stated of chats which were not known at that time.
        """
        if self.state is not State.OPEN:
            return NOTHING
        for chat_id, failures in self.feed.take_set_aside():
            wait_ms = min(_RETRY_FIRST_MS << min(failures - 1, 16), _RETRY_MAX_MS)
            self._retries_ms[chat_id] = now_ms + wait_ms
            self.deadline_ms = min(self.deadline_ms, now_ms + wait_ms)
        self._note_sync()
        marks, self._late_marks = self._late_marks, []
        return marks

    def show_receipt(self, receipt: chat_pb2.Receipt) -> None:
        """Someone's marks rose."""
        chunk = frame_chunk(session_pb2.ServerFrame(receipt=receipt))
        self._show(("receipt", receipt.chat_id, receipt.user_id), chunk)

    def show_typing(self, chat_id: str, user_id: str, chunk: bytes) -> None:
        """Someone is typing, by a `typing_chunk` that was made once for all who are shown it."""
        self._show(("typing", chat_id, user_id), chunk)

    def show_presence(self, presence: session_pb2.Presence) -> None:
        """Someone came or went."""
        self._show(("presence", presence.user_id), frame_chunk(session_pb2.ServerFrame(presence=presence)))

    @property
    def is_answered(self) -> bool:
        """Every request of the device has its answer, as far as the session has seen them."""
        return not (
            self.state is State.OPENING
            or self._early_frames
            or self._requests_in_flight
            or self._history_in_flight
            or self._refreshes_in_flight
        )

    # Output.

    def backlog_bytes(self) -> int:
        """Bytes that wait to be sent."""
        if self._counted <= len(self.events):
            self._counted_bytes += sum(map(len, self.events[self._counted :]))
        else:
            self._counted_bytes = sum(map(len, self.events))
        self._counted = len(self.events)
        return self._counted_bytes + self._control_bytes

    def take_output(self, now_ms: int) -> bytes:
        """Takes the next message to send: a serialized ConnectResponse; empty if there is nothing, or it is too early."""
        if self.state is State.OPENING:
            return b""
        chunks = self._within_limits(self.events)
        taken = len(chunks)
        if self.control and taken == len(self.events):
            chunks = self._within_limits([*chunks, *self.control.values()])
            for key in list(islice(self.control, len(chunks) - taken)):
                self._control_bytes -= len(self.control.pop(key))
        message = b"".join(chunks)
        if self._counted:
            gone = self.events[: min(taken, self._counted)]
            self._counted -= len(gone)
            self._counted_bytes -= sum(map(len, gone))
        del self.events[:taken]
        if message:
            self._last_output_ms = now_ms
        return message

    def _within_limits(self, chunks: list[bytes]) -> list[bytes]:
        """As many of the chunks, from the first on, as fit into one message."""
        bytes_left = self._limits.gathered_bytes_max
        for index, chunk in enumerate(chunks):
            bytes_left -= len(chunk)
            if (bytes_left < 0 and index) or index >= self._limits.frames_per_batch_max:
                return chunks[:index]
        return chunks

    # Time and end.

    def excuse_silence(self, now_ms: int) -> None:
        """We have stopped reading this device, so its silence does not count. It must still read what we send."""
        self._last_input_ms = now_ms

    def on_deadline(self, now_ms: int) -> Sequence[Effect]:
        """To be called at `deadline_ms`, which it sets anew."""
        if self.state is State.AWAITING_HELLO:
            return self.end(Ended(session_pb2.DISCONNECT_CODE_HELLO_TIMEOUT))
        if self.state is State.ENDED:
            return NOTHING
        interval_ms = self._timings.heartbeat_interval_ms
        if self.state is State.OPENING:  # the device is not heard until it is admitted; who keeps it waiting is the store
            return self.end(Ended(session_pb2.DISCONNECT_CODE_UNAVAILABLE))
        if now_ms - self._last_input_ms >= interval_ms * 5 // 2:
            return self.end(Ended(session_pb2.DISCONNECT_CODE_HEARTBEAT_MISSED))
        if now_ms >= self._token_ends_ms:
            return self.end(
                Ended(session_pb2.DISCONNECT_CODE_UNAUTHENTICATED, "The token expired. Get a new one.", "TOKEN_EXPIRED")
            )
        if self._drained_at_ms is not None and now_ms - self._drained_at_ms >= self._timings.drain_grace_ms:
            return self.end(Ended(self._drained_for))
        if self._timings.max_age_ms and self._drained_at_ms is None and now_ms - self._opened_at_ms >= self._timings.max_age_ms:
            self._drain(session_pb2.DISCONNECT_CODE_MAX_AGE, 0, now_ms)
        for chat_id in [chat_id for chat_id, due_ms in self._retries_ms.items() if due_ms <= now_ms]:
            del self._retries_ms[chat_id]
            self.feed.resume(chat_id)
        if now_ms - self._last_output_ms >= interval_ms:
            self._last_output_ms = now_ms
            self.events.append(frame_chunk(session_pb2.ServerFrame(heartbeat=self._heartbeat())))
        self._set_deadline(now_ms)
        return NOTHING

    def drain(self, reconnect_after_ms: int, now_ms: int) -> None:
        """Tells the device that its node is about to stop."""
        if self.state is State.OPEN:
            self._drain(session_pb2.DISCONNECT_CODE_SHUTTING_DOWN, reconnect_after_ms, now_ms)
            self._set_deadline(now_ms)

    def _drain(self, code: Code, reconnect_after_ms: int, now_ms: int) -> None:
        self._drained_for = code
        self._drained_at_ms = now_ms
        drain = session_pb2.Drain(reconnect_after_ms=reconnect_after_ms)
        self.events.append(frame_chunk(session_pb2.ServerFrame(drain=drain)))

    def end(self, ended: Ended) -> Sequence[Effect]:
        """Ends the session: the last frame is a Disconnect. What waits before it is cut to what fits into the last message."""
        if self.state is State.ENDED:
            return NOTHING
        self.state = State.ENDED
        self._forget_backlog()
        last = frame_chunk(ended.frame())
        bytes_left = self._limits.gathered_bytes_max - len(last)
        kept = 0
        for chunk in self.events[: self._limits.frames_per_batch_max - 1]:
            bytes_left -= len(chunk)
            if bytes_left < 0:
                break
            kept += 1
        self.events[kept:] = [last]
        return [End(ended)]

    def closed(self) -> None:
        """The stream is gone; nothing can be sent any more."""
        self.state = State.ENDED
        self.events.clear()
        self._forget_backlog()

    # Helpers.

    def _forget_backlog(self) -> None:
        self.control.clear()
        self._control_bytes = self._counted = self._counted_bytes = 0

    def _note_expiry(self, expires_at_ms: int, now: Now) -> None:
        """The wall clock judges a token when it comes; from then on it lasts as long as it had left."""
        self._token_ends_ms = now.monotonic_ms + expires_at_ms - now.wall_ms + self._timings.token_leeway_ms

    def _show(self, key: tuple[str, ...], chunk: bytes) -> None:
        if self.state in _SHOWN_TO and (key in self.control or len(self.control) < self._limits.control_frames_max):
            self._control_bytes += len(chunk) - len(self.control.get(key, b""))
            self.control[key] = chunk

    def _set_deadline(self, now_ms: int) -> None:
        interval_ms = self._timings.heartbeat_interval_ms
        deadline_ms = min(self._last_input_ms + interval_ms * 5 // 2, self._last_output_ms + interval_ms, self._token_ends_ms)
        if self._drained_at_ms is not None:
            deadline_ms = min(deadline_ms, self._drained_at_ms + self._timings.drain_grace_ms)
        elif self._timings.max_age_ms:
            deadline_ms = min(deadline_ms, self._opened_at_ms + self._timings.max_age_ms)
        if self._retries_ms:
            deadline_ms = min(deadline_ms, *self._retries_ms.values())
        self.deadline_ms = max(deadline_ms, now_ms + 1)

    def _heartbeat(self) -> session_pb2.Heartbeat:
        heads = [session_pb2.ChatHead(chat_id=chat_id, seq=seq) for chat_id, seq in self.feed.heads_behind()]
        return session_pb2.Heartbeat(heads=heads)

    def _note_sync(self) -> None:
        if self._sync_token is not None and self.feed.is_synced:
            unread = self.feed.unread()[: self._limits.heartbeat_heads_max]
            complete = session_pb2.SyncComplete(sync_token=self._sync_token, unread_chat_ids=unread)
            self._sync_token = None
            self.events.append(frame_chunk(session_pb2.ServerFrame(sync_complete=complete)))

    def _answer(self, request_id: int, frame: session_pb2.ServerFrame) -> None:
        if self.state is State.ENDED or request_id == 0:
            return
        frame.request_id = request_id
        self.events.append(frame_chunk(frame))

    def _refuse(
        self, request_id: int, code: chat_pb2.ErrorCode.ValueType, message: str, retry_after_ms: int = 0
    ) -> Sequence[Effect]:
        error = chat_pb2.Error(code=code, message=message, retry_after_ms=retry_after_ms)
        self._answer(request_id, session_pb2.ServerFrame(error=error))
        return NOTHING

    def _too_many(self, request_id: int, what: str) -> Sequence[Effect]:
        message = f"{what} are unanswered already; wait for an answer before the next."
        return self._refuse(request_id, chat_pb2.ERROR_CODE_TOO_MANY_IN_FLIGHT, message, 100)


def _positions(hello: session_pb2.Hello, chats_max: int) -> dict[str, tuple[int, int]]:
    """What the Hello says that the device holds, of the chats that it names first."""
    return {
        position.chat_id: (min(position.seq, _SEQ_MAX), min(position.read_seq, _SEQ_MAX))
        for position in hello.positions[:chats_max]
        if len(position.chat_id) <= _CHAT_ID_CHARS_MAX
    }


def _merged(heads: Iterable[Mapping[str, int]]) -> dict[str, int]:
    merged: dict[str, int] = {}
    for some in heads:
        for chat_id, seq in some.items():
            merged[chat_id] = max(seq, merged.get(chat_id, 0))
    return merged


def _violation(message: str) -> Ended:
    code: Code = session_pb2.DISCONNECT_CODE_PROTOCOL_VIOLATION
    return Ended(code, message)
