"""The session map stays true: whatever devices do, and whatever the map loses."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from chatgrpc.adapters.memory import MemorySessionMap
from chatgrpc.adapters.redis import RedisClient, RedisSessionMap
from chatgrpc.cluster.sessions import Sessions
from chatgrpc.ports.session_map import SessionEntry, SessionMap
from tests.support.services import RedisServer
from tests.unit.cluster.stubborn_map import StubbornMap

PHONE = ("alice", "phone")
HERE = SessionEntry(*PHONE, "node-1")
ELSEWHERE = SessionEntry(*PHONE, "node-2")
CANARY = SessionEntry("!node-1", "node", "node-1")
FOREVER_S = 1e6
GIVE_UP_S = 60.0


class World:
    """A node's sessions over a map, and what they told."""

    def __init__(
        self,
        session_map: SessionMap,
        linger_s: float = 0.0,
        check_interval_s: float = 0.01,
        audit_interval_s: float = FOREVER_S,
        settled_s: float = FOREVER_S,
    ) -> None:
        self.map = session_map
        self.moved: list[SessionEntry] = []
        self.rebuilt = 0
        self.sessions = Sessions(
            "node-1",
            session_map,
            self.moved.append,
            self._count_rebuilt,
            linger_s=linger_s,
            check_interval_s=check_interval_s,
            audit_interval_s=audit_interval_s,
            settled_s=settled_s,
        )

    def _count_rebuilt(self) -> None:
        self.rebuilt += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs them; they begin when the canary stands."""
        task = asyncio.create_task(self.sessions.run())
        try:
            await self.until(lambda found: CANARY in found)
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def stands(self) -> set[SessionEntry]:
        """What the map holds of those whom the tests know."""
        found = await self.map.of_users(["alice", "bob", CANARY.user_id])
        return {entry for entries in found.values() for entry in entries}

    async def until(self, holds: Callable[[set[SessionEntry]], bool]) -> None:
        async with asyncio.timeout(GIVE_UP_S):
            while not holds(await self.stands()):
                await asyncio.sleep(0.005)

    async def until_checked_again(self) -> None:
        """Returns when a check has begun and ended that began after this call."""
        assert isinstance(self.map, StubbornMap)
        checks = self._checks()
        async with asyncio.timeout(GIVE_UP_S):
            while self._checks() < checks + 2:
                await asyncio.sleep(0.005)

    def _checks(self) -> int:
        assert isinstance(self.map, StubbornMap)
        return self.map.read.count([CANARY.user_id])


@pytest.fixture
def stubborn_map() -> StubbornMap:
    return StubbornMap()


@pytest.fixture
async def redis_map(own_redis: RedisServer) -> AsyncIterator[RedisSessionMap]:
    client = RedisClient(own_redis.url, "chat")
    yield RedisSessionMap(client)
    await client.close()


# Coming and going.


async def test_an_entry_stands_when_the_device_may_read_its_chats_and_goes_after_its_stream(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with world.running():
        await world.sessions.opened(*PHONE)
        assert await world.stands() == {HERE, CANARY}
        assert len(world.sessions) == 1
        world.sessions.closed(*PHONE)
        assert len(world.sessions) == 0
        await world.until(lambda found: found == {CANARY})
        await world.until_checked_again()
    assert stubborn_map.removed == [HERE]
    assert (world.moved, world.rebuilt) == ([], 0)


async def test_a_device_that_comes_back_within_the_linger_keeps_its_entry(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map, linger_s=FOREVER_S)
    async with world.running():
        await world.sessions.opened(*PHONE)
        world.sessions.closed(*PHONE)
        await world.until_checked_again()
        assert await world.stands() == {HERE, CANARY}
        await world.sessions.opened(*PHONE)
        await world.until_checked_again()
    assert stubborn_map.removed == []
    assert (world.moved, world.rebuilt) == ([], 0)


async def test_the_linger_ends_when_the_device_comes_back(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map, linger_s=0.05)
    async with world.running():
        await world.sessions.opened(*PHONE)
        await world.sessions.opened("bob", "phone")
        world.sessions.closed(*PHONE)
        await world.sessions.opened(*PHONE)
        world.sessions.closed("bob", "phone")
        await world.until(lambda found: SessionEntry("bob", "phone", "node-1") not in found)
        assert await world.stands() == {HERE, CANARY}


async def test_devices_go_in_the_order_in_which_their_time_comes(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map, linger_s=0.05)
    async with world.running():
        for number in range(3):
            await world.sessions.opened("alice", f"device{number}")
        for number in (1, 0):
            world.sessions.closed("alice", f"device{number}")
        await world.until(lambda found: found == {SessionEntry("alice", "device2", "node-1"), CANARY})
    assert [entry.device_id for entry in stubborn_map.removed] == ["device1", "device0"]


async def test_to_close_what_is_not_open_does_nothing(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with world.running():
        world.sessions.closed(*PHONE)
        await world.until_checked_again()
    assert stubborn_map.removed == []


async def test_devices_that_come_during_a_trip_share_the_next_one(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with stubborn_map.held("put"):
        first = asyncio.create_task(world.sessions.opened(*PHONE))
        await stubborn_map.until_held("put")
        others = [asyncio.create_task(world.sessions.opened("bob", f"device{number}")) for number in range(50)]
        await asyncio.sleep(0)
        assert not first.done()
    await asyncio.gather(first, *others)
    assert stubborn_map.puts == 2
    assert len(await world.stands()) == 51


# Devices that move.


async def test_a_device_that_was_on_another_node_is_told_of_with_its_entry_there(stubborn_map: StubbornMap) -> None:
    other_device = SessionEntry("alice", "web", "node-2")
    await stubborn_map.put([ELSEWHERE, other_device])
    world = World(stubborn_map)
    async with world.running():
        await world.sessions.opened(*PHONE)
        assert world.moved == [ELSEWHERE]
        assert await world.stands() == {ELSEWHERE, HERE, other_device, CANARY}
        await stubborn_map.remove([ELSEWHERE])  # as that node does, once it was told
        await world.sessions.opened(*PHONE)
    assert world.moved == [ELSEWHERE]


async def test_a_device_that_went_away_and_came_back_within_the_linger_stands_here_again(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map, linger_s=FOREVER_S)
    await world.sessions.opened(*PHONE)
    world.sessions.closed(*PHONE)
    await stubborn_map.put([ELSEWHERE])
    await world.sessions.opened(*PHONE)
    assert await stubborn_map.of_users(["alice"]) == {"alice": [ELSEWHERE, HERE]}
    assert world.moved == [ELSEWHERE]


async def test_an_entry_on_another_node_stays_when_the_device_leaves_here(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with world.running():
        await world.sessions.opened(*PHONE)
        await stubborn_map.put([ELSEWHERE])
        world.sessions.closed(*PHONE)
        await world.until_checked_again()
        assert await world.stands() == {ELSEWHERE, CANARY}


async def test_a_device_that_is_gone_before_its_entry_is_written_does_not_take_it_from_the_next_node(
    stubborn_map: StubbornMap,
) -> None:
    world = World(stubborn_map)
    async with stubborn_map.held("put"):
        bob = asyncio.create_task(world.sessions.opened("bob", "phone"))
        await stubborn_map.until_held("put")
        alice = asyncio.create_task(world.sessions.opened(*PHONE))
        await asyncio.sleep(0)
        world.sessions.closed(*PHONE)
    await asyncio.gather(bob, alice)
    assert await world.stands() == {SessionEntry("bob", "phone", "node-1")}


async def test_of_two_nodes_to_which_a_device_comes_at_once_one_is_told_of_the_other(stubborn_map: StubbornMap) -> None:
    told: list[SessionEntry] = []
    nodes = [Sessions(node_id, stubborn_map, told.append, lambda: None) for node_id in ("node-1", "node-2")]
    async with stubborn_map.held("put"):
        opening = [asyncio.create_task(sessions.opened(*PHONE)) for sessions in nodes]
        await stubborn_map.until_held("put")
    await asyncio.gather(*opening)
    first, last = (await stubborn_map.of_users(["alice"]))["alice"]
    assert told == [first]
    moved = [await sessions.has_moved(*PHONE) for sessions in nodes]
    assert moved == [last == ELSEWHERE, last == HERE]


async def test_a_device_that_goes_on_to_another_node_while_it_is_written_stays_there(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with stubborn_map.held("put"):
        opening = asyncio.create_task(world.sessions.opened(*PHONE))
        await stubborn_map.until_held("put")
        world.sessions.closed(*PHONE)
        await MemorySessionMap.put(stubborn_map, [ELSEWHERE])
    await opening
    assert world.moved == []
    async with world.running():
        await world.until(lambda found: found == {ELSEWHERE, CANARY})


async def test_a_device_has_moved_when_its_last_entry_names_another_node(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    assert not await world.sessions.has_moved(*PHONE)
    await world.sessions.opened(*PHONE)
    assert not await world.sessions.has_moved(*PHONE)
    await stubborn_map.remove([HERE])
    assert not await world.sessions.has_moved(*PHONE)
    await stubborn_map.put([ELSEWHERE])
    assert await world.sessions.has_moved(*PHONE)
    world.sessions.closed(*PHONE)
    assert not await world.sessions.has_moved(*PHONE)


async def test_a_device_that_comes_back_while_it_is_asked_about_has_not_moved(stubborn_map: StubbornMap) -> None:
    """Its new entry here is written after the one that named the other node."""
    world = World(stubborn_map)
    await world.sessions.opened(*PHONE)
    await stubborn_map.put([ELSEWHERE])
    async with stubborn_map.held("of_users"):
        asked = asyncio.create_task(world.sessions.has_moved(*PHONE))
        await stubborn_map.until_held("of_users")
        world.sessions.closed(*PHONE)
        back = asyncio.create_task(world.sessions.opened(*PHONE))
        await asyncio.sleep(0)
    assert not await asked
    await back
    assert world.moved == [ELSEWHERE]


async def test_an_entry_that_stands_without_a_stream_goes_when_the_device_has_come_to_another_node(
    stubborn_map: StubbornMap,
) -> None:
    world = World(stubborn_map)
    async with world.running():
        await stubborn_map.put([HERE, ELSEWHERE])  # the map was set back
        assert not await world.sessions.has_moved(*PHONE)
        await world.until(lambda found: found == {ELSEWHERE, CANARY})


async def test_without_the_map_the_other_node_is_believed(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    await world.sessions.opened(*PHONE)
    stubborn_map.away = True
    assert await world.sessions.has_moved(*PHONE)


async def test_a_device_that_comes_back_while_it_is_taken_out_stands(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with world.running():
        await world.sessions.opened(*PHONE)
        async with stubborn_map.held("remove"):
            world.sessions.closed(*PHONE)
            await stubborn_map.until_held("remove")
            back = asyncio.create_task(world.sessions.opened(*PHONE))
            await asyncio.sleep(0.02)
            assert not back.done()
        await back
        assert stubborn_map.removed == [HERE]
        assert await world.stands() == {HERE, CANARY}
        await world.until_checked_again()
        assert await world.stands() == {HERE, CANARY}


async def test_one_that_comes_back_and_goes_again_while_it_is_taken_out_goes(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with world.running():
        await world.sessions.opened(*PHONE)
        async with stubborn_map.held("remove"):
            world.sessions.closed(*PHONE)
            await stubborn_map.until_held("remove")
            back = asyncio.create_task(world.sessions.opened(*PHONE))
            await asyncio.sleep(0)
            world.sessions.closed(*PHONE)
        await back
        await world.until_checked_again()
        assert await world.stands() == {CANARY}


# The map loses its memory.


async def test_a_map_that_was_emptied_is_written_again_and_so_told(redis_map: RedisSessionMap, own_redis: RedisServer) -> None:
    world = World(redis_map, linger_s=FOREVER_S)
    async with world.running():
        await asyncio.gather(*(world.sessions.opened("alice", f"device{number}") for number in range(100)))
        await world.sessions.opened("bob", "phone")
        world.sessions.closed("bob", "phone")
        before = {entry for entry in await world.stands() if entry.user_id != "bob"}
        assert (len(before), world.rebuilt) == (101, 0)
        own_redis.flush()
        await world.until(lambda found: found == before and world.rebuilt > 0)
    assert world.rebuilt == 1
    assert world.moved == []


async def test_what_is_lost_while_it_is_written_again_is_written_once_more(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with world.running():
        await world.sessions.opened(*PHONE)
        stubborn_map.loses_after_puts = 1
        stubborn_map.lose()
        await world.until(lambda _: stubborn_map.loses_after_puts == 0)
        await world.until(lambda found: found == {HERE, CANARY} and world.rebuilt > 0)


async def test_a_busy_node_writes_all_again(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with world.running():
        await asyncio.gather(*(world.sessions.opened("alice", f"device{number}") for number in range(2_500)))
        stubborn_map.lose()
        await world.until(lambda found: len(found) == 2_501 and world.rebuilt > 0)


async def test_when_all_is_written_again_no_node_takes_the_place_of_another(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with world.running():
        await world.sessions.opened(*PHONE)
        await world.sessions.opened("bob", "phone")
        # Its stream here is dead, and nobody knows yet.
        stubborn_map.lose()
        await stubborn_map.put([ELSEWHERE])
        await world.until(lambda _: world.rebuilt > 0)
        assert await world.stands() == {ELSEWHERE, HERE, SessionEntry("bob", "phone", "node-1"), CANARY}
        # By now that is known.
        world.sessions.closed(*PHONE)
        await world.until(lambda found: found == {ELSEWHERE, SessionEntry("bob", "phone", "node-1"), CANARY})
    assert world.moved == []


async def test_without_devices_there_is_nothing_to_tell(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with world.running():
        stubborn_map.lose()
        await world.until(lambda found: found == {CANARY})
        await world.until_checked_again()
    assert world.rebuilt == 0


async def test_single_entries_that_were_lost_are_found_by_the_audit(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map, audit_interval_s=0.05)
    async with world.running():
        await world.sessions.opened(*PHONE)
        await world.until_checked_again()
        assert world.rebuilt == 0
        await stubborn_map.remove([HERE])
        await world.until(lambda found: found == {HERE, CANARY} and world.rebuilt == 1)


# The map is away.


async def test_a_device_that_opens_without_the_map_is_written_later_and_so_told(
    redis_map: RedisSessionMap, own_redis: RedisServer
) -> None:
    world = World(redis_map)
    async with world.running():
        own_redis.kill()
        await asyncio.wait_for(world.sessions.opened(*PHONE), GIVE_UP_S)
        own_redis.start()
        await world.until(lambda found: found == {HERE, CANARY} and world.rebuilt > 0)
        assert world.rebuilt <= 2, "once while the map was away, if it was looked for then, and once when it was written"
        own_redis.process.pause()
        await asyncio.wait_for(world.sessions.opened("bob", "phone"), GIVE_UP_S)
        own_redis.process.resume()
        await world.until(lambda found: len(found) == 3 and world.rebuilt > 1)


async def test_a_device_that_moved_here_without_the_map_is_told_of_later(stubborn_map: StubbornMap) -> None:
    await stubborn_map.put([ELSEWHERE])
    world = World(stubborn_map)
    async with world.running():
        stubborn_map.away = True
        await world.sessions.opened(*PHONE)
        assert world.moved == []
        stubborn_map.away = False
        await world.until(lambda found: found == {ELSEWHERE, HERE, CANARY} and world.rebuilt > 0)
    assert world.moved == [ELSEWHERE]


async def test_a_device_that_was_here_and_gone_without_the_map_leaves_nothing(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with world.running():
        stubborn_map.away = True
        await world.sessions.opened(*PHONE)
        world.sessions.closed(*PHONE)
        stubborn_map.away = False
        await world.until_checked_again()
        assert await world.stands() == {CANARY}
    assert HERE not in stubborn_map.written


async def test_who_left_while_the_map_was_away_is_taken_out_later(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with world.running():
        await world.sessions.opened(*PHONE)
        stubborn_map.away = True
        world.sessions.closed(*PHONE)
        await world.until_checked_again()
        stubborn_map.away = False
        await world.until(lambda found: found == {CANARY})


async def test_what_was_given_up_and_is_done_after_the_map_is_back_is_put_right(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map, settled_s=0.05)
    async with world.running():
        await world.sessions.opened(*PHONE)
        stubborn_map.away = True
        world.sessions.closed(*PHONE)
        await world.until_checked_again()
        await world.sessions.opened(*PHONE)
        stubborn_map.away = False
        await world.until(lambda found: found == {HERE, CANARY} and world.rebuilt > 0)
        await MemorySessionMap.remove(stubborn_map, [HERE])  # the trip that failed
        await world.until(lambda found: found == {HERE, CANARY})


async def test_a_stream_that_ends_while_its_device_opens_harms_no_other(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with stubborn_map.held("put"):
        ended = asyncio.create_task(world.sessions.opened(*PHONE))
        other = asyncio.create_task(world.sessions.opened("bob", "phone"))
        await stubborn_map.until_held("put")
        ended.cancel()
    await other
    assert SessionEntry("bob", "phone", "node-1") in await world.stands()


# The node stops.


async def test_a_node_that_leaves_takes_its_entries_along_and_writes_none(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map, linger_s=FOREVER_S)
    others = SessionEntry("bob", "phone", "node-2")
    await stubborn_map.put([others])
    async with world.running():
        await world.sessions.opened(*PHONE)
        await world.sessions.opened("bob", "web")
        world.sessions.closed("bob", "web")
        await world.sessions.leave()
        assert await world.stands() == {others}
        await world.until_checked_again()
        assert await world.stands() == {others}


async def test_a_node_leaves_without_the_map(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    await world.sessions.opened(*PHONE)
    stubborn_map.away = True
    await world.sessions.leave()


# What is asked.


async def test_only_devices_on_live_nodes_are_connected(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    await world.sessions.opened(*PHONE)
    await stubborn_map.put([SessionEntry("alice", "web", "node-2"), SessionEntry("bob", "phone", "node-dead")])
    found = await world.sessions.devices_of(["alice", "bob", "carol"], {"node-1", "node-2"})
    assert found == {"alice": frozenset({"phone", "web"}), "bob": frozenset()}
