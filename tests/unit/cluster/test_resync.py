"""Lost pushes are found where no heartbeat can tell: by asking again for heads, and by reading memberships again."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from chatgrpc import background
from chatgrpc.cluster.history import ClusterHistory
from chatgrpc.cluster.resync import Resync
from chatgrpc.core.edge_desk import Missed
from chatgrpc.core.event_feed import FeedRead, ReadMembership
from chatgrpc.core.tending import ShardOwner
from chatgrpc.edge.connection import Connection
from chatgrpc.ports.lease_clock import lease_clock_ms
from tests.unit.cluster.small_cluster import (
    GIVE_UP_S,
    SmallCluster,
    SmallNode,
    group_creation,
    shard_of,
    small_cluster,
    text,
    until,
)
from tests.unit.cluster.streams import Streams

FOREVER_S = 1e6


class World:
    """One node's sessions in a small cluster. Nobody pushes to them: every push is lost."""

    def __init__(self, cluster: SmallCluster, slow_pass_s: float) -> None:
        self.cluster = cluster
        self.node: SmallNode = cluster.nodes[0]
        self.other: SmallNode = cluster.nodes[-1]
        self.streams = Streams()
        self.asked: list[str] = []
        """Chats whose head was asked for."""
        self.silent: set[str] = set()
        """Chats whose owner does not answer in time."""
        self.touched: list[Connection] = []
        self.doubted: list[set[str]] = []
        """Of four chats those that others are told to look at."""
        self.revoked: set[str] = set()
        """Devices, of whichever user."""
        self.ended: list[Connection] = []
        self.mistakes = 0
        """So many times what was revoked cannot be looked at, by a mistake of ours."""
        self.asking = 0
        self.asking_most = 0
        log = ClusterHistory(self.node.edge, cluster.rows, lease_clock_ms, self.node.wake_up, head_timeout_s=FOREVER_S)
        self._heads = log.heads_in_time
        self.resync = Resync(
            self.streams.connections,
            self.node.edge,
            cluster.rows,
            self._ask,
            shard_of,
            self.touched.append,
            self._doubted,
            self._end_revoked,
            lease_clock_ms,
            pause_s=0.001,
            jitter_s=0,
            slow_pass_s=slow_pass_s,
        )

    async def chats(self, *chat_ids: str, texts: int = 0) -> None:
        """Groups of Alice and Bob, with so many messages in each."""
        for chat_id in chat_ids:
            await self.node.send(group_creation(chat_id, "alice", "bob"))
            for number in range(1, texts + 1):
                await self.node.send(text(chat_id, "alice", number, 1))

    async def until_read(self, user_id: str = "alice", times: int = 1) -> None:
        """Returns when the user's memberships were read so often; in a pass that comes after the heads."""
        await until(lambda: self.cluster.rows.users_read.count(user_id) >= times)

    async def _end_revoked(self, user_id: str) -> None:
        if self.mistakes:
            self.mistakes -= 1
            raise KeyError("ours")
        for connection in list(self.streams.connections.of_user(user_id)):
            if connection.session.device_id in self.revoked:
                self.ended.append(connection)
                self.streams.close(connection)

    def _doubted(self, concerns: Callable[[str], bool]) -> None:
        self.doubted.append({chat_id for chat_id in ("g.1", "g.2", "g.3", "g.4") if concerns(chat_id)})

    async def _ask(self, chat_ids: list[str]) -> Mapping[str, int | None]:
        self.asked += chat_ids
        answered = [chat_id for chat_id in chat_ids if chat_id not in self.silent]
        if not answered:
            return {}
        self.asking += len(chat_ids)
        self.asking_most = max(self.asking, self.asking_most)
        try:
            return await self._heads(answered)
        finally:
            self.asking -= len(chat_ids)


@asynccontextmanager
async def running(slow_pass_s: float = FOREVER_S) -> AsyncIterator[World]:
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster, slow_pass_s)
        task = background.start(background.again(world.resync.run, "resync"), background.logged("resync"))
        try:
            yield world
        finally:
            task.cancel()
            await asyncio.wait([task], timeout=GIVE_UP_S)
        assert task.done(), "it goes on though it was cancelled"
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended


# Heads.


