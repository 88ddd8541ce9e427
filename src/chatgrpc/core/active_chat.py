"""One chat in the memory of its owner: its state, what is known of its latest events, and the writes on their way."""

from collections import deque
from dataclasses import dataclass, field

from chatgrpc.core.damage import stored_chat, stored_event
from chatgrpc.core.entries import MemberView, StoredChat
from chatgrpc.core.fold import apply_event
from chatgrpc.core.rules import EventMeta, is_muted
from chatgrpc.core.visibility import Interval
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2

_CHAT_BYTES = 2_000
_HEAD_BYTES = 500
_MEMBER_BYTES = 500

Ticket = object
"""Names who waits for an answer; the sequencer hands it back as it was."""


def event_meta(chat_id: str, seq: int, event: bytes) -> EventMeta:
    """What is remembered of the event that is stored at a place.

    Raises:
        DamageError: it is none.
    """
    parsed = stored_event(chat_id, seq, event)
    return EventMeta(
        parsed.seq,
        parsed.message_id,
        parsed.sender_user_id,
        parsed.client_message_id,
        parsed.sent_at_ms,
        parsed.content.WhichOneof("body") or "",
        reaction_of(parsed.content),
        text_of(parsed.content, parsed.seq),
    )


def reaction_of(content: content_pb2.Content) -> tuple[int, str] | None:
    """Target and emoji of a reaction; None of any other content."""
    return (content.reaction.target_seq, content.reaction.emoji) if content.HasField("reaction") else None


def text_of(content: content_pb2.Content, seq: int) -> tuple[int, int] | None:
    """Message and hash of the text that an event at `seq` gives it; None of what gives none."""
    if content.HasField("text"):
        return seq, hash(content.text.text)
    return (content.edit.target_seq, hash(content.edit.text)) if content.HasField("edit") else None


@dataclass(slots=True)
class Pending:
    """An event that has its seq and is not committed yet."""

    meta: EventMeta
    event: bytes
    """Serialized ChatEvent."""
    recipients: tuple[str, ...]
    left_user_id: str
    changes_members: bool
    erases_seq: int
    """The event that it erases; 0 = none."""
    tickets: list[tuple[Ticket, Write, bool]]
    """Who waits for it, and what they sent; with True, and without its content, for those who sent it again."""
    held_bytes: int = 0
    """Of the write, which count until it is committed."""
    refusals: list[tuple[Ticket, Write, chat_pb2.Error]] = field(default_factory=list)
    """Writes, without their contents, that were refused after it, by a state that counts only once it is committed."""

    @property
    def behind(self) -> int:
        """How many wait for it besides who sent it first."""
        return sum(again for _, _, again in self.tickets) + len(self.refusals)


@dataclass(slots=True)
class LookedUp:
    """What was read from the store for the write that waits at the head of a chat's queue."""

    targets: dict[int, EventMeta] = field(default_factory=dict)
    counted: bool = False
    """Groups were counted; else it was only looked for events."""
    group_counts: dict[str, int] = field(default_factory=dict)
    opened: frozenset[str] = frozenset()
    """Those of them who have opened their direct chat with the writer, as far as that matters."""


