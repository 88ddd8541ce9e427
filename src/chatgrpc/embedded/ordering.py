"""The shell around the sequencer: runs its reads and appends, one group at a time, and brings back what became of them.

While one group is being committed the next one fills up: that is the group commit. Everything here runs on the event loop's
thread; the store's answers wake the tick loop, which then calls `pump`.

What goes wrong with one chat, by what the store holds of it or by a mistake of ours, costs that chat (`core.damage`). Nothing
of it can be on its way when it is read again: SQLite takes each seq once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

import structlog

from chatgrpc import background
from chatgrpc.core.active_chat import ActiveChat, Ticket
from chatgrpc.core.clock import Now
from chatgrpc.core.damage import DamageError, check_membership, damage_of
from chatgrpc.core.door import ReadIntervals
from chatgrpc.core.entries import StoredChat
from chatgrpc.core.sequencer import Delivery, Group, Lookup, Sequencer
from chatgrpc.core.visibility import Interval
from chatgrpc.core.write import Write
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.look_up import Found, LookUps
from chatgrpc.edge.ordering import Progress
from chatgrpc.metrics import Metrics
from chatgrpc.ports.chat_log import ChatLog
from chatgrpc.ports.errors import ChatDamagedError, OutcomeUnknownError, StaleOwnerError, StoreError, StoreUnavailableError
from chatgrpc.ports.lease_clock import lease_clock_ms

_log = structlog.get_logger()

_LOOK_AGAIN_INTERVAL_S = 30.0
_READ_TIMEOUT_S = 5.0
"""Writes that wait for a read fail then, retryably, and those behind them have their turn: a disk may stand still."""

_Read = TypeVar("_Read")

ChatCallback = Callable[[ActiveChat | None], None]


class LocalOrdering:
    """`edge.ordering.Ordering`: owns all chats of this process."""

    def __init__(
        self,
        sequencer: Sequencer,
        log: ChatLog,
        look_ups: LookUps,
        book: DamageBook,
        metrics: Metrics,
        wake_up: Callable[[], None],
        on_defect: Callable[[BaseException], None],
        *,
        look_again_interval_s: float = _LOOK_AGAIN_INTERVAL_S,
    ) -> None:
        """`book` is told of chats that are damaged, which are looked at again every `look_again_interval_s`.

        `on_defect` is called when something that cannot fail has failed.
        """
        self._on_defect = on_defect
        self._book = book
        self._look_again_interval_ms = int(look_again_interval_s * 1000)
        self._look_again_at_ms = lease_clock_ms() + self._look_again_interval_ms
        self._said_of: dict[str, set[str]] = {}  # why appends failed since the last that did not -> some of their chats
        self._sequencer = sequencer
        self._log = log
        self._metrics = metrics
        self._wake_up = wake_up
        self._tasks: set[asyncio.Task[None]] = set()
        self._group_under_way = False
        self._finished_groups: list[tuple[Group, Exception | None]] = []
        self._loaded: list[tuple[ActiveChat, StoredChat | None]] = []
        self._looked_up: list[tuple[Lookup, Found]] = []
        self._look_ups = look_ups
        self._intervals_read: list[tuple[ReadIntervals, tuple[Interval, ...] | Exception]] = []
        self._failed_reads: list[tuple[ActiveChat, Lookup | None, Exception]] = []
        self._waiting_for_chat: dict[str, dict[Hashable, ChatCallback]] = {}

    async def settle(self) -> None:
        """See the protocol."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def submit(self, ticket: Ticket, session_id: str, write: Write, now: Now) -> None:
        """See the protocol; the sequencer orders as it is called."""
        try:  # as `_fence` has it, at a third of its cost
            self._sequencer.submit(ticket, write, now)
        except Exception as defect:
            self._sequencer.damage(damage_of(write.chat_id, defect))

    def session_closed(self, session_id: str) -> None:
        """See the protocol; the write under way has its answer, and nobody looks at it."""

    def pass_time(self, now: Now) -> None:
        """See the protocol: chats that could not be read are looked at again. Else nothing waits here but for the store."""
        if now.monotonic_ms >= self._look_again_at_ms:
            self._look_again_at_ms = now.monotonic_ms + self._look_again_interval_ms
            self._sequencer.look_again()

    def with_chat(self, chat_id: str, asker: Hashable, callback: ChatCallback) -> None:
        """Calls back with the chat, now if it is loaded, else when it is; with None if there is none, or it cannot be read.

        Of each `asker` only the last callback waits.
        """
        if self._sequencer.is_damaged(chat_id):
            callback(None)
            return
        if self._sequencer.activate(chat_id):
            callback(self._sequencer.chat(chat_id))
            return
        self._waiting_for_chat.setdefault(chat_id, {})[asker] = callback
        self._wake_up()

    def pump(self, now: Now) -> Progress:
        """See the protocol: takes in what the store answered, and starts what the sequencer wants next."""
        deliveries: list[Delivery] = []
        finished, self._finished_groups = self._finished_groups, []
        for group, error in finished:
            if error is None:
                self._said_of.clear()
                deliveries += self._sequencer.committed(group)
            else:
                self._append_failed(group, error)
        for chat in self._sequencer.take_admitted():
            with self._fence(chat.chat_id):
                self._sequencer.go_on(chat, now)
        self._take_reads(now)
        for damage in self._sequencer.take_damage():
            self._book.note(damage)
        for read in self._sequencer.take_intervals():
            self._start(self._read_intervals(read))
        for chat in self._sequencer.take_loads():
            self._start(self._load(chat))
        for lookup in self._sequencer.take_lookups():
            self._start(self._look_up(lookup))
        if not self._group_under_way:
            group_to_append = self._sequencer.take_group()
            if group_to_append is not None:
                self._group_under_way = True
                self._start(self._append(group_to_append))
        return Progress(self._sequencer.take_answers(), deliveries)

    def _append_failed(self, group: Group, error: Exception) -> None:
        if _is_the_stores(error) or isinstance(error, StaleOwnerError):  # the next load finds what a stale one did not know
            self._sequencer.failed(group)
            return
        chat_ids = {entry.chat_id for entry in group.entries}
        if type(error) is StoreError and self._is_said_of_several(str(error), chat_ids):
            self._sequencer.failed(group)
            self._sequencer.look_again()  # of the first of them it was taken for the chat's own fault
            return
        its_own = _its_own(error) or DamageError(str(error))
        for chat_id in chat_ids:
            self._sequencer.damage(damage_of(chat_id, its_own))

    def _is_said_of_several(self, text: str, chat_ids: set[str]) -> bool:
        """Whether the store says so of one chat after the other, and nothing is stored in between: see `_are_the_stores`."""
        said_of = self._said_of.setdefault(text, set())
        if len(said_of) < 2:
            said_of |= chat_ids
        return len(said_of) > 1

    def _take_reads(self, now: Now) -> None:
        loaded, self._loaded = self._loaded, []
        for chat, stored in loaded:
            with self._fence(chat.chat_id):
                self._sequencer.loaded(chat, stored, now)
            self._call_back(chat.chat_id)
        looked_up, self._looked_up = self._looked_up, []
        for lookup, found in looked_up:
            with self._fence(lookup.chat.chat_id):
                self._sequencer.looked_up(lookup, found.metas, found.group_counts, now, found.opened)
        intervals_read, self._intervals_read = self._intervals_read, []
        for read, intervals in intervals_read:
            with self._fence(read.chat_id):
                if isinstance(intervals, Exception):
                    self._sequencer.intervals_failed(read, _its_own(intervals))
                else:
                    self._sequencer.intervals_read(read, intervals, now)
        failed, self._failed_reads = self._failed_reads, []
        for chat, failed_lookup, error in failed:
            with self._fence(chat.chat_id):
                self._read_failed(chat, failed_lookup, error, now)
            self._call_back(chat.chat_id)

    def _read_failed(self, chat: ActiveChat, lookup: Lookup | None, error: Exception, now: Now) -> None:
        its_own = _its_own(error)
        if lookup is not None:
            self._sequencer.look_up_failed(lookup, its_own, now)
        elif its_own is not None:
            self._sequencer.damage(damage_of(chat.chat_id, its_own))
        else:
            self._sequencer.read_failed(chat)

    @contextmanager
    def _fence(self, chat_id: str) -> Iterator[None]:
        """A mistake over one chat costs that chat; it is read again from what is committed."""
        try:
            yield
        except Exception as defect:
            self._sequencer.damage(damage_of(chat_id, defect))

    def _call_back(self, chat_id: str) -> None:
        for callback in self._waiting_for_chat.pop(chat_id, {}).values():
            callback(self._sequencer.chat(chat_id))
        self._sequencer.answered(chat_id, keep=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = background.start(work, self._on_defect)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _append(self, group: Group) -> None:
        groups = [group]
        error = await self._try_to_append(group)
        if error is not None and not _is_the_stores(error):
            groups = _by_chat(group)
        if len(groups) == 1:
            self._finished_groups.append((group, error))
        else:  # one of the chats cannot be written to, and nothing was: each learns its own truth
            errors = await asyncio.gather(*map(self._try_to_append, groups))
            if _are_the_stores(errors):
                self._finished_groups.append((group, StoreUnavailableError(str(errors[0]))))
            else:
                self._finished_groups += zip(groups, errors, strict=True)
        self._group_under_way = False
        self._wake_up()

    async def _try_to_append(self, group: Group) -> Exception | None:
        """Returns why nothing of it was stored, or nobody knows; None if all of it was."""
        started_s = perf_counter()
        try:
            await self._log.append(group.entries)
        except Exception as error:
            _report("append_failed", error, entries=len(group.entries))
            return error
        self._metrics.group_commit_seconds.observe(perf_counter() - started_s)
        self._metrics.group_commit_events.observe(len(group.entries))
        self._metrics.events_committed.inc(len(group.entries))
        return None

    async def _load(self, chat: ActiveChat) -> None:
        try:
            stored = await _in_time(self._log.load(chat.chat_id))
            self._loaded.append((chat, stored))  # the list of now: `pump` puts a new one in its place while this waits
        except Exception as error:
            _report("load_failed", error, chat_id=chat.chat_id)
            self._failed_reads.append((chat, None, error))
        self._wake_up()

    async def _look_up(self, lookup: Lookup) -> None:
        try:
            found = await _in_time(self._look_ups.run(lookup, lambda: True))
            if found is not None:
                self._looked_up.append((lookup, found))
        except Exception as error:
            _report("look_up_failed", error, chat_id=lookup.chat.chat_id)
            self._failed_reads.append((lookup.chat, lookup, error))
        self._wake_up()

    async def _read_intervals(self, read: ReadIntervals) -> None:
        try:
            membership = await _in_time(self._log.membership(read.user_id, read.chat_id))
            if membership is not None:
                check_membership(membership)
            self._intervals_read.append((read, membership.intervals if membership is not None else ()))
        except Exception as error:
            _report("membership_not_read", error, chat_id=read.chat_id)
            self._intervals_read.append((read, error))
        self._wake_up()


async def _in_time(reading: Awaitable[_Read]) -> _Read:
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            return await reading
    except TimeoutError:
        raise StoreUnavailableError(f"the store did not answer within {_READ_TIMEOUT_S:g} s") from None


def _by_chat(group: Group) -> list[Group]:
    groups: dict[str, Group] = {}
    for entry, (chat, pending) in zip(group.entries, group.pending, strict=True):
        of_chat = groups.setdefault(entry.chat_id, Group([], []))
        of_chat.entries.append(entry)
        of_chat.pending.append((chat, pending))
    return list(groups.values())


def _is_the_stores(error: Exception) -> bool:
    """Whether an append failed for what has nothing to do with the chats that it was of."""
    return isinstance(error, StoreUnavailableError | OutcomeUnknownError)


def _are_the_stores(errors: Sequence[Exception | None]) -> bool:
    """Whether the appends of several chats failed for what has nothing to do with these: the store says the same of all of
    them, as of a file that is corrupt in what all share. Else every chat that somebody writes to would be called damaged.
    """
    return all(type(error) is StoreError for error in errors) and len(set(map(str, errors))) == 1


def _its_own(error: Exception) -> Exception | None:
    """The exception, if it is of the chat that was read; None if the store is away."""
    if isinstance(error, ChatDamagedError):
        return DamageError(error.why)
    return None if isinstance(error, StoreError) else error


def _report(event: str, error: Exception, **context: object) -> None:
    """Logs why the store did not answer; what is not the store's own error is a defect, and its traceback is wanted."""
    known = isinstance(error, StoreError | DamageError)
    _log.error(event, error=str(error), exc_info=None if known else error, **context)
