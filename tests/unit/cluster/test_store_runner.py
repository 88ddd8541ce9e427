"""What shards ask of the store is tried until it succeeds, as long as the shard is held, and counts only if it still is."""

import asyncio
import random
from collections.abc import Sequence

from structlog.testing import capture_logs

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.cluster.row_writer import RETRY_FIRST_S
from chatgrpc.cluster.store_runner import LOOK_UP_TIMEOUT_S, READS_RETRIED_MAX, StoreRunner
from chatgrpc.core.clock import Now
from chatgrpc.core.damage import Damage, Kind
from chatgrpc.core.entries import StoredEvent
from chatgrpc.core.lanes import Forward, Forwarded, Lane, OwnerLanes
from chatgrpc.core.limits import Limits
from chatgrpc.core.links import AskHead, HeadIs, Message
from chatgrpc.core.owner_desk import OwnerDesk, Tenure
from chatgrpc.core.row_store import ReadHead, StoredHead, WriteMark, WriteRow
from chatgrpc.core.sequencer import Delivery
from chatgrpc.core.shard import Shard
from chatgrpc.core.write import Write
from chatgrpc.edge.look_up import LookUps
from chatgrpc.ports.errors import ChatDamagedError, StoreUnavailableError
from chatgrpc.v1 import chat_pb2
from tests.unit.cluster.small_cluster import group_creation, text, until
from tests.unit.cluster.stubborn_rows import StubbornRows

CHAT = "g.1"
LANE = Lane("edge", "session", CHAT)
SOON_S = 0.2
SOON = Now(1_000, 1_000)
LATE = Now(9_000, 9_000)
LIMITS = Limits(recent_events_per_chat=4)


class Lease:
    """Over at a time."""

    over_at_ms = 5_000

    def holds(self, now_ms: int) -> bool:
        return now_ms < self.over_at_ms


class World:
    """One shard, its way to the store, and what it said."""

    def __init__(self, look_up_timeout_s: float = LOOK_UP_TIMEOUT_S) -> None:
        self.rows = StubbornRows()
        self.defects: list[BaseException] = []
        self.wake_ups = 0
        self.messages: list[Message] = []
        self.deliveries: list[Delivery] = []
        self.desk = OwnerDesk(LIMITS, lambda chat_id: 1)
        self.damage: list[Damage] = []
        self.failed: list[tuple[Tenure, Exception]] = []
        self.runner = StoreRunner(
            self.desk,
            self.rows,
            self.rows,
            LookUps(self.rows, MemoryStore().receipts, LIMITS.groups_by_others_max),
            self._wake_up,
            self.defects.append,
            look_up_timeout_s=look_up_timeout_s,
        )
        self._random = random.Random(1)
        self._number = 0
        self.tenure = self.take(epoch=1)

    @property
    def is_reading(self) -> bool:
        """A read is still tried, or marks are being stored."""
        return bool(self.runner._tasks)

    def take(self, epoch: int) -> Tenure:
        tenure = Tenure(1, Shard(epoch, Lease(), LIMITS, self._random), OwnerLanes(epoch, 10))
        self.desk.take(tenure)
        return tenure

    def say(self, write: Write) -> None:
        """An edge sends a write, and the store is asked for what that takes."""
        self._number += 1
        self.desk.receive("edge", Forward(LANE, self._number, self._number, write), SOON)
        self.step()

    def ask_head(self) -> None:
        self.desk.receive("edge", AskHead(CHAT, 1), SOON)
        self.step()

    def tick(self, now: Now = SOON) -> None:
        """What the store has answered by `now` is taken in, and what is wanted next is asked for."""
        self.runner.take_in(now)
        self.step()

    def step(self) -> None:
        output = self.desk.step()
        self.runner.start(output.requests)
        self.messages += [message for _, message in output.messages]
        self.deliveries += output.deliveries
        self.damage += output.damage
        self.failed += output.failed

    async def answered(self, messages: int) -> Sequence[Message]:
        """Ticks until so many messages were said, which are returned."""

        def holds() -> bool:
            self.tick()
            return len(self.messages) >= messages

        await until(holds)
        return self.messages

    async def create_chat(self, texts: int = 0) -> None:
        """With so many messages in it."""
        self.say(group_creation(CHAT, "alice"))
        for number in range(1, texts + 1):
            await self.answered(number)
            self.say(text(CHAT, "alice", number, number))
        await self.answered(texts + 1)
        self.messages.clear()
        self.deliveries.clear()
        self.rows.tries.clear()

    def _wake_up(self) -> None:
        self.wake_ups += 1


