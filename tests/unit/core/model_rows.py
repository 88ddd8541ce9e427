"""A store of rows that does at once whatever it is asked, for tests of owners."""

from chatgrpc.core.active_chat import event_meta
from chatgrpc.core.clock import Now
from chatgrpc.core.damage import DamageError
from chatgrpc.core.door import ReadIntervals
from chatgrpc.core.entries import Entry, StoredEvent
from chatgrpc.core.epochs import BUCKET_SEQS, Row, committed_run
from chatgrpc.core.row_store import (
    ReadBucket,
    ReadHead,
    StoredBucket,
    StoredHead,
    WriteBoundary,
    WriteMark,
    WriteRow,
    WriteViews,
)
from chatgrpc.core.sequencer import Lookup
from chatgrpc.core.shard import Request, Shard
from chatgrpc.core.visibility import Interval
from chatgrpc.v1 import chat_pb2


class ModelRows:
    """One copy of everything."""

    def __init__(self, bucket_seqs: int = BUCKET_SEQS) -> None:
        self.bucket_seqs = bucket_seqs
        self.rows: dict[str, list[Row]] = {}
        self.boundaries: dict[tuple[str, int], dict[int, int]] = {}
        self.marks: dict[str, int] = {}
        self.chats: dict[str, tuple[int, bytes]] = {}
        self.views: list[Entry] = []
        self.group_counts: dict[str, int] = {}

    def answer(self, shard: Shard, request: Request, now: Now) -> None:
        """Does what a shard asked, and tells it."""
        match request:
            case ReadHead(chat_id=chat_id):
                shard.head_read(request, StoredHead(self.marks.get(chat_id, 0), self.chats.get(chat_id, (0, b""))[1]), now)
            case ReadBucket():
                shard.bucket_read(request, self._bucket(request), now)
            case Lookup(chat=chat, ranges=ranges, user_ids=user_ids):
                events = [event for after_seq, up_to_seq in ranges for event in self._run(chat.chat_id, after_seq, up_to_seq)]
                counts = {user_id: self.group_counts.get(user_id, 0) for user_id in user_ids}
                try:
                    heads = [event_meta(chat.chat_id, event.seq, event.event) for event in events]
                except DamageError as error:
                    shard.look_up_failed(request, error, now)
                else:
                    shard.looked_up(request, heads, counts, now)
            case ReadIntervals(user_id=user_id, chat_id=chat_id):
                shard.intervals_read(request, self.intervals(user_id, chat_id), now)
            case WriteRow() | WriteBoundary() | WriteViews():
                self.put(request)
                shard.stored(request, now)

    def intervals(self, user_id: str, chat_id: str) -> tuple[Interval, ...]:
        """When the user was a member, as the views say."""
        found: dict[int, Interval] = {}
        for entry in sorted(self.views, key=lambda entry: entry.seq):
            if entry.chat_id == chat_id and entry.view is not None:
                found |= {view.interval.joined_seq: view.interval for view in entry.view.members if view.user_id == user_id}
        return tuple(found[joined_seq] for joined_seq in sorted(found))

    def put(self, write: WriteRow | WriteBoundary | WriteViews | WriteMark) -> None:
        """Does a write, and tells nobody."""
        match write:
            case WriteRow(chat_id=chat_id, row=row):
                rows = self.rows.setdefault(chat_id, [])
                if row not in rows:
                    assert (row.seq, row.epoch) not in {(other.seq, other.epoch) for other in rows}, "a row never changes"
                    rows.append(row)
            case WriteBoundary(chat_id=chat_id, bucket=bucket, epoch=epoch, first_seq=first_seq):
                self.boundaries.setdefault((chat_id, bucket), {})[epoch] = first_seq
            case WriteViews(entry=entry):
                self.views.append(entry)
                if entry.view is not None:
                    known = self.chats.get(entry.chat_id, (0, b""))
                    self.chats[entry.chat_id] = max(known, (entry.seq, entry.view.chat))
            case WriteMark(chat_id=chat_id, seq=seq):
                self.marks[chat_id] = max(seq, self.marks.get(chat_id, 0))

    def texts(self, chat_id: str, up_to_seq: int) -> list[str]:
        """What was said in a chat, as a reader sees it; the arm of what is no text."""
        events = [chat_pb2.ChatEvent.FromString(stored.event) for stored in self._run(chat_id, 0, up_to_seq)]
        return [event.content.text.text or event.content.WhichOneof("body") or "" for event in events]

    def _bucket(self, read: ReadBucket) -> StoredBucket:
        rows = [
            row
            for row in self.rows.get(read.chat_id, [])
            if row.seq >= read.from_seq and row.seq // self.bucket_seqs == read.bucket
        ]
        return StoredBucket(rows, dict(self.boundaries.get((read.chat_id, read.bucket), {})))

    def _run(self, chat_id: str, after_seq: int, up_to_seq: int) -> list[StoredEvent]:
        return [StoredEvent(row.seq, row.event) for row in committed_run(self.rows.get(chat_id, []), after_seq, up_to_seq)]
