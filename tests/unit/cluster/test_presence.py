"""Devices are shown who is there of those whom they may see, on any node, and nobody else."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from chatgrpc.adapters.memory import MemoryLastSeen
from chatgrpc.cluster.presence import PresenceScreens
from chatgrpc.cluster.sessions import Sessions
from chatgrpc.core.write import Write
from chatgrpc.edge.connection import Connection
from chatgrpc.ports.last_seen import LastSeenUnavailableError
from chatgrpc.ports.lease_clock import lease_clock_ms
from chatgrpc.ports.session_map import SessionEntry
from chatgrpc.v1 import content_pb2
from tests.unit.cluster.small_cluster import SmallCluster, group_creation, seqs, small_cluster, until
from tests.unit.cluster.streams import Streams
from tests.unit.edge.crowd import STEPS_PER_SLICE, Clock

SOON_S = 0.01
FOREVER_S = 1e6
Shown = dict[str, tuple[bool, int]]


class StubbornLastSeen(MemoryLastSeen):
    """Away now and then; notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.reads: list[set[str]] = []

    async def put(self, seen_ms: Mapping[str, int]) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise LastSeenUnavailableError("away")
        await super().put(seen_ms)

    async def of_users(self, user_ids: Sequence[str]) -> dict[str, int]:
        self.reads.append(set(user_ids))
        await asyncio.sleep(0)
        if self.away:
            raise LastSeenUnavailableError("away")
        return await super().of_users(user_ids)


class World:
    """The screens of the first of two nodes. Alice and Bob are in g.1."""

    def __init__(self, cluster: SmallCluster, look_interval_s: float) -> None:
        self.cluster = cluster
        self.node, self.other = cluster.nodes
        self.map = cluster.session_map
        self.streams = Streams()
        self.last_seen = StubbornLastSeen()
        self.touched: list[Connection] = []
        self.screens = PresenceScreens(
            self.touched.append,
            self.node.edge,
            Sessions(self.node.node_id, self.map, lambda entry: None, lambda: None),
            self.last_seen,
            lambda: self.node.seen_nodes,
            lease_clock_ms,
            look_interval_s=look_interval_s,
        )

    def watch(self, watcher: Connection, *chat_ids: str) -> None:
        self.screens.watch(watcher, chat_ids)
        self.node.wake_up()

    async def shown(self, watcher: Connection, *user_ids: str) -> Shown:
        """What the device is shown next, once it is shown something of all these."""
        shown: Shown = {}

        def holds() -> bool:
            for frame in self.streams.frames(watcher):
                shown[frame.presence.user_id] = (frame.presence.online, frame.presence.last_seen_ms)
            return shown.keys() >= set(user_ids)

        await until(holds)
        return shown

    async def looked(self) -> None:
        """Returns when it was looked who is there, twice, and so once from the beginning on."""
        reads = len(self.map.read)
        await until(lambda: len(self.map.read) >= reads + 2)

    async def remove(self, user_id: str) -> None:
        """Alice takes a user out of g.1."""
        removed = content_pb2.MemberRemovedContent(user_id=user_id)
        write = Write("g.1", "alice", content_pb2.Content(member_removed=removed), f"{user_id:>16}".encode(), 1)
        seqs([await self.node.send(write)])

    async def add(self, user_id: str) -> None:
        """Alice takes a user into g.1."""
        added = content_pb2.MembersAddedContent(user_ids=[user_id])
        write = Write("g.1", "alice", content_pb2.Content(members_added=added), f"+{user_id:>15}".encode(), 1)
        seqs([await self.node.send(write)])


@asynccontextmanager
async def running(look_interval_s: float = SOON_S) -> AsyncIterator[World]:
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster, look_interval_s)
        await world.node.send(group_creation("g.1", "alice", "bob"))
        task = asyncio.create_task(world.screens.run())
        try:
            yield world
        finally:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended


# Coming and going.


async def test_who_is_connected_to_another_node_is_shown_there_and_then_gone_and_when() -> None:
    async with running() as world:
        alice = world.streams.open("alice")
        await world.cluster.connect("bob", world.other)
        world.watch(alice, "g.1")
        assert await world.shown(alice, "bob") == {"bob": (True, 0)}
        await world.last_seen.put({"bob": 5_000})
        await world.map.remove([SessionEntry("bob", f"at-{world.other.node_id}", world.other.node_id)])
        assert await world.shown(alice, "bob") == {"bob": (False, 5_000)}
        await world.cluster.connect("bob", world.other)
        assert await world.shown(alice, "bob") == {"bob": (True, 0)}
        assert set(world.touched) == {alice}


async def test_who_has_begun_to_watch_is_shown_at_once_and_alone() -> None:
    async with running(look_interval_s=FOREVER_S) as world:
        await world.node.send(group_creation("g.2", "carol", "dave"))
        carol = world.streams.open("carol")
        world.watch(carol, "g.2")
        assert await world.shown(carol, "dave") == {"dave": (False, 0)}
        alice = world.streams.open("alice")
        world.map.read.clear()
        world.watch(alice, "g.1")
        assert await world.shown(alice, "bob") == {"bob": (False, 0)}
        assert world.map.read == [["bob"]], "others have been shown theirs"


