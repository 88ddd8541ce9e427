"""The links between nodes: they lose, repeat, delay and reorder what they carry, and are cut one way or both."""

from typing import TYPE_CHECKING

from chatgrpc.core.links import Message
from tests.sim.climate import Climate
from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

NOTICED_AFTER_MS = 600
"""A link from which nothing came for so long is dead, on both sides, until it is dialled again."""


class Links:
    """All links of a cluster."""

    def __init__(self, world: World, climate: Climate, cluster: "Cluster") -> None:
        self._world = world
        self._climate = climate
        self._cluster = cluster
        self._cut_until_ms: dict[tuple[str, str], int] = {}
        self._dead: dict[tuple[str, str], None] = {}

    def carry(self, sender_id: str, receiver_id: str, message: Message) -> None:
        """Brings a message to another node, or to the node itself."""
        receiver = self._cluster.node(receiver_id)
        if receiver is None:
            return
        if sender_id == receiver_id:
            receiver.after(0, lambda: receiver.receive(sender_id, message))
            return
        world, climate = self._world, self._climate
        if world.chance(climate.link_loss) or self._is_cut(sender_id, receiver_id):
            return
        for _ in range(2 if world.chance(climate.link_repeats) else 1):
            delay_ms = world.between(1, 12)
            if world.chance(climate.link_delay):
                delay_ms = world.between(20, 800)
            receiver.after(delay_ms, lambda: receiver.receive(sender_id, message))

    def linked(self, node_id: str) -> list[str]:
        """The nodes with which this one has a link, as far as it knows; nodes that the coordinator has not shown yet too."""
        return [
            node.node_id
            for node in self._cluster.nodes
            if node.node_id != node_id and _pair(node_id, node.node_id) not in self._dead
        ]

    def cut(self, one_id: str, other_id: str, duration_ms: int, both_ways: bool) -> None:
        """Nothing gets from one to the other for so long."""
        if one_id == other_id:
            return
        self._world.note(one_id, f"{'and' if both_ways else 'to'} {other_id}: the link is cut for {duration_ms} ms")
        for way in ((one_id, other_id), (other_id, one_id))[: 1 + both_ways]:
            until_ms = self._world.now_ms + duration_ms
            self._cut_until_ms[way] = max(until_ms, self._cut_until_ms.get(way, 0))
        pair = _pair(one_id, other_id)
        self._world.after(NOTICED_AFTER_MS, lambda: self._notice(pair))

    def _is_cut(self, sender_id: str, receiver_id: str) -> bool:
        if _pair(sender_id, receiver_id) in self._dead:
            return True
        return not self._world.calm and self._cut_until_ms.get((sender_id, receiver_id), 0) > self._world.now_ms

    def _cut_for_ms(self, pair: tuple[str, str]) -> int:
        until_ms = max(self._cut_until_ms.get(pair, 0), self._cut_until_ms.get(pair[::-1], 0))
        return 0 if self._world.calm else max(0, until_ms - self._world.now_ms)

    def _notice(self, pair: tuple[str, str]) -> None:
        if pair not in self._dead and self._cut_for_ms(pair):
            self._dead[pair] = None
            self._world.note(pair[0], f"has lost its link with {pair[1]}")
            self._dial(pair)

    def _dial(self, pair: tuple[str, str]) -> None:
        """Until the link is there again, and both know it."""
        if self._cut_for_ms(pair):
            self._world.after(self._world.between(50, 200), lambda: self._dial(pair))
            return
        del self._dead[pair]
        self._world.note(pair[0], f"is linked with {pair[1]} again")


def _pair(one_id: str, other_id: str) -> tuple[str, str]:
    return (one_id, other_id) if one_id < other_id else (other_id, one_id)
