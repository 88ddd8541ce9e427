"""The cluster's store in memory: rows as owners write them, and the log as readers may see it."""

import asyncio
from collections.abc import Sequence

from chatgrpc.adapters.memory.shelf import Shelf
from chatgrpc.core.entries import Entry
from chatgrpc.core.epochs import Row, bucket_of, committed_run
from chatgrpc.core.events import erased
from chatgrpc.core.ids import is_group_chat_id
from chatgrpc.core.row_store import (
    ReadBucket,
    ReadHead,
    StoredBucket,
    StoredHead,
    StoreWrite,
    WriteBoundary,
    WriteMark,
    WriteRow,
    WriteViews,
)
from chatgrpc.core.visibility import Interval, is_member
from chatgrpc.ports.errors import ChatDamagedError, StoreError, StoreUnavailableError
from chatgrpc.ports.row_store import StoredEvent, Written
from chatgrpc.v1 import chat_pb2


class MemoryRowStore:
    """`ports.row_store.RowStore` and `ports.row_store.CommittedLog`; the nodes of one process share an instance.

    A write is done when it is asked for and reported in the next turn of the event loop, so all that is seen is settled.
    """

    def __init__(self) -> None:
        self._shelf = Shelf()
        self._chats: dict[str, _Chat] = {}
        self._members: dict[tuple[str, str], dict[int, tuple[int, int]]] = {}
        """User id and chat id to joined_seq to the seq that says so and left_seq."""

    async def read_head(self, read: ReadHead) -> StoredHead:
        """See the port."""
        self._shelf.check_open()
        chat = self._chats.get(read.chat_id, _NO_CHAT)
        return StoredHead(chat.mark_seq, chat.view[1])

    async def read_bucket(self, read: ReadBucket) -> StoredBucket:
        """See the port."""
        self._shelf.check_open()
        chat = self._chats.get(read.chat_id, _NO_CHAT)
        rows = [
            Row(seq, epoch, event)
            for seq in sorted(chat.rows)
            if seq >= read.from_seq and bucket_of(seq) == read.bucket
            for epoch, event in chat.rows[seq].items()
        ]
        return StoredBucket(rows, dict(chat.boundaries.get(read.bucket, {})))

    def write(self, writes: Sequence[StoreWrite], written: Written) -> None:
        """See the port."""
        error: StoreError | None = None
        try:
            self._shelf.check_open()
        except StoreUnavailableError as closed:
            error = closed
        else:
            for write in writes:
                self._put(write)
        asyncio.get_running_loop().call_soon(written, list(writes), error)

    async def write_marks(self, marks: Sequence[WriteMark]) -> None:
        """See the port."""
        self._shelf.check_open()
        for mark in marks:
            chat = self._chat(mark.chat_id)
            chat.mark_seq = max(chat.mark_seq, mark.seq)

    async def read_after(self, chat_id: str, after_seq: int, stated_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """See the port."""
        self._shelf.check_open()
        run = self._run(chat_id, after_seq + 1, min(stated_seq, after_seq + limit))
        return _page(run, bytes_max)

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        """See the port."""
        self._shelf.check_open()
        run = self._run(chat_id, max(down_to_seq, before_seq - limit, 1), before_seq - 1)
        return _page(run[::-1], bytes_max)[::-1]

    async def chat_view(self, chat_id: str) -> bytes:
        """See the port."""
        self._shelf.check_open()
        return self._chats.get(chat_id, _NO_CHAT).view[1]

    async def intervals_of_user(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[tuple[str, tuple[Interval, ...]]]:
        """See the port."""
        self._shelf.check_open()
        listed = (
            self.chats_now(user_id)
            if present_only
            else [chat_id for member_id, chat_id in self._members if member_id == user_id]
        )
        chat_ids = sorted(chat_id for chat_id in listed if chat_id > after_chat_id)
        return [(chat_id, self._intervals(user_id, chat_id)) for chat_id in chat_ids[:limit]]

    async def intervals(self, user_id: str, chat_id: str) -> tuple[Interval, ...]:
        """See the port."""
        self._shelf.check_open()
        return self._intervals(user_id, chat_id)

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        """See the port."""
        self._shelf.check_open()
        return {user_id: sum(map(is_group_chat_id, self.chats_now(user_id))) for user_id in user_ids}

    def chats_now(self, user_id: str) -> list[str]:
        """The ids of the chats that the user is a member of now."""
        chat_ids = [chat_id for member_id, chat_id in self._members if member_id == user_id]
        return [chat_id for chat_id in chat_ids if is_member(self._intervals(user_id, chat_id))]

    async def close(self) -> None:
        """Ends it; calls after it raise `StoreUnavailableError`."""
        self._shelf.close()

    def _chat(self, chat_id: str) -> "_Chat":
        return self._chats.setdefault(chat_id, _Chat())

    def _put(self, write: StoreWrite) -> None:
        match write:
            case WriteRow():
                self._chat(write.chat_id).put_row(write.row)
            case WriteBoundary():
                boundaries = self._chat(write.chat_id).boundaries.setdefault(write.bucket, {})
                boundaries[write.epoch] = max(write.first_seq, boundaries.get(write.epoch, 0))
            case WriteViews(entry=entry):
                self._chat(entry.chat_id).put_views(entry)
                self._put_members(entry)

    def _put_members(self, entry: Entry) -> None:
        for member in entry.view.members if entry.view is not None else ():
            intervals = self._members.setdefault((member.user_id, entry.chat_id), {})
            joined_seq = member.interval.joined_seq
            intervals[joined_seq] = max(intervals.get(joined_seq, (0, 0)), (entry.seq, member.interval.left_seq))

    def _intervals(self, user_id: str, chat_id: str) -> tuple[Interval, ...]:
        stored = self._members.get((user_id, chat_id), {})
        return tuple(Interval(joined_seq, left_seq) for joined_seq, (_, left_seq) in sorted(stored.items()))

    def _run(self, chat_id: str, first_seq: int, last_seq: int) -> list[Row]:
        """The events at these seqs, every one of which was stated."""
        stored = self._chats.get(chat_id, _NO_CHAT).rows
        rows = (Row(seq, *row) for seq in range(first_seq, last_seq + 1) for row in stored.get(seq, {}).items())
        run = committed_run(rows, first_seq - 1, last_seq)
        if len(run) < last_seq - first_seq + 1:
            raise ChatDamagedError(chat_id, f"there is no row at seq {first_seq + len(run)}, which was stated as committed")
        return run


class _Chat:
    """What is stored of one chat."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[int, bytes]] = {}
        """Seq to epoch to event."""
        self.boundaries: dict[int, dict[int, int]] = {}
        """Bucket to epoch to first seq."""
        self.mark_seq = 0
        self.view = (0, b"")
        """The seq it reflects, the serialized Chat."""
        self._amended_by: dict[int, set[int]] = {}
        self._erased_by: dict[int, int] = {}
        """Seq to the epoch up to which rows there are erased, also those to come."""

    def put_row(self, row: Row) -> None:
        if row.epoch > self._erased_by.get(row.seq, -1):
            self.rows.setdefault(row.seq, {})[row.epoch] = row.event

    def put_views(self, entry: Entry) -> None:
        if entry.amends_seq:
            self._amended_by.setdefault(entry.amends_seq, set()).add(entry.seq)
            target = self.rows.get(entry.amends_seq)
            if target and _is_erased(target[max(target)]):  # the views of what a new owner adopts come in any order
                self._erase(entry.seq, entry.epoch)
        if entry.erases_seq and entry.erases_seq < entry.seq:
            amending = {seq for seq in self._amended_by.get(entry.erases_seq, ()) if seq < entry.seq}
            for seq in {entry.erases_seq} | amending:
                self._erase(seq, entry.epoch)
        if entry.view is not None:
            self.view = max(self.view, (entry.seq, entry.view.chat))

    def _erase(self, seq: int, epoch: int) -> None:
        stored = self.rows.get(seq, {})
        mine = [row_epoch for row_epoch in stored if row_epoch <= epoch]
        if not mine:
            return
        kept = erased(stored[max(mine)])
        for row_epoch in mine:
            del stored[row_epoch]
        stored[epoch] = kept
        self._erased_by[seq] = max(epoch, self._erased_by.get(seq, 0))


_NO_CHAT = _Chat()


def _is_erased(event: bytes) -> bool:
    return chat_pb2.ChatEvent.FromString(event).content.WhichOneof("body") == "erased"


def _page(run: Sequence[Row], bytes_max: int) -> list[StoredEvent]:
    """Takes events up to the one that makes the page larger than `bytes_max`."""
    page: list[StoredEvent] = []
    page_bytes = 0
    for row in run:
        page.append(StoredEvent(row.seq, row.event))
        page_bytes += len(row.event)
        if page_bytes > bytes_max:
            break
    return page