# Writes.


async def test_a_write_is_tried_with_the_same_bytes_until_it_succeeds() -> None:
    world = World()
    await world.create_chat()
    world.rows.away = True
    world.say(text(CHAT, "alice", 1, 1))
    await until(lambda: len(world.rows.tries) == 3)
    world.tick()
    assert world.messages == []
    assert world.runner.writes_under_way == 1
    world.rows.away = False
    (answer,) = await world.answered(1)
    assert isinstance(answer, Forwarded)
    assert isinstance(answer.outcome, chat_pb2.SendResult)
    assert (answer.outcome.seq, answer.outcome.duplicate) == (2, False)
    assert world.runner.writes_under_way == 0
    first, *others = world.rows.tries
    assert isinstance(first, WriteRow)
    assert others == [first] * len(others)


async def test_a_write_is_not_tried_again_once_its_shard_is_not_held() -> None:
    world = World()
    await world.create_chat()
    world.rows.away = True
    world.say(text(CHAT, "alice", 1, 1))
    await until(lambda: len(world.rows.tries) == 2)
    world.desk.drop(world.tenure)
    world.take(epoch=2)
    await until(lambda: not world.runner.writes_under_way)
    assert len(world.rows.tries) == 2
    world.tick()
    assert (world.messages, world.deliveries) == ([], [])


async def test_a_success_that_comes_after_the_shard_was_lost_is_told_to_nobody() -> None:
    world = World()
    await world.create_chat()
    async with world.rows.silent():
        world.say(text(CHAT, "alice", 1, 1))
        world.desk.drop(world.tenure)
        later = world.take(epoch=2)
    await until(lambda: not world.runner.writes_under_way)
    world.tick()
    assert (world.messages, world.deliveries) == ([], [])
    assert world.tenure.shard.appends_waiting == 1
    assert later.shard.appends_waiting == 0


async def test_a_success_counts_by_the_clock_that_is_read_after_it_was_known() -> None:
    world = World()
    await world.create_chat()
    woken = world.wake_ups
    world.say(text(CHAT, "alice", 1, 1))
    await until(lambda: world.wake_ups > woken)
    world.tick(LATE)
    world.tick(SOON)
    assert (world.messages, world.deliveries) == ([], []), "the lease was over when it was looked at"
    assert world.tenure.shard.appends_waiting == 1


async def test_a_success_is_told_once_it_is_taken_in() -> None:
    world = World()
    await world.create_chat()
    world.say(text(CHAT, "alice", 1, 1))
    await until(lambda: not world.runner.writes_under_way)
    assert world.tenure.shard.appends_waiting == 1, "only a tick may hand it over"
    world.tick()
    assert world.tenure.shard.appends_waiting == 0
    assert [delivery.seq for delivery in world.deliveries] == [2]


async def test_what_can_never_be_stored_costs_its_chat_and_the_store_is_not_away() -> None:
    world = World()
    await world.create_chat()
    world.rows.unstorable = CHAT
    world.say(text(CHAT, "alice", 1, 1))
    (answer,) = await world.answered(1)
    assert isinstance(answer, Forwarded)
    assert isinstance(answer.outcome, chat_pb2.Error)
    assert answer.outcome.code == chat_pb2.ERROR_CODE_CHAT_DAMAGED
    assert [(damage.chat_id, damage.kind, damage.for_good) for damage in world.damage] == [(CHAT, Kind.DEFECT, True)]
    assert (world.runner.writes_under_way, world.runner.trouble.failures) == (0, 0)
    assert world.failed == []


# Reads.


async def test_a_read_is_tried_until_it_succeeds() -> None:
    world = World()
    await world.create_chat()
    world.desk.drop(world.tenure)
    world.take(epoch=2)
    world.rows.away = True
    reads = world.rows.reads
    world.ask_head()
    await until(lambda: world.rows.reads >= reads + 3)
    world.rows.away = False
    await world.answered(1)
    assert world.messages == [HeadIs(CHAT, 1, 1)]


async def test_a_read_is_not_tried_again_once_its_shard_is_not_held() -> None:
    world = World()
    world.rows.away = True
    world.ask_head()
    await until(lambda: world.rows.reads == 2)
    world.desk.drop(world.tenure)
    await until(lambda: not world.is_reading)
    assert world.rows.reads == 2


