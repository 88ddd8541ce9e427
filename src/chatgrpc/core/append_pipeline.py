"""The appends of one chat by one owner: many under way at once, counted in order of seq.

A row's success says that this row is safe, not that it is an event: the next owner keeps what stands without a gap. So an event
counts once all below it have landed, and what follows from it (views, erasures, amendments) is stored too.
"""

from collections import deque

from chatgrpc.core.entries import Entry
from chatgrpc.core.epochs import BUCKET_SEQS, Row, bucket_of
from chatgrpc.core.row_store import StoreWrite, WriteBoundary, WriteRow, WriteViews


class AppendPipeline:
    """Appends of one chat within one epoch."""

    def __init__(
        self,
        chat_id: str,
        epoch: int,
        head_seq: int,
        first_seq: int,
        buckets_with_boundary: set[int],
        window: int,
        bucket_seqs: int = BUCKET_SEQS,
    ) -> None:
        """
        Args:
            head_seq: the committed head, as the activation found it.
            first_seq: the first seq that the epoch rules; what its boundary says.
            buckets_with_boundary: those that hold the epoch's boundary already.
            window: rows under way at once.
        """
        self.chat_id = chat_id
        self.committed_seq = head_seq
        self._epoch = epoch
        self._first_seq = first_seq
        self._buckets_with_boundary = buckets_with_boundary
        self._window = window
        self._bucket_seqs = bucket_seqs
        self._next_seq = head_seq + 1
        self._waiting: deque[Entry] = deque()
        self._under_way: dict[int, Entry] = {}  # all above committed_seq that were let out
        self._landed: set[int] = set()
        self._views_wanted = 0  # seq whose views are being written
        self._boundary_under_way = False
        self._writes: list[StoreWrite] = []

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self._waiting and not self._under_way

    @property
    def is_sealed(self) -> bool:
        """Whether the epoch's boundary stands where every later owner reads it: no row of an earlier epoch above the head that
        was found can count any more, whenever it lands."""
        return bool(self._buckets_with_boundary)

    def seal(self) -> None:
        """Has the boundary written, if it does not stand yet, though no row may follow."""
        if not self.is_sealed:
            self._write_boundary(bucket_of(self._next_seq, self._bucket_seqs))

    def append(self, entry: Entry) -> None:
        """Takes the next event."""
        assert entry.seq == self._next_seq, "appends come in order of seq"
        assert entry.epoch == self._epoch
        self._next_seq += 1
        self._waiting.append(entry)
        self._let_out()

    def take_writes(self) -> list[StoreWrite]:
        """Writes to run, each until it succeeds."""
        writes, self._writes = self._writes, []
        return writes

    def stored(self, write: StoreWrite) -> list[int]:
        """A write succeeded, perhaps not for the first time; returns the seqs that became committed, in order."""
        match write:
            case WriteBoundary(bucket=bucket):
                self._buckets_with_boundary.add(bucket)
                self._boundary_under_way = False
            case WriteRow(row=row) if row.seq in self._under_way:
                self._landed.add(row.seq)
            case WriteViews(entry=entry) if entry.seq == self._views_wanted:
                self._views_wanted = 0
                return self._advance(viewed_seq=entry.seq)
        committed = self._advance()
        self._let_out()
        return committed

    def _advance(self, viewed_seq: int = 0) -> list[int]:
        committed = []
        while not self._views_wanted and self.committed_seq + 1 in self._landed:
            seq = self.committed_seq + 1
            entry = self._under_way[seq]
            if seq != viewed_seq and entry.has_views:
                self._views_wanted = seq
                self._writes.append(WriteViews(entry))
                break
            del self._under_way[seq]
            self._landed.discard(seq)
            self.committed_seq = seq
            committed.append(seq)
        self._let_out()
        return committed

    def _let_out(self) -> None:
        """Lets rows out into the window, no row before its bucket holds our boundary."""
        while self._waiting and len(self._under_way) < self._window:
            bucket = bucket_of(self._waiting[0].seq, self._bucket_seqs)
            if bucket not in self._buckets_with_boundary:
                self._write_boundary(bucket)
                return
            entry = self._waiting.popleft()
            self._under_way[entry.seq] = entry
            self._writes.append(WriteRow(self.chat_id, bucket, Row(entry.seq, entry.epoch, entry.event)))

    def _write_boundary(self, bucket: int) -> None:
        if not self._boundary_under_way:
            self._boundary_under_way = True
            self._writes.append(WriteBoundary(self.chat_id, bucket, self._epoch, self._first_seq))