async def test_heads_are_asked_for_of_the_shards_whose_owner_is_gone() -> None:
    async with running() as world:
        there, elsewhere = _chats_of_two_shards()
        await world.chats(there, elsewhere, texts=1)
        alice = world.streams.open("alice", {there: 1, elsewhere: 1})
        zoe = world.streams.open("zoe")
        world.resync.see(
            {shard_of(there): ShardOwner("gone", 1), shard_of(elsewhere): ShardOwner("stays", 2)}, {"gone", "stays"}
        )
        world.resync.see({shard_of(elsewhere): ShardOwner("stays", 2)}, {"stays"})
        await world.until_read()
        assert world.asked == [there]
        assert _reads(alice) == [ReadMembership(there)]
        assert _reads(zoe) == []
        assert world.touched[0] is alice


async def test_an_owner_that_is_gone_may_have_taken_along_pushes_of_shards_that_it_gave_away_before() -> None:
    async with running() as world:
        await world.chats("g.1", texts=1)
        alice = world.streams.open("alice", {"g.1": 1})
        world.resync.see({shard_of("g.1"): ShardOwner("gone", 1)}, {"gone", "stays"})
        world.resync.see({shard_of("g.1"): ShardOwner("stays", 2)}, {"gone", "stays"})
        world.resync.see({shard_of("g.1"): ShardOwner("stays", 2)}, {"stays"})
        await world.until_read()
        assert _reads(alice) == [ReadMembership("g.1")]


async def test_a_node_that_never_owned_anything_leaves_no_doubt() -> None:
    async with running() as world:
        world.streams.open("alice")
        world.resync.see({1: ShardOwner("stays", 1)}, {"idle", "stays"})
        world.resync.see({1: ShardOwner("stays", 1)}, {"stays"})
        assert not world.resync._doubts.wanted


async def test_others_are_told_which_chats_are_in_doubt() -> None:
    async with running() as world:
        world.resync.see({shard_of("g.2"): ShardOwner("gone", 1)}, {"gone"})
        world.resync.see({}, set())
        world.resync.suspect_all()
        world.resync.suspect_memberships()
        of_shard = {chat_id for chat_id in ("g.1", "g.2", "g.3", "g.4") if shard_of(chat_id) == shard_of("g.2")}
        assert world.doubted == [of_shard, {"g.1", "g.2", "g.3", "g.4"}, set()]
        assert len(of_shard) < 4


async def test_who_is_up_to_date_has_nothing_to_read() -> None:
    async with running() as world:
        await world.chats("g.1", texts=1)
        alice = world.streams.open("alice", {"g.1": 2})
        world.resync.suspect_all()
        await world.until_read()
        assert world.asked == ["g.1"]
        assert _reads(alice) == []


async def test_one_question_serves_all_sessions_of_a_chat() -> None:
    async with running() as world:
        await world.chats("g.1", texts=1)
        connections = [
            world.streams.open(user_id, {"g.1": 1}, device_id=device_id)
            for user_id in ("alice", "bob")
            for device_id in ("phone", "web")
        ]
        world.resync.suspect_all()
        await world.until_read("bob")
        assert world.asked == ["g.1"]
        assert [_reads(connection) for connection in connections] == [[ReadMembership("g.1")]] * 4
        assert world.cluster.rows.users_read == ["alice", "bob"]


async def test_a_session_that_is_just_opening_is_looked_after_once_it_is_open_and_alone() -> None:
    async with running() as world:
        await world.chats("g.1", texts=1)
        bob = world.streams.open("bob", {"g.1": 2})
        alice = world.streams.opening("alice", {"g.1": 1})
        world.resync.suspect_all()
        await world.until_read("bob")
        assert world.asked == ["g.1"]
        world.streams.admit(alice, {"g.1": 1})
        await world.until_read("alice")
        assert world.asked == ["g.1", "g.1"]
        assert _reads(alice) == [ReadMembership("g.1")]
        assert world.cluster.rows.users_read == ["bob", "alice"], "nobody else is looked after a second time"
        assert world.touched.count(bob) == 2


async def test_a_session_that_ends_while_it_is_looked_after_is_let_go() -> None:
    async with running() as world:
        await world.chats("g.1", texts=1)
        alice = world.streams.open("alice", {"g.1": 1})
        bob = world.streams.opening("bob")
        async with world.cluster.rows.silent():
            world.resync.suspect_all()
            await world.until_read("alice")
            world.streams.close(alice)
            world.streams.close(bob)
        await until(lambda: not world.resync._doubts.wanted)
        assert world.cluster.rows.users_read == ["alice"]
        assert world.resync._doubts._late == {}


