"""What goes wrong in a run, beside the weather."""

import random
from typing import TYPE_CHECKING

from tests.sim.plan import STORM_MS

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.node import Node


class Misfortunes:
    """Strikes a cluster."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.world = cluster.world
        self._cursed_until_ms: float = STORM_MS * cluster.plan.climate.cursed

    def strike(self, kind: str, rng: random.Random) -> None:
        """Lets one of `plan.MISFORTUNES`, or of a drill, happen."""
        cluster, nodes = self.cluster, self.cluster.nodes
        match kind:
            case "pause":
                rng.choice(nodes).pause(rng.randint(100, 3_000))
            case "clog an owner":
                self._clog(self._owner(rng), rng)
            case "clog owners in turn":
                self._cursed_until_ms = float(self.world.now_ms + rng.randint(2_000, 5_000))
            case "set an owner apart":
                self._owner(rng).keeper.set_apart(rng.randint(1_000, 3_000))
            case "set a node apart":
                edges = [node for node in nodes if node.edge.sessions]
                rng.choice(edges or nodes).keeper.set_apart(rng.randint(2_500, 4_000))
            case "cut a link":
                one, other = rng.choice(nodes), rng.choice(nodes)
                cluster.links.cut(one.node_id, other.node_id, rng.randint(100, 3_000), both_ways=rng.random() < 0.5)
            case "stop a replica":
                replica = rng.choice(cluster.store.replicas)
                replica.up = False
                self.world.after(rng.randint(100, 2_000), lambda: setattr(replica, "up", True))
            case "shuffle the shards":
                cluster.coordinator.shuffle()
            case "give shards away and crash":
                cluster.coordinator.shuffle()
                self._crash_who_gives(self._owner(rng), rng.randint(1, 250))
            case "disconnect a device":
                rng.choice(cluster.devices).disconnect()
            case "crash":
                self._crash(rng.choice(nodes), rng.randint(50, 3_000))
            case "lose the session map":
                cluster.map.lose_everything()
            case "lose the session map again and again":
                cluster.map.lose_everything(then_after_puts=rng.randint(1, 6))
            case "stop the session map":
                cluster.map.go_down(rng.randint(100, 2_000))
                if rng.random() < 0.3:
                    cluster.map.lose_everything()

    def took(self, node: "Node") -> None:
        """A node has taken a shard. While there is a curse on that, it is clogged, and dies or pauses soon after."""
        if self.world.calm or self.world.now_ms > self._cursed_until_ms:
            return
        rng = self.world.rng
        node.store.clog(rng.randint(100, 700))
        kill, end_ms, start_ms = rng.random() < 0.3, rng.randint(100, 900), rng.randint(50, 3_000)
        self.world.after(end_ms, lambda: self._crash(node, start_ms) if kill else node.pause(1_500))

    def _clog(self, node: "Node", rng: random.Random) -> None:
        """The worst that a dead owner can leave behind: many writes under way, which land at any time after its end."""
        duration_ms = rng.randint(50, 500)
        node.store.clog(duration_ms)
        kill, start_ms = rng.random() < 0.5, rng.randint(50, 3_000)
        self.world.after(duration_ms, lambda: self._crash(node, start_ms) if kill else node.pause(2_000))

    def _crash(self, node: "Node", start_after_ms: int) -> None:
        """A process dies; later another one is started."""
        if node.alive and len(self.cluster.nodes) > 1:
            node.crash()
            self.cluster.nodes.remove(node)
            self.world.after(start_after_ms, self.cluster.start_node)

    def _owner(self, rng: random.Random) -> "Node":
        owners = [node for node in self.cluster.nodes if node.owner.desk.tenures]
        return rng.choice(owners or self.cluster.nodes)

    def _crash_who_gives(self, owner: "Node", after_ms: int) -> None:
        """So long after it has given a shard away it dies."""
        had = len(owner.owner.desk.tenures)

        def look() -> None:
            if len(owner.owner.desk.tenures) < had:
                self.world.after(after_ms, lambda: self._crash(owner, 1_000))
            elif owner.alive:
                self.world.after(10, look)

        look()
