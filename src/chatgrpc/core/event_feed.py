"""The feed of one device: which events it has, which it gets next, and how many it owes an acknowledgement for.

Per chat a device is *live*, and committed events are pushed as they come, or it *lags*, and pages are read from the log as
fast as its acknowledgements allow. A chat lags at the start if the device is behind; it lags again when the window of
unacknowledged events is full (the device is slow, G5). While it lags only its head moves; the log is the buffer. It is live
again as soon as a page ends at the head, and since a page is read up to the head known at that moment there is neither a hole
nor a repetition at the seam.

What the user may see follows from the events themselves, as long as none is missing between them: the user is a member up to
the event that says it is the last. Of a chat that the feed does not know, or that the user had left, or of which a delivery was
lost (G4), the membership is *unclear*: it is read before anything more is pushed, and the chat lags from there (G6).

A member's device is told the chat's state before the first event of the interval in which the user is a member now. What was
read is taken for it only if it is of that interval: views are stored one after the other, so a state may be older than the
membership. Of a chat that cannot be read, or only an old state of it, nothing is read until `resume`; the others go on.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TypeAlias

from chatgrpc.core.entries import Membership, StoredChat, StoredEvent
from chatgrpc.core.events import event_chunk, frame_chunk
from chatgrpc.core.fold import member_of
from chatgrpc.core.limits import Limits
from chatgrpc.core.visibility import (
    Interval,
    first_visible,
    is_member,
    last_change,
    last_visible,
    next_visible,
    segments_after,
)
from chatgrpc.v1 import chat_pb2, session_pb2

_READ_EVENTS_MAX = 256
"""Events asked for in one read; a part of the window, so that other devices' reads come in between."""
_MEMBERSHIPS_AT_ONCE = 8
"""Reads of memberships under way at a time: a chat whose owner is silent must not hold up the others."""


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Read events `after_seq < seq <= up_to_seq` and hand them to `log_read`."""

    chat_id: str
    after_seq: int
    up_to_seq: int
    limit: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class LoadChat:
    """Read the chat's state and hand it to `chat_loaded`."""

    chat_id: str


@dataclass(frozen=True, slots=True)
class ReadMembership:
    """Read the user's membership of the chat and hand it to `membership_read`."""

    chat_id: str


FeedRead: TypeAlias = ReadLog | LoadChat | ReadMembership


@dataclass(frozen=True, slots=True)
class Start:
    """What a device said about where its events begin."""

    positions: Mapping[str, int]
    """Chat id to the seq up to which it holds everything."""
    acked: Mapping[str, int]
    """Chat id to the last seq it ever acknowledged; for chats without a position."""
    at_head: bool
    """Chats without a position begin with their next event."""


class _Cursor:
    """Where the device is in one chat."""

    __slots__ = ("acked_seq", "announced", "has_state", "head_seq", "intervals", "is_open", "lags", "pushed_seq", "unacked")

    def __init__(self, intervals: tuple[Interval, ...], pushed_seq: int, head_seq: int, announced: bool) -> None:
        self.intervals = intervals
        self.is_open = is_member(intervals)
        self.pushed_seq = self.acked_seq = pushed_seq
        self.head_seq = head_seq  # the last event that the user may see; all up to it are accounted for by `intervals`
        self.announced = announced  # the device knows the chat and where its next event stands
        # Whether the device holds the chat's state that the next events apply to. A position within a membership that is over
        # is no proof: of that one the device may know only what past members are told.
        self.has_state = announced and pushed_seq >= min(intervals[-1].joined_seq, head_seq)
        self.lags = False
        # Seq and size of each event pushed and not acknowledged; None for none: most chats are idle, and a deque takes 760 B.
        self.unacked: deque[tuple[int, int]] | None = None


class _Unclear:
    """What was delivered of a chat whose membership is to be read."""

    __slots__ = ("covers_seq", "highest_seq", "left")

    def __init__(self, seq: int, last: bool) -> None:
        self.covers_seq = seq  # a membership as of an earlier event would not do
        self.highest_seq = seq  # from `covers_seq` up to here nothing is missing
        self.left = last

    def require(self, seq: int) -> None:
        """The chat is committed up to `seq`, and nobody says that the user is a member there."""
        if seq > self.highest_seq:
            self.covers_seq = self.highest_seq = seq
            self.left = False

    def note(self, seq: int, last: bool) -> None:
        if seq <= self.highest_seq:
            return
        if seq != self.highest_seq + 1 or last or self.left:
            self.covers_seq = seq
        self.highest_seq = seq
        self.left = last