async def test_a_head_that_is_not_stated_holds_up_no_other_and_is_asked_for_again() -> None:
    async with running() as world:
        await world.chats("g.1", "g.2", texts=1)
        alice = world.streams.open("alice", {"g.1": 1, "g.2": 1})
        world.silent.add("g.1")
        world.resync.suspect_all()
        await until(lambda: world.asked.count("g.1") >= 3)
        assert _reads(alice) == [ReadMembership("g.2")]
        assert world.asked.count("g.2") == 1
        alice.session.membership_read("g.2", None)
        world.silent.clear()
        await until(lambda: ReadMembership("g.1") in _reads(alice))


# Pushes that a heartbeat has named.


async def test_a_push_that_was_lost_while_a_session_opens_is_found_once_it_is_open() -> None:
    async with running() as world:
        await world.chats("g.1", texts=1)
        alice = world.streams.opening("alice", {"g.1": 1})
        world.resync.missed({"g.1": Missed(1, 2)})
        world.streams.admit(alice, {"g.1": 1})
        await until(lambda: alice in world.touched)
        assert world.asked == ["g.1"]
        assert _reads(alice) == [ReadMembership("g.1")]
        assert world.cluster.rows.users_read == [], "nothing else is in doubt"


async def test_a_user_whom_a_lost_push_let_in_while_their_device_opens_is_told() -> None:
    async with running() as world:
        await world.chats("g.1")
        alice = world.streams.opening("alice")
        world.resync.missed({"g.1": Missed(0, 1)})
        world.streams.admit(alice, {})
        await until(lambda: alice in world.touched)
        assert _reads(alice) == [ReadMembership("g.1")]


async def test_a_lost_push_has_nobody_read_but_those_whom_it_let_in_or_out() -> None:
    async with running() as world:
        await world.chats("g.1", "g.2", texts=1)
        alice, zoe = world.streams.open("alice", {"g.1": 2}), world.streams.open("zoe")
        world.resync.missed({"g.2": Missed(0, 1)})
        await until(lambda: alice in world.touched)
        assert _reads(alice) == [ReadMembership("g.2")]
        assert world.cluster.rows.users_read == []
        assert world.asked == []
        assert zoe not in world.touched


async def test_a_lost_push_that_changed_nobodys_membership_has_nobody_read() -> None:
    async with running() as world:
        await world.chats("g.1", texts=2)
        alice = world.streams.open("alice")
        world.resync.missed({"g.1": Missed(1, 3)})
        await until(lambda: not world.resync._missed and not world.resync._missed_wanted.is_set())
        await world.node.ticks()
        assert (_reads(alice), world.touched, world.cluster.rows.users_read) == ([], [], [])


async def test_of_more_lost_pushes_than_are_read_one_by_one_the_members_of_now_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatgrpc.cluster.resync._MISSED_EVENTS_MAX", 2)
    async with running() as world:
        await world.chats("g.1", texts=4)
        alice = world.streams.open("alice")
        world.resync.missed({"g.1": Missed(0, 5)})
        await until(lambda: alice in world.touched)
        assert _reads(alice) == [ReadMembership("g.1")]


async def test_missed_pushes_whose_chat_cannot_be_read_put_all_memberships_in_doubt_after_a_while() -> None:
    async with running() as world:
        await world.chats("g.1", texts=1)
        alice = world.streams.open("alice")
        world.resync.missed({"g.1": Missed(0, 99)})  # nothing stands there
        await world.until_read("alice")
        await until(lambda: alice in world.touched)
        assert _reads(alice) == [ReadMembership("g.1")]


async def test_missed_pushes_of_which_one_is_garbage_put_all_memberships_in_doubt_and_the_passes_go_on() -> None:
    async with running() as world:
        await world.chats("g.1", "g.2", texts=1)
        alice = world.streams.open("alice")
        rows = world.cluster.rows._chats["g.1"].rows
        rows[2] = dict.fromkeys(rows[2], b"\xff\xff garbage")
        world.resync.missed({"g.1": Missed(1, 2)})
        await world.until_read("alice")
        await until(lambda: alice in world.touched)
        world.touched.clear()
        world.resync.missed({"g.2": Missed(0, 1)})
        await until(lambda: alice in world.touched)


async def test_what_a_mistake_of_ours_ended_is_in_doubt_once_more() -> None:
    async with running() as world:
        await world.chats("g.1", texts=1)
        world.streams.open("alice", {"g.1": 1})
        world.mistakes = 2
        world.resync.suspect_memberships()
        await world.until_read("alice", times=3)
        await until(lambda: world.asked == ["g.1", "g.1"])
        assert world.mistakes == 0


