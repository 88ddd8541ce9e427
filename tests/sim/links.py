"""The links between nodes: there is one between two nodes that both see each other alive, as in `relay/`.

What a link carries it may lose, repeat, delay and reorder, more than a stream of gRPC would. It is cut one way or both, noticed
dead after a while, and dialled again; what is under way when a link ends is lost.
"""

from typing import TYPE_CHECKING

from chatgrpc.core.links import Message
from tests.sim.climate import Climate
from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.node import Node

NOTICED_AFTER_MS = 600
"""A link from which nothing came for so long is dead, on both sides, until it is dialled again."""

Pair = tuple[str, str]


class Links:
    """All links of a cluster."""

    def __init__(self, world: World, climate: Climate, cluster: "Cluster") -> None:
        self._world = world
        self._climate = climate
        self._cluster = cluster
        self._up: dict[Pair, int] = {}
        """Links that are up, and the how many-th link each is."""
        self._dialled = 0
        self._cut_until_ms: dict[Pair, int] = {}

    def carry(self, sender_id: str, receiver_id: str, message: Message) -> None:
        """Brings a message to another node, or to the node itself."""
        receiver = self._cluster.node(receiver_id)
        if receiver is None:
            return
        if sender_id == receiver_id:
            receiver.after(0, lambda: receiver.receive(sender_id, message))
            return
        world, climate = self._world, self._climate
        pair = _pair(sender_id, receiver_id)
        link = self._up.get(pair)
        if link is None or world.chance(climate.link_loss) or self._is_cut(sender_id, receiver_id):
            return

        def arrive() -> None:
            if self._up.get(pair) == link:
                receiver.receive(sender_id, message)

        for _ in range(2 if world.chance(climate.link_repeats) else 1):
            delay_ms = world.between(1, 12)
            if world.chance(climate.link_delay):
                delay_ms = world.between(20, 800)
            receiver.after(delay_ms, arrive)

    def see(self, node: "Node") -> None:
        """A node's view of who is alive has changed: it ends links with others, and dials those that have come."""
        for pair in [
            pair for pair in self._up if node.node_id in pair and _other(pair, node.node_id) not in node.keeper.view.nodes
        ]:
            self._end(pair)
        for other in self._cluster.nodes:
            if other is not node:
                self._world.after(self._world.between(2, 20), lambda other=other: self._dial(node, other))  # type: ignore[misc]

    def cut(self, one_id: str, other_id: str, duration_ms: int, both_ways: bool) -> None:
        """Nothing gets from one to the other for so long."""
        if one_id == other_id:
            return
        self._world.note(one_id, f"{'and' if both_ways else 'to'} {other_id}: the link is cut for {duration_ms} ms")
        for way in ((one_id, other_id), (other_id, one_id))[: 1 + both_ways]:
            until_ms = self._world.now_ms + duration_ms
            self._cut_until_ms[way] = max(until_ms, self._cut_until_ms.get(way, 0))
        self._world.after(NOTICED_AFTER_MS, lambda: self._notice(one_id, other_id))

    def _notice(self, one_id: str, other_id: str) -> None:
        if _pair(one_id, other_id) in self._up and (self._is_cut(one_id, other_id) or self._is_cut(other_id, one_id)):
            self._end(_pair(one_id, other_id))
            one, other = self._cluster.node(one_id), self._cluster.node(other_id)
            if one is not None and other is not None:
                self._dial(one, other)

    def _dial(self, one: "Node", other: "Node") -> None:
        """Until there is a link; once one of the two does not see the other it waits to be told of a change."""
        pair = _pair(one.node_id, other.node_id)
        if pair in self._up or not (one.alive and other.alive and _see_each_other(one, other)):
            return
        if self._is_cut(one.node_id, other.node_id) or self._is_cut(other.node_id, one.node_id):
            self._world.after(self._world.between(50, 200), lambda: self._dial(one, other))
            return
        self._dialled += 1
        self._up[pair] = self._dialled
        self._world.note(one.node_id, f"is linked with {other.node_id}")
        one.after(self._world.between(1, 5), lambda: one.link_is_up(other.node_id))
        other.after(self._world.between(1, 5), lambda: other.link_is_up(one.node_id))

    def _end(self, pair: Pair) -> None:
        del self._up[pair]
        self._world.note(pair[0], f"has no link with {pair[1]} any more")

    def _is_cut(self, sender_id: str, receiver_id: str) -> bool:
        return not self._world.calm and self._cut_until_ms.get((sender_id, receiver_id), 0) > self._world.now_ms


def _pair(one_id: str, other_id: str) -> Pair:
    return (one_id, other_id) if one_id < other_id else (other_id, one_id)


def _other(pair: Pair, node_id: str) -> str:
    return pair[1] if pair[0] == node_id else pair[0]


def _see_each_other(one: "Node", other: "Node") -> bool:
    return other.node_id in one.keeper.view.nodes and one.node_id in other.keeper.view.nodes
