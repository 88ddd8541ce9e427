"""Receipts and typing reach whom they concern on any node; streams are ended wherever they are."""

import asyncio
from collections.abc import Iterator, Mapping

import pytest

from chatgrpc.adapters.memory import MemoryLastSeen, MemorySharedLooks, MemoryStore
from chatgrpc.cluster.audience import ClusterAudience, RecentReceipts
from chatgrpc.cluster.looks import LookScreens
from chatgrpc.cluster.presence import PresenceScreens
from chatgrpc.cluster.sessions import Sessions
from chatgrpc.core.clock import Now
from chatgrpc.core.edge_desk import Missed
from chatgrpc.core.effects import Watch
from chatgrpc.core.links import EndStream, EndStreamHeard, Message, RaiseMark, ShowReceipt, ShowTyping
from chatgrpc.core.owner_desk import Tenure
from chatgrpc.core.receipts import Mark, Raised
from chatgrpc.edge.connection import Connection
from chatgrpc.ports.accounts import Device
from chatgrpc.ports.errors import StoreUnavailableError
from chatgrpc.ports.lease_clock import lease_clock_ms
from chatgrpc.ports.session_map import SessionEntry
from chatgrpc.v1 import chat_pb2, session_pb2
from tests.unit.cluster.small_cluster import SmallCluster, SmallNode, group_creation, small_cluster, text, until
from tests.unit.cluster.streams import Streams

CHAT = "g.1"
REPLACED = session_pb2.DISCONNECT_CODE_REPLACED
REVOKED = session_pb2.DISCONNECT_CODE_DEVICE_REVOKED
TOO_MANY = session_pb2.DISCONNECT_CODE_TOO_MANY_DEVICES


class Place:
    """One node's streams and audience."""

    def __init__(self, cluster: SmallCluster, node: SmallNode) -> None:
        self.node = node
        self.streams = Streams()
        self.ended: list[EndStream] = []
        self.now_ms = 100_000
        self.last_seen = MemoryLastSeen()
        self.sessions = Sessions(node.node_id, cluster.session_map, lambda entry: None, lambda: None)
        self.presence = PresenceScreens(
            self.streams.connections.show,
            node.edge,
            self.sessions,
            self.last_seen,
            lambda: node.seen_nodes,
            lease_clock_ms,
        )
        self.devices = MemoryStore().devices
        self.shared_looks = MemorySharedLooks(lambda: self.now_ms / 1000)
        self.looks = LookScreens(self.streams.connections.show, self.shared_looks, self.presence.is_watched)
        self.audience = ClusterAudience(
            self.streams.connections,
            node.edge,
            self.sessions,
            self.presence,
            self.looks,
            self.devices,
            lambda: node.seen_nodes,
            node.ordering.say,
            lambda: self.now_ms,
        )
        node.ordering.tell(self)

    async def connect(self, user_id: str, device_id: str = "phone") -> Connection:
        """A device comes in here."""
        connection = self.streams.open(user_id, device_id=device_id)
        await self.audience.connected(connection)
        return connection

    def shown(self, connection: Connection) -> list[chat_pb2.Receipt | session_pb2.Typing]:
        """What the device has been shown since it was asked last."""
        frames = self.streams.frames(connection)
        return [frame.receipt if frame.HasField("receipt") else frame.typing for frame in frames]

    def show(self, notice: ShowReceipt | ShowTyping) -> Iterator[None]:
        return self.audience.show(notice)

    def end_stream(self, sender_id: str, message: EndStream) -> None:
        self.ended.append(message)
        self.node.ordering.say(sender_id, EndStreamHeard(message.user_id, message.device_id, message.code))

    def end_stream_heard(self, node_id: str, message: EndStreamHeard) -> None:
        self.audience.end_stream_heard(node_id, message)

    def note_load(self, node_id: str, streams: int) -> None:
        raise AssertionError("nobody tells")

    def missed(self, missed: Mapping[str, Missed]) -> None:
        raise AssertionError("no link is cut")

    def shard_failed(self, tenure: Tenure, defect: Exception) -> None:
        raise defect


class World:
    """Two nodes, and a group of Alice, Bob and Carol in which Alice has said something."""

    def __init__(self, cluster: SmallCluster) -> None:
        self.cluster = cluster
        self.one, self.two = (Place(cluster, node) for node in cluster.nodes[:2])

    async def create_chat(self) -> None:
        await self.one.node.send(group_creation(CHAT, "alice", "bob", "carol"))
        await self.one.node.send(text(CHAT, "alice", 1, 1))

    async def said(self) -> None:
        """Returns when all that was said so far has been heard by whom it concerns."""
        for node in self.cluster.nodes:
            await node.head_of(CHAT)
        await until(lambda: all(node.router.is_idle for node in self.cluster.nodes))
        for node in self.cluster.nodes:
            await node.head_of(CHAT)