async def test_nothing_is_shown_twice() -> None:
    async with running() as world:
        alice = world.streams.open("alice")
        world.watch(alice, "g.1")
        await world.shown(alice, "bob")
        await world.looked()
        assert world.streams.frames(alice) == []
        assert world.touched == [alice]


async def test_all_who_are_watched_are_looked_for_in_one_trip() -> None:
    async with running(look_interval_s=FOREVER_S) as world:
        watchers = [world.streams.open("alice"), world.streams.open("bob"), world.streams.open("alice", device_id="web")]
        async with world.map.held("of_users"):
            world.watch(watchers[0], "g.1")
            await world.map.until_held("of_users")
            world.map.read.clear()
            for watcher in watchers:
                world.watch(watcher, "g.1")
            await until(lambda: world.node.edge.questions_waiting == 0)
        assert (await world.shown(watchers[1], "alice")).keys() == {"alice"}
        assert [set(user_ids) for user_ids in world.map.read] == [{"alice", "bob"}]


async def test_the_devices_of_a_dead_node_do_not_count() -> None:
    async with running() as world:
        alice = world.streams.open("alice")
        await world.map.put([SessionEntry("bob", "phone", "node-dead")])
        world.watch(alice, "g.1")
        assert await world.shown(alice, "bob") == {"bob": (False, 0)}


# Who may see whom.


async def test_who_is_not_in_the_chat_watches_nobody() -> None:
    async with running() as world:
        zoe = world.streams.open("zoe")
        alice = world.streams.open("alice")
        world.watch(zoe, "g.1")
        world.watch(alice, "g.1")
        await world.shown(alice, "bob")
        await world.looked()
        assert world.streams.frames(zoe) == []


async def test_who_was_taken_out_is_shown_no_more_and_sees_nobody() -> None:
    async with running() as world:
        await world.add("carol")
        alice, bob = world.streams.open("alice"), world.streams.open("bob")
        world.watch(alice, "g.1")
        world.watch(bob, "g.1")
        await world.shown(alice, "bob", "carol")
        await world.shown(bob, "alice", "carol")
        await world.remove("bob")
        world.screens.members_changed("g.1")
        await until(lambda: world.node.edge.questions_waiting == 0)
        for user_id in ("alice", "bob", "carol"):
            await world.cluster.connect(user_id, world.other)
        assert await world.shown(alice, "carol") == {"carol": (True, 0)}
        await world.looked()
        assert world.streams.frames(bob) == []
        assert world.streams.frames(alice) == []


async def test_who_was_let_in_is_shown() -> None:
    async with running(look_interval_s=FOREVER_S) as world:
        alice = world.streams.open("alice")
        world.watch(alice, "g.1")
        await world.shown(alice, "bob")
        await world.add("carol")
        world.screens.members_changed("g.1")
        assert await world.shown(alice, "carol") == {"carol": (False, 0)}


async def test_who_comes_back_into_the_chat_is_shown_again() -> None:
    async with running(look_interval_s=FOREVER_S) as world:
        alice = world.streams.open("alice")
        world.watch(alice, "g.1")
        await world.shown(alice, "bob")
        await world.remove("bob")
        world.screens.members_changed("g.1")
        await until(lambda: world.node.edge.questions_waiting == 0)
        await world.add("bob")
        world.screens.members_changed("g.1")
        assert await world.shown(alice, "bob") == {"bob": (False, 0)}


async def test_members_are_asked_for_again_where_they_are_in_doubt() -> None:
    async with running(look_interval_s=FOREVER_S) as world:
        await world.node.send(group_creation("g.2", "alice", "dave"))
        alice = world.streams.open("alice")
        world.watch(alice, "g.1", "g.2")
        await world.shown(alice, "bob", "dave")
        await world.add("carol")
        world.screens.doubt(lambda chat_id: chat_id == "g.2")
        await until(lambda: world.node.edge.questions_waiting == 0)
        assert world.streams.frames(alice) == []
        world.screens.doubt(lambda chat_id: chat_id == "g.1")
        assert (await world.shown(alice, "carol")).keys() == {"carol"}


async def test_who_watches_other_chats_is_shown_no_more_of_the_first() -> None:
    async with running() as world:
        await world.node.send(group_creation("g.2", "alice", "dave"))
        alice = world.streams.open("alice")
        world.watch(alice, "g.1")
        await world.shown(alice, "bob")
        world.watch(alice, "g.2")
        assert (await world.shown(alice, "dave")).keys() == {"dave"}
        await world.cluster.connect("bob", world.other)
        await world.looked()
        assert world.streams.frames(alice) == []
        world.watch(alice)
        world.screens.members_changed("g.2")
        await world.cluster.connect("dave", world.other)
        await until(lambda: world.node.edge.questions_waiting == 0)
        assert world.screens._watchers == {}


