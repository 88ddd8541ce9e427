"""What the owner of a chat looks up in its log, page by page: the meta of events is kept, what was said is let go at once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

from chatgrpc.core.active_chat import event_meta
from chatgrpc.core.damage import DamageError
from chatgrpc.core.entries import StoredEvent
from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.receipts import Mark
from chatgrpc.core.rules import EventMeta
from chatgrpc.core.sequencer import Lookup

_LONG_AT_ONCE = 4
"""Look-ups of a node that take several pages; each holds one."""
_SHORT_AT_ONCE = 32
"""Those that take one, which is the rule; they wait for no long ones."""
_COUNTING_AT_ONCE = 4
"""Those that count the groups of several users, which is a read of each of them."""
_COUNTED_TOGETHER = 8
"""Users whose groups are counted at a time by one of them: they leave most places at the store to others."""
_PAGE_EVENTS = 256
_PAGE_BYTES = 512 * 1024
"""A page is parsed in one stretch of the event loop."""


class Log(Protocol):
    """Where events are read from."""

    async def read_after(
        self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int, /
    ) -> list[StoredEvent]:
        """Reads a page."""
        ...

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        """Counts the groups of users."""
        ...


class Marks(Protocol):
    """Where it is read what users have read."""

    async def of_chat(self, chat_id: str, /) -> list[Mark]:
        """Reads the marks of one chat."""
        ...


class Found(NamedTuple):
    """What was looked up."""

    metas: list[EventMeta]
    """Of the events in all ranges, in order of seq."""
    group_counts: dict[str, int]
    opened: frozenset[str]
    """Of users who are in as many groups as others may add them to, those who have opened their direct chat with the writer."""


class _Turns:
    """A few at once, and one at a time of each sender: who has many keeps the others waiting for one."""

    def __init__(self, at_once: int) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._of_sender: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, user_id: str) -> AsyncIterator[None]:
        """Waits for a turn of this sender."""
        theirs = self._of_sender.setdefault(user_id, asyncio.Lock())
        async with theirs, self._places:
            yield


class LookUps:
    """The look-ups of one node."""

    def __init__(self, log: Log, marks: Marks, groups_by_others_max: int) -> None:
        """`groups_by_others_max`: see `Limits`."""
        self._log = log
        self._marks = marks
        self._groups_by_others_max = groups_by_others_max
        self._long = _Turns(_LONG_AT_ONCE)
        self._counting = _Turns(_COUNTING_AT_ONCE)
        self._short = asyncio.Semaphore(_SHORT_AT_ONCE)

    async def run(self, wanted: Lookup, is_wanted: Callable[[], bool]) -> Found | None:
        """See `look_up`; it waits for its turn, and gives None if it `is_wanted` no more then."""
        async with self._turn(wanted):
            return await self._look_up(wanted) if is_wanted() else None

    def _turn(self, wanted: Lookup) -> AbstractAsyncContextManager[None]:
        if sum(up_to_seq - after_seq for after_seq, up_to_seq in wanted.ranges) > _PAGE_EVENTS:
            return self._long.of(wanted.sender_user_id)
        if len(wanted.user_ids) > 1:
            return self._counting.of(wanted.sender_user_id)
        return self._short

    async def _look_up(self, wanted: Lookup) -> Found:
        metas = await read_metas(self._log, wanted)
        counts: dict[str, int] = {}
        for start in range(0, len(wanted.user_ids), _COUNTED_TOGETHER):
            counts |= await self._log.count_groups(wanted.user_ids[start : start + _COUNTED_TOGETHER])
        full = [user_id for user_id, count in counts.items() if count >= self._groups_by_others_max]
        opened = [user_id for user_id in full if await self._has_opened(user_id, wanted.sender_user_id)]
        return Found(metas, counts, frozenset(opened))

    async def _has_opened(self, user_id: str, other_user_id: str) -> bool:
        """Whether the user has read anything of the direct chat with the other one."""
        if user_id == other_user_id:
            return False
        marks = await self._marks.of_chat(direct_chat_id(user_id, other_user_id))
        return any(mark.user_id == user_id and mark.read_seq for mark in marks)


async def read_metas(log: Log, wanted: Lookup) -> list[EventMeta]:
    """Reads the meta of the events in all ranges, in order of seq.

    Raises:
        StoreError: something cannot be read.
        DamageError: what is stored there is no event.
    """
    metas: list[EventMeta] = []
    for after_seq, up_to_seq in wanted.ranges:
        at_seq = after_seq
        while at_seq < up_to_seq:
            page = await log.read_after(wanted.chat.chat_id, at_seq, up_to_seq, _PAGE_EVENTS, _PAGE_BYTES)
            if not page:
                raise DamageError(f"there is no row at seq {at_seq + 1}, which was committed")
            for stored in page:
                at_seq += 1
                metas.append(event_meta(wanted.chat.chat_id, at_seq, stored.event))
    return metas