class EventFeed:
    """Decides what a device is sent of its chats; puts it, ready for the wire, into `out`."""

    def __init__(self, limits: Limits, out: list[bytes]) -> None:
        self._events_max = limits.unacknowledged_events_max
        self._bytes_max = limits.unacknowledged_bytes_max
        self._page_bytes_max = limits.page_bytes_max
        self._heads_max = limits.heartbeat_heads_max
        self._out = out
        self._user_id = ""
        self._cursors: dict[str, _Cursor] = {}
        self._lagging: dict[str, _Cursor] = {}  # ordered; the first is read first
        self._unclear: dict[str, _Unclear] = {}
        self._left: dict[str, int] = {}  # chats that ended for the user, and of which the device has all: last seq
        self._syncing: dict[str, int] = {}  # chats not yet pushed up to where they stood at the opening
        self._unacked_events = 0
        self._unacked_bytes = 0
        self._reading: LoadChat | ReadLog | None = None
        self._clearing: set[str] = set()  # chats whose membership is being read
        self._aside: dict[str, int] = {}  # chats of which nothing is read before `resume`, and how often they failed in a row
        self._failures: dict[str, int] = {}  # the same of those that were resumed since
        self._new_aside: list[tuple[str, int]] = []
        self._start = Start({}, {}, at_head=False)
        self._unknown: set[str] = set()  # the user's chats of which nothing but their name was known at the opening

    @property
    def is_synced(self) -> bool:
        """Everything up to the moment of the opening has been pushed, but of chats that could not be read: see `unread`."""
        return all(chat_id in self._aside for chat_id in self._syncing)

    def unread(self) -> list[str]:
        """Chats that could not be read, and of which not everything up to the moment of the opening has been pushed."""
        return [chat_id for chat_id in self._syncing if chat_id in self._aside]

    @property
    def is_behind(self) -> bool:
        """There is something that `next_read` may ask for."""
        return bool(self._lagging or self._unclear)

    def open(self, user_id: str, memberships: Iterable[Membership], start: Start, unknown: Iterable[str] = ()) -> None:
        """Begins with the user's chats, present and past. Events may have been delivered before.

        Args:
            user_id: the user.
            memberships: their chats. A position of any other chat costs nothing.
            start: where the device begins in them.
            unknown: chats of theirs whose owners did not answer: their memberships are read later.
        """
        self._user_id = user_id
        for membership in memberships:
            self._enter(membership, start)
            if membership.chat_id in self._unclear:
                self._clear_up(membership)
        for chat_id in unknown:
            self._unknown.add(chat_id)
            self._syncing[chat_id] = 0
            self._require(chat_id, 0)
            self._set_aside(chat_id)
        if self._unknown:
            self._start = start

    def _enter(self, membership: Membership, start: Start) -> None:
        chat_id = membership.chat_id
        cursor = _first_cursor(membership, start)
        if cursor is None:
            self._left[chat_id] = membership.intervals[-1].left_seq
            return
        self._cursors[chat_id] = cursor
        if cursor.head_seq > cursor.pushed_seq or not cursor.announced:
            self._syncing[chat_id] = cursor.head_seq
            self._lag(chat_id, cursor)

    def is_unclear(self, chat_id: str) -> bool:
        """Where the chat stands for the user is not known yet: the membership is to be read first."""
        return chat_id in self._unclear

    def knows(self, chat_id: str) -> bool:
        """The user is a member of the chat, as far as this stream has got."""
        cursor = self._cursors.get(chat_id)
        return cursor is not None and cursor.is_open

    def open_chats(self) -> list[str]:
        """The chats that the user is a member of, as far as this stream has got."""
        return [chat_id for chat_id, cursor in self._cursors.items() if cursor.is_open]

    def chats_in_doubt(self) -> list[str]:
        """The chats whose heads tell whether a push was lost: also those whose membership is just being read."""
        return self.open_chats() + [chat_id for chat_id in self._unclear if not self.knows(chat_id)]

    def head_seq(self, chat_id: str) -> int:
        """The last event that the user may see, as far as this stream has got; 0 for a chat that is not in the feed."""
        cursor = self._cursors.get(chat_id)
        return cursor.head_seq if cursor is not None else 0

    def deliver(self, chat_id: str, seq: int, chunk: bytes, last: bool) -> None:
        """Takes a committed event. `last` says that the user is no member after it."""
        cursor = self._cursors.get(chat_id)
        if cursor is None or seq != cursor.head_seq + 1 or not cursor.is_open:
            self._note_unclear(chat_id, cursor, seq, last)
            return
        cursor.head_seq = seq
        if last:
            cursor.intervals = (*cursor.intervals[:-1], replace(cursor.intervals[-1], left_seq=seq))
            cursor.is_open = False
        if cursor.lags:
            return
        if self._unacked_events >= self._events_max or self._unacked_bytes >= self._bytes_max:
            self._lag(chat_id, cursor)
        else:
            self._push(cursor, seq, chunk)

    def note_heads(self, heads: Mapping[str, int]) -> None:
        """Notes the heads of many chats. It costs as much as there are of them, or as the user has chats, whichever is less."""
        if len(heads) <= len(self._cursors):
            for chat_id, seq in heads.items():
                self.note_head(chat_id, seq)
        else:
            for chat_id in chain(self._cursors, tuple(self._unclear)):
                seq = heads.get(chat_id, 0)
                if seq:
                    self.note_head(chat_id, seq)

    def note_head(self, chat_id: str, seq: int) -> None:
        """The chat's owner states that it is committed up to `seq`: if the feed has not heard of that, a push was lost.

        Also of a chat whose membership is being read just now: what that read brings may be older than this head.
        """
        cursor = self._cursors.get(chat_id)
        if chat_id in self._unclear or (cursor is not None and cursor.is_open and cursor.head_seq < seq):
            self._require(chat_id, seq)

    def note_membership(self, chat_id: str, seq: int) -> None:
        """The user's membership, as stored, changed last at `seq`: if the feed does not know, the push that told was lost."""
        cursor = self._cursors.get(chat_id)
        known_seq = cursor.head_seq if cursor is not None else self._left.get(chat_id, 0)
        if known_seq < seq:
            self._require(chat_id, seq)

    def ack(self, chat_id: str, seq: int) -> int:
        """The device acknowledges up to `seq`; returns the seq that it is acknowledged up to now, 0 if that is no news."""
        cursor = self._cursors.get(chat_id)
        if cursor is None:
            return 0
        seq = min(seq, cursor.pushed_seq)
        if seq <= cursor.acked_seq:
            return 0
        cursor.acked_seq = seq
        unacked = cursor.unacked
        while unacked and unacked[0][0] <= seq:
            self._unacked_events -= 1
            self._unacked_bytes -= unacked.popleft()[1]
        if not unacked:
            cursor.unacked = None
        if not cursor.is_open:
            self._retire(chat_id, cursor)
        return seq

    def next_read(self) -> FeedRead | None:
        """What to read next; None if nothing may be read now. To be called again at once until it is None."""
        if len(self._clearing) < _MEMBERSHIPS_AT_ONCE:
            under_way = self._reading.chat_id if self._reading is not None else ""  # up to a head that would be another then
            for chat_id in self._unclear:
                if chat_id not in self._aside and chat_id not in self._clearing and chat_id != under_way:
                    self._clearing.add(chat_id)
                    return ReadMembership(chat_id)
        if self._reading is None:
            self._reading = self._wanted_read()
            return self._reading
        return None

    def read_failed(self, read: FeedRead) -> None:
        """What `next_read` asked for cannot be read now: the chat is left alone until `resume`."""
        if isinstance(read, ReadMembership):
            self._clearing.discard(read.chat_id)
        else:
            self._reading = None
        self._set_aside(read.chat_id)

    def take_set_aside(self) -> list[tuple[str, int]]:
        """Chats of which nothing is read until `resume`, which is to come some time later; each with how often it failed."""
        taken, self._new_aside = self._new_aside, []
        return taken

    def resume(self, chat_id: str) -> None:
        """The chat may be read again."""
        failures = self._aside.pop(chat_id, None)
        if failures is not None:
            self._failures[chat_id] = failures

    def _set_aside(self, chat_id: str) -> None:
        failures = self._failures.pop(chat_id, 0) + 1
        self._aside[chat_id] = failures
        self._new_aside.append((chat_id, failures))

    def log_read(self, events: list[StoredEvent]) -> None:
        """Takes the page that `next_read` asked for."""
        reading, self._reading = self._reading, None
        if not isinstance(reading, ReadLog):
            return
        self._failures.pop(reading.chat_id, None)
        cursor = self._cursors[reading.chat_id]
        if not events:  # never ask for the same page in a circle; the next delivery is a gap then, and raises the head again
            cursor.head_seq = cursor.pushed_seq
        for event in events:
            if self._unacked_events >= self._events_max or self._unacked_bytes >= self._bytes_max:
                break  # other chats were pushed meanwhile; what does not fit is read again
            self._push(cursor, event.seq, event_chunk(event.event))
        if cursor.pushed_seq >= self._syncing.get(reading.chat_id, 0):
            self._syncing.pop(reading.chat_id, None)

    def chat_loaded(self, stored: StoredChat) -> None:
        """Takes the state that `next_read` asked for: tells the device of the chat and of where its next event stands."""
        reading, self._reading = self._reading, None
        if not isinstance(reading, LoadChat):
            return
        cursor = self._cursors[reading.chat_id]
        chat = chat_pb2.Chat.FromString(stored.chat)
        is_shown = member_of(chat, self._user_id) is not None
        if cursor.is_open and (not is_shown or chat.as_of_seq < last_change(cursor.intervals)):
            # It is older than the membership, or newer than what came of it; of a member's chat that does not do.
            self._require(reading.chat_id, 0)
            self._set_aside(reading.chat_id)
            return
        self._failures.pop(reading.chat_id, None)
        cursor.announced = True
        cursor.has_state = is_shown
        opened = session_pb2.ChatOpened(
            chat=chat,
            next_seq=next_visible(cursor.intervals, cursor.pushed_seq) or cursor.pushed_seq + 1,
            head_seq=cursor.head_seq,
            first_visible_seq=first_visible(cursor.intervals),
        )
        if not is_shown:
            # The state of now is none of a past member's business; the events up to their leaving tell what they may know.
            opened.chat.CopyFrom(chat_pb2.Chat(chat_id=reading.chat_id))
        self._out.append(frame_chunk(session_pb2.ServerFrame(chat_opened=opened)))

    def membership_read(self, chat_id: str, membership: Membership | None) -> None:
        """Takes the membership that `next_read` asked for; None = there is none."""
        if chat_id not in self._clearing:
            return
        self._clearing.discard(chat_id)
        self._failures.pop(chat_id, None)
        if membership is None:
            del self._unclear[chat_id]
            self._unknown.discard(chat_id)
            self._syncing.pop(chat_id, None)
        else:
            self._clear_up(membership)

    def heads_behind(self) -> list[tuple[str, int]]:
        """Chats of which the device has not acknowledged the head, with their heads: what a heartbeat must name."""
        behind = ((chat_id, cursor.head_seq) for chat_id, cursor in self._cursors.items() if cursor.acked_seq < cursor.head_seq)
        return list(islice(behind, self._heads_max))

    def _push(self, cursor: _Cursor, seq: int, chunk: bytes) -> None:
        size = len(chunk)
        cursor.pushed_seq = seq
        if cursor.unacked is None:
            cursor.unacked = deque()
        cursor.unacked.append((seq, size))
        self._unacked_events += 1
        self._unacked_bytes += size
        self._out.append(chunk)

    def _lag(self, chat_id: str, cursor: _Cursor) -> None:
        cursor.lags = True
        self._lagging.setdefault(chat_id, cursor)

    def _require(self, chat_id: str, seq: int) -> None:
        """The membership is to be read, and one as of before `seq` would not do."""
        self._unclear.setdefault(chat_id, _Unclear(seq, last=False)).require(seq)

    def _note_unclear(self, chat_id: str, cursor: _Cursor | None, seq: int, last: bool) -> None:
        if cursor is not None and seq <= cursor.head_seq:
            return  # a repetition
        unclear = self._unclear.get(chat_id)
        if unclear is None:
            self._unclear[chat_id] = _Unclear(seq, last)
        else:
            unclear.note(seq, last)

    def _clear_up(self, membership: Membership) -> None:
        """Goes on with a chat by its membership, unless that is older than what was delivered; then it is read again."""
        chat_id, intervals = membership.chat_id, membership.intervals
        unclear = self._unclear.pop(chat_id)
        cursor = self._cursors.get(chat_id)
        if membership.head_seq < max(unclear.covers_seq, cursor.head_seq if cursor is not None else 0):
            self._unclear[chat_id] = unclear
            return
        head_seq = max(membership.head_seq, unclear.highest_seq) if is_member(intervals) else intervals[-1].left_seq
        if chat_id in self._unknown:
            self._unknown.discard(chat_id)
            self._syncing.pop(chat_id, None)
            self._enter(replace(membership, head_seq=head_seq), self._start)
            return
        if cursor is None:
            pushed_seq = self._left.get(chat_id, 0)
            if not is_member(intervals) and pushed_seq >= head_seq:
                return
            self._left.pop(chat_id, None)
            cursor = self._cursors[chat_id] = _Cursor(intervals, pushed_seq, head_seq, announced=False)
        cursor.intervals, cursor.is_open, cursor.head_seq = intervals, is_member(intervals), head_seq
        self._lag(chat_id, cursor)

    def _wanted_read(self) -> LoadChat | ReadLog | None:
        while readable := next((item for item in self._lagging.items() if self._is_readable(item[0])), None):
            chat_id, cursor = readable
            segments = segments_after(cursor.intervals, cursor.pushed_seq, cursor.head_seq)
            if segments and segments[0].first_seq > cursor.pushed_seq + 1:
                cursor.pushed_seq = segments[0].first_seq - 1  # what lies between is not for this user
                cursor.announced = False
            if (
                segments
                and cursor.is_open
                and not cursor.has_state
                and segments[0].first_seq >= cursor.intervals[-1].joined_seq
            ):
                cursor.announced = False
            if not cursor.announced:
                return LoadChat(chat_id)
            if segments:
                return self._page(chat_id, cursor, segments[0].last_seq)
            del self._lagging[chat_id]
            self._syncing.pop(chat_id, None)
            cursor.lags = False
            if not cursor.is_open:
                self._retire(chat_id, cursor)
        return None

    def _is_readable(self, chat_id: str) -> bool:
        """A chat whose membership is unclear is not read on before that is known."""
        return chat_id not in self._aside and chat_id not in self._unclear

    def _page(self, chat_id: str, cursor: _Cursor, up_to_seq: int) -> ReadLog | None:
        """The next page of a chat, once the window has room for one that is worth reading."""
        if self._unacked_events > self._events_max // 2 or self._unacked_bytes > self._bytes_max // 2:
            return None
        return ReadLog(
            chat_id,
            cursor.pushed_seq,
            up_to_seq,
            min(_READ_EVENTS_MAX, self._events_max - self._unacked_events),
            min(self._page_bytes_max, self._bytes_max - self._unacked_bytes),
        )

    def _retire(self, chat_id: str, cursor: _Cursor) -> None:
        """Drops the cursor of a chat that the user left, once the device has acknowledged all they may see."""
        if not cursor.lags and not cursor.unacked:
            del self._cursors[chat_id]
            self._left[chat_id] = cursor.pushed_seq


def _first_cursor(membership: Membership, start: Start) -> _Cursor | None:
    """Where a device begins in a chat; None for a past chat of which it has, or wants, nothing more."""
    chat_id, intervals = membership.chat_id, membership.intervals
    head_seq = last_visible(intervals, membership.head_seq)
    position = start.positions.get(chat_id)
    if position is not None:
        pushed_seq = position
    elif not start.at_head:
        pushed_seq = start.acked.get(chat_id, 0)
    elif chat_id.startswith("s."):
        pushed_seq = 0  # a self chat holds settings, which a new device needs from the first on
    else:
        pushed_seq = head_seq
    if not is_member(intervals) and pushed_seq >= head_seq:
        return None
    # A device holds more than the log only if the log was set back; then it is told where the log really ends.
    announced = position is not None and position <= head_seq
    return _Cursor(intervals, min(pushed_seq, head_seq), head_seq, announced)
