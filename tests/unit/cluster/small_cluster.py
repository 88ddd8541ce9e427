"""A few whole nodes of one process, but for their streams.

Desks, store runner, router, ordering and keeper are the real ones, over one coordinator, session map and store in memory.
Links are calls that a test can cut.
"""

import asyncio
import random
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

from chatgrpc.adapters.memory import MemoryCoordinator, MemoryStore
from chatgrpc.cluster.ordering import ClusterOrdering
from chatgrpc.cluster.router import Router
from chatgrpc.cluster.shard_keeper import Pace, ShardKeeper
from chatgrpc.cluster.store_runner import StoreRunner
from chatgrpc.core.edge_desk import EdgeDesk, Missed
from chatgrpc.core.lanes import EdgeLanes
from chatgrpc.core.lease import Holds
from chatgrpc.core.limits import Limits
from chatgrpc.core.links import EndStream, EndStreamHeard, Message, ShowReceipt, ShowTyping
from chatgrpc.core.owner_desk import OwnerDesk, Tenure
from chatgrpc.core.sequencer import Delivery
from chatgrpc.core.shard import Shard
from chatgrpc.core.tending import ShardOwner, wanted_owner
from chatgrpc.core.write import Write
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.look_up import LookUps
from chatgrpc.metrics import Metrics
from chatgrpc.ports.cluster import NodeInfo
from chatgrpc.ports.lease_clock import lease_clock_ms, lease_clock_s, now
from chatgrpc.ports.session_map import SessionEntry
from chatgrpc.start_error import StartError
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.cluster.stubborn_coordinator import StubbornCluster
from tests.unit.cluster.stubborn_map import StubbornMap
from tests.unit.cluster.stubborn_rows import StubbornRows

SHARDS = 16
GIVE_UP_S = 60.0
_TICK_S = 0.005
_LOOK_AGAIN_S = 0.2
_BEAT_S = 0.02
_RESEND_MS = 30
_PACE = Pace(tend_interval_s=0.001, look_again_s=0.02, retry_s=0.005, finish_timeout_s=GIVE_UP_S)

Outcome = chat_pb2.SendResult | chat_pb2.Error


def shard_of(chat_id: str) -> int:
    """Fewer shards than a real cluster has: each test takes all of them."""
    return zlib.crc32(chat_id.encode()) % SHARDS


