"""Three replicas: writes that come late, never or twice; reads at QUORUM, each replica at a moment of its own."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from chatgrpc.core.entries import Entry
from chatgrpc.core.epochs import Row, bucket_of
from chatgrpc.core.row_store import StoredBucket, StoredHead, Write, WriteBoundary, WriteMark, WriteRow
from chatgrpc.core.visibility import Interval
from tests.sim.world import BrokenError, World


class Replica:
    """One copy of everything."""

    def __init__(self) -> None:
        self.up = True
        self.rows: dict[tuple[str, int], dict[tuple[int, int], bytes]] = {}
        self.boundaries: dict[tuple[str, int], dict[int, int]] = {}
        self.marks: dict[str, int] = {}
        self.chats: dict[str, tuple[int, bytes]] = {}
        self.members: dict[str, dict[str, dict[int, int]]] = {}

    def put_row(self, chat_id: str, bucket: int, row: Row) -> None:
        rows = self.rows.setdefault((chat_id, bucket), {})
        if rows.setdefault((row.seq, row.epoch), row.event) != row.event:
            raise BrokenError(f"{chat_id}: row {row.seq} of epoch {row.epoch} was written again with other content")

    def put_boundary(self, write: WriteBoundary) -> None:
        self.boundaries.setdefault((write.chat_id, write.bucket), {})[write.epoch] = write.first_seq

    def put_members(self, entry: Entry) -> None:
        for member in entry.view.members if entry.view is not None else ():
            intervals = self.members.setdefault(member.user_id, {}).setdefault(entry.chat_id, {})
            joined_seq, left_seq = member.interval.joined_seq, member.interval.left_seq
            intervals[joined_seq] = max(intervals.get(joined_seq, 0), left_seq)

    def put_chat(self, entry: Entry) -> None:
        if entry.view is not None and self.chats.get(entry.chat_id, (0, b""))[0] <= entry.seq:
            self.chats[entry.chat_id] = (entry.seq, entry.view.chat)

    def bucket(self, chat_id: str, bucket: int, from_seq: int) -> StoredBucket:
        rows = self.rows.get((chat_id, bucket), {})
        found = [Row(seq, epoch, event) for (seq, epoch), event in rows.items() if seq >= from_seq]
        return StoredBucket(found, dict(self.boundaries.get((chat_id, bucket), {})))

    def head(self, chat_id: str) -> tuple[int, tuple[int, bytes]]:
        return self.marks.get(chat_id, 0), self.chats.get(chat_id, (0, b""))

    def memberships(self, user_id: str) -> dict[str, dict[int, int]]:
        return {chat_id: dict(intervals) for chat_id, intervals in self.members.get(user_id, {}).items()}


Phase: TypeAlias = Callable[[Replica], None]


class Store:
    """The cluster of replicas, and the way to it and back."""

    def __init__(self, world: World, bucket_seqs: int) -> None:
        self.world = world
        self.bucket_seqs = bucket_seqs
        self.replicas = [Replica(), Replica(), Replica()]
        self._loss = world.rng.choice((0.0, 0.02, 0.15))
        self._slow = world.rng.choice((0.0, 0.02, 0.1))
        self._repair = world.rng.choice((0.0, 0.5, 1.0))

    def phases(self, write: Write | WriteMark) -> list[Phase]:
        """What a write does to a replica; a phase begins when the one before it is at QUORUM."""
        if isinstance(write, WriteRow):
            chat_id, bucket, row = write.chat_id, write.bucket, write.row
            return [lambda replica: replica.put_row(chat_id, bucket, row)]
        if isinstance(write, WriteBoundary):
            boundary = write
            return [lambda replica: replica.put_boundary(boundary)]
        if isinstance(write, WriteMark):
            mark = write
            return [lambda replica: replica.marks.__setitem__(mark.chat_id, mark.seq)]
        entry = write.entry
        return [lambda replica: replica.put_members(entry), lambda replica: replica.put_chat(entry)]

    def write(self, phase: Phase, done: Callable[[], None], clogged: bool = False) -> None:
        """Sends one phase to all replicas; `done` is called when the second has it. It may never be.

        `clogged` says that most of what this writer sends is stuck for a while, and lands when it may be long gone.
        """
        landed: list[int] = []

        def answered(number: int) -> None:
            if number not in landed:
                landed.append(number)
                if len(landed) == 2:
                    done()

        def arrive(number: int) -> None:
            replica = self.replicas[number]
            if replica.up:
                phase(replica)
                self._travel(lambda: answered(number))

        for number in range(3):
            self._travel(partial(arrive, number), clogged)
            if self.world.chance(0.02):
                self._travel(partial(arrive, number))

    def read(self, query: Callable[[Replica], Any], done: Callable[[list[Any]], None]) -> None:
        """Asks all replicas; `done` gets what the first two said. It may never be called."""
        found: dict[int, Any] = {}

        def answered(number: int, result: Any) -> None:
            if number not in found and len(found) < 2:
                found[number] = result
                if len(found) == 2:
                    done(list(found.values()))

        def arrive(number: int) -> None:
            replica = self.replicas[number]
            if replica.up:
                result = query(replica)
                self._travel(lambda: answered(number, result))

        for number in range(3):
            self._travel(partial(arrive, number))

    def repair(self, chat_id: str, bucket: int, found: StoredBucket) -> None:
        """Read repair; like the real one it may not happen."""
        for replica in self.replicas:
            if replica.up and self.world.rng.random() < self._repair:
                for row in found.rows:
                    replica.put_row(chat_id, bucket, row)
                for epoch, first_seq in found.boundaries.items():
                    replica.put_boundary(WriteBoundary(chat_id, bucket, epoch, first_seq))

    def bucket_of(self, seq: int) -> int:
        return bucket_of(seq, self.bucket_seqs)

    def _travel(self, action: Callable[[], None], clogged: bool = False) -> None:
        if self.world.chance(0.4 if clogged else self._loss):
            return
        delay_ms = self.world.rng.randint(1, 8)
        if self.world.chance(0.6 if clogged else self._slow):
            delay_ms = self.world.rng.randint(50, 4_000)
        self.world.after(delay_ms, action)


def merge_buckets(found: list[StoredBucket]) -> StoredBucket:
    """What two replicas said of one bucket."""
    rows = {(row.seq, row.epoch): row for part in found for row in part.rows}
    return StoredBucket(list(rows.values()), {e: s for part in found for e, s in part.boundaries.items()})


def merge_heads(found: list[tuple[int, tuple[int, bytes]]]) -> StoredHead:
    """What two replicas said of a chat's mark and state."""
    return StoredHead(max(mark for mark, _ in found), max(chat for _, chat in found)[1])


def merge_memberships(found: list[dict[str, dict[int, int]]]) -> dict[str, tuple[Interval, ...]]:
    """What two replicas said of a user's chats."""
    merged: dict[str, dict[int, int]] = {}
    for part in found:
        for chat_id, intervals in part.items():
            known = merged.setdefault(chat_id, {})
            for joined_seq, left_seq in intervals.items():
                known[joined_seq] = max(known.get(joined_seq, 0), left_seq)
    return {
        chat_id: tuple(Interval(joined_seq, intervals[joined_seq]) for joined_seq in sorted(intervals))
        for chat_id, intervals in sorted(merged.items())
    }
