"""Receipts and cursors between memory and the store: stored in batches once a second.

Devices acknowledge far more often than anybody looks: of what each acknowledged in a chat only the last is noted, at the next
housekeeping, or before somebody reads or stores marks.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import perf_counter

import structlog

from chatgrpc.core.clock import Now, SyncClock
from chatgrpc.core.limits import Limits
from chatgrpc.core.receipts import Mark, Raised, ReceiptBook
from chatgrpc.edge.slices import Slice
from chatgrpc.ports.cursors import Cursor, CursorStore
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.receipts import ReceiptStore
from chatgrpc.trouble import Trouble

_log = structlog.get_logger()

_SYNC_OVERLAP_MS = 10_000
"""Receipts that changed this long before the last sync are sent again: clocks and lazy writes may differ by as much."""

_SAVED_AT_ONCE = 500
"""Marks, or cursors, handed to the store in one stretch of the event loop; after a burst there are many thousands."""


class Watermarks:
    """What devices acknowledged and users read."""

    def __init__(
        self,
        receipts: ReceiptStore,
        cursors: CursorStore,
        limits: Limits,
        marks_saved: Callable[[Sequence[Mark]], None],
        mark_raised: Callable[[Raised], None],
        now: Callable[[], Now],
        clock_s: Callable[[], float] = perf_counter,
    ) -> None:
        """`marks_saved` is told of marks once they are in the store, `mark_raised` of those that rise by acknowledgements.

        `clock_s` says when a slice of work is over.
        """
        self._receipts = receipts
        self._cursors = cursors
        self._marks_saved = marks_saved
        self._mark_raised = mark_raised
        self._now = now
        self._clock_s = clock_s
        self._acknowledged: OrderedDict[tuple[str, str, str], int] = OrderedDict()  # the longest waiting first
        self._book = ReceiptBook(limits)
        self._clock = SyncClock()
        self._unsaved_cursors: dict[tuple[str, str, str], int] = {}
        self._saving = asyncio.Lock()
        self._failed: dict[str, int] = {}  # how many of each could not be stored the last time
        self._trouble = Trouble("watermarks_not_saved", lambda: self._failed)

    def acknowledge(self, user_id: str, device_id: str, chat_id: str, acked_seq: int) -> None:
        """A device acknowledged up to here: a mark of its user, and its own cursor unless `device_id` is empty."""
        key = (user_id, device_id, chat_id)
        self._acknowledged[key] = max(acked_seq, self._acknowledged.get(key, 0))

    def note_some(self, slice_: Slice) -> bool:
        """Notes what was acknowledged, until the slice is over; returns whether there is more."""
        now = self._now()
        while self._acknowledged:
            self._note_first(now)
            if slice_.is_over:
                return bool(self._acknowledged)
        return False

    async def note_all(self) -> None:
        """Notes what was acknowledged before this call."""
        now, slice_ = self._now(), Slice(self._clock_s)
        for _ in range(len(self._acknowledged)):  # they stand before what comes meanwhile
            if not self._acknowledged:
                return
            self._note_first(now)
            if slice_.is_over:
                await asyncio.sleep(0)
                now, slice_ = self._now(), slice_.anew()

    def _note_first(self, now: Now) -> None:
        (user_id, device_id, chat_id), acked_seq = self._acknowledged.popitem(last=False)
        if device_id:
            self.note_cursor(user_id, device_id, chat_id, acked_seq)
        raised = self.raise_mark(chat_id, user_id, acked_seq, 0, now)
        if raised is not None:
            self._mark_raised(raised)

    def raise_mark(self, chat_id: str, user_id: str, delivered_seq: int, read_seq: int, now: Now) -> Raised | None:
        """Raises a user's marks; None if neither rose."""
        return self._book.raise_mark(chat_id, user_id, delivered_seq, read_seq, self._clock.change_ms(now))

    def note_cursor(self, user_id: str, device_id: str, chat_id: str, acked_seq: int) -> None:
        """A device holds all up to here, as its Hello may say late."""
        key = (user_id, device_id, chat_id)
        self._unsaved_cursors[key] = max(acked_seq, self._unsaved_cursors.get(key, 0))

    async def forget_device(self, user_id: str, device_id: str) -> None:
        """Removes the cursors of a device that was revoked; those that cannot be removed now stay, and nobody reads them."""
        async with self._saving:
            for key in [key for key in self._acknowledged if key[:2] == (user_id, device_id)]:
                self.acknowledge(user_id, "", key[2], self._acknowledged.pop(key))
            for key in [key for key in self._unsaved_cursors if key[:2] == (user_id, device_id)]:
                del self._unsaved_cursors[key]
            try:
                await self._cursors.forget(user_id, device_id)
            except StoreError as error:
                _log.warning("cursors_not_removed", error=str(error))

    async def of_chat(self, chat_id: str, user_ids: list[str]) -> list[Mark]:
        """The marks of a chat's members: stored ones, raised by what is in memory; zeroes for those who have none."""
        await self.note_all()
        stored = {mark.user_id: mark for mark in await self._receipts.of_chat(chat_id)}
        marks = [stored.get(user_id) or Mark(chat_id, user_id, 0, 0, 0) for user_id in user_ids]
        return self._book.merge(marks)

    async def changed(self, user_id: str, sync_token: str, now: Now) -> tuple[list[Mark], str]:
        """The marks of the user's chats that changed since the sync token was given, as stored, and the next sync token.

        The user's own are in the book then: what the device says again that it holds has not risen.

        Call `save` first, so that none is missed. All marks are changed for a token that is not ours, or is of a time that has
        not come: a clock went wrong then, and nobody knows what has changed since.
        """
        next_token_ms = self._clock.told_ms(now)
        since_ms = _since_ms(sync_token, self._clock.change_ms(now))
        marks = await self._receipts.of_user_chats(user_id, since_ms)
        self._book.learn([mark for mark in marks if mark.user_id == user_id])
        return [mark for mark in marks if mark.changed_at_ms >= since_ms], str(next_token_ms)

    async def save(self) -> None:
        """Stores what changed before this call; what cannot be stored now is kept for the next time."""
        await self.note_all()
        async with self._saving:  # what another call has taken is stored when this one returns
            await self._save()

    async def _save(self) -> None:
        marks = self._book.take_unsaved()
        cursors, self._unsaved_cursors = self._unsaved_cursors, {}
        self._failed = {}
        await self._save_marks(marks)
        await self._save_cursors(cursors)
        if (marks or cursors) and not self._failed:
            self._trouble.worked()

    async def _save_marks(self, marks: list[Mark]) -> None:
        for begin in range(0, len(marks), _SAVED_AT_ONCE):
            some = marks[begin : begin + _SAVED_AT_ONCE]
            try:
                await self._receipts.save(some)
            except StoreError as error:
                self._failed["marks"] = len(marks) - begin
                self._trouble.failed(error)
                self._book.unsave(marks[begin:])
                return
            self._marks_saved(some)

    async def _save_cursors(self, cursors: dict[tuple[str, str, str], int]) -> None:
        """Apart from the marks: those that were stored and told must not be stored again because the cursors were not."""
        items = list(cursors.items())
        for begin in range(0, len(items), _SAVED_AT_ONCE):
            some = items[begin : begin + _SAVED_AT_ONCE]
            try:
                await self._cursors.save([Cursor(*key, acked_seq) for key, acked_seq in some])
            except StoreError as error:
                self._failed["cursors"] = len(items) - begin
                self._trouble.failed(error)
                for key, acked_seq in items[begin:]:
                    self._unsaved_cursors.setdefault(key, acked_seq)
                return


def _since_ms(sync_token: str, latest_ms: int) -> int:
    if not sync_token.isascii() or not sync_token.isdecimal() or len(sync_token) > 15:
        return 0
    told_ms = int(sync_token)
    return max(0, told_ms - _SYNC_OVERLAP_MS) if told_ms <= latest_ms + _SYNC_OVERLAP_MS else 0