def receipt(user_id: str, delivered_seq: int, read_seq: int) -> chat_pb2.Receipt:
    return chat_pb2.Receipt(chat_id=CHAT, user_id=user_id, delivered_seq=delivered_seq, read_seq=read_seq)


def raised(user_id: str, delivered_seq: int, read_seq: int, from_seq: int = 0) -> Raised:
    return Raised(Mark(CHAT, user_id, delivered_seq, read_seq, 1_000), from_seq, 0)


# Receipts.


async def test_a_mark_is_shown_to_the_sender_on_whichever_node() -> None:
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster)
        await world.create_chat()
        alice, alice_web = await world.one.connect("alice"), await world.two.connect("alice", "web")
        bob, carol = await world.two.connect("bob"), await world.two.connect("carol")
        world.two.audience.mark_raised(raised("bob", 2, 0))
        await world.said()
        assert world.one.shown(alice) == world.two.shown(alice_web) == [receipt("bob", 2, 0)]
        assert world.two.shown(bob) == world.two.shown(carol) == []
        assert list(world.one.streams.connections.with_control) == [alice]


async def test_what_was_read_is_shown_to_the_readers_own_devices_too() -> None:
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster)
        await world.create_chat()
        bob_web = await world.one.connect("bob", "web")
        world.two.audience.mark_raised(raised("bob", 2, 2))
        await world.said()
        assert world.one.shown(bob_web) == [receipt("bob", 2, 2)]


async def test_a_sender_who_came_in_between_is_told_when_the_mark_is_stored_and_no_other_again() -> None:
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster)
        await world.create_chat()
        early = await world.one.connect("alice")
        world.two.audience.mark_raised(raised("bob", 2, 0))
        await world.said()
        assert world.one.shown(early) == [receipt("bob", 2, 0)]
        late = await world.two.connect("alice", "web")
        world.two.audience.marks_saved([raised("bob", 2, 0).mark])
        await world.said()
        assert world.two.shown(late) == [receipt("bob", 2, 0)]
        assert world.one.shown(early) == []


async def test_a_mark_is_told_once_more_when_it_is_stored_and_then_no_more() -> None:
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster)
        await world.create_chat()
        world.two.audience.mark_raised(raised("bob", 2, 0))
        for _ in range(2):
            world.two.audience.marks_saved([raised("bob", 2, 0).mark])
            await world.said()
            alice = await world.one.connect("alice")
            world.two.audience.marks_saved([raised("carol", 2, 0).mark])
        assert world.one.shown(alice) == []


async def test_a_mark_that_rose_while_it_was_stored_is_told_from_where_it_had_been() -> None:
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster)
        await world.create_chat()
        await world.one.node.send(text(CHAT, "carol", 1, 1))
        first = raised("bob", 2, 0)
        world.two.audience.mark_raised(first)
        second = Raised(Mark(CHAT, "bob", 3, 0, 2_000), 2, 0)
        world.two.audience.mark_raised(second)
        world.two.audience.marks_saved([first.mark])
        await world.said()
        alice, carol = await world.one.connect("alice"), await world.one.connect("carol")
        world.two.audience.marks_saved([second.mark])
        await world.said()
        assert world.one.shown(alice) == world.one.shown(carol) == [receipt("bob", 3, 0)]


def test_a_receipt_is_shown_again_only_after_a_while_or_if_it_rose() -> None:
    streams = Streams()
    one, two = streams.open("alice"), streams.open("alice", device_id="web")
    recent = RecentReceipts(forget_after_ms=100)
    assert recent.news(one, receipt("bob", 2, 0), 1_000) == receipt("bob", 2, 0)
    assert recent.news(two, receipt("bob", 2, 0), 1_000) == receipt("bob", 2, 0)
    assert recent.news(one, receipt("carol", 2, 0), 1_000) == receipt("carol", 2, 0)
    assert recent.news(one, receipt("bob", 2, 0), 1_099) is None
    assert recent.news(one, receipt("bob", 1, 0), 1_099) is None
    assert recent.news(one, receipt("bob", 2, 1), 1_100) == receipt("bob", 2, 1)
    assert recent.news(one, receipt("bob", 2, 1), 1_199) is None
    assert recent.news(one, receipt("bob", 2, 1), 1_400) == receipt("bob", 2, 1)


def test_a_receipt_of_one_node_takes_back_nothing_of_what_another_one_told() -> None:
    connection = Streams().open("alice")
    recent = RecentReceipts(forget_after_ms=100)
    recent.news(connection, receipt("bob", 2, 1), 1_000)
    assert recent.news(connection, receipt("bob", 3, 0), 1_000) == receipt("bob", 3, 1)
    assert recent.news(connection, receipt("bob", 3, 1), 1_000) is None


