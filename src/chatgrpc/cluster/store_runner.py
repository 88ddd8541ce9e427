"""Runs what shards ask of the store, each until it succeeds or cannot, for as long as the shard is in our hands.

What the store answered is put by until the tick takes it in, and is judged by a clock that is read then: after the success was
known, as the lease rule demands (ADR 4).

A store that is away is asked again and again. What it answers and what cannot be read (`ChatDamagedError`, or whatever our own
code raises over it), or can never be stored, is no such case: that chat is damaged, and its owner is told so. A look-up is
given up after a time, so that a chat whose old rows cannot be had goes on with what is new.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final

from chatgrpc import background
from chatgrpc.cluster.row_writer import RETRY_FIRST_S, RETRY_MAX_S, RowWriter
from chatgrpc.core.backoff import Backoff
from chatgrpc.core.clock import Now
from chatgrpc.core.damage import DamageError, check_intervals
from chatgrpc.core.door import ReadIntervals
from chatgrpc.core.owner_desk import OwnerDesk, Tenure
from chatgrpc.core.row_store import ReadBucket, ReadHead, StoreWrite, WriteBoundary, WriteMark, WriteRow, WriteViews
from chatgrpc.core.sequencer import Lookup
from chatgrpc.core.shard import Request
from chatgrpc.edge.look_up import LookUps
from chatgrpc.ports.errors import CannotBeStoredError, ChatDamagedError, StoreError
from chatgrpc.ports.row_store import CommittedLog, RowStore
from chatgrpc.trouble import Trouble

READS_RETRIED_MAX: Final = 64
"""Reads that have failed, tried again at the same time."""
LOOK_UP_TIMEOUT_S: Final = 5.0
"""The write that waits for it fails then, retryably; edges give it up after twice as long."""

Finished = Callable[[Now], None]
_Ended = Callable[[Exception | None], Finished]
"""Makes what the shard is told of a read that did not succeed: of the exception, or of None if the store was away too long."""
_Read = Callable[[], Coroutine[Any, Any, None]]


class StoreRunner:
    """The way of one node's shards to the store and back."""

    def __init__(
        self,
        desk: OwnerDesk,
        rows: RowStore,
        committed: CommittedLog,
        look_ups: LookUps,
        wake_up: Callable[[], None],
        on_defect: Callable[[BaseException], None],
        *,
        look_up_timeout_s: float = LOOK_UP_TIMEOUT_S,
    ) -> None:
        """
        Args:
            desk: the shards.
            rows: the store.
            committed: the same, as readers see it.
            look_ups: for writes that need something from it.
            wake_up: called when the store has answered something.
            on_defect: called when something that cannot fail has failed.
            look_up_timeout_s: how long a look-up is tried.
        """
        self._look_up_timeout_s = look_up_timeout_s
        self._desk = desk
        self._rows = rows
        self._committed = committed
        self._wake_up = wake_up
        self._on_defect = on_defect
        self._finished: list[tuple[Tenure, Finished]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._marks: dict[str, int] = {}
        self._marks_under_way = False
        self._look_ups = look_ups
        self._read_again_slots = asyncio.Semaphore(READS_RETRIED_MAX)
        self.reads_retried = 0
        """Reads that have failed, and are or will be tried again."""
        self.trouble = Trouble("store_unavailable", self._waiting)
        """Of the store with this node's shards."""
        self._writer = RowWriter(rows, desk.holds, self._stored, self._cannot_be_stored, self.trouble)

    @property
    def writes_under_way(self) -> int:
        """Writes that have not succeeded yet, and are or will be tried."""
        return self._writer.under_way

    # What the tick calls.

    def start(self, requests: Iterable[tuple[Tenure, Request]]) -> None:
        """Starts what shards want."""
        writes: dict[Tenure, list[StoreWrite]] = {}
        for tenure, request in requests:
            match request:
                case WriteRow() | WriteBoundary() | WriteViews():
                    writes.setdefault(tenure, []).append(request)
                case ReadHead():
                    ended = partial(_read_ended, tenure, request.chat_id)
                    self._keep(self._read(tenure, partial(self._read_head, tenure, request), ended))
                case ReadBucket():
                    ended = partial(_read_ended, tenure, request.chat_id)
                    self._keep(self._read(tenure, partial(self._read_bucket, tenure, request), ended))
                case ReadIntervals():
                    ended = partial(_intervals_ended, tenure, request)
                    read = partial(self._read_intervals, tenure, request)
                    self._keep(self._read(tenure, read, ended, self._look_up_timeout_s))
                case Lookup():
                    ended = partial(_look_up_ended, tenure, request)
                    look_up = partial(self._look_up, tenure, request)
                    self._keep(self._read(tenure, look_up, ended, self._look_up_timeout_s))
        for tenure, of_tenure in writes.items():
            try:
                self._writer.write(tenure, of_tenure)
            except Exception as defect:
                self._desk.fail(tenure, defect)

    def take_in(self, now: Now) -> None:
        """Hands the shards what the store has answered; `now` is read after it had."""
        finished, self._finished = self._finished, []
        for tenure, hand_over in finished:
            self._desk.hand_over(tenure, hand_over, now)

    def save_marks(self) -> None:
        """Stores the committed marks that rose, beside the ticks; one that is lost only makes the next owner adopt more."""
        for tenure in self._desk.tenures.values():
            self._note_marks(tenure.shard.take_marks())
        if self._marks and not self._marks_under_way:
            self._marks_under_way = True
            self._keep(self._save_marks())

    async def save_marks_of(self, tenure: Tenure) -> None:
        """Stores the marks of a shard that is given away; the next owner then has nothing to adopt."""
        marks = tenure.shard.take_marks()
        if not marks:
            return
        try:
            await self._rows.write_marks(marks)
        except StoreError as error:
            self.trouble.failed(error)

    async def stop(self) -> None:
        """Ends what is still tried."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.trouble.stop()

    def _waiting(self) -> dict[str, int]:
        return {"writes": self._writer.retried, "reads": self.reads_retried}

    # Writes.

    def _stored(self, tenure: Tenure, writes: Sequence[StoreWrite]) -> None:
        self._finish(tenure, partial(_stored, tenure, writes))

    def _cannot_be_stored(self, tenure: Tenure, writes: Sequence[StoreWrite], error: CannotBeStoredError) -> None:
        self._finish(tenure, partial(_cannot_be_stored, tenure, writes, error))

    def _note_marks(self, marks: Sequence[WriteMark]) -> None:
        for mark in marks:
            self._marks[mark.chat_id] = max(mark.seq, self._marks.get(mark.chat_id, 0))

    async def _save_marks(self) -> None:
        marks = [WriteMark(chat_id, seq) for chat_id, seq in self._marks.items()]
        self._marks.clear()
        try:
            await self._rows.write_marks(marks)
            self.trouble.worked()
        except StoreError as error:
            self.trouble.failed(error)
            self._note_marks(marks)
        finally:
            self._marks_under_way = False

    # Reads.

    async def _read(self, tenure: Tenure, read: _Read, ended: _Ended, timeout_s: float | None = None) -> None:
        """Tries a read until it succeeds, or cannot, as long as its shard is held, or for a time."""
        deadline_s = math.inf if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        if await self._try(tenure, read, ended):
            return
        self.reads_retried += 1
        try:
            answered = await self._read_again(tenure, read, ended, deadline_s)
        finally:
            self.reads_retried -= 1
        if answered:
            self.trouble.worked()  # once more: it did not count while this read was waited for

    async def _try(self, tenure: Tenure, read: _Read, ended: _Ended) -> bool:
        """Returns whether it has come to an end; False = the store is away."""
        try:
            await read()
        except ChatDamagedError as damaged:
            self._finish(tenure, ended(DamageError(damaged.why)))
        except StoreError as error:
            self.trouble.failed(error)
            return False
        except Exception as defect:
            self._finish(tenure, ended(defect))
        else:
            self.trouble.worked()
        return True

    async def _read_again(self, tenure: Tenure, read: _Read, ended: _Ended, deadline_s: float) -> bool:
        """Returns whether the store answered."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        while self._desk.holds(tenure):
            await asyncio.sleep(min(backoff.next_s(), max(0.0, deadline_s - loop.time())))
            if loop.time() >= deadline_s:
                self._finish(tenure, ended(None))
                return False
            async with self._read_again_slots:
                if not self._desk.holds(tenure):
                    return False
                if await self._try(tenure, read, ended):
                    return True
        return False

    async def _read_head(self, tenure: Tenure, read: ReadHead) -> None:
        found = await self._rows.read_head(read)
        self._finish(tenure, lambda now: tenure.shard.head_read(read, found, now))

    async def _read_bucket(self, tenure: Tenure, read: ReadBucket) -> None:
        found = await self._rows.read_bucket(read)
        self._finish(tenure, lambda now: tenure.shard.bucket_read(read, found, now))

    async def _look_up(self, tenure: Tenure, lookup: Lookup) -> None:
        found = await self._look_ups.run(lookup, lambda: self._desk.holds(tenure))
        if found is None:
            return
        self._finish(tenure, lambda now: tenure.shard.looked_up(lookup, found.metas, found.group_counts, now, found.opened))

    async def _read_intervals(self, tenure: Tenure, read: ReadIntervals) -> None:
        intervals = await self._committed.intervals(read.user_id, read.chat_id)
        check_intervals(intervals)
        self._finish(tenure, lambda now: tenure.shard.intervals_read(read, intervals, now))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = background.start(work, self._on_defect)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _finish(self, tenure: Tenure, hand_over: Finished) -> None:
        self._finished.append((tenure, hand_over))
        self._wake_up()


def _read_ended(tenure: Tenure, chat_id: str, error: Exception | None) -> Finished:
    assert error is not None, "these reads are tried as long as the shard is held"
    return lambda now: tenure.shard.read_failed(chat_id, error)


def _look_up_ended(tenure: Tenure, lookup: Lookup, error: Exception | None) -> Finished:
    return lambda now: tenure.shard.look_up_failed(lookup, error, now)


def _intervals_ended(tenure: Tenure, read: ReadIntervals, error: Exception | None) -> Finished:
    return lambda now: tenure.shard.intervals_failed(read, error)


def _stored(tenure: Tenure, writes: Sequence[StoreWrite], now: Now) -> None:
    for write in writes:
        tenure.shard.stored(write, now)


def _cannot_be_stored(tenure: Tenure, writes: Sequence[StoreWrite], error: CannotBeStoredError, now: Now) -> None:
    for write in writes:
        tenure.shard.write_failed(write, error)
