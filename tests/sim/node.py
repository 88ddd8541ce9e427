"""A node: the real core in small shells, on virtual time. It is an edge, and the owner of some shards."""

from typing import TYPE_CHECKING

from chatgrpc.core.edge_desk import ForEdge
from chatgrpc.core.links import EndStream, Message
from chatgrpc.core.owner_desk import ForOwner
from tests.sim.coordinator import View
from tests.sim.edge import Edge
from tests.sim.keeper import Keeper
from tests.sim.owner import Owner
from tests.sim.process import Process
from tests.sim.session_map import NodeMap
from tests.sim.store_client import StoreClient
from tests.sim.tasks import start

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster


class Node(Process):
    """One process, from its start to its crash."""

    def __init__(self, cluster: "Cluster", node_id: str) -> None:
        super().__init__(cluster.world, node_id)
        self.cluster = cluster
        self.parts = cluster.parts
        self.node_id = node_id
        self.store = StoreClient(self, cluster.store, cluster.parts)
        self.session_map = NodeMap(cluster.map, self.run, cluster.parts.one_entry_a_device)
        self.owner = Owner(self)
        self.edge = Edge(self)
        self.keeper = Keeper(self)
        self.every(50, self._tick)

    def crash(self) -> None:
        super().crash()
        self.edge.crash()

    # Links.

    def send(self, node_id: str, message: Message) -> None:
        self.cluster.links.carry(self.node_id, node_id, message)

    def receive(self, sender_id: str, message: Message) -> None:
        """Takes a message of another node, or of itself."""
        if isinstance(message, ForEdge):
            self.edge.receive(sender_id, message)
        elif isinstance(message, ForOwner):
            self.owner.receive(sender_id, message)
        elif isinstance(message, EndStream):
            start(self.edge.upkeep.end_stream(message))

    def link_is_up(self, node_id: str) -> None:
        """There is a link with this node, for the first time or again."""
        self.edge.link_is_up(node_id)

    # The cluster.

    def see(self, view: View) -> None:
        """The coordinator's view has changed."""
        self.cluster.links.see(self)
        self.owner.desk.see(view.nodes)
        self.edge.see(view)

    def _tick(self) -> None:
        self.keeper.tick()
        self.edge.tick()