async def test_only_so_many_reads_are_tried_again_at_the_same_time() -> None:
    world = World()
    under_way = 0
    read_head = world.rows.read_head

    async def counted(read: ReadHead) -> StoredHead:
        nonlocal under_way
        under_way += 1
        try:
            return await read_head(read)
        finally:
            under_way -= 1

    world.rows.read_head = counted  # type: ignore[method-assign]
    world.rows.away = True
    for number in range(2 * READS_RETRIED_MAX):
        world.desk.receive("edge", AskHead(f"g.{number}", 1), SOON)
    world.step()
    await until(lambda: world.runner.reads_retried == 2 * READS_RETRIED_MAX)
    async with world.rows.silent():
        await until(lambda: under_way >= READS_RETRIED_MAX)
        await asyncio.sleep(4 * RETRY_FIRST_S)  # all are due by now
        assert under_way == READS_RETRIED_MAX
        world.rows.away = False
    await until(lambda: not world.runner.reads_retried)
    assert world.defects == []


async def test_a_store_that_is_away_is_told_of_in_a_few_lines() -> None:
    world = World()
    await world.create_chat()
    with capture_logs() as lines:
        world.rows.away = True
        world.say(text(CHAT, "alice", 1, 1))
        world.desk.receive("edge", AskHead("g.other", 1), SOON)
        world.runner.save_marks()
        world.step()
        await until(lambda: world.runner.trouble.failures >= 10)
        world.rows.away = False
        await until(lambda: not world.is_reading and not world.runner.writes_under_way)
        await until(lambda: not world.runner.trouble.lasts)
    assert [line["event"] for line in lines] == ["store_unavailable", "store_unavailable_over"]
    assert {"error", "writes", "reads"} <= lines[0].keys()
    assert world.runner.reads_retried == 0


async def test_a_search_goes_on_page_by_page() -> None:
    world = World()
    await world.create_chat(texts=20)
    world.rows.page_events_max = 3
    world.say(text(CHAT, "alice", 2, 1))
    (answer,) = await world.answered(1)
    assert isinstance(answer, Forwarded)
    assert isinstance(answer.outcome, chat_pb2.SendResult)
    assert (answer.outcome.seq, answer.outcome.duplicate) == (3, True)
    after_seqs = [after_seq for after_seq, _ in world.rows.pages]
    assert after_seqs[0] == 1
    assert len(after_seqs) > 3
    assert after_seqs[1:] == [after_seq + found for after_seq, found in world.rows.pages][:-1]


async def test_a_page_that_fails_is_no_hole_in_the_search() -> None:
    world = World()
    await world.create_chat(texts=20)
    world.rows.away = True
    reads = world.rows.reads
    world.say(text(CHAT, "alice", 2, 1))
    await until(lambda: world.rows.reads >= reads + 2)
    world.rows.away = False
    (answer,) = await world.answered(1)
    assert isinstance(answer, Forwarded)
    assert isinstance(answer.outcome, chat_pb2.SendResult)
    assert (answer.outcome.seq, answer.outcome.duplicate) == (3, True)


# Marks.


async def test_marks_that_rose_are_stored_in_one_trip_and_only_once() -> None:
    world = World()
    await world.create_chat(texts=2)
    world.runner.save_marks()
    await until(lambda: not world.is_reading)
    assert world.rows.marks == [[WriteMark(CHAT, 3)]]
    world.runner.save_marks()
    assert not world.is_reading
    assert len(world.rows.marks) == 1


async def test_marks_that_could_not_be_stored_are_kept() -> None:
    world = World()
    await world.create_chat()
    world.rows.away = True
    world.runner.save_marks()
    await until(lambda: not world.is_reading)
    world.rows.away = False
    world.say(text(CHAT, "alice", 1, 1))
    await world.answered(1)
    world.runner.save_marks()
    await until(lambda: not world.is_reading)
    assert world.rows.marks == [[WriteMark(CHAT, 1)], [WriteMark(CHAT, 2)]]
    assert await world.rows.read_head(ReadHead(CHAT)) == StoredHead(2, await world.rows.chat_view(CHAT))


async def test_marks_are_stored_by_one_trip_at_a_time() -> None:
    world = World()
    await world.create_chat()
    async with world.rows.silent():
        world.runner.save_marks()
        await until(lambda: bool(world.rows.marks))
        world.tenure.shard._unmarked[CHAT] = 2
        world.runner.save_marks()
        await asyncio.sleep(0)
        assert len(world.rows.marks) == 1
    await until(lambda: not world.is_reading)
    world.runner.save_marks()
    await until(lambda: not world.is_reading)
    assert world.rows.marks == [[WriteMark(CHAT, 1)], [WriteMark(CHAT, 2)]]


