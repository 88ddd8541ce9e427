"""Nodes of one process and their coordinator, in memory: no timers, so whoever owns the clock decides what happens when."""

from collections.abc import Callable
from dataclasses import dataclass

from chatgrpc.core.lease import Lease
from chatgrpc.core.tending import ShardOwner
from chatgrpc.ports.cluster import ClusterUnavailableError, ClusterView, NodeInfo

DEFAULT_TTL_S = 5.0
DEFAULT_MARGIN_S = 0.5


class MemoryCoordinator:
    """What etcd is to a cluster. Leases end when `expire` finds them overdue, by this clock."""

    def __init__(self, clock: Callable[[], float], ttl_s: float = DEFAULT_TTL_S, margin_s: float = DEFAULT_MARGIN_S) -> None:
        """An empty cluster.

        Args:
            clock: seconds, never falling.
            ttl_s: a lease's time to live without a sign of life.
            margin_s: how much earlier than that a node counts itself out.
        """
        self.clock = clock
        self.ttl_s = ttl_s
        self.margin_s = margin_s
        self.revision = 0
        self.leases: dict[int, float] = {}
        """When each ends."""
        self.nodes: dict[str, tuple[NodeInfo, int]] = {}
        """By node id: what it says, and its lease."""
        self.owners: dict[int, tuple[ShardOwner, int]] = {}
        """By shard: its owner, and the owner's lease."""
        self.listeners: dict[int, Callable[[ClusterView], None]] = {}
        """By lease."""

    def expire(self) -> None:
        """Ends the leases whose time is over."""
        now_s = self.clock()
        for lease in [lease for lease, ends_at_s in self.leases.items() if ends_at_s <= now_s]:
            self.revoke(lease)

    def revoke(self, lease: int) -> None:
        """Ends a lease, and with it its node and shards."""
        if self.leases.pop(lease, None) is None:
            return
        self.nodes = {node_id: node for node_id, node in self.nodes.items() if node[1] != lease}
        self.owners = {shard: owner for shard, owner in self.owners.items() if owner[1] != lease}
        self.changed()

    def changed(self) -> int:
        """Counts a change and tells all; returns its revision."""
        self.revision += 1
        view = self.view()
        for listener in list(self.listeners.values()):
            listener(view)
        return self.revision

    def view(self) -> ClusterView:
        """The cluster as it stands."""
        return ClusterView(
            {node_id: info for node_id, (info, _) in self.nodes.items()},
            {shard: owner for shard, (owner, _) in self.owners.items()},
        )


@dataclass(slots=True)
class _Membership:
    info: NodeInfo
    lease: int
    kept: Lease
    on_lost: Callable[[], None]


class MemoryCluster:
    """`ports.cluster.Cluster`; `keep_alive` is called by whoever owns the clock, and nothing happens in between."""

    def __init__(self, coordinator: MemoryCoordinator, clock: Callable[[], float] | None = None) -> None:
        """Joins nothing yet.

        Args:
            coordinator: shared by the nodes of a cluster.
            clock: the node's own, which may drift from the coordinator's; None = the same.
        """
        self.reachable = True
        """Whether the coordinator answers this node, and is heard by it."""
        self._coordinator = coordinator
        self._clock = clock or coordinator.clock
        self._membership: _Membership | None = None
        self._lost_lease = 0
        """One that is over for this node, and that the coordinator may keep for a while yet; 0 for none."""

    async def join(self, info: NodeInfo, on_change: Callable[[ClusterView], None], on_lost: Callable[[], None]) -> Lease:
        """See the port."""
        assert self._membership is None, "a node joins once, and again after it left or lost its lease"
        coordinator = self._reach()
        # Leases are told apart by numbers that rise with the revision, and no two are made at one.
        lease = coordinator.revision = coordinator.revision + 1
        coordinator.leases[lease] = coordinator.clock() + coordinator.ttl_s
        coordinator.nodes[info.node_id] = (info, lease)
        kept = Lease(int(coordinator.ttl_s * 1_000), int(coordinator.margin_s * 1_000))
        kept.answered(kept.keepalive_sent(self._now_ms()), self._now_ms())
        self._membership = _Membership(info, lease, kept, on_lost)
        coordinator.listeners[lease] = lambda view: on_change(view) if self.reachable else None
        coordinator.changed()
        return kept

    @property
    def deadline_s(self) -> float:
        """See the port; of the node's clock."""
        return self._membership.kept.deadline_ms / 1_000 if self._membership is not None else 0.0

    def keep_alive(self) -> None:
        """Renews the lease, or learns that it is lost. To be called a few times in a lease's time to live."""
        membership = self._membership
        if membership is None:
            return
        sent = membership.kept.keepalive_sent(self._now_ms())
        ended = self.reachable and membership.lease not in self._coordinator.leases
        if ended or not membership.kept.holds(self._now_ms()):
            self._lose(membership)
        elif self.reachable:
            self._coordinator.leases[membership.lease] = self._coordinator.clock() + self._coordinator.ttl_s
            membership.kept.answered(sent, self._now_ms())

    def hear(self) -> None:
        """Once reachable again: hears how the cluster stands now, after all that was missed."""
        if self._membership is not None and self.reachable:
            listener = self._coordinator.listeners.get(self._membership.lease)
            if listener is not None:
                listener(self._coordinator.view())

    async def update(self, info: NodeInfo) -> None:
        """See the port."""
        membership, coordinator = self._joined(), self._reach()
        membership.info = info
        coordinator.nodes[info.node_id] = (info, membership.lease)
        coordinator.changed()

    async def take(self, shard: int) -> ShardOwner | None:
        """See the port."""
        membership, coordinator = self._joined(), self._reach()
        if shard in coordinator.owners:
            owner, lease = coordinator.owners[shard]
            return owner if lease == membership.lease else None
        owner = ShardOwner(membership.info.node_id, coordinator.revision + 1)
        coordinator.owners[shard] = (owner, membership.lease)
        coordinator.changed()
        return owner

    async def release(self, shard: int) -> None:
        """See the port."""
        membership, coordinator = self._joined(), self._reach()
        if shard in coordinator.owners and coordinator.owners[shard][1] == membership.lease:
            del coordinator.owners[shard]
            coordinator.changed()

    async def leave(self) -> None:
        """See the port."""
        lease = self._membership.lease if self._membership is not None else self._lost_lease
        self._lost_lease = 0
        self._forget()
        if lease and self.reachable:
            self._coordinator.revoke(lease)

    def _lose(self, membership: _Membership) -> None:
        self._lost_lease = membership.lease
        self._forget()
        membership.on_lost()

    def _forget(self) -> None:
        if self._membership is not None:
            self._membership.kept.end()
            self._coordinator.listeners.pop(self._membership.lease, None)
        self._membership = None

    def _joined(self) -> _Membership:
        """The membership; a lease that has ended at the coordinator is found by the write that needs it."""
        membership = self._membership
        if membership is None:
            raise ClusterUnavailableError("the node has not joined, or has lost its lease")
        ended = self.reachable and membership.lease not in self._coordinator.leases
        if ended or not membership.kept.holds(self._now_ms()):
            self._lose(membership)
            raise ClusterUnavailableError("the lease has ended")
        return membership

    def _reach(self) -> MemoryCoordinator:
        if not self.reachable:
            raise ClusterUnavailableError("the coordinator does not answer")
        return self._coordinator

    def _now_ms(self) -> int:
        return int(self._clock() * 1_000)