class SmallNode:
    """One node, and what its edge was told."""

    def __init__(self, cluster: "SmallCluster", node_id: str, pace: Pace, give_up_ms: int) -> None:
        self.node_id = node_id
        self.coordinator = StubbornCluster(cluster.coordinator)
        self.outcomes: dict[object, Outcome] = {}
        """By ticket."""
        self.deliveries: list[Delivery] = []
        self.shown: list[ShowReceipt | ShowTyping] = []
        self.ended: list[EndStream] = []
        self.confirmed: list[str] = []
        self.loads: dict[str, int] = {}
        self.heads: dict[str, int] = {}
        """Heads of pushes that were missed."""
        self.chats_missed: list[str] = []
        self.times_returned = 0
        self.refusal = ""
        """Why it must not join."""
        self.refusals = 0
        self.seen_owners: Mapping[int, ShardOwner] = {}
        self.seen_nodes: Mapping[str, NodeInfo] = {}
        self.defects: list[BaseException] = []
        limits = cluster.limits
        self.desk = OwnerDesk(limits, shard_of)
        self.edge = EdgeDesk(node_id, EdgeLanes(_RESEND_MS, give_up_ms), shard_of, _RESEND_MS, 1_000)
        self.metrics = Metrics()
        self.book = DamageBook(self.metrics)
        look_ups = LookUps(cluster.rows, MemoryStore().receipts, limits.groups_by_others_max)
        self.runner = StoreRunner(self.desk, cluster.rows, cluster.rows, look_ups, self.wake_up, self.defects.append)
        self.router = Router(self.desk, cluster.session_map, lambda: self.seen_nodes, self.wake_up, self.defects.append)
        self.ordering = ClusterOrdering(
            node_id,
            self.edge,
            self.desk,
            self.runner,
            self.router,
            self.book,
            self._send,
            self.wake_up,
            beat_interval_s=_BEAT_S,
            look_again_interval_s=_LOOK_AGAIN_S,
        )
        self.ordering.tell(self)
        self.keeper = ShardKeeper(
            self.coordinator,
            NodeInfo(node_id, f"{node_id}:1", f"{node_id}:2"),
            self._may_join,
            self.desk,
            self.runner,
            self._new_shard,
            self.ordering.finish,
            self._seen,
            self._returned,
            self.book,
            self.defects.append,
            pace=pace,
            shard_count=SHARDS,
        )
        self._cluster = cluster
        self._random = random.Random(node_id)
        self._tick_scheduled = False
        self._tasks: list[asyncio.Task[None]] = []

    # Life.

    def start(self) -> None:
        """Joins, and ticks."""
        self._tasks = [asyncio.create_task(self.keeper.run()), asyncio.create_task(self._pass_time())]

    async def stop(self) -> None:
        """Leaves the cluster, as `ClusterNode.close` does."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.keeper.leave()
        await self.runner.stop()
        await self.router.stop()

    def crash(self) -> None:
        """Nothing of it runs on; the coordinator ends its lease."""
        for task in self._tasks:
            task.cancel()
        self.desk.drop_all()
        self._cluster.nodes.remove(self)
        self.coordinator.lose_lease()

    def wake_up(self) -> None:
        """Starts a tick soon."""
        if not self._tick_scheduled:
            self._tick_scheduled = True
            asyncio.get_running_loop().call_soon(self.tick)

    def tick(self) -> None:
        """Goes on with all that can go on."""
        self._tick_scheduled = False
        if self not in self._cluster.nodes:
            return
        try:
            progress = self.ordering.pump(now())
        except Exception as defect:  # as the tick loop does
            self.defects.append(defect)
            return
        self.outcomes |= {answer.ticket: answer.outcome for answer in progress.answers}
        self.deliveries += progress.deliveries
        self.heads |= progress.heads

    async def ticks(self) -> None:
        """Returns after a few ticks, in which nothing need have happened."""
        for _ in range(5):
            self.wake_up()
            await asyncio.sleep(0.002)

    # What tests do with it.

    @property
    def shards(self) -> set[int]:
        """Those in its hands."""
        return set(self.desk.tenures)

    def epochs(self) -> dict[int, int]:
        """Of the shards in its hands."""
        return {number: tenure.shard.epoch for number, tenure in self.desk.tenures.items()}

    def submit(self, ticket: object, write: Write, session_id: str = "session") -> None:
        """Sends a write on its way."""
        self.ordering.submit(ticket, session_id, write, now())
        self.wake_up()

    async def outcome(self, ticket: object) -> Outcome:
        """What became of a write."""
        await until(lambda: ticket in self.outcomes)
        return self.outcomes[ticket]

    async def send(self, write: Write, session_id: str = "session") -> Outcome:
        """Submits a write and waits for its outcome."""
        ticket = object()
        self.submit(ticket, write, session_id)
        return await self.outcome(ticket)

    async def head_of(self, chat_id: str) -> int:
        """A head that an owner states after this call."""
        heads: list[int | None] = []
        self.edge.ask_head(chat_id, heads.append, lease_clock_ms())
        self.wake_up()
        await until(lambda: bool(heads))
        assert heads[0] is not None, "the chat is damaged"
        return heads[0]

    def seqs(self, chat_id: str) -> list[int]:
        """Of the chat's events that were delivered here."""
        return [delivery.seq for delivery in self.deliveries if delivery.chat_id == chat_id]

    # What its parts say.

    def show(self, notice: ShowReceipt | ShowTyping) -> Iterator[None]:
        self.shown.append(notice)
        return iter(())

    def end_stream(self, sender_id: str, message: EndStream) -> None:
        self.ended.append(message)

    def end_stream_heard(self, node_id: str, message: EndStreamHeard) -> None:
        self.confirmed.append(node_id)

    def note_load(self, node_id: str, streams: int) -> None:
        self.loads[node_id] = streams

    def missed(self, missed: Mapping[str, Missed]) -> None:
        self.chats_missed += missed

    def shard_failed(self, tenure: Tenure, defect: Exception) -> None:
        self.keeper.shard_failed(tenure, defect)

    async def _may_join(self) -> None:
        if self.refusal:
            self.refusals += 1
            raise StartError(self.refusal)

    def _returned(self) -> None:
        self.times_returned += 1

    def _seen(self, owners: Mapping[int, ShardOwner], nodes: Mapping[str, NodeInfo]) -> None:
        self.seen_owners, self.seen_nodes = owners, nodes
        self.ordering.see(owners, frozenset(nodes))

    def _new_shard(self, epoch: int, lease: Holds) -> Shard:
        return Shard(epoch, lease, self._cluster.limits, self._random)

    def _send(self, node_id: str, message: Message) -> bool:
        return self._cluster.carry(self.node_id, node_id, message)

    async def _pass_time(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self.coordinator.keep_alive()
            self.ordering.pass_time(now())


class SmallCluster:
    """The nodes, and what they share."""

    def __init__(self, limits: Limits | None = None, pace: Pace = _PACE, give_up_ms: int = 600_000) -> None:
        """Nodes give up a write after `give_up_ms`."""
        self.limits = limits or Limits()
        self.coordinator = MemoryCoordinator(lease_clock_s, ttl_s=600.0)
        self.rows = StubbornRows()
        self.session_map = StubbornMap()
        self.nodes: list[SmallNode] = []
        self.cut: set[tuple[str, str]] = set()
        """Pairs (from, to) between which nothing gets through."""
        self.carried: list[tuple[str, str, Message]] = []
        """What links have carried: from, to, what."""
        self._pace = pace
        self._give_up_ms = give_up_ms

    def add(self, node_id: str = "") -> SmallNode:
        """Starts one more node."""
        node = SmallNode(self, node_id or f"node-{len(self.nodes) + 1}", self._pace, self._give_up_ms)
        self.nodes.append(node)
        node.start()
        return node

    async def settled(self) -> None:
        """Returns when all shards are with those who should own them, and all nodes know it."""
        await until(self._is_settled)

    async def connect(self, user_id: str, *nodes: SmallNode) -> None:
        """The user has devices at these nodes."""
        await self.session_map.put([SessionEntry(user_id, f"at-{node.node_id}", node.node_id) for node in nodes])

    def carry(self, sender_id: str, receiver_id: str, message: Message) -> bool:
        """A link, or none."""
        receiver = next((node for node in self.nodes if node.node_id == receiver_id), None)
        if receiver is None or (sender_id, receiver_id) in self.cut:
            return False
        self.carried.append((sender_id, receiver_id, message))
        asyncio.get_running_loop().call_soon(receiver.ordering.receive, sender_id, [message])
        return True

    def owner_of(self, chat_id: str) -> SmallNode:
        """The node in whose hands the chat is."""
        (owner,) = (node for node in self.nodes if shard_of(chat_id) in node.shards)
        return owner

    def chat_owned_by(self, node: SmallNode) -> str:
        """The name of a group, not created yet, that this node owns."""
        candidates = (f"g.{number}" for number in range(10_000))
        return next(chat_id for chat_id in candidates if shard_of(chat_id) in node.shards)

    def _is_settled(self) -> bool:
        owners = {shard: owner for shard, (owner, _) in self.coordinator.owners.items()}
        may_own = tuple(sorted(node_id for node_id, (info, _) in self.coordinator.nodes.items() if not info.draining))
        held = {shard: node.node_id for node in self.nodes for shard in node.shards}
        wanted = {shard: wanted_owner(may_own, shard) for shard in range(SHARDS)}
        everyone_knows = all(
            {shard: owner.epoch for shard, owner in node.seen_owners.items()}
            == {shard: owner.epoch for shard, owner in owners.items()}
            and node.seen_nodes.keys() == self.coordinator.nodes.keys()
            for node in self.nodes
        )
        return held == wanted == {shard: owner.node_id for shard, owner in owners.items()} and everyone_knows


@asynccontextmanager
async def small_cluster(
    nodes: int = 2, limits: Limits | None = None, pace: Pace = _PACE, give_up_ms: int = 600_000
) -> AsyncIterator[SmallCluster]:
    """A cluster that has settled; at the end no node has met a defect."""
    cluster = SmallCluster(limits, pace, give_up_ms)
    for _ in range(nodes):
        cluster.add()
    everyone = list(cluster.nodes)
    try:
        await cluster.settled()
        yield cluster
    finally:
        everyone = list(dict.fromkeys([*everyone, *cluster.nodes]))
        for node in everyone:
            await node.stop()
    assert [defect for node in everyone for defect in node.defects] == []


async def until(holds: Callable[[], bool]) -> None:
    """Returns when it is so."""
    async with asyncio.timeout(GIVE_UP_S):
        while not holds():
            await asyncio.sleep(0.001)


def group_creation(chat_id: str, *user_ids: str) -> Write:
    """Creates a group; the first of its members does so, and owns it."""
    created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
    for user_id in user_ids:
        role = content_pb2.MEMBER_ROLE_OWNER if user_id == user_ids[0] else content_pb2.MEMBER_ROLE_MEMBER
        created.members.add(user_id=user_id, role=role)
    return Write(chat_id, user_ids[0], content_pb2.Content(chat_created=created), bytes(16), 0)


def text(chat_id: str, sender: str, number: int, seen_seq: int) -> Write:
    """A message; `number` makes its id."""
    content = content_pb2.Content(text=content_pb2.TextContent(text=f"{sender} {number}"))
    return Write(chat_id, sender, content, number.to_bytes(16), seen_seq)


def seqs(outcomes: Sequence[Outcome]) -> list[int]:
    """Of results; an error is none."""
    assert all(isinstance(outcome, chat_pb2.SendResult) for outcome in outcomes), outcomes
    return [outcome.seq for outcome in outcomes if isinstance(outcome, chat_pb2.SendResult)]
