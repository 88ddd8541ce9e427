"""A store of rows in memory that can be away, and that can keep its answers to itself."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from chatgrpc.adapters.memory import MemoryRowStore
from chatgrpc.core.entries import StoredEvent
from chatgrpc.core.row_store import ReadBucket, ReadHead, StoredBucket, StoredHead, StoreWrite, WriteMark, WriteViews
from chatgrpc.core.visibility import Interval
from chatgrpc.ports.errors import CannotBeStoredError, StoreError, StoreUnavailableError
from chatgrpc.ports.row_store import Written


class StubbornRows(MemoryRowStore):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        """Every read fails, and every write is reported as failed, though it may have been done."""
        self.unstorable = ""
        """A chat of which nothing can be stored, whatever is tried."""
        self.away_for: set[str] = set()
        """To list the chats of these users fails."""
        self.tries: list[StoreWrite] = []
        """Each try of each write."""
        self.marks: list[list[WriteMark]] = []
        """Each try to raise marks."""
        self.pages: list[tuple[int, int]] = []
        """Of the log: after which seq, and how many events were found."""
        self.page_events_max = 10**9
        self.users_read: list[str] = []
        """Whose chats were listed, or were to be."""
        self.users_told: list[str] = []
        """Whose chats were listed."""
        self.listing_most = 0
        """How many users' chats were listed at the same time."""
        self.reads = 0
        """Tries to read anything."""
        self._answers = asyncio.Event()
        self._answers.set()
        self._listing = 0
        self._withheld: list[Callable[[], None]] = []

    @asynccontextmanager
    async def silent(self) -> AsyncIterator[None]:
        """While this lasts, nothing is answered; it is done all the same."""
        self._answers.clear()
        try:
            yield
        finally:
            self._answers.set()
            withheld, self._withheld = self._withheld, []
            for report in withheld:
                report()

    def write(self, writes: Sequence[StoreWrite], written: Written) -> None:
        self.tries += writes
        super().write(writes, partial(self._report, written))

    async def write_marks(self, marks: Sequence[WriteMark]) -> None:
        self.marks.append(list(marks))
        await self._trip()
        await super().write_marks(marks)

    async def read_head(self, read: ReadHead) -> StoredHead:
        await self._trip()
        return await super().read_head(read)

    async def read_bucket(self, read: ReadBucket) -> StoredBucket:
        await self._trip()
        return await super().read_bucket(read)

    async def read_after(self, chat_id: str, after_seq: int, stated_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        await self._trip()
        page = await super().read_after(chat_id, after_seq, stated_seq, min(limit, self.page_events_max), bytes_max)
        self.pages.append((after_seq, len(page)))
        return page

    async def chat_view(self, chat_id: str) -> bytes:
        await self._trip()
        return await super().chat_view(chat_id)

    async def intervals_of_user(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[tuple[str, tuple[Interval, ...]]]:
        self.users_read.append(user_id)
        self._listing += 1
        self.listing_most = max(self._listing, self.listing_most)
        try:
            await self._trip()
        finally:
            self._listing -= 1
        if user_id in self.away_for:
            raise StoreUnavailableError("away")
        found = await super().intervals_of_user(user_id, after_chat_id, limit, present_only=present_only)
        self.users_told.append(user_id)
        return found

    async def intervals(self, user_id: str, chat_id: str) -> tuple[Interval, ...]:
        await self._trip()
        return await super().intervals(user_id, chat_id)

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        await self._trip()
        return await super().count_groups(user_ids)

    async def _trip(self) -> None:
        self.reads += 1
        await asyncio.sleep(0)
        await self._answers.wait()
        if self.away:
            raise StoreUnavailableError("away")

    def _report(self, written: Written, writes: Sequence[StoreWrite], error: StoreError | None) -> None:
        if self._answers.is_set():
            written(writes, StoreUnavailableError("away") if self.away else self._unstorable(writes) or error)
        else:
            self._withheld.append(partial(self._report, written, writes, error))

    def _unstorable(self, writes: Sequence[StoreWrite]) -> StoreError | None:
        of_chats = {write.entry.chat_id if isinstance(write, WriteViews) else write.chat_id for write in writes}
        return CannotBeStoredError("never") if self.unstorable in of_chats else None
