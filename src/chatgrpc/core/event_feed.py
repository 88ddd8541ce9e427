"""The feed of one device: which events it has, which it gets next, and how many it owes an acknowledgement for.

Per chat a device is *live*, and committed events are pushed as they come, or it *lags*, and pages are read from the log as
fast as its acknowledgements allow. A chat lags at the start if the device is behind; it lags again when an event comes that is
not the next one (a push was lost, G4), or when the window of unacknowledged events is full (the device is slow, G5). While it
lags only its head moves; the log is the buffer. It is live again as soon as a page ends at the head, and since a page is read
up to the head known at that moment there is neither a hole nor a repetition at the seam.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from chatgrpc.core.entries import Membership, StoredChat, StoredEvent
from chatgrpc.core.events import event_chunk, frame_chunk
from chatgrpc.core.limits import Limits
from chatgrpc.core.visibility import Interval, first_visible, is_member, next_visible, segments_after
from chatgrpc.v1 import chat_pb2, session_pb2

_READ_EVENTS_MAX = 256
"""Events asked for in one read; a part of the window, so that other devices' reads come in between."""


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Read events `after_seq < seq <= up_to_seq` and hand them to `read_done`."""

    chat_id: str
    after_seq: int
    up_to_seq: int
    limit: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class LoadChat:
    """Read the chat's state and hand it to `chat_loaded`."""

    chat_id: str


Read: TypeAlias = ReadLog | LoadChat


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

    __slots__ = ("acked_seq", "announced", "head_seq", "intervals", "lags", "pushed_seq", "unacked_sizes")

    def __init__(self, intervals: tuple[Interval, ...], pushed_seq: int, head_seq: int, announced: bool) -> None:
        self.intervals = intervals
        self.pushed_seq = self.acked_seq = pushed_seq
        self.head_seq = head_seq
        self.announced = announced  # the device knows the chat and where its next event stands
        self.lags = False
        self.unacked_sizes: list[int] = []


