"""A node's way to the store. Nobody knows what became of a request that was not answered, so it is made again.

What it does to erase, and in which order it writes, follows `adapters/cassandra`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from chatgrpc.core.entries import Entry, StoredEvent
from chatgrpc.core.epochs import Row
from chatgrpc.core.events import erased
from chatgrpc.core.row_store import (
    ReadBucket,
    ReadHead,
    StoredBucket,
    StoredHead,
    StoreWrite,
    WriteBoundary,
    WriteMark,
    WriteRow,
)
from chatgrpc.core.visibility import Interval
from tests.sim.parts import Parts
from tests.sim.process import Process
from tests.sim.store import Bucket, Change, Replica, Store, merge_buckets, merge_heads, merge_memberships
from tests.sim.tasks import Promise

TIMEOUT_MS = 150
TOO_EARLY_MS = 50
"""A hole means that it was read too early, and is read again after so long."""

Wanted = Callable[[], bool]
"""Whether anybody still wants it; what nobody wants any more is not tried again, and never answered."""


class StoreClient:
    """`ports.row_store`, as one node has it."""

    def __init__(self, process: Process, store: Store, parts: Parts) -> None:
        self._process = process
        self._world = process.world
        self._store = store
        self._parts = parts
        self._clogged_until_ms = 0

    def clog(self, duration_ms: int) -> None:
        """The way to the store is clogged: writes get there much later."""
        self._clogged_until_ms = self._world.now_ms + duration_ms

    # Rows, as owners write and read them.

    async def read_head(self, read: ReadHead, wanted: Wanted) -> StoredHead:
        return merge_heads(await self._read(lambda replica: replica.head(read.chat_id), wanted))

    async def read_bucket(self, read: ReadBucket, wanted: Wanted) -> StoredBucket:
        return (await self._bucket(read.chat_id, read.bucket, read.from_seq, wanted)).stored()

    async def write(self, write: StoreWrite, wanted: Wanted) -> None:
        match write:
            case WriteRow():
                await self._write(lambda replica: replica.put_row(write), wanted)
            case WriteBoundary():
                await self._write(lambda replica: replica.put_boundary(write), wanted)
            case _:
                await self._write_views(write.entry, wanted)

    def write_mark(self, mark: WriteMark) -> None:
        """Once; nobody minds if it is lost."""
        self._store.write(lambda replica: replica.put_mark(mark), lambda: None)

    async def _write_views(self, entry: Entry, wanted: Wanted) -> None:
        """Members, amendments and erasures first, the chat's view last."""
        if entry.view is not None and entry.view.members:
            await self._write(lambda replica: replica.put_members(entry), wanted)
        if entry.amends_seq:
            await self._write(lambda replica: replica.put_amendment(entry), wanted)
        if entry.erases_seq:
            await self._erase(entry, wanted)
        if entry.amends_seq:
            await self._erase_if_late(entry, wanted)
        if entry.view is not None:
            await self._write(lambda replica: replica.put_chat(entry), wanted)

    async def _erase(self, entry: Entry, wanted: Wanted) -> None:
        """What was said at the seq, and then at those that amend it."""
        await self._erase_at(entry, entry.erases_seq, wanted)
        found = await self._read(lambda replica: replica.amending(entry.chat_id, entry.erases_seq), wanted)
        for seq in sorted(dict.fromkeys(found[0] + found[1])):
            if seq < entry.seq:
                await self._erase_at(entry, seq, wanted)

    async def _erase_if_late(self, entry: Entry, wanted: Wanted) -> None:
        """An amendment of a message that is erased by now."""
        rows = await self._rows(entry.chat_id, entry.amends_seq, wanted)
        if rows and rows[-1].event == erased(rows[-1].event):
            await self._erase_at(entry, entry.seq, wanted)

    async def _erase_at(self, entry: Entry, seq: int, wanted: Wanted) -> None:
        """Rows of a later epoch are another owner's business."""
        rows = [row for row in await self._rows(entry.chat_id, seq, wanted) if row.epoch <= entry.epoch]
        if rows:
            bucket = self._store.bucket_of(seq)
            erase = partial(self._parts.erase, chat_id=entry.chat_id, bucket=bucket, row=rows[-1], entry=entry)
            await self._write(erase, wanted)

    async def _rows(self, chat_id: str, seq: int, wanted: Wanted) -> list[Row]:
        """The rows of a seq, the highest epoch last."""
        found = (await self._bucket(chat_id, self._store.bucket_of(seq), seq, wanted)).stored()
        return sorted((row for row in found.rows if row.seq == seq), key=lambda row: row.epoch)

    # The log and the views, as readers see them.

    async def read_after(self, chat_id: str, after_seq: int, stated_seq: int, limit: int, wanted: Wanted) -> list[StoredEvent]:
        """Events of one bucket, at least one."""
        bucket = self._store.bucket_of(after_seq + 1)
        while True:
            began_ms = self._world.now_ms
            found = (await self._bucket(chat_id, bucket, after_seq + 1, wanted)).stored()
            rows = self._parts.read_committed(found.rows, after_seq, stated_seq)[:limit]
            if rows:
                return self._shown(chat_id, rows, began_ms)
            self._process.note(f"{chat_id}: a hole at {after_seq + 1}, stated {stated_seq}")
            await self._wait(TOO_EARLY_MS)

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, wanted: Wanted
    ) -> list[StoredEvent]:
        """Events `down_to_seq <= seq < before_seq`, the newest of them."""
        first_seq = max(down_to_seq, before_seq - limit)
        events: list[StoredEvent] = []
        while first_seq + len(events) < before_seq:
            events += await self.read_after(chat_id, first_seq - 1 + len(events), before_seq - 1, limit, wanted)
        return events

    async def chat_view(self, chat_id: str, wanted: Wanted) -> bytes:
        return merge_heads(await self._read(lambda replica: replica.head(chat_id), wanted)).chat

    async def memberships(self, user_id: str, wanted: Wanted) -> dict[str, tuple[Interval, ...]]:
        return merge_memberships(await self._read(lambda replica: replica.memberships(user_id), wanted))

    def _shown(self, chat_id: str, rows: list[Row], began_ms: int) -> list[StoredEvent]:
        for row in rows:
            self._world.witness(f"{self._process.name} reads", chat_id, row.seq, row.event, began_ms)
        return [StoredEvent(row.seq, row.event) for row in rows]

    # Requests, with their timeouts.

    async def _bucket(self, chat_id: str, bucket: int, from_seq: int, wanted: Wanted) -> Bucket:
        found = await self._read(lambda replica: replica.bucket(chat_id, bucket).since(from_seq), wanted)
        merged = merge_buckets(found)
        self._store.repair(chat_id, bucket, merged)
        return merged

    async def _read(self, query: Callable[[Replica], Any], wanted: Wanted) -> list[Any]:
        """Reads at QUORUM until it succeeds; what two replicas said."""
        found: Promise[list[Any]] = Promise()

        def attempt() -> None:
            if not found.is_kept and wanted():
                self._store.read(query, lambda said: self._process.run(lambda: found.keep(said)))
                self._process.after(TIMEOUT_MS, attempt)

        attempt()
        return await found

    async def _write(self, change: Change, wanted: Wanted) -> None:
        """Writes at QUORUM until it succeeds."""
        written: Promise[None] = Promise()

        def attempt() -> None:
            if not written.is_kept and wanted():
                clogged = self._world.now_ms < self._clogged_until_ms
                self._store.write(change, lambda: self._process.run(lambda: written.keep(None)), clogged)
                self._process.after(TIMEOUT_MS, attempt)

        attempt()
        await written

    async def _wait(self, delay_ms: int) -> None:
        over: Promise[None] = Promise()
        self._process.after(delay_ms, lambda: over.keep(None))
        await over