class ActiveChat:
    """A chat that its owner has loaded.

    `recent` holds the meta of the events `floor_seq … head_seq` without a gap, and `_by_key` finds them by sender and client
    message id, so for a device that has seen `floor_seq - 1` the check for a duplicate is one look into a dict (G3).
    """

    __slots__ = (
        "_by_key",
        "_recent_max",
        "_span_max",
        "_widened_until_ms",
        "awaited_seq",
        "behind",
        "chat",
        "chat_id",
        "committed_seq",
        "head_seq",
        "held_bytes",
        "in_flight",
        "last_sent_seq",
        "loaded",
        "looked_up",
        "members",
        "recent",
        "recipients",
        "sent_at_ms",
        "unsealed",
        "waiting",
        "was_written_to",
    )

    def __init__(self, chat_id: str, recent_max: int, span_max: int) -> None:
        """The meta of `recent_max` events is kept in memory, for a minute after a wider search up to `span_max`."""
        self.chat_id = chat_id
        self.chat: chat_pb2.Chat | None = None
        self.loaded = False
        self.was_written_to = False
        """Else it was loaded for a question."""
        self.members: dict[str, content_pb2.Member] = {}
        self.recipients: tuple[str, ...] = ()
        self.head_seq = 0
        self.committed_seq = 0
        self.sent_at_ms = 0
        self.recent: deque[EventMeta] = deque()
        self.last_sent_seq: dict[str, int] = {}
        self.in_flight: dict[int, Pending] = {}
        self.waiting: deque[tuple[Ticket, Write, int, int]] = deque()  # with its bytes, and where a sender left who did
        self.awaited_seq = 0  # the first write that waits does so until this is committed; 0 = it does not
        self.unsealed: list[tuple[Ticket, Write, chat_pb2.Error]] = []  # refusals that are not said yet: see `Sequencer.sealed`
        self.behind = 0  # who waits for those in flight besides who sent them first: see `Pending.behind`; and the unsealed
        self.held_bytes = 0  # of the writes that wait and of those in flight
        self.looked_up: LookedUp | None = None
        self._by_key: dict[tuple[str, bytes], EventMeta] = {}
        self._recent_max = recent_max
        self._span_max = span_max
        self._widened_until_ms = 0

    @property
    def floor_seq(self) -> int:
        """The lowest seq whose meta is in memory."""
        return self.head_seq - len(self.recent) + 1

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory, besides what it holds of writes."""
        return _CHAT_BYTES + _HEAD_BYTES * len(self.recent) + _MEMBER_BYTES * len(self.members)

    @property
    def is_idle(self) -> bool:
        """Nothing is lost by forgetting the chat: it loads again from the log."""
        return not self.waiting and not self.in_flight and not self.unsealed

    def may_type(self, user_id: str, wall_ms: int) -> bool:
        """Whether it is shown to the others when the user types: they are a member, and not muted."""
        member = self.members.get(user_id)
        return member is not None and not is_muted(member, wall_ms)

    def await_admission(self, user_id: str) -> bool:
        """Whether the user is a member by an event that is not committed yet; notes that the first write waits for it."""
        member = self.members.get(user_id)
        if member is None or member.joined_seq <= self.committed_seq:
            return False
        self.awaited_seq = member.joined_seq
        return True

    def load(self, stored: StoredChat | None) -> None:
        """Takes what the store holds of the chat; None = it does not exist.

        Raises:
            DamageError: it cannot be right; nothing was taken.
        """
        if stored is None:
            self.loaded = True
            return
        meta = event_meta(self.chat_id, stored.head_seq, stored.head_event)
        state = stored_chat(self.chat_id, stored.chat, stored.head_seq)
        self.loaded = True
        self.recent.append(meta)
        self._remember(meta)
        self.head_seq = self.committed_seq = meta.seq
        self.sent_at_ms = meta.sent_at_ms
        self.restore(state)

    def restore(self, chat: chat_pb2.Chat) -> None:
        """Takes the state that later events are applied to."""
        self._set_chat(chat)

    def find(self, sender_user_id: str, client_message_id: bytes) -> EventMeta | None:
        """The event, among those in memory, that the sender sent under this id."""
        return self._by_key.get((sender_user_id, client_message_id))

    def event_meta(self, seq: int) -> EventMeta | None:
        """What is remembered of an event, if it is in memory."""
        if self.floor_seq <= seq <= self.head_seq:
            return self.recent[seq - self.floor_seq]
        return None

    def standing_reaction(self, user_id: str, target_seq: int) -> str | None:
        """The user's reaction to a message, empty for none; None if not all events since the message are in memory."""
        for meta in reversed(self.recent):
            if meta.seq <= target_seq:
                break
            if meta.reaction is not None and meta.reaction[0] == target_seq and meta.sender_user_id == user_id:
                return meta.reaction[1]
        return "" if target_seq >= self.floor_seq - 1 else None

    def has_text(self, target_seq: int, text: str) -> bool:
        """Whether a message reads like this now, as far as the events in memory tell."""
        for meta in reversed(self.recent):
            if meta.seq < target_seq:
                break
            if meta.text is not None and meta.text[0] == target_seq:
                return meta.text[1] == hash(text)
        return False

    def widen(self, older: list[EventMeta], now_ms: int) -> None:
        """Puts the meta of the events just below `floor_seq` in front; it is kept for a minute, for the next repetition."""
        for meta in reversed(older):
            self.recent.appendleft(meta)
            self._remember(meta)
        self._widened_until_ms = now_ms + 60_000

    def append(self, meta: EventMeta, now_ms: int) -> None:
        """Notes the next event."""
        self.recent.append(meta)
        self.head_seq = meta.seq
        self.sent_at_ms = meta.sent_at_ms
        self._remember(meta)
        excess = len(self.recent) - (self._recent_max if now_ms >= self._widened_until_ms else self._span_max)
        if excess > 0:
            self._forget_oldest(min(excess, 16))  # a widened window shrinks a few at a time

    def _forget_oldest(self, count: int) -> None:
        for _ in range(count):
            oldest = self.recent[0]
            if oldest.seq > self.committed_seq:
                return  # a search in the log would not find it
            self.recent.popleft()
            self._by_key.pop((oldest.sender_user_id, oldest.client_message_id), None)

    def apply(self, event: chat_pb2.ChatEvent) -> tuple[MemberView, ...]:
        """Applies an event that changes the chat's state; returns the intervals of members that it opened or closed."""
        before = self.members
        state = chat_pb2.Chat()
        if self.chat is not None:
            state.CopyFrom(self.chat)
        apply_event(state, event)
        self._set_chat(state)
        opened = [
            MemberView(user_id, Interval(event.seq))
            for user_id, member in self.members.items()
            if user_id not in before or before[user_id].joined_seq != member.joined_seq
        ]
        closed = [
            MemberView(user_id, Interval(member.joined_seq, event.seq))
            for user_id, member in before.items()
            if user_id not in self.members
        ]
        return tuple(opened + closed)

    def senders_above(self, seq: int) -> list[str]:
        """Members who sent an event above `seq`, or may have: who sent below `floor_seq` is not in memory."""
        everyone = seq + 1 < self.floor_seq
        return [user_id for user_id in self.recipients if everyone or self.last_sent_seq.get(user_id, 0) > seq]

    def mark_erased(self, seq: int) -> None:
        """The event's content is gone: it can be edited or deleted no more."""
        meta = self.event_meta(seq)
        if meta is None:
            return
        erased = meta._replace(arm="erased")
        self.recent[seq - self.floor_seq] = erased
        self._by_key[erased.sender_user_id, erased.client_message_id] = erased

    def _remember(self, meta: EventMeta) -> None:
        self._by_key[meta.sender_user_id, meta.client_message_id] = meta
        if self.last_sent_seq.get(meta.sender_user_id, 0) < meta.seq:
            self.last_sent_seq[meta.sender_user_id] = meta.seq

    def _set_chat(self, chat: chat_pb2.Chat | None) -> None:
        self.chat = chat
        self.members = {member.user_id: member for member in chat.members} if chat is not None else {}
        self.recipients = tuple(self.members)
