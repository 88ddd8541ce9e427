"""Three replicas: writes that come late, never or twice; reads at QUORUM, each replica at a moment of its own.

Rows carry timestamps as in Cassandra: a row of epoch `e` is written at `4e`; whoever erases a seq under epoch `e` shadows all
its rows up to `4e + 1`, those too that land later, and writes the erased one under `e` at `4e + 2`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from chatgrpc.core.entries import Entry
from chatgrpc.core.epochs import Row, bucket_of
from chatgrpc.core.events import erased
from chatgrpc.core.row_store import StoredBucket, StoredHead, WriteBoundary, WriteMark, WriteRow
from chatgrpc.core.visibility import Interval
from tests.sim.climate import Climate
from tests.sim.world import BrokenError, World

Cells: TypeAlias = dict[tuple[int, int], tuple[int, bytes]]
"""By seq and epoch: when it was written, and the event."""


def row_timestamp(epoch: int) -> int:
    """When a row of this epoch is said to be written."""
    return 4 * epoch


@dataclass(slots=True)
class Bucket:
    """A partition of a chat's log, as one replica holds it."""

    cells: Cells = field(default_factory=dict)
    shadows: dict[int, int] = field(default_factory=dict)
    """By seq: rows written up to then are gone."""
    boundaries: dict[int, int] = field(default_factory=dict)

    def put(self, key: tuple[int, int], timestamp: int, event: bytes) -> None:
        """Takes a row, unless it is shadowed."""
        if timestamp <= self.shadows.get(key[0], 0):
            return
        known = self.cells.get(key)
        if known is None or known[0] < timestamp:
            self.cells[key] = (timestamp, event)
        elif known[0] == timestamp and known[1] != event:
            if erased(known[1]) != event and erased(event) != known[1]:
                raise BrokenError(f"row {key[0]} of epoch {key[1]} was written again with other content")
            self.cells[key] = max(known, (timestamp, event))  # the greater value stays, whichever came first

    def shadow(self, seq: int, timestamp: int) -> None:
        """All rows of a seq that were written up to then are gone, whenever they land."""
        self.shadows[seq] = max(timestamp, self.shadows.get(seq, 0))
        for key in [key for key, cell in self.cells.items() if key[0] == seq and cell[0] <= timestamp]:
            del self.cells[key]

    def bound(self, epoch: int, first_seq: int) -> None:
        """Takes a boundary. Of two of one epoch, which have one timestamp, the greater value stays."""
        self.boundaries[epoch] = max(first_seq, self.boundaries.get(epoch, 0))

    def since(self, from_seq: int) -> "Bucket":
        """What a read of a slice finds: nothing of what lies before it, shadows included, or repair would carry those alone.

        As Cassandra cuts the tombstones of a slice to the slice. What is said of the partition as a whole comes along.
        """
        cells = {key: cell for key, cell in self.cells.items() if key[0] >= from_seq}
        shadows = {seq: timestamp for seq, timestamp in self.shadows.items() if seq >= from_seq}
        return Bucket(cells, shadows, dict(self.boundaries))

    def merge(self, other: "Bucket") -> None:
        """Takes in what another replica said."""
        for seq, timestamp in other.shadows.items():
            self.shadow(seq, timestamp)
        for key, cell in other.cells.items():
            if self.cells.get(key) != cell:
                self.put(key, *cell)
        for epoch, first_seq in other.boundaries.items():
            self.bound(epoch, first_seq)

    def stored(self) -> StoredBucket:
        """As the core sees it."""
        return StoredBucket([Row(*key, event) for key, (_, event) in self.cells.items()], dict(self.boundaries))