async def test_a_large_group_shows_nobody() -> None:
    async with running() as world:
        await world.node.send(group_creation("g.2", "alice", *(f"user-{number}" for number in range(40))))
        alice = world.streams.open("alice")
        world.watch(alice, "g.2", "g.1")
        assert (await world.shown(alice, "bob")).keys() == {"bob"}
        await world.looked()
        assert world.streams.frames(alice) == []


async def test_many_screens_are_looked_at_a_few_at_a_time() -> None:
    async with small_cluster(nodes=1) as cluster:
        (node,) = cluster.nodes
        streams, touched = Streams(), list[Connection]()
        sessions = Sessions(node.node_id, cluster.session_map, lambda entry: None, lambda: None)
        screens = PresenceScreens(
            touched.append, node.edge, sessions, MemoryLastSeen(), lambda: node.seen_nodes, lease_clock_ms,
            look_interval_s=FOREVER_S, clock_s=Clock(),
        )  # fmt: skip
        await node.send(group_creation("g.1", "alice", "bob"))
        alices = [streams.open("alice", device_id=f"phone{number}") for number in range(10 * STEPS_PER_SLICE)]
        for watcher in alices:
            screens.watch(watcher, ("g.1",))
        node.wake_up()
        await until(lambda: node.edge.questions_waiting == 0)
        looking = asyncio.create_task(screens.run())
        most = before = 0
        while len(touched) < len(alices):
            await asyncio.sleep(0)
            most, before = max(most, len(touched) - before), len(touched)
        assert touched == alices
        assert most <= STEPS_PER_SLICE + 1
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


# What goes wrong meanwhile.


@pytest.mark.parametrize("leaves", ["the chat", "for good"])
async def test_who_goes_while_it_is_looked_is_shown_nothing(leaves: str) -> None:
    async with running() as world:
        await world.add("carol")
        alice, bob = world.streams.open("alice"), world.streams.open("bob")
        async with world.map.held("of_users"):
            world.watch(alice, "g.1")
            world.watch(bob, "g.1")
            await world.map.until_held("of_users")
            await until(lambda: world.node.edge.questions_waiting == 0)
            if leaves == "for good":
                world.screens.unwatch(bob)
                world.screens.unwatch(bob)
            else:
                await world.remove("bob")
                world.screens.members_changed("g.1")
                await until(lambda: world.node.edge.questions_waiting == 0)
                world.watch(alice, "g.1")
        await world.looked()
        assert world.streams.frames(bob) == []


async def test_a_question_that_is_answered_after_its_watcher_has_gone_does_no_harm() -> None:
    async with running() as world:
        alice = world.streams.open("alice")
        world.screens.watch(alice, ("g.1",))
        world.screens.unwatch(alice)
        world.node.wake_up()
        await until(lambda: world.node.edge.questions_waiting == 0)
        assert world.screens._members == world.screens._news == {}


async def test_without_the_session_map_nothing_is_shown_until_it_is_back() -> None:
    async with running() as world:
        alice = world.streams.open("alice")
        await world.cluster.connect("bob", world.other)
        world.map.away = True
        world.watch(alice, "g.1")
        await world.looked()
        assert world.streams.frames(alice) == []
        world.map.away = False
        assert await world.shown(alice, "bob") == {"bob": (True, 0)}


async def test_without_last_seen_nothing_is_shown_of_those_who_are_away() -> None:
    async with running() as world:
        alice = world.streams.open("alice")
        await world.last_seen.put({"bob": 5_000})
        world.last_seen.away = True
        world.watch(alice, "g.1")
        await until(lambda: len(world.last_seen.reads) >= 2)
        assert world.streams.frames(alice) == []
        world.last_seen.away = False
        assert await world.shown(alice, "bob") == {"bob": (False, 5_000)}


# Who has left.


async def test_when_users_left_is_stored_at_the_next_look() -> None:
    async with running() as world:
        world.screens.left("bob", 5_000)
        world.screens.left("bob", 6_000)
        async with asyncio.timeout(60):
            while await world.last_seen.of_users(["bob"]) != {"bob": 6_000}:
                await asyncio.sleep(0.001)


async def test_when_users_left_is_kept_until_it_can_be_stored_the_latest_of_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatgrpc.cluster.presence._UNSAVED_MAX", 3)
    async with running(look_interval_s=FOREVER_S) as world:
        world.last_seen.away = True
        for number in range(5):
            world.screens.left(f"user-{number}", number)
        saving = asyncio.create_task(world.screens.save_last_seen())
        await asyncio.sleep(0)
        world.screens.left("user-3", 9)
        await saving
        world.last_seen.away = False
        await world.screens.save_last_seen()
        found = await world.last_seen.of_users([f"user-{number}" for number in range(5)])
        assert found == {"user-2": 2, "user-3": 9, "user-4": 4}