def test_receipts_of_long_ago_take_no_memory() -> None:
    recent = RecentReceipts(forget_after_ms=100)
    connection = Streams().open("alice")
    for number in range(1_000):
        recent.news(connection, receipt(f"user-{number}", 1, 0), 1_000)
    recent.news(connection, receipt("bob", 1, 0), 1_200)
    assert len(recent._new) + len(recent._old) == 1


# Typing.


async def test_typing_is_shown_to_the_others_in_the_chat() -> None:
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster)
        await world.create_chat()
        alice, alice_web = await world.one.connect("alice"), await world.two.connect("alice", "web")
        bob, zoe = await world.two.connect("bob"), await world.two.connect("zoe")
        world.one.audience.typing(CHAT, alice, session_pb2.TYPING_KIND_TEXT)
        world.two.audience.typing(CHAT, zoe, session_pb2.TYPING_KIND_TEXT)
        await world.said()
        assert world.two.shown(bob) == [session_pb2.Typing(chat_id=CHAT, user_id="alice", kind=session_pb2.TYPING_KIND_TEXT)]
        assert [world.one.shown(alice), world.two.shown(alice_web), world.two.shown(zoe)] == [[], [], []]
        assert bob in world.two.streams.connections.with_control


async def test_what_is_typed_is_serialized_once_for_all_who_are_shown_it_here() -> None:
    async with small_cluster(nodes=2) as cluster:
        place = World(cluster).one
        shown = [await place.connect(user_id) for user_id in ("bob", "carol")]
        steps = list(place.show(ShowTyping(CHAT, "alice", session_pb2.TYPING_KIND_TEXT, ("bob", "carol"))))
        bobs, carols = (chunk for connection in shown for chunk in connection.session.control.values())
        assert bobs is carols
        assert len(steps) == 2, "there may be hundreds"


# Sessions.


async def test_who_comes_is_in_the_map_and_who_goes_was_seen_last_then() -> None:
    async with small_cluster(nodes=2) as cluster:
        place = World(cluster).one
        alice = await place.connect("alice")
        place.audience.watch(alice, Watch((CHAT,), ("bob",)))
        assert await cluster.session_map.of_users(["alice"]) == {"alice": [SessionEntry("alice", "phone", place.node.node_id)]}
        place.audience.disconnected(alice, Now(wall_ms=5_000, monotonic_ms=1))
        assert len(place.sessions) == 0
        assert place.presence._chats == {}
        assert place.looks._looks.pairs() == []
        await place.presence.save_last_seen()
        assert await place.last_seen.of_users(["alice"]) == {"alice": 5_000}


async def test_of_two_streams_of_a_device_its_own_number_says_which_is_the_older() -> None:
    """Whichever Hello came later. A node that is asked to end the newer one says so, and the other ends its own."""
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster)
        newer, late = await world.one.connect("alice"), await world.two.connect("alice")
        newer.session.connection_number, late.session.connection_number = 8, 7
        asked = EndStream("alice", "phone", REPLACED, connection_number=7)
        assert world.one.audience.order_of(asked, world.two.node.node_id) == 1
        await until(lambda: bool(world.two.ended))
        assert world.two.ended == [EndStream("alice", "phone", REPLACED, connection_number=8)]
        assert world.two.audience.order_of(world.two.ended[0], world.one.node.node_id) == -1
        for unnumbered in (newer, late):
            unnumbered.session.connection_number = 0
        assert world.one.audience.order_of(asked, world.two.node.node_id) == 0, "as before: who came last stays"


async def test_the_devices_of_a_user_are_known_on_all_live_nodes_and_without_the_map_here() -> None:
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster)
        await world.one.connect("alice")
        await world.two.connect("alice", "web")
        await cluster.session_map.put([SessionEntry("alice", "tablet", "node-dead")])
        assert await world.one.audience.online_devices("alice") == {"phone", "web"}
        assert await world.one.audience.online_devices("bob") == frozenset()
        cluster.session_map.away = True
        assert await world.one.audience.online_devices("alice") == {"phone"}


