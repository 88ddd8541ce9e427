"""One run: a cluster, its users, its misfortunes, and what must hold at the end."""

import random

from chatgrpc.core.ids import shard_of
from chatgrpc.core.sequencer import Delivery
from chatgrpc.v1 import session_pb2
from tests.sim.check import check, last_visible_to
from tests.sim.coordinator import Coordinator
from tests.sim.device import Device
from tests.sim.keeper import LEASE_TTL_MS
from tests.sim.links import Links
from tests.sim.misfortunes import Misfortunes
from tests.sim.node import Node
from tests.sim.parts import BUCKET_SEQS, Parts
from tests.sim.plan import DEVICES, STORM_MS, Act, Plan, plan_of
from tests.sim.session_map import MapEngine
from tests.sim.store import Store
from tests.sim.users import CHAT_IDS, Users, users_ever
from tests.sim.world import World

RECOVERY_MS = 1_000
"""After the last of what was under way in the storm (the slowest write, the longest pause) has come or is over."""
CALM_MAX_MS = 14_000
"""How long the cluster has to come to rest afterwards."""
NODES = 3
SHARDS = 3


class Cluster:
    """Everything in one run."""

    def __init__(self, seed: int, parts: Parts | None = None, traced: bool = False, plan: Plan | None = None) -> None:
        """`plan` instead of the seed's own: less of it, or another day's luck."""
        self.plan = plan or plan_of(seed)
        self.world = World(f"{self.plan.seed} {self.plan.noise}", traced)
        self.parts = parts or Parts()
        self.shard_count = SHARDS
        self._shards = {chat_id: shard_of(chat_id) % SHARDS for chat_id in CHAT_IDS}
        self.chat_ids = CHAT_IDS
        self.users_ever = users_ever
        self.store = Store(self.world, self.plan.climate, BUCKET_SEQS)
        self.coordinator = Coordinator(self.world, self.plan.climate, LEASE_TTL_MS)
        self.map = MapEngine(self.world, self.plan.climate)
        self.links = Links(self.world, self.plan.climate, self)
        self.misfortunes = Misfortunes(self)
        self.users = Users(self)
        self.nodes: list[Node] = []
        self._numbers = 0
        self._starts = 0
        self._edits: dict[tuple[str, int], list[int]] = {}
        self._stated: dict[str, int] = {}
        for _ in range(NODES):
            self.start_node()
        self.devices = [Device(self, device_id) for device_id in DEVICES]

    def start_node(self) -> None:
        self._starts += 1
        self.nodes.append(Node(self, f"n{self._starts}"))

    def node(self, node_id: str) -> Node | None:
        """A node that lives."""
        for node in self.nodes:
            if node.node_id == node_id:
                return node
        return None

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def shard_of(self, chat_id: str) -> int:
        return self._shards[chat_id]

    def committed(self, node_id: str, delivery: Delivery) -> None:
        """An owner has counted an event."""
        self.stated(delivery.chat_id, delivery.seq)
        event = session_pb2.ConnectResponse.FromString(delivery.chunk).frames[0].event
        self.world.witness(node_id, delivery.chat_id, delivery.seq, event.SerializeToString(deterministic=True))
        match event.content.WhichOneof("body"):
            case "edit":
                self._edits.setdefault((event.chat_id, event.content.edit.target_seq), []).append(event.seq)
            case "delete":
                target_seq = event.content.delete.target_seq
                for seq in (target_seq, *self._edits.get((event.chat_id, target_seq), ())):
                    self.world.witness_erasure(event.chat_id, seq)

    def stated(self, chat_id: str, seq: int) -> None:
        """An owner has said that the chat is committed up to there."""
        self._stated[chat_id] = max(seq, self._stated.get(chat_id, 0))

    def head_seq(self, chat_id: str) -> int:
        """The last event of a chat that counts: what any owner ever stated, or a view says, which is stored just before that.

        A row above it is no event (visibility rule), though the next owner might take it over. It may have come after the owner
        of now had looked, or to a replica that was not asked; nobody has been promised it, and nobody can know of it.
        """
        of_views = [
            seq
            for replica in self.store.replicas
            for intervals in replica.members.values()
            for interval in intervals.get(chat_id, {}).items()
            for seq in interval
        ]
        return max(self._stated.get(chat_id, 0), *of_views, *(node.edge.desk.stated_seq(chat_id) for node in self.nodes))

    def run(self) -> None:
        """The whole run.

        Raises:
            BrokenError: a guarantee does not hold.
        """
        for device in self.devices:
            device.connect()
        self.world.after(300, self.users.make_groups)
        for act in self.plan.acts:
            self.world.after(act.at_ms, lambda act=act: self._act(act))  # type: ignore[misc]
        self.world.run(STORM_MS)
        self.world.calm = True
        self.world.note("world", "all is calm")
        for replica in self.store.replicas:
            replica.up = True
        for end_ms in range(self.world.under_way_until_ms + RECOVERY_MS, STORM_MS + CALM_MAX_MS, 300):
            self.world.run(end_ms)
            if self._is_settled():
                break
        check(self)

    def _act(self, act: Act) -> None:
        rng = random.Random(f"act {self.plan.seed} {act.number}")
        if act.device_id:
            self.users.act(act, rng)
        else:
            self.misfortunes.strike(act.kind, rng)

    def _is_settled(self) -> bool:
        """Nobody waits for anything, and every device has what counts; of that the nodes of now may know little, if those who
        stated it are gone."""
        if any(not device.open or any(device.outbox.values()) for device in self.devices):
            return False
        if any(node.edge.desk.questions_waiting for node in self.nodes):
            return False
        return self.users.all_answered and all(
            device.held.get(chat_id, 0) >= seq for chat_id in self.chat_ids for device, seq in last_visible_to(self, chat_id)
        )
