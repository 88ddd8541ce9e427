"""Activation: how a new owner takes a chat over (design §4, ADR 4).

1. Read the committed mark, and from the mark's bucket on the rows and boundaries; find the tail to adopt.
2. Write the adopted rows again under the own epoch, same content.
3. When all of them are safe, write the boundary; when that is, what follows from the adopted events (views). Of the chat's
   states one after the other, since the next owner trusts that whatever is below the latest one is stored too; erasures come
   last, since an erasure reaches those edits that are noted by then.
4. Ready: the head is the end of the tail, and the chat may be written to and spoken of.

The order of 2 and 3 matters both ways. Boundary first: an owner that dies in between has voided committed rows. Adopted under
the old epoch: the boundary of an owner that died earlier may still land, and void them.

What it reads is looked at before anything is written: a chat whose store contradicts itself is damaged (`core.damage`).

Without a tail there is nothing to protect: the chat is ready after the reads, and the boundary is written before the first row
(`AppendPipeline`). So asking for a head costs two reads, and asking for a chat that nobody made leaves no trace.
"""

from chatgrpc.core.active_chat import ActiveChat
from chatgrpc.core.damage import DamageError, adopted_event, check_intervals, stored_chat, stored_event
from chatgrpc.core.entries import ChatView, Entry, StoredChat
from chatgrpc.core.epochs import BUCKET_SEQS, SEQ_MAX, Row, adopted_tail, bucket_of
from chatgrpc.core.events import event_chunk
from chatgrpc.core.fold import CHANGES_CHAT
from chatgrpc.core.row_store import (
    ReadBucket,
    ReadHead,
    StoredBucket,
    StoredHead,
    StoreRead,
    StoreWrite,
    WriteBoundary,
    WriteRow,
    WriteViews,
)
from chatgrpc.core.rules import new_members
from chatgrpc.core.sequencer import Delivery
from chatgrpc.v1 import chat_pb2