class Replica:
    """One copy of everything."""

    def __init__(self) -> None:
        self.up = True
        self.buckets: dict[tuple[str, int], Bucket] = {}
        self.marks: dict[str, int] = {}
        self.chats: dict[str, tuple[int, bytes]] = {}
        self.members: dict[str, dict[str, dict[int, int]]] = {}
        self.amendments: dict[tuple[str, int], dict[int, None]] = {}

    def bucket(self, chat_id: str, bucket: int) -> Bucket:
        return self.buckets.setdefault((chat_id, bucket), Bucket())

    def put_row(self, write: WriteRow) -> None:
        row = write.row
        self.bucket(write.chat_id, write.bucket).put((row.seq, row.epoch), row_timestamp(row.epoch), row.event)

    def put_boundary(self, write: WriteBoundary) -> None:
        self.bucket(write.chat_id, write.bucket).bound(write.epoch, write.first_seq)

    def put_mark(self, write: WriteMark) -> None:
        self.marks[write.chat_id] = max(write.seq, self.marks.get(write.chat_id, 0))

    def put_members(self, entry: Entry) -> None:
        for member in entry.view.members if entry.view is not None else ():
            intervals = self.members.setdefault(member.user_id, {}).setdefault(entry.chat_id, {})
            joined_seq, left_seq = member.interval.joined_seq, member.interval.left_seq
            intervals[joined_seq] = max(intervals.get(joined_seq, 0), left_seq)

    def put_amendment(self, entry: Entry) -> None:
        self.amendments.setdefault((entry.chat_id, entry.amends_seq), {})[entry.seq] = None

    def put_chat(self, entry: Entry) -> None:
        if entry.view is not None and self.chats.get(entry.chat_id, (0, b""))[0] <= entry.seq:
            self.chats[entry.chat_id] = (entry.seq, entry.view.chat)

    def erase(self, chat_id: str, bucket: int, row: Row, by_epoch: int) -> None:
        """Shadows every row of the seq, and puts the erased one in their place, at once: no read sees half of it."""
        found = self.bucket(chat_id, bucket)
        found.shadow(row.seq, row_timestamp(by_epoch) + 1)
        found.put((row.seq, by_epoch), row_timestamp(by_epoch) + 2, erased(row.event))

    def head(self, chat_id: str) -> tuple[int, tuple[int, bytes]]:
        return self.marks.get(chat_id, 0), self.chats.get(chat_id, (0, b""))

    def amending(self, chat_id: str, target_seq: int) -> list[int]:
        return list(self.amendments.get((chat_id, target_seq), ()))

    def memberships(self, user_id: str) -> dict[str, dict[int, int]]:
        return {chat_id: dict(intervals) for chat_id, intervals in self.members.get(user_id, {}).items()}


Change: TypeAlias = Callable[[Replica], None]


class Store:
    """The cluster of replicas, and the way to it and back."""

    def __init__(self, world: World, climate: Climate, bucket_seqs: int) -> None:
        self.world = world
        self.bucket_seqs = bucket_seqs
        self.replicas = [Replica(), Replica(), Replica()]
        self._climate = climate
        self._lost_and_slow = (climate.store_loss, climate.store_loss + (1 - climate.store_loss) * climate.store_slow)

    def write(self, change: Change, done: Callable[[], None], clogged: bool = False) -> None:
        """Sends one change to all replicas; `done` is called when the second has it. It may never be, or be called again.

        `clogged` says that most of what this writer sends is stuck for a while, and lands when it may be long gone.
        """
        world = self.world
        answered_ms: list[int] = []

        def arrive(replica: Replica, back_ms: int | None) -> None:
            if replica.up:
                change(replica)
                if back_ms is not None:
                    answered_ms.append(world.now_ms + back_ms)
                    if len(answered_ms) > 1:
                        world.after(sorted(answered_ms)[1] - world.now_ms, done)

        for replica in self.replicas:
            there_ms = self._trip_ms(clogged)
            if there_ms is not None:
                world.after(there_ms, partial(arrive, replica, self._trip_ms()))
            if world.chance(self._climate.store_repeats):
                there_ms = self._trip_ms()
                if there_ms is not None:
                    world.after(there_ms, partial(arrive, replica, None))

    def read(self, query: Callable[[Replica], Any], done: Callable[[list[Any]], None]) -> None:
        """Asks all replicas; `done` gets what the first two said, each at its own moment. It may never be called.

        Whose answer would come third, or would come from a replica that is down, is not asked: nobody would wait for it.
        """
        world = self.world
        said: list[Any] = []

        def arrive(replica: Replica, answered_ms: int) -> None:
            if replica.up:
                said.append(query(replica))
                if len(said) == 2:
                    world.after(answered_ms - world.now_ms, lambda: done(said))

        trips: list[tuple[int, int, int, Replica]] = []
        for number, replica in enumerate(self.replicas):
            there_ms, back_ms = self._trip_ms(), self._trip_ms()
            if replica.up and there_ms is not None and back_ms is not None:
                trips.append((there_ms + back_ms, number, there_ms, replica))
        trips.sort()
        if len(trips) > 1:
            answered_ms = world.now_ms + trips[1][0]
            for _, _, there_ms, replica in trips[:2]:
                world.after(there_ms, partial(arrive, replica, answered_ms))

    def repair(self, chat_id: str, bucket: int, found: Bucket) -> None:
        """Read repair; like the real one it may not happen."""
        for replica in self.replicas:
            if replica.up and self.world.rng.random() < self._climate.store_repair:
                replica.bucket(chat_id, bucket).merge(found)

    def bucket_of(self, seq: int) -> int:
        return bucket_of(seq, self.bucket_seqs)

    def _trip_ms(self, clogged: bool = False) -> int | None:
        """How long it takes to a replica, or back; None if it does not get there."""
        world, luck = self.world, self.world.rng.random()
        if world.calm:
            return 1 + int(luck * 8)
        lost, slow = (0.4, 0.76) if clogged else self._lost_and_slow
        if luck < lost:
            return None
        if luck < slow:
            return world.between(50, 4_000)
        return 1 + int((luck - slow) / (1 - slow) * 8)


def merge_buckets(found: list[Bucket]) -> Bucket:
    """What two replicas said of one bucket."""
    first, second = found
    first.merge(second)
    return first


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