async def test_a_stream_is_ended_wherever_it_is_and_for_a_while_wherever_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatgrpc.cluster.audience._END_INTERVAL_S", 0.001)
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster)
        running = asyncio.create_task(world.one.audience.run())
        await world.one.audience.end_elsewhere("alice", "phone", REVOKED)
        await until(lambda: len(world.two.ended) >= 3 and len(world.one.ended) >= 3)
        assert set(world.two.ended) == {EndStream("alice", "phone", REVOKED)}
        assert world.one.audience._ended, "a device may have been at the door"
        world.one.now_ms += 12_000
        await until(lambda: not world.one.audience._ended)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_stream_that_is_to_end_is_spoken_of_until_each_node_has_confirmed_it_or_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatgrpc.cluster.audience._END_INTERVAL_S", 0.001)
    async with small_cluster(nodes=3) as cluster:
        world, three = World(cluster), cluster.nodes[2]
        one_id = world.one.node.node_id
        cluster.cut = {(one_id, world.two.node.node_id), (three.node_id, one_id)}
        running = asyncio.create_task(world.one.audience.run())
        await world.one.audience.end_elsewhere("alice", "phone", REVOKED)
        world.one.now_ms += 60_000  # long after an admission can have been under way
        await until(lambda: len(three.ended) > 2)
        assert world.two.ended == []
        assert world.one.audience._ended, "two has not heard it, and nobody knows whether three has"
        cluster.cut = {(three.node_id, one_id)}
        await until(lambda: bool(world.two.ended))
        assert world.one.audience._ended
        three.crash()
        await until(lambda: not world.one.audience._ended)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_device_that_gave_way_and_came_back_keeps_its_stream() -> None:
    """The node where it gave way says for a while yet that its stream is to end."""
    async with small_cluster(nodes=2) as cluster:
        here, sender_id = World(cluster).one, cluster.nodes[1].node_id
        asked = EndStream("alice", "job-1", TOO_MANY)
        assert not await here.audience.is_to_end(asked, sender_id), "it has none here"
        for device_id in ("job-1", "job-2"):
            connected = await here.devices.connect("alice", device_id, "", 1, 1, ephemeral=True)
        assert connected.gave_way == "job-1"
        await here.connect("alice", "job-1")
        assert await here.audience.is_to_end(asked, sender_id)
        assert (await here.devices.connect("alice", "job-1", "", 2, 1, ephemeral=True)).gave_way == "job-2"
        assert not await here.audience.is_to_end(asked, sender_id)
        assert await here.audience.is_to_end(EndStream("alice", "job-1", REVOKED), sender_id)


async def test_a_device_that_comes_back_while_it_is_looked_up_keeps_its_new_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async with small_cluster(nodes=2) as cluster:
        here = World(cluster).one
        before = await here.connect("alice", "job-1")
        listed = here.devices.list

        async def meanwhile(user_id: str) -> list[Device]:
            found = await listed(user_id)
            here.streams.close(before)
            await here.connect("alice", "job-1")
            return found

        monkeypatch.setattr(here.devices, "list", meanwhile)
        assert not await here.audience.is_to_end(EndStream("alice", "job-1", TOO_MANY), cluster.nodes[1].node_id)


async def test_nobody_is_sent_away_for_another_device_while_the_store_does_not_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with small_cluster(nodes=2) as cluster:
        here = World(cluster).one
        await here.connect("alice", "job-1")

        async def away(user_id: str) -> list[Device]:
            raise StoreUnavailableError("away")

        monkeypatch.setattr(here.devices, "list", away)
        with pytest.raises(StoreUnavailableError):
            await here.audience.is_to_end(EndStream("alice", "job-1", TOO_MANY), cluster.nodes[1].node_id)


async def test_the_node_that_a_device_has_left_is_told_if_it_lives() -> None:
    async with small_cluster(nodes=2) as cluster:
        world = World(cluster)
        world.one.audience.moved_here(SessionEntry("alice", "phone", world.two.node.node_id))
        world.one.audience.moved_here(SessionEntry("alice", "phone", "node-dead"))
        await until(lambda: bool(world.two.ended))
        assert world.two.ended == [EndStream("alice", "phone", REPLACED)]
        assert world.one.ended == []


async def test_a_mark_that_is_stored_once_more_while_it_rises_is_no_news_of_a_fall() -> None:
    """What is told then would say that nothing rose; the mark that rose is told when it is stored."""
    async with small_cluster(1) as cluster:
        place = Place(cluster, cluster.nodes[0])
        told: list[Message] = []
        place.node.edge.tell = lambda chat_id, message: told.append(message)  # type: ignore[method-assign]
        ten, twelve = (Mark(CHAT, "bob", seq, 0, seq) for seq in (10, 12))
        place.audience.mark_raised(Raised(ten, 0, 0))
        place.audience.marks_saved([ten])
        place.audience.mark_raised(Raised(twelve, 10, 0))
        place.audience.marks_saved([ten])
        place.audience.marks_saved([twelve])
        assert told == [
            RaiseMark(CHAT, "bob", 10, 0, 0, 0),
            RaiseMark(CHAT, "bob", 10, 0, 0, 0),
            RaiseMark(CHAT, "bob", 12, 0, 10, 0),
            RaiseMark(CHAT, "bob", 12, 0, 10, 0),
        ]