# Owners that left in order.


async def test_an_owner_of_which_all_had_heard_everything_leaves_no_doubt() -> None:
    async with running() as world:
        world.streams.open("alice", {"g.1": 1})
        world.resync.see({shard_of("g.1"): ShardOwner("gone", 1)}, {"gone", "stays"})
        world.resync.see({}, {"stays"}, {"gone"})
        assert not world.resync._doubts.wanted
        assert world.doubted == []


# Memberships.


async def test_a_user_who_was_let_in_without_being_told_is_told() -> None:
    async with running() as world:
        alice = world.streams.open("alice")
        await world.chats("g.1")
        world.resync.suspect_memberships()
        await until(lambda: alice in world.touched)
        assert world.asked == []
        assert _reads(alice) == [ReadMembership("g.1")]
        assert world.node.edge.stated_seq("g.1") == 1


async def test_memberships_are_read_now_and_then_without_any_reason() -> None:
    async with running(slow_pass_s=0.001) as world:
        await world.chats("g.1")
        alice = world.streams.open("alice")
        await world.until_read(times=3)
        assert world.asked == []
        assert _reads(alice) == [ReadMembership("g.1")]


async def test_a_chat_whose_owner_never_answers_keeps_no_memberships_from_being_read_now_and_then() -> None:
    async with running(slow_pass_s=0.001) as world:
        await world.chats("g.1")
        world.streams.open("alice", {"g.1": 1})
        world.silent.add("g.1")
        world.resync.suspect_all()
        await world.until_read(times=5)
        assert world.asked.count("g.1") >= 4, "it is still asked for in each pass"


async def test_a_user_who_cannot_be_read_keeps_no_others_from_being_read_now_and_then() -> None:
    """Passes that try them again come much more often than those over all."""
    async with running(slow_pass_s=0.05) as world:
        world.streams.open("alice")
        world.streams.open("bob")
        world.cluster.rows.away_for.add("alice")
        world.resync.suspect_memberships()
        await world.until_read("bob", times=3)


async def test_a_user_who_cannot_be_read_holds_up_no_other_in_a_pass() -> None:
    async with running() as world:
        for number in range(60):
            world.streams.open(f"user-{number}")
        world.cluster.rows.away_for.add("user-0")
        world.resync.suspect_memberships()
        await world.until_read("user-59")
        assert world.cluster.rows.users_read.count("user-0") == 1, "all were read in the first pass"


async def test_a_user_of_many_chats_is_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatgrpc.cluster.resync._CHATS_PER_READ", 3)
    async with running() as world:
        chat_ids = [f"g.{number}" for number in range(7)]
        await world.chats(*chat_ids)
        alice = world.streams.open("alice")
        world.resync.suspect_memberships()
        await until(lambda: alice in world.touched)
        assert world.cluster.rows.users_read == ["alice"] * 3
        assert {chat_id for chat_id in chat_ids if world.node.edge.stated_seq(chat_id) == 1} == set(chat_ids)


async def test_what_the_store_does_not_tell_is_read_later_and_nothing_is_asked_for_again() -> None:
    async with running() as world:
        await world.chats("g.1", texts=1)
        alice = world.streams.open("alice", {"g.1": 1})
        world.streams.open("bob", {"g.1": 2})
        await world.node.head_of("g.1")
        world.cluster.rows.away = True
        world.resync.suspect_all()
        await world.until_read("alice", times=3)
        assert _reads(alice) == [ReadMembership("g.1")], "its head was stated"
        assert not world.cluster.rows.users_told
        world.cluster.rows.away = False
        await until(lambda: "bob" in world.cluster.rows.users_told)  # by a read that is under way, or by the next one
        await until(lambda: not world.resync._doubts.wanted)
        assert world.asked == ["g.1"]


async def test_heads_of_chats_whose_memberships_are_being_read_are_asked_for_too() -> None:
    async with running() as world:
        await world.chats("g.1", texts=1)
        alice = world.streams.open("alice")
        alice.session.deliver("g.1", 1, b"", last=False)
        assert _reads(alice) == [ReadMembership("g.1")]
        world.resync.suspect_all()
        await until(lambda: "g.1" in world.asked)