class EventFeed:
    """Decides what a device is sent of its chats; puts it, ready for the wire, into `out`."""

    def __init__(self, limits: Limits, out: list[bytes]) -> None:
        self._events_max = limits.unacknowledged_events_max
        self._bytes_max = limits.unacknowledged_bytes_max
        self._page_bytes_max = limits.page_bytes_max
        self._out = out
        self._cursors: dict[str, _Cursor] = {}
        self._lagging: dict[str, _Cursor] = {}  # ordered; the first is read first
        self._left: dict[str, int] = {}  # chats that ended for the user during the session: last seq pushed
        self._unacked_events = 0
        self._unacked_bytes = 0
        self._reading: _Cursor | None = None

    @property
    def is_live(self) -> bool:
        """No chat lags."""
        return not self._lagging

    def open(self, memberships: Iterable[Membership], start: Start) -> None:
        """Begins with the user's chats, present and past."""
        for membership in memberships:
            cursor = _first_cursor(membership, start)
            if cursor is None:
                self._left[membership.chat_id] = membership.intervals[-1].left_seq
                continue
            self._cursors[membership.chat_id] = cursor
            if cursor.head_seq > cursor.pushed_seq or not cursor.announced:
                self._lag(membership.chat_id, cursor)

    def knows(self, chat_id: str) -> bool:
        """The chat is in the feed: the user is a member, as far as this stream has got."""
        return chat_id in self._cursors

    def pushed_seq(self, chat_id: str) -> int:
        """The last seq pushed; 0 for a chat that is not in the feed."""
        cursor = self._cursors.get(chat_id)
        return cursor.pushed_seq if cursor is not None else 0

    def deliver(self, chat_id: str, seq: int, chunk: bytes, last: bool) -> bool:
        """Takes a committed event; returns False if the chat is not in the feed (then `admit` must follow).

        `last` says that the user is no member after this event.
        """
        cursor = self._cursors.get(chat_id)
        if cursor is None:
            return False
        cursor.head_seq = max(cursor.head_seq, seq)
        if last:
            cursor.intervals = (*cursor.intervals[:-1], replace(cursor.intervals[-1], left_seq=seq))
        if cursor.lags or seq <= cursor.pushed_seq:
            return True
        if seq != cursor.pushed_seq + 1 or self._unacked_events >= self._events_max or self._unacked_bytes >= self._bytes_max:
            self._lag(chat_id, cursor)
            return True
        self._push(cursor, seq, chunk)
        if last:
            self._drop(chat_id, cursor)
        return True

    def admit(self, membership: Membership) -> None:
        """Takes up a chat that the user was let into during the session."""
        chat_id = membership.chat_id
        cursor = self._cursors.get(chat_id)
        if cursor is None:
            pushed_seq = self._left.pop(chat_id, 0)
            cursor = self._cursors[chat_id] = _Cursor(membership.intervals, pushed_seq, membership.head_seq, announced=False)
        cursor.intervals = membership.intervals
        cursor.head_seq = max(cursor.head_seq, membership.head_seq)
        self._lag(chat_id, cursor)

    def ack(self, chat_id: str, seq: int) -> int:
        """The device acknowledges up to `seq`; returns the seq that it is acknowledged up to now, 0 if that is no news."""
        cursor = self._cursors.get(chat_id)
        if cursor is None:
            return 0
        seq = min(seq, cursor.pushed_seq)
        count = seq - cursor.acked_seq
        if count <= 0:
            return 0
        cursor.acked_seq = seq
        self._unacked_events -= count
        self._unacked_bytes -= sum(cursor.unacked_sizes[:count])
        del cursor.unacked_sizes[:count]
        return seq

    def next_read(self) -> Read | None:
        """What to read next for the chats that lag; None if nothing may be read now. One read is under way at a time."""
        if self._reading is not None:
            return None
        for chat_id, cursor in list(self._lagging.items()):
            segments = segments_after(cursor.intervals, cursor.pushed_seq, cursor.head_seq)
            if segments and segments[0].first_seq > cursor.pushed_seq + 1:
                if cursor.unacked_sizes:
                    continue  # the window counts by seq; it must be empty before a jump
                cursor.pushed_seq = cursor.acked_seq = segments[0].first_seq - 1
                cursor.announced = False
            if not cursor.announced:
                self._reading = cursor
                return LoadChat(chat_id)
            if not segments:
                del self._lagging[chat_id]
                cursor.lags = False
                if not is_member(cursor.intervals):
                    self._drop(chat_id, cursor)
                continue
            if self._unacked_events > self._events_max // 2 or self._unacked_bytes > self._bytes_max // 2:
                return None  # wait until a page is worth reading
            self._reading = cursor
            return ReadLog(
                chat_id,
                cursor.pushed_seq,
                segments[0].last_seq,
                min(_READ_EVENTS_MAX, self._events_max - self._unacked_events),
                min(self._page_bytes_max, self._bytes_max - self._unacked_bytes),
            )
        return None

    def read_done(self, events: list[StoredEvent]) -> None:
        """Takes the page that `next_read` asked for."""
        cursor, self._reading = self._reading, None
        if cursor is None:
            return
        if not events:  # never ask for the same page in a circle; the next delivery raises the head again
            cursor.head_seq = cursor.pushed_seq
        for event in events:
            self._push(cursor, event.seq, event_chunk(event.event))

    def chat_loaded(self, chat_id: str, stored: StoredChat) -> None:
        """Takes the state that `next_read` asked for: tells the device of the chat and of where its next event stands."""
        cursor, self._reading = self._reading, None
        if cursor is None:
            return
        cursor.announced = True
        opened = session_pb2.ChatOpened(
            next_seq=next_visible(cursor.intervals, cursor.pushed_seq) or cursor.pushed_seq + 1,
            head_seq=cursor.head_seq,
            first_visible_seq=first_visible(cursor.intervals),
        )
        if is_member(cursor.intervals):
            opened.chat.ParseFromString(stored.chat)
        else:  # the state of now is none of a past member's business; the events up to their leaving tell what they may know
            opened.chat.CopyFrom(chat_pb2.Chat(chat_id=chat_id))
        self._out.append(frame_chunk(session_pb2.ServerFrame(chat_opened=opened)))

    def heads_behind(self) -> list[tuple[str, int]]:
        """Chats of which the device has not acknowledged the head, with their heads: what a heartbeat must name."""
        return [(chat_id, cursor.head_seq) for chat_id, cursor in self._cursors.items() if cursor.acked_seq < cursor.head_seq]

    def _push(self, cursor: _Cursor, seq: int, chunk: bytes) -> None:
        cursor.pushed_seq = seq
        cursor.unacked_sizes.append(len(chunk))
        self._unacked_events += 1
        self._unacked_bytes += len(chunk)
        self._out.append(chunk)

    def _lag(self, chat_id: str, cursor: _Cursor) -> None:
        cursor.lags = True
        self._lagging.setdefault(chat_id, cursor)

    def _drop(self, chat_id: str, cursor: _Cursor) -> None:
        """The user is no member any more and has all they may see."""
        del self._cursors[chat_id]
        self._left[chat_id] = cursor.pushed_seq
        self._unacked_events -= len(cursor.unacked_sizes)
        self._unacked_bytes -= sum(cursor.unacked_sizes)


def _first_cursor(membership: Membership, start: Start) -> _Cursor | None:
    """Where a device begins in a chat; None for a past chat of which it has, or wants, nothing more."""
    chat_id, intervals, head_seq = membership.chat_id, membership.intervals, membership.head_seq
    position = start.positions.get(chat_id)
    if position is not None:
        pushed_seq = position
    elif not start.at_head:
        pushed_seq = start.acked.get(chat_id, 0)
    elif chat_id.startswith("s."):
        pushed_seq = 0  # a self chat holds settings, which a new device needs from the first on
    elif is_member(intervals):
        pushed_seq = head_seq
    else:
        return None
    if not is_member(intervals) and not segments_after(intervals, pushed_seq, head_seq):
        return None
    # A device holds more than the log only if the log was set back; then it is told where the log really ends.
    announced = position is not None and position <= head_seq
    return _Cursor(intervals, min(pushed_seq, head_seq), head_seq, announced)