class Activation:
    """One owner's way into one chat. The shell runs what `take_reads` and `take_writes` hand out, each until it succeeds."""

    def __init__(self, chat_id: str, epoch: int, bucket_seqs: int = BUCKET_SEQS) -> None:
        self.chat_id = chat_id
        self.ready = False
        self.superseded = False
        """The store knows a later epoch of the chat, under which others have ordered it, or do. It is never ready then."""
        self.stored_chat: StoredChat | None = None
        """Once ready: what the sequencer loads; None if the chat has no event."""
        self.head_seq = 0
        self.first_seq = 0
        """The first seq that the epoch rules."""
        self.buckets_with_boundary: set[int] = set()
        """Buckets that hold the epoch's boundary."""
        self.untold: list[Delivery] = []
        """Once ready: adopted events that may never have been pushed: the head, for all members, whose devices find by it what
        else they lack; and those that let a user in or out, for that user, whose devices hear of the chat in no other way."""
        self._epoch = epoch
        self._bucket_seqs = bucket_seqs
        self._reads: list[StoreRead] = [ReadHead(chat_id)]
        self._writes: list[StoreWrite] = []
        self.writes = False
        """It has begun to write: what it wrote may still be on its way when it is given up."""
        self._head = StoredHead()
        self._chat = b""
        self._rows: list[Row] = []
        self._boundaries: dict[int, int] = {}
        self._tail: list[Row] = []
        self._steps: list[list[StoreWrite]] = []
        self._unstored: dict[tuple[type[StoreWrite], int], StoreWrite] = {}  # of this step, those that have not succeeded

    @property
    def mark_seq(self) -> int:
        """The committed mark that was read."""
        return self._head.mark_seq

    def take_reads(self) -> list[StoreRead]:
        """Reads to run."""
        reads, self._reads = self._reads, []
        return reads

    def take_writes(self) -> list[StoreWrite]:
        """Writes to run."""
        writes, self._writes = self._writes, []
        return writes

    def head_read(self, head: StoredHead) -> None:
        """The outcome of `ReadHead`.

        Raises:
            DamageError: it cannot be right.
        """
        if not 0 <= head.mark_seq <= SEQ_MAX:
            raise DamageError(f"its mark is {head.mark_seq}")
        self._head = head
        self._chat = head.chat
        self._want_bucket(bucket_of(head.mark_seq, self._bucket_seqs))

    def bucket_read(self, read: ReadBucket, found: StoredBucket) -> None:
        """The outcome of a `ReadBucket`.

        Raises:
            DamageError: with the head and what was read before, it cannot be right. Nothing was written.
        """
        if max((row.epoch for row in found.rows), default=0) > self._epoch or max(found.boundaries, default=0) > self._epoch:
            self.superseded = True
            return
        self._rows += found.rows
        self._boundaries = {
            epoch: min(first_seq, self._boundaries.get(epoch, first_seq))
            for epoch, first_seq in (*self._boundaries.items(), *found.boundaries.items())
        }
        tail = self._find_tail()
        end_seq = self._head.mark_seq + len(tail)
        if bucket_of(end_seq + 1, self._bucket_seqs) > read.bucket:  # the run fills the bucket: it may go on in the next
            self._want_bucket(read.bucket + 1)
            return
        self._take_over(tail)

    def stored(self, write: StoreWrite) -> None:
        """A write succeeded, perhaps not for the first time."""
        if self._unstored.pop(_key(write), None) is not None:
            self._next_step()

    def _want_bucket(self, bucket: int) -> None:
        from_seq = max(self._head.mark_seq, bucket * self._bucket_seqs)  # the row at the mark is the head if nothing is above
        self._reads.append(ReadBucket(self.chat_id, bucket, from_seq))

    def _find_tail(self) -> list[Row]:
        return adopted_tail(self._rows, self._boundaries, self._head.mark_seq)

    def _take_over(self, tail: list[Row]) -> None:
        self._tail = tail
        self.head_seq = self._head.mark_seq + len(tail)
        self.first_seq = self._first_ruled_seq()
        self._steps = self._plan()
        self._check()
        self._next_step()

    def _check(self) -> None:
        """Whether the chat can be worked with as it was found, and as what was adopted makes it."""
        if self.head_seq:
            stored_event(self.chat_id, self.head_seq, self._head_row().event)
        if self.head_seq or self._chat:
            stored_chat(self.chat_id, self._chat, self.head_seq)

    def _head_row(self) -> Row:
        if self._tail:
            return self._tail[-1]
        at_head = [row for row in self._rows if row.seq == self.head_seq]
        if not at_head:
            raise DamageError(f"all up to seq {self.head_seq} was committed, and there is no row at that seq")
        return max(at_head, key=lambda row: row.epoch)

    def _first_ruled_seq(self) -> int:
        return self._head.mark_seq + 1

    def _plan(self) -> list[list[StoreWrite]]:
        """The writes of each step; a step begins when the one before it is safe."""
        if not self._tail:
            return []
        views = self._view_writes()
        amendments: list[StoreWrite] = [write for write in views if write.entry.amends_seq]
        states: list[list[StoreWrite]] = [[write] for write in views if write.entry.view is not None]
        erasures: list[StoreWrite] = [write for write in views if write.entry.erases_seq]
        return [self._adopted_rows(), self._boundary_writes(), amendments, *states, erasures]

    def _adopted_rows(self) -> list[StoreWrite]:
        return [
            WriteRow(self.chat_id, bucket_of(row.seq, self._bucket_seqs), Row(row.seq, self._epoch, row.event))
            for row in self._tail
        ]

    def _boundary_writes(self) -> list[StoreWrite]:
        buckets = dict.fromkeys(bucket_of(row.seq, self._bucket_seqs) for row in self._tail)
        return [WriteBoundary(self.chat_id, bucket, self._epoch, self.first_seq) for bucket in buckets]

    def _view_writes(self) -> list[WriteViews]:
        """What follows from the adopted events; it was stored before any of them was acknowledged, or it is not stored yet."""
        chat = ActiveChat(self.chat_id, 1, 1)
        if self._head.chat:
            chat.restore(stored_chat(self.chat_id, self._head.chat, self.head_seq))
        as_of_seq = chat.chat.as_of_seq if chat.chat is not None else 0
        writes: list[WriteViews] = []
        for row in self._tail:
            event = adopted_event(self.chat_id, row.seq, row.event)
            arm = event.content.WhichOneof("body") or ""
            view = None
            if arm in CHANGES_CHAT and row.seq >= as_of_seq:  # what the view has is perhaps on one replica only: again
                members = chat.apply(event) if row.seq > as_of_seq else ()
                for member in members:
                    check_intervals([member.interval])
                view = ChatView(chat.chat.SerializeToString(), members) if chat.chat is not None else None
            entry = Entry(
                self.chat_id,
                row.seq,
                self._epoch,
                row.event,
                amends_seq=event.content.edit.target_seq if arm == "edit" else 0,
                erases_seq=event.content.delete.target_seq if arm == "delete" else 0,
                view=view,
            )
            if entry.has_views:
                writes.append(WriteViews(entry))
            self._note_untold(event, row, chat.recipients if row.seq == self.head_seq else ())
        self._chat = chat.chat.SerializeToString() if chat.chat is not None else b""
        return writes

    def _note_untold(self, event: chat_pb2.ChatEvent, row: Row, members: tuple[str, ...]) -> None:
        """An owner of before may have died before it said so, or never knew that the event would count."""
        left_user_id = event.content.member_removed.user_id
        changed = [*new_members(event.content, event.content.WhichOneof("body") or ""), *filter(None, [left_user_id])]
        if members or changed:
            user_ids = tuple(dict.fromkeys((*members, *changed)))
            chunk = event_chunk(row.event)
            self.untold.append(Delivery(self.chat_id, row.seq, chunk, user_ids, left_user_id, bool(changed)))

    def _next_step(self) -> None:
        while not self._unstored:
            if not self._steps:
                self._finish()
                return
            step = self._steps.pop(0)
            self._unstored = {_key(write): write for write in step}
            self._writes += step
            self.writes = True
            self.buckets_with_boundary |= {write.bucket for write in step if isinstance(write, WriteBoundary)}

    def _finish(self) -> None:
        if self.ready:
            return
        self.ready = True
        if not self.head_seq:
            return
        self.stored_chat = StoredChat(self._chat, self.head_seq, self._head_row().event)


def _key(write: StoreWrite) -> tuple[type[StoreWrite], int]:
    """Names a write among those of one step."""
    match write:
        case WriteRow(row=row):
            return WriteRow, row.seq
        case WriteBoundary(bucket=bucket):
            return WriteBoundary, bucket
    return WriteViews, write.entry.seq