async def test_who_was_read_before_the_store_failed_is_not_read_again() -> None:
    async with running() as world:
        world.streams.open("alice")
        world.streams.open("bob")
        world.cluster.rows.away_for.add("bob")
        world.resync.suspect_memberships()
        await world.until_read("bob", times=3)
        assert world.cluster.rows.users_read.count("alice") == 1


@pytest.mark.parametrize("turns", range(12))
async def test_it_ends_when_cancelled_also_while_the_store_fails(turns: int) -> None:
    """At whichever turn of the loop after the failure: what fails must not take the place of the cancellation."""
    async with running() as world:
        for number in range(20):
            world.streams.open(f"user-{number}")
            world.cluster.rows.away_for.add(f"user-{number}")
        world.resync.suspect_memberships()
        while not world.cluster.rows.users_read:
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)


async def test_the_stream_of_a_device_that_was_revoked_ends_though_nobody_said_so() -> None:
    async with running(slow_pass_s=0.001) as world:
        phone, web = world.streams.open("alice"), world.streams.open("alice", device_id="web")
        world.revoked.add("phone")
        await until(lambda: bool(world.ended))
        assert world.ended == [phone]
        await world.until_read(times=world.cluster.rows.users_read.count("alice") + 2)
        assert world.ended == [phone]
        assert web in list(world.streams.connections)


# One pass at a time, and each within bounds.


async def test_so_many_questions_and_reads_at_the_same_time_and_no_more() -> None:
    async with running() as world:
        chat_ids = [f"g.{number}" for number in range(600)]
        for number in range(20):
            world.streams.open(f"user-{number}", dict.fromkeys(chat_ids[number * 30 :][:30], 1))
        async with world.cluster.rows.silent():
            world.resync.suspect_all()
            await until(lambda: world.asking == 512)
            await world.node.ticks()
            assert world.asking == 512
        async with asyncio.timeout(60):
            await world.until_read("user-19")
        assert len(world.asked) == 600
        assert world.asking_most == 512
        assert world.cluster.rows.listing_most == 16


async def test_doubts_that_arise_during_a_pass_wait_for_the_next_one() -> None:
    async with running() as world:
        await world.chats("g.1", texts=1)
        world.streams.open("alice", {"g.1": 2})
        async with world.cluster.rows.silent():
            world.resync.suspect_all()
            await world.until_read()
            for _ in range(3):
                world.resync.suspect_all()
                await world.node.ticks()
            assert world.asked == ["g.1"]
        await world.until_read(times=2)
        assert world.asked == ["g.1", "g.1"]
        await until(lambda: not world.resync._doubts.wanted)
        assert world.cluster.rows.users_read == ["alice", "alice"]


async def test_who_is_called_off_while_a_head_is_awaited_leaves_nothing_behind() -> None:
    async with running() as world:
        chat_id = world.cluster.chat_owned_by(world.other)
        await world.chats(chat_id)
        world.streams.open("alice", {chat_id: 1})
        world.cluster.cut = {(world.other.node_id, world.node.node_id)}
        world.resync.suspect_all()
        await until(lambda: bool(world.asked))
    assert world.node.edge.questions_waiting == 0


# A node that was taken for gone.


async def test_after_a_return_all_is_asked_for_and_again_over_links_that_come_up_then() -> None:
    async with running() as world:
        there, elsewhere = _chats_of_two_shards()
        await world.chats(there, elsewhere)
        world.streams.open("alice", {there: 1, elsewhere: 1})
        world.resync.see(
            {shard_of(there): ShardOwner("linked", 1), shard_of(elsewhere): ShardOwner("other", 2)}, {"linked", "other"}
        )
        world.resync.linked("linked")
        assert not world.resync._doubts.wanted, "a heartbeat tells what a link lost"
        world.resync.returned()
        await world.until_read()
        assert sorted(world.asked) == sorted([there, elsewhere])
        world.resync.linked("linked")
        await world.until_read(times=2)
        assert world.asked[2:] == [there]
        world.resync.linked("stranger")
        assert not world.resync._doubts.wanted


def _chats_of_two_shards() -> tuple[str, str]:
    first = "g.1"
    return first, next(f"g.{number}" for number in range(2, 100) if shard_of(f"g.{number}") != shard_of(first))


def _reads(connection: Connection) -> list[FeedRead]:
    """What the session wants to read, of which it is told nothing."""
    wanted = connection.session.next_read() or connection.session.feed._reading
    return [wanted] if wanted is not None else []
