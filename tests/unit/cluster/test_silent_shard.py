"""A shard that nobody owns costs a device its chats of that shard, for as long as that lasts, and no other."""

from chatgrpc.cluster.history import ClusterHistory
from chatgrpc.core.clock import Now
from chatgrpc.core.effects import Admission
from chatgrpc.core.limits import Limits
from chatgrpc.core.session import Session, Timings
from chatgrpc.edge.session_reader import SessionReader
from chatgrpc.ports.errors import StoreUnavailableError
from chatgrpc.ports.lease_clock import lease_clock_ms
from chatgrpc.v1 import session_pb2
from tests.unit.cluster.small_cluster import (
    GIVE_UP_S,
    SmallCluster,
    SmallNode,
    group_creation,
    seqs,
    shard_of,
    small_cluster,
    text,
    until,
)

HELLO_TIMEOUT_S = 1.0
"""Of owners that are there; those that are not are waited for as long."""
SOON_S = 0.05
FAR_MS = 10**15


class Phone:
    """Alice's device at a node: its real session, which reads through the node's log."""

    def __init__(self, node: SmallNode, cluster: SmallCluster) -> None:
        self._node, self._cluster = node, cluster
        self.session = Session("session", "token", Limits(), Timings(), 0)
        self._delivered = 0

    def log(self, head_timeout_s: float) -> ClusterHistory:
        node = self._node
        return ClusterHistory(
            node.edge,
            self._cluster.rows,
            lease_clock_ms,
            node.wake_up,
            head_timeout_s=head_timeout_s,
            hello_timeout_s=HELLO_TIMEOUT_S,
        )

    async def come_in(self) -> None:
        hello = session_pb2.Hello(device_id="phone")
        self.session.receive(session_pb2.ClientFrame(request_id=1, hello=hello), 0)
        memberships, unknown = await self.log(GIVE_UP_S).readable_memberships("alice", "", 500)
        self.session.admitted(Admission("alice", FAR_MS, memberships, {}, [], "sync", unknown), Now(0, 0))
        self.session.after_read(0)

    async def read(self, head_timeout_s: float = GIVE_UP_S) -> None:
        """What the tick loop does until the session wants to read nothing more."""
        reader = SessionReader(self.log(head_timeout_s), Limits())
        while (wanted := self.session.next_read()) is not None:
            try:
                await reader.feed(self.session, wanted)
            except StoreUnavailableError:
                self.session.read_failed(wanted)
            self.session.after_read(self.session.deadline_ms)

    def frames(self) -> list[session_pb2.ServerFrame]:
        return list(session_pb2.ConnectResponse.FromString(self.session.take_output(0)).frames)

    def take_deliveries(self) -> None:
        for delivery in self._node.deliveries[self._delivered :]:
            self.session.deliver(delivery.chat_id, delivery.seq, delivery.chunk, last=False)
        self._delivered = len(self._node.deliveries)


def shown(frames: list[session_pb2.ServerFrame]) -> list[tuple[str, int]]:
    """Chat and seq of each event; with seq 0 where a chat is opened."""
    return [
        (frame.event.chat_id, frame.event.seq) if frame.HasField("event") else (frame.chat_opened.chat.chat_id, 0)
        for frame in frames
        if frame.HasField("event") or frame.HasField("chat_opened")
    ]


async def test_a_shard_without_an_owner_costs_a_device_its_chats_of_that_shard_until_it_has_one() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        healthy, first_sick = cluster.chat_owned_by(one), cluster.chat_owned_by(two)
        names = (f"g.{number}" for number in range(10_000))
        sick = [chat_id for chat_id in names if shard_of(chat_id) == shard_of(first_sick)][:3]
        for chat_id in (healthy, *sick):
            assert seqs([await one.send(group_creation(chat_id, "alice", "bob"))]) == [1]
        await cluster.connect("alice", one)
        one.coordinator.failing.add("take")
        two.crash()
        phone = Phone(one, cluster)
        await phone.come_in()
        await phone.read()
        welcome, *rest = phone.frames()
        assert welcome.HasField("welcome")
        assert shown(rest) == [(healthy, 0), (healthy, 1)]
        assert sorted(rest[-1].sync_complete.unread_chat_ids) == sick

        assert seqs([await one.send(text(healthy, "bob", 1, 1))]) == [2]
        await until(lambda: one.seqs(healthy) == [2])
        phone.take_deliveries()
        assert shown(phone.frames()) == [(healthy, 2)], "it is live"

        phone.session.on_deadline(phone.session.deadline_ms)
        await phone.read(SOON_S)
        assert shown(phone.frames()) == [], "there is no owner yet"

        one.coordinator.failing.clear()
        await until(lambda: shard_of(first_sick) in one.shards)
        while phone.session.feed.unread():
            phone.session.on_deadline(phone.session.deadline_ms)
            await phone.read()
        came = shown(phone.frames())
        assert sorted(came) == sorted((chat_id, seq) for chat_id in sick for seq in (0, 1))
        assert all(came.index((chat_id, 0)) < came.index((chat_id, 1)) for chat_id in sick)
        assert seqs([await one.send(text(sick[0], "bob", 1, 1))]) == [2]
        await until(lambda: one.seqs(sick[0])[-1:] == [2])
        phone.take_deliveries()
        assert shown(phone.frames()) == [(sick[0], 2)]
