"""Writes are tried until they succeed: at once, then shard by shard in rounds, and never by all who wait at the same time."""

import asyncio
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from chatgrpc.cluster.row_writer import RETRY_FIRST_S, RETRY_MAX_S, WRITES_RETRIED_MAX, RowWriter
from chatgrpc.core.epochs import Row
from chatgrpc.core.lanes import OwnerLanes
from chatgrpc.core.limits import Limits
from chatgrpc.core.owner_desk import OwnerDesk, Tenure
from chatgrpc.core.row_store import StoreWrite, WriteRow
from chatgrpc.core.shard import Shard
from chatgrpc.ports.errors import CannotBeStoredError, StoreError
from chatgrpc.ports.row_store import Written
from chatgrpc.trouble import Trouble
from tests.unit.cluster.small_cluster import until
from tests.unit.cluster.stubborn_rows import StubbornRows


class Lease:
    def holds(self, now_ms: int) -> bool:
        return True


class TimedRows(StubbornRows):
    """Notes when it was asked, and how much is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_at_s: list[float] = []
        self.under_way = 0

    def write(self, writes: Sequence[StoreWrite], written: Written) -> None:
        def answered(writes: Sequence[StoreWrite], error: StoreError | None) -> None:
            self.under_way -= len(writes)
            written(writes, error)

        self.asked_at_s.append(asyncio.get_running_loop().time())
        self.under_way += len(writes)
        super().write(writes, answered)


class World:
    """The writer of some shards."""

    def __init__(self) -> None:
        self.rows = TimedRows()
        self.stored: list[tuple[Tenure, StoreWrite]] = []
        self.desk = OwnerDesk(Limits(), lambda chat_id: 1)
        self.trouble = Trouble("store_unavailable", lambda: {"writes": self.writer.retried}, interval_s=3_600.0, calm_s=0.0)
        self.unstorable: list[tuple[Tenure, StoreWrite]] = []
        self.writer = RowWriter(self.rows, self.desk.holds, self._stored, self._cannot_be_stored, self.trouble)

    def take(self, number: int, epoch: int = 1) -> Tenure:
        tenure = Tenure(number, Shard(epoch, Lease(), Limits(), random.Random(1)), OwnerLanes(epoch, 10))
        self.desk.take(tenure)
        return tenure

    def write(self, tenure: Tenure, count: int, first_seq: int = 1) -> list[StoreWrite]:
        """Writes so many rows of a chat of this shard."""
        seqs = range(first_seq, first_seq + count)
        writes: list[StoreWrite] = [WriteRow(f"g.{tenure.number}", 0, Row(seq, 1, b"event")) for seq in seqs]
        self.writer.write(tenure, writes)
        return writes

    def _stored(self, tenure: Tenure, writes: Sequence[StoreWrite]) -> None:
        self.stored += [(tenure, write) for write in writes]

    def _cannot_be_stored(self, tenure: Tenure, writes: Sequence[StoreWrite], error: CannotBeStoredError) -> None:
        self.unstorable += [(tenure, write) for write in writes]


async def test_every_write_that_failed_succeeds_once_and_the_log_says_so_in_two_lines() -> None:
    world = World()
    world.rows.away = True
    with capture_logs() as lines:
        wanted = [(number, write) for number in range(40) for write in world.write(world.take(number), 25)]
        await until(lambda: len(world.rows.tries) >= 3_000)
        assert (world.writer.under_way, world.writer.retried) == (1_000, 1_000)
        assert world.stored == []
        world.rows.away = False
        await until(lambda: not world.writer.under_way)
        await until(lambda: not world.trouble.lasts)
    assert len(world.stored) == len(wanted)
    assert {(tenure.number, write) for tenure, write in world.stored} == set(wanted)
    assert world.writer.retried == 0
    assert [line["event"] for line in lines] == ["store_unavailable", "store_unavailable_over"]
    assert lines[0]["writes"] == 25
    assert world.trouble.failures >= 80, "each answer of the store counts"


async def test_only_so_many_are_tried_again_at_the_same_time() -> None:
    world = World()
    world.rows.away = True
    for number in range(40):
        world.write(world.take(number), 25)
    await until(lambda: world.writer.retried == 1_000)
    async with world.rows.silent():
        await until(lambda: world.rows.under_way >= WRITES_RETRIED_MAX)
        await asyncio.sleep(4 * RETRY_FIRST_S)  # all shards are due by now
        assert world.rows.under_way == WRITES_RETRIED_MAX
        world.rows.away = False
    await until(lambda: not world.writer.under_way)
    assert len(world.stored) == 1_000


async def test_one_shard_with_a_long_backlog_does_not_keep_another_from_its_turn() -> None:
    world = World()
    world.rows.away = True
    world.write(world.take(1), 10 * WRITES_RETRIED_MAX)
    other = world.take(2)
    (write,) = world.write(other, 1)
    await until(lambda: world.writer.retried == 10 * WRITES_RETRIED_MAX + 1)
    async with world.rows.silent():
        await until(lambda: world.rows.under_way == WRITES_RETRIED_MAX)
        await asyncio.sleep(RETRY_MAX_S + RETRY_FIRST_S)  # both are due by now: the loop has no later timer of theirs
        world.rows.away = False
    await until(lambda: not world.writer.under_way)
    assert (other, write) in world.stored[: 3 * WRITES_RETRIED_MAX]


async def test_a_shard_waits_longer_after_each_round_that_fails_and_no_longer_than_the_most() -> None:
    world = World()
    world.rows.away = True
    world.write(world.take(1), 3)
    await until(lambda: len(world.rows.asked_at_s) == 5)
    gaps_s = [after_s - before_s for before_s, after_s in pairwise(world.rows.asked_at_s)]
    least_s = [RETRY_FIRST_S, 2 * RETRY_FIRST_S, 4 * RETRY_FIRST_S, 8 * RETRY_FIRST_S]
    assert all(gap_s >= 0.99 * wanted_s for gap_s, wanted_s in zip(gaps_s, least_s, strict=True)), gaps_s
    assert 8 * RETRY_FIRST_S < RETRY_MAX_S


async def test_rounds_of_shards_that_are_due_at_about_the_same_time_begin_together() -> None:
    """So the store can gather them into few requests."""
    world = World()
    world.rows.away = True
    for number in range(20):
        world.write(world.take(number), 1)
    await until(lambda: len(world.rows.asked_at_s) >= 40)
    second_s = world.rows.asked_at_s[20:40]
    # At one multiple of the grid, or at two where the writes came on both sides of one; however late the loop is.
    beginnings = sum(after_s - before_s > RETRY_FIRST_S / 2 for before_s, after_s in pairwise(second_s))
    assert beginnings <= 1, second_s


async def test_what_is_new_does_not_wait_for_the_round_of_what_failed() -> None:
    world = World()
    tenure = world.take(1)
    world.rows.away = True
    (failed,) = world.write(tenure, 1)
    await until(lambda: world.writer.retried == 1)
    world.rows.away = False
    (new,) = world.write(tenure, 1, first_seq=2)
    await until(lambda: bool(world.stored))
    assert world.stored[0] == (tenure, new)
    await until(lambda: not world.writer.under_way)
    assert world.stored == [(tenure, new), (tenure, failed)]


@pytest.mark.parametrize("again", [False, True])
async def test_the_backlog_of_a_shard_that_is_lost_is_given_up(again: bool) -> None:
    world = World()
    lost, kept = world.take(1), world.take(2)
    world.rows.away = True
    world.write(lost, 3)
    (write,) = world.write(kept, 1)
    await until(lambda: world.writer.retried == 4)
    if again:
        await until(lambda: len(world.rows.tries) >= 8)
    world.desk.drop(lost)
    await until(lambda: world.writer.under_way == 1)
    world.take(1, epoch=2)
    world.rows.away = False
    await until(lambda: not world.writer.under_way)
    assert world.stored == [(kept, write)]
    assert world.writer.retried == 0


async def test_what_fails_after_its_shard_was_lost_is_given_up_at_once() -> None:
    world = World()
    tenure = world.take(1)
    world.rows.away = True
    world.write(tenure, 2)
    world.desk.drop(tenure)
    await until(lambda: not world.writer.under_way)
    assert (world.writer.retried, len(world.rows.tries)) == (0, 2)


@pytest.mark.parametrize("again", [False, True])
async def test_what_can_never_be_stored_is_said_and_not_tried_again(again: bool) -> None:
    world = World()
    tenure = world.take(1)
    world.rows.away = again
    world.rows.unstorable = "g.1"
    (write,) = world.write(tenure, 1)
    if again:
        await until(lambda: world.writer.retried == 1)
        world.rows.away = False
    await until(lambda: not world.writer.under_way)
    assert (world.unstorable, world.stored, world.writer.retried) == ([(tenure, write)], [], 0)
    assert not world.trouble.failures or again, "the store is not away"