async def test_the_marks_of_a_shard_that_goes_are_stored_or_given_up() -> None:
    world = World()
    await world.runner.save_marks_of(world.tenure)
    assert world.rows.marks == [], "nothing to store needs no trip"
    await world.create_chat()
    world.rows.away = True
    await world.runner.save_marks_of(world.tenure)
    assert world.rows.marks == [[WriteMark(CHAT, 1)]]
    await world.runner.save_marks_of(world.tenure)
    assert len(world.rows.marks) == 1


# The end.


async def test_a_defect_of_a_read_costs_the_chat_and_is_told() -> None:
    world = World()

    async def fail(read: ReadHead) -> StoredHead:
        raise KeyError(read.chat_id)

    world.rows.read_head = fail  # type: ignore[method-assign]
    world.ask_head()
    assert await world.answered(1) == [HeadIs(CHAT, 1, 0, damaged=True)]
    (damage,) = world.damage
    assert (damage.kind, type(damage.defect)) == (Kind.DEFECT, KeyError)
    assert world.defects == []


async def test_a_page_that_is_damaged_fails_the_write_that_looks_into_it_and_no_other() -> None:
    world = World()
    await world.create_chat(texts=10)

    async def read_after(chat_id: str, after_seq: int, stated_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        raise ChatDamagedError(chat_id, "a row is missing")

    world.rows.read_after = read_after  # type: ignore[method-assign]
    world.say(text(CHAT, "alice", 200, 1))
    world.say(text(CHAT, "alice", 201, 11))
    refused, taken = await world.answered(2)
    assert isinstance(refused, Forwarded)
    assert isinstance(refused.outcome, chat_pb2.Error)
    assert refused.outcome.code == chat_pb2.ERROR_CODE_CHAT_DAMAGED
    assert isinstance(taken, Forwarded)
    assert isinstance(taken.outcome, chat_pb2.SendResult)
    assert taken.outcome.seq == 12
    assert [damage.why for damage in world.damage] == ["a row is missing"]


async def world_without_look_ups() -> World:
    """A chat of some texts, of whose log the store gives nothing any more."""
    world = World(look_up_timeout_s=SOON_S)
    await world.create_chat(texts=10)

    async def read_after(chat_id: str, after_seq: int, stated_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        raise StoreUnavailableError("away")

    world.rows.read_after = read_after  # type: ignore[method-assign]  # for this test
    return world


async def test_a_look_up_that_is_not_answered_gives_its_write_an_outcome_in_time() -> None:
    """The writes behind it go on: a chat whose old rows cannot be had takes what is new."""
    world = await world_without_look_ups()
    world.say(text(CHAT, "alice", 200, 1))
    world.say(text(CHAT, "alice", 201, 11))
    refused, taken = await world.answered(2)
    assert isinstance(refused, Forwarded)
    assert isinstance(refused.outcome, chat_pb2.Error)
    assert refused.outcome.code == chat_pb2.ERROR_CODE_UNAVAILABLE
    assert isinstance(taken, Forwarded)
    assert isinstance(taken.outcome, chat_pb2.SendResult)
    await until(lambda: world.runner.reads_retried == 0)
    assert world.damage == [], "the store was away, and the chat is as it was"


async def test_a_look_up_that_is_given_up_does_not_say_that_the_store_is_back() -> None:
    world = await world_without_look_ups()
    world.say(text(CHAT, "alice", 200, 1))
    await world.answered(1)
    await until(lambda: world.runner.reads_retried == 0)
    await asyncio.sleep(1.5)  # after a second without a failure it would be said
    assert world.runner.trouble.lasts


async def test_writes_that_the_store_cannot_even_be_asked_for_cost_their_shard() -> None:
    world = World()

    def write(writes: Sequence[object], written: object) -> None:
        raise TypeError("not to be bound")

    world.rows.write = write  # type: ignore[method-assign]
    world.say(group_creation(CHAT, "alice"))

    def has_failed() -> bool:
        world.tick()
        return bool(world.failed)

    await until(has_failed)
    assert [(tenure, type(defect)) for tenure, defect in world.failed] == [(world.tenure, TypeError)]
    assert not world.desk.holds(world.tenure)
    assert world.defects == []


async def test_to_stop_ends_what_is_still_tried() -> None:
    world = World()
    async with world.rows.silent():
        world.ask_head()
        await until(lambda: world.rows.reads == 1)
        await world.runner.stop()
        assert not world.is_reading
    assert world.defects == []
