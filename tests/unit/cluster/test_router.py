"""An owner's news goes to the nodes of those whom it concerns: in order, with one read for all, and without the map to all."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from structlog.testing import capture_logs

from chatgrpc.adapters.redis import RedisClient, RedisSessionMap
from chatgrpc.cluster.router import Router
from chatgrpc.core.ids import shard_of
from chatgrpc.core.limits import Limits
from chatgrpc.core.links import Deliver, Heads, Message, ShowReceipt, ShowTyping
from chatgrpc.core.owner_desk import Notice, OwnerDesk
from chatgrpc.core.sequencer import Delivery
from chatgrpc.ports.session_map import SessionEntry, SessionMap
from tests.support.services import RedisServer
from tests.unit.cluster.small_cluster import until
from tests.unit.cluster.stubborn_map import StubbornMap

CHAT = "g.1"
ALICE = SessionEntry("alice", "phone", "node-1")
BOB = SessionEntry("bob", "phone", "node-2")
BOB_ON_DEAD = SessionEntry("bob", "web", "node-dead")
GIVE_UP_S = 60.0
TYPING = ShowTyping(CHAT, "alice", 1, ())
RECEIPT = ShowReceipt(CHAT, "alice", 7, 7, ())


class World:
    """A router with its desk."""

    def __init__(
        self, session_map: SessionMap, blind_s: float = 0.0, remembered_s: float = 60.0, stale_s: float = 600.0
    ) -> None:
        self.live = {"node-1", "node-2", "node-3"}
        self.defects: list[BaseException] = []
        self.wake_ups = 0
        self.desk = OwnerDesk(Limits(), shard_of)
        self.desk.see(self.live)
        self.router = Router(
            self.desk,
            session_map,
            lambda: self.live,
            self._wake_up,
            self.defects.append,
            blind_s=blind_s,
            remembered_s=remembered_s,
            stale_s=stale_s,
        )

    async def routed(self) -> list[tuple[str, Message]]:
        """What was to be said when nothing waits any more."""
        async with asyncio.timeout(GIVE_UP_S):
            while not self.router.is_idle:
                self.router.take_in()
                await asyncio.sleep(0)
        return self.desk.step().messages

    async def sees_again(self) -> None:
        """Returns when the map answers again."""
        async with asyncio.timeout(GIVE_UP_S):
            while self.router.is_blind:
                await asyncio.sleep(0.001)

    def _wake_up(self) -> None:
        self.wake_ups += 1


@pytest.fixture
async def stubborn_map() -> StubbornMap:
    """Alice and Bob are connected, the latter to a node that is gone as well."""
    session_map = StubbornMap()
    await session_map.put([ALICE, BOB, BOB_ON_DEAD])
    return session_map


@pytest.fixture
async def redis_map(own_redis: RedisServer) -> AsyncIterator[RedisSessionMap]:
    client = RedisClient(own_redis.url, "chat")
    yield RedisSessionMap(client)
    await client.close()


async def test_each_node_gets_one_message_for_its_users(stubborn_map: StubbornMap) -> None:
    await stubborn_map.put([SessionEntry("bob", "tablet", "node-2"), SessionEntry("carol", "phone", "node-2")])
    world = World(stubborn_map)
    world.router.start([_delivery(1, ["alice", "bob", "carol", "dave"], left_user_id="bob")], [])
    assert await world.routed() == [
        ("node-1", Deliver(CHAT, 1, b"1", ("alice",), "", False)),
        ("node-2", Deliver(CHAT, 1, b"1", ("bob", "carol"), "bob", False)),
    ]
    assert (world.wake_ups, world.defects) == (1, [])


async def test_nodes_that_are_not_seen_are_told_of_what_they_missed_once_they_are(stubborn_map: StubbornMap) -> None:
    """They are gone, or came a moment ago: etcd has told them so, and us not yet."""
    world = World(stubborn_map)
    world.live -= {"node-2"}
    world.router.start([_delivery(1, ["bob"])], [Notice(("bob",), TYPING)])
    assert await world.routed() == []
    assert stubborn_map.read == [["bob"]]
    assert world.desk.beat() == []
    world.live |= {"node-2"}
    world.desk.see(world.live)
    assert world.desk.beat() == [("node-2", Heads({CHAT: 1}))]


async def test_notices_go_the_same_way(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    world.router.start([], [Notice(("bob",), TYPING), Notice(("alice", "bob"), RECEIPT)])
    assert await world.routed() == [
        ("node-2", ShowTyping(CHAT, "alice", 1, ("bob",))),
        ("node-1", ShowReceipt(CHAT, "alice", 7, 7, ("alice",))),
        ("node-2", ShowReceipt(CHAT, "alice", 7, 7, ("bob",))),
    ]


async def test_one_read_serves_all_that_came_meanwhile_and_order_is_kept(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with stubborn_map.held("of_users"):
        world.router.start([_delivery(1, ["alice"])], [])
        await stubborn_map.until_held("of_users")
        for seq in range(2, 50, 2):
            world.router.start([_delivery(seq, ["alice", "bob"]), _delivery(seq + 1, ["bob"])], [Notice(("carol",), TYPING)])
        assert not world.router.is_idle
        assert world.router.deliveries_waiting == 49
        assert world.desk.step().messages == []
    said = await world.routed()
    assert stubborn_map.read == [["alice"], ["alice", "bob", "carol"]]
    assert _seqs(said, "node-1") == [1, *range(2, 50, 2)]
    assert _seqs(said, "node-2") == list(range(2, 50))
    assert world.router.deliveries_waiting == 0


async def test_a_tick_while_the_map_is_read_loses_nothing(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with stubborn_map.held("of_users"):
        world.router.start([_delivery(1, ["alice"])], [])
        await stubborn_map.until_held("of_users")
        world.router.take_in()
    assert _seqs(await world.routed(), "node-1") == [1]


async def test_what_was_found_waits_until_it_is_taken(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    world.router.start([_delivery(1, ["alice"])], [])
    async with asyncio.timeout(GIVE_UP_S):
        while not world.wake_ups:
            await asyncio.sleep(0)
    assert world.desk.step().messages == []
    assert not world.router.is_idle
    world.router.take_in()
    assert world.router.is_idle
    assert _seqs(world.desk.step().messages, "node-1") == [1]


async def test_nothing_to_route_asks_nothing(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    world.router.start([], [])
    assert world.router.is_idle
    await asyncio.sleep(0)
    assert stubborn_map.read == []


async def test_without_the_map_every_live_node_is_told_in_order(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map, remembered_s=0.0)
    world.router.start([_delivery(1, ["alice", "dave"])], [])
    said = await world.routed()
    stubborn_map.away = True
    world.router.start([_delivery(2, ["alice", "dave"])], [Notice(("dave",), TYPING)])
    said += await world.routed()
    stubborn_map.away = False
    await world.sees_again()
    world.router.start([_delivery(3, ["alice", "dave"])], [])
    said += await world.routed()
    assert _seqs(said, "node-1") == [1, 2, 3]
    assert _seqs(said, "node-2") == _seqs(said, "node-3") == [2]
    assert _seqs(said, "node-dead") == []
    told_of_dave = {
        node_id for node_id, message in said if isinstance(message, ShowTyping) and message.to_user_ids == ("dave",)
    }
    assert told_of_dave == world.live
    assert all(
        message.user_ids == ("alice", "dave") for _, message in said if isinstance(message, Deliver) and message.seq == 2
    )


async def test_without_the_map_users_are_told_where_they_were_found_last(stubborn_map: StubbornMap) -> None:
    """Links are not flooded. Users may have moved meanwhile: when it is over, all nodes hear of the heads (G4)."""
    world = World(stubborn_map)
    world.router.start([_delivery(1, ["alice", "bob", "dave"])], [])
    await world.routed()
    world.desk.beat()
    stubborn_map.away = True
    world.router.start([_delivery(2, ["alice", "dave"]), _delivery(3, ["alice"])], [])
    said = await world.routed()
    assert [(node_id, message.seq) for node_id, message in said if isinstance(message, Deliver)] == [
        ("node-1", 2),
        ("node-1", 3),
    ]
    world.router.start([_delivery(4, ["erin"])], [])
    assert {node_id for node_id, _ in await world.routed()} == world.live, "of her nothing is known"
    stubborn_map.away = False
    await world.sees_again()
    named = {node_id: message.heads for node_id, message in world.desk.beat() if isinstance(message, Heads)}
    assert named == {node_id: {CHAT: 4} for node_id in world.live}


async def test_when_last_places_count_no_more_all_are_told_though_nothing_more_is_to_be_routed(
    stubborn_map: StubbornMap,
) -> None:
    world = World(stubborn_map, blind_s=0.001, remembered_s=0.5)
    world.router.start([_delivery(1, ["alice"])], [])
    await world.routed()
    world.desk.beat()
    stubborn_map.away = True
    world.router.start([_delivery(2, ["alice"])], [])
    await world.routed()
    await until(lambda: dict(world.desk.beat()) == dict.fromkeys(world.live, Heads({CHAT: 2})))
    assert world.router.is_blind
    await world.router.stop()


async def test_last_places_count_for_a_while_only(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map, blind_s=1e6, remembered_s=0.05)
    world.router.start([_delivery(1, ["alice"])], [])
    await world.routed()
    stubborn_map.away = True
    world.router.start([_delivery(2, ["alice"])], [])
    assert [node_id for node_id, _ in await world.routed()] == ["node-1"]

    async def told_all() -> bool:
        world.router.start([_delivery(3, ["alice"])], [])
        return {node_id for node_id, _ in await world.routed()} == world.live

    async with asyncio.timeout(GIVE_UP_S):
        while not await told_all():
            await asyncio.sleep(0.01)
    await world.router.stop()


async def test_a_map_that_cannot_be_understood_is_a_map_that_is_away(stubborn_map: StubbornMap) -> None:
    async def of_users(user_ids: Sequence[str]) -> dict[str, list[SessionEntry]]:
        raise UnicodeDecodeError("utf-8", b"", 0, 1, "garbage")

    world = World(stubborn_map, blind_s=1e6)
    stubborn_map.of_users = of_users  # type: ignore[method-assign]
    world.router.start([_delivery(1, ["alice"])], [])
    assert {node_id for node_id, _ in await world.routed()} == world.live
    assert world.defects == []
    await world.router.stop()


async def test_entries_of_nodes_that_are_gone_for_long_are_taken_out(stubborn_map: StubbornMap) -> None:
    """Their devices may never come back, and nobody else does it."""
    world = World(stubborn_map, stale_s=0.0)
    world.router.start([_delivery(1, ["bob"])], [])
    await world.routed()
    await until(lambda: stubborn_map.removed == [BOB_ON_DEAD])
    assert await stubborn_map.of_users(["bob"]) == {"bob": [BOB]}


async def test_entries_that_cannot_be_taken_out_keep_no_news(stubborn_map: StubbornMap) -> None:
    """Whatever is wrong with them, and however long the map takes over it."""
    begun, failing = asyncio.Event(), asyncio.Event()

    async def remove(entries: Sequence[SessionEntry]) -> None:
        begun.set()
        await failing.wait()
        raise ValueError("that cannot be sent anywhere")

    stubborn_map.remove = remove  # type: ignore[method-assign]
    world = World(stubborn_map, stale_s=0.0)
    for seq in (1, 2):
        world.router.start([_delivery(seq, ["bob"])], [])
        assert _seqs(await world.routed(), "node-2") == [seq]
        await begun.wait()
        failing.set()
    assert world.defects == []
    await world.router.stop()


async def test_a_node_that_is_seen_again_keeps_its_entries(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map, stale_s=0.01)
    world.live -= {"node-2"}
    world.router.start([_delivery(1, ["bob"])], [])
    await world.routed()
    world.live |= {"node-2"}

    async def swept() -> bool:
        world.router.start([_delivery(2, ["bob"])], [])
        await world.routed()
        return bool(stubborn_map.removed)

    async with asyncio.timeout(GIVE_UP_S):
        while not await swept():
            await asyncio.sleep(0.005)
    assert stubborn_map.removed == [BOB_ON_DEAD]


async def test_a_map_that_failed_is_left_alone_for_a_while(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map, blind_s=1e6)
    stubborn_map.away = True
    for seq in (1, 2, 3):
        world.router.start([_delivery(seq, ["alice"])], [])
        assert _seqs(await world.routed(), "node-3") == [seq]
    assert len(stubborn_map.read) == 1
    await world.router.stop()
    assert not world.router.is_blind


async def test_a_map_that_is_away_is_told_of_in_a_few_lines(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    stubborn_map.away = True
    with capture_logs() as lines:
        world.router.start([_delivery(1, ["alice"])], [])
        await world.routed()
        async with asyncio.timeout(GIVE_UP_S):
            while len(stubborn_map.read) < 100:
                await asyncio.sleep(0)
            stubborn_map.away = False
            await world.sees_again()
            while len(lines) < 2:
                await asyncio.sleep(0.01)
    assert [line["event"] for line in lines] == ["session_map_unavailable", "session_map_unavailable_over"]


async def test_a_redis_that_hangs_or_is_gone_or_empty_loses_no_order(
    redis_map: RedisSessionMap, own_redis: RedisServer
) -> None:
    world = World(redis_map, remembered_s=0.0)
    await redis_map.put([ALICE])
    world.router.start([_delivery(1, ["alice"])], [])
    said = await world.routed()
    own_redis.process.pause()
    world.router.start([_delivery(2, ["alice"])], [])
    said += await world.routed()
    own_redis.process.resume()
    await world.sees_again()
    own_redis.kill()
    world.router.start([_delivery(3, ["alice"])], [])
    said += await world.routed()
    assert _seqs(said, "node-1") == [1, 2, 3]
    assert _seqs(said, "node-2") == [2, 3]
    own_redis.start()
    await world.sees_again()
    world.router.start([_delivery(4, ["alice"])], [])
    assert await world.routed() == []
    await redis_map.put([ALICE])
    world.router.start([_delivery(5, ["alice"])], [])
    assert [node_id for node_id, _ in await world.routed()] == ["node-1"]


async def test_a_defect_is_told_and_stops_nothing(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    live, world.live = world.live, None  # type: ignore[assignment]
    world.router.start([_delivery(1, ["alice"])], [])
    assert await world.routed() == []
    assert [type(defect) for defect in world.defects] == [TypeError]
    world.live = live
    world.router.start([_delivery(2, ["alice"])], [])
    assert _seqs(await world.routed(), "node-1") == [2]


async def test_to_stop_ends_the_read_under_way(stubborn_map: StubbornMap) -> None:
    world = World(stubborn_map)
    async with stubborn_map.held("of_users"):
        world.router.start([_delivery(1, ["alice"])], [])
        await stubborn_map.until_held("of_users")
        await world.router.stop()
        assert world.router.is_idle
    await world.router.stop()
    assert (world.wake_ups, world.defects) == (0, [])


def _delivery(seq: int, recipients: Sequence[str], left_user_id: str = "") -> Delivery:
    return Delivery(CHAT, seq, str(seq).encode(), tuple(recipients), left_user_id, changes_members=False)


def _seqs(said: Sequence[tuple[str, Message]], node_id: str) -> list[int]:
    return [message.seq for to_node_id, message in said if to_node_id == node_id and isinstance(message, Deliver)]
