"""The rows of chats as their owners write them, in Cassandra."""

import asyncio
from collections.abc import Sequence

from chatgrpc import background
from chatgrpc.adapters.cassandra.batches import Batches
from chatgrpc.adapters.cassandra.client import CassandraClient, Statement
from chatgrpc.adapters.cassandra.timestamps import row_timestamp
from chatgrpc.adapters.cassandra.views import ViewWriter
from chatgrpc.core.epochs import Row
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
from chatgrpc.ports.errors import CannotBeStoredError, ChatDamagedError, StoreError, StoreUnavailableError
from chatgrpc.ports.row_store import Written

_PAGE_ROWS = 256
_KEY_BYTES_MAX = 65_535
"""Cassandra refuses a request with a longer key, and one with an empty key, as it refuses others that are right: of tables that
a node does not know yet, or while its disk is full. So those are not sent, and all refusals may pass."""
_MARKS_TOGETHER = 256
"""About as many as are written at the same time; they are bound at a stretch, and there may be one of every chat."""


class CassandraRowStore:
    """`ports.row_store.RowStore`."""

    def __init__(self, client: CassandraClient, batches: Batches, beside: Batches, loop: asyncio.AbstractEventLoop) -> None:
        """Prepares its statements, which blocks. Committed marks go `beside` what messages wait for."""
        self._beside = beside
        self._client = client
        self._batches = batches
        self._loop = loop
        self._views = ViewWriter(client, batches)
        self._views_under_way: set[asyncio.Task[None]] = set()
        self._closed = False
        self._head = client.prepare("SELECT mark_seq, chat FROM {keyspace}.chats WHERE chat_id = ?")
        self._boundaries = client.prepare("SELECT DISTINCT boundaries FROM {keyspace}.log WHERE chat_id = ? AND bucket = ?")
        self._rows = client.prepare(
            "SELECT seq, epoch, event FROM {keyspace}.log WHERE chat_id = ? AND bucket = ? AND seq >= ?"
        )
        self._rows.fetch_size = _PAGE_ROWS
        self._put_row = client.prepare(
            "INSERT INTO {keyspace}.log (chat_id, bucket, seq, epoch, event) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?"
        )
        # One cell of the map: writing the whole map would first delete it.
        self._put_boundary = client.prepare(
            "UPDATE {keyspace}.log USING TIMESTAMP ? SET boundaries[?] = ? WHERE chat_id = ? AND bucket = ?"
        )
        self._put_mark = client.prepare("UPDATE {keyspace}.chats USING TIMESTAMP ? SET mark_seq = ? WHERE chat_id = ?")

    async def read_head(self, read: ReadHead) -> StoredHead:
        """See the port."""
        if not 0 < len(read.chat_id.encode()) <= _KEY_BYTES_MAX:
            raise ChatDamagedError(read.chat_id, "no chat has such an id")
        rows = await self._client.read(self._head.bind((read.chat_id,)))
        if not rows:
            return StoredHead()
        mark_seq, chat = rows[0]
        return StoredHead(mark_seq or 0, chat or b"")

    async def read_bucket(self, read: ReadBucket) -> StoredBucket:
        """See the port."""
        # Cassandra leaves the static column out of a slice without rows, so it is a read of its own; at the same time, since
        # one moment is as good as another (ADR 4, b).
        found, rows = await asyncio.gather(
            self._client.read(self._boundaries.bind((read.chat_id, read.bucket))),
            self._client.read(self._rows.bind((read.chat_id, read.bucket, read.from_seq))),
        )
        boundaries = dict(found[0][0].items()) if found and found[0][0] else {}
        return StoredBucket([Row(seq, epoch, event or b"") for seq, epoch, event in rows], boundaries)

    def write(self, writes: Sequence[StoreWrite], written: Written) -> None:
        """See the port."""
        if self._closed:
            self._loop.call_soon(written, list(writes), StoreUnavailableError("the store is closed"))
            return
        for write in writes:
            try:
                self._begin(write, written)
            except Exception as defect:
                self._loop.call_soon(written, [write], _cannot_be_stored(write, defect))

    def _begin(self, write: StoreWrite, written: Written) -> None:
        match write:
            case WriteRow(row=row):
                self._batches.put(self._bound_row(write), len(row.event), write, written)
            case WriteBoundary():
                self._batches.put(self._bound_boundary(write), 0, write, written)
            case WriteViews():
                task = background.start(self._write_views(write, written), background.logged("views"))
                self._views_under_way.add(task)
                task.add_done_callback(self._views_under_way.discard)

    async def write_marks(self, marks: Sequence[WriteMark]) -> None:
        """See the port."""
        for start in range(0, len(marks), _MARKS_TOGETHER):
            some = marks[start : start + _MARKS_TOGETHER]
            await self._beside.write([self._put_mark.bind((mark.seq, mark.seq, mark.chat_id)) for mark in some])

    async def close(self) -> None:
        """Refuses what comes, and waits for views that are being written."""
        self._closed = True
        if self._views_under_way:
            await asyncio.wait(self._views_under_way)

    def _bound_row(self, write: WriteRow) -> Statement:
        row = write.row
        values = (write.chat_id, write.bucket, row.seq, row.epoch, row.event, row_timestamp(row.epoch))
        return self._put_row.bind(values)

    def _bound_boundary(self, write: WriteBoundary) -> Statement:
        values = (row_timestamp(write.epoch), write.epoch, write.first_seq, write.chat_id, write.bucket)
        return self._put_boundary.bind(values)

    async def _write_views(self, write: WriteViews, written: Written) -> None:
        failure: StoreError | None = None
        try:
            await self._views.write(write.entry)
        except StoreError as error:
            failure = error
        except Exception as defect:
            failure = _cannot_be_stored(write, defect)
        written([write], failure)


def _cannot_be_stored(write: StoreWrite, defect: Exception) -> CannotBeStoredError:
    """What a defect comes to, of ours, or of the driver over a value that it cannot send: so it would be each time."""
    chat_id = write.entry.chat_id if isinstance(write, WriteViews) else write.chat_id
    error = CannotBeStoredError(f"{type(write).__name__} of chat {chat_id}: {type(defect).__name__}: {defect}")
    error.__cause__ = defect
    return error
