"""A node's place in the cluster: its lease, the shards it takes and those it gives away."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from chatgrpc.core.lease import Lease
from chatgrpc.core.owner_desk import Tenure
from chatgrpc.core.tending import Tending
from tests.sim.coordinator import View
from tests.sim.parts import BUCKET_SEQS
from tests.sim.plan import OVER_MS

if TYPE_CHECKING:
    from tests.sim.node import Node

LEASE_TTL_MS = 1_000
LEASE_MARGIN_MS = 60
"""Clocks differ by 2 % at most, so within one lease by 20 ms."""
_LANES_PER_SHARD_MAX = 64
FINISH_TIMEOUT_MS = 400
"""What a shard has accepted is given so long before the shard is given away."""


class Keeper:
    """What one node and the coordinator have agreed on, as far as the node knows."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.world = node.world
        self.view = View(0, (), {}, 0)
        self._tending = Tending(node.node_id, node.cluster.shard_count)
        self._lease: Lease = node.parts.lease(LEASE_TTL_MS, LEASE_MARGIN_MS)
        self._lease_id = 0
        self._has_joined = False
        self._apart_from_ms = self._apart_until_ms = 0
        self._releasing: dict[int, Tenure] = {}
        self._leaving_since_ms: dict[int, int] = {}
        """Shards that are to be given away."""
        self._mark_interval_ms = self.world.rng.choice((0, 300, 1_500, 60_000))
        self._marked_at_ms = 0
        node.cluster.coordinator.watch(node.node_id, self._watched)
        node.every(220, self._keep_alive)

    def set_apart(self, duration_ms: int) -> None:
        """The coordinator answers slowly, and then not at all; what it says comes when that is over."""
        self.node.note("is apart from the coordinator")
        self._apart_from_ms = self.world.now_ms + 300
        self._apart_until_ms = min(self.world.now_ms + duration_ms, OVER_MS)

    def tick(self) -> None:
        """Takes and gives away; stores marks now and then."""
        now_ms = self.node.now().monotonic_ms
        desk, view = self.node.owner.desk, self.view
        if self._lease_id and not self._lease.holds(now_ms):
            self.node.note(f"its lease is over; drops shards {list(desk.tenures)}")
            desk.drop_all()
            self._lease, self._lease_id = self.node.parts.lease(LEASE_TTL_MS, LEASE_MARGIN_MS), 0
        if self._lease_id:
            held = desk.tenures.keys() | self._releasing.keys()
            for shard in self._tending.to_take(view.nodes, view.owners, held, view.wanted_owner):
                self._take(shard)
        for shard in self._tending.to_leave(view.nodes, desk.tenures, view.wanted_owner):
            self._leaving_since_ms.setdefault(shard, self.world.now_ms)
        for shard in self._leaving_since_ms.keys() - desk.tenures.keys():
            del self._leaving_since_ms[shard]
        marks_are_due = self.world.now_ms - self._marked_at_ms >= self._mark_interval_ms
        if marks_are_due:
            self._marked_at_ms = self.world.now_ms
        for tenure in list(desk.tenures.values()):
            if tenure.number in self._leaving_since_ms:
                self._hand_over(tenure)
            elif marks_are_due:
                self._write_marks(tenure)

    # The lease.

    def _keep_alive(self) -> None:
        coordinator = self.node.cluster.coordinator
        lease, lease_id = self._lease, self._lease_id
        sent = lease.keepalive_sent(self.node.now().monotonic_ms)
        if not lease_id:
            self._join(lease)
            return

        def at_coordinator() -> Callable[[], None]:
            lives = coordinator.keep_alive(lease_id)
            return lambda: lease.answered(sent, self.node.now().monotonic_ms) if lives else lease.end()

        self._ask(at_coordinator)

    def _join(self, lease: Lease) -> None:
        coordinator = self.node.cluster.coordinator
        sent = lease.keepalive_sent(self.node.now().monotonic_ms)

        def at_coordinator() -> Callable[[], None]:
            lease_id = coordinator.grant(self.node.node_id)

            def answered() -> None:
                if self._lease is lease and not self._lease_id:
                    self._lease_id = lease_id
                    lease.answered(sent, self.node.now().monotonic_ms)
                    if self._has_joined:
                        self.node.edge.upkeep.returned()
                    self._has_joined = True

            return answered

        self._ask(at_coordinator)

    def _ask(self, request: Callable[[], Callable[[], None]]) -> None:
        def at_coordinator() -> Callable[[], None]:
            answer = request()
            return lambda: self.node.run(answer)

        if self.world.now_ms >= self._apart_until_ms:
            self.node.cluster.coordinator.ask(at_coordinator)
        elif self.world.now_ms < self._apart_from_ms:
            self.node.cluster.coordinator.ask(at_coordinator, answer_ms=self.world.between(200, 900))

    # The cluster as it is seen.

    def _watched(self, view: View) -> None:
        self.node.after(max(0, self._apart_until_ms - self.world.now_ms), lambda: self._see(view))

    def _see(self, view: View) -> None:
        if view.revision > self.view.revision:
            self.view = view
            self.node.see(view)

    # Taking and giving away.

    def _take(self, shard: int) -> None:
        coordinator = self.node.cluster.coordinator
        lease, lease_id = self._lease, self._lease_id

        def answered(epoch: int) -> None:
            # The answer of a lease that is over gives nothing.
            if not epoch or lease is not self._lease or shard in self.node.owner.desk.tenures:
                return
            if not self._tending.took(shard, epoch):
                return
            parts = self.node.parts
            taken = parts.shard(epoch, lease, parts.limits, self.world.rng, BUCKET_SEQS)
            self.node.owner.desk.take(Tenure(shard, taken, parts.owner_lanes(epoch, _LANES_PER_SHARD_MAX)))
            self.node.note(f"owns shard {shard} for epoch {epoch}")
            self.node.cluster.misfortunes.took(self.node)

        def at_coordinator() -> Callable[[], None]:
            epoch = coordinator.take(shard, lease_id)
            return lambda: answered(epoch)

        self._ask(at_coordinator)

    def _hand_over(self, tenure: Tenure) -> None:
        """Once it has nothing under way any more; or after a while, as if it had crashed."""
        tenure.shard.stop_accepting()
        self.node.owner.pump()
        if not self.node.owner.desk.holds(tenure):
            return
        is_idle = tenure.shard.is_idle
        if not is_idle and self.world.now_ms < self._leaving_since_ms[tenure.number] + FINISH_TIMEOUT_MS:
            return
        if is_idle:
            self._write_marks(tenure)
        self.node.owner.desk.drop(tenure)
        del self._leaving_since_ms[tenure.number]
        self.node.note(f"gives shard {tenure.number} away{'' if is_idle else ', and appends that are under way with it'}")
        self._releasing[tenure.number] = tenure
        self._release(tenure)

    def _release(self, tenure: Tenure) -> None:
        """Until the coordinator answers, or the lease is over and the shard with it."""
        coordinator = self.node.cluster.coordinator
        lease = self._lease

        def answered() -> None:
            if self._releasing.get(tenure.number) is tenure:  # else it was answered before, and the shard came back
                del self._releasing[tenure.number]

        def at_coordinator() -> Callable[[], None]:
            coordinator.release(tenure.number, tenure.shard.epoch)
            return answered

        def attempt() -> None:
            if lease is not self._lease:
                answered()
            elif self._releasing.get(tenure.number) is tenure:
                self._ask(at_coordinator)
                self.node.after(100, attempt)

        attempt()

    def _write_marks(self, tenure: Tenure) -> None:
        for mark in tenure.shard.take_marks():
            self.node.store.write_mark(mark)
