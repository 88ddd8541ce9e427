"""The ports of the cluster: which nodes live, and which of them owns each shard."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from chatgrpc.core.lease import Lease
from chatgrpc.core.tending import ShardOwner


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a node says of itself."""

    node_id: str
    """Its incarnation: random, another one after each start."""
    public_address: str
    """Where devices dial it, `host:port`."""
    relay_address: str
    """Where other nodes dial it, `host:port`."""
    draining: bool = False
    """It takes no new devices and gives its shards away."""
    drained: bool = False
    """It has no shards any more, and all that it ever pushed was heard: who sees it go afterwards has missed nothing of it."""
    protocol_version_min: int = 1
    """The lowest version that it speaks on links with other nodes; nodes of version 1.0 say nothing of it, and speak 1."""
    protocol_version_max: int = 1
    """The highest."""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as one node has last heard of it; every change comes, in order, though late."""

    nodes: Mapping[str, NodeInfo]
    """By node id."""
    owners: Mapping[int, ShardOwner]
    """By shard."""


class Cluster(Protocol):
    """One node's place in the cluster.

    The lease rule (`core.lease`) is what all ordering rests on. While the lease holds, by `lease_clock_ms`, no other node can
    have taken a shard that this one holds. Past it this node holds nothing, whatever it believes; it may rejoin by `join`.

    The lease is kept alive also while the event loop is busy for many seconds; and not while the whole process stands still.
    """

    async def join(self, info: NodeInfo, on_change: Callable[[ClusterView], None], on_lost: Callable[[], None]) -> Lease:
        """Registers the node under a new lease, and keeps it alive; returns it.

        Args:
            info: what others will see of the node.
            on_change: called with each new view, from the first on.
            on_lost: called once if the lease ends against our will; the node's registration and its shards are gone then.

        Raises:
            ClusterUnavailableError: the coordinator cannot be reached.
        """
        ...

    @property
    def deadline_s(self) -> float:
        """`lease_clock_s()` until which the lease holds; 0 before `join` and after it is lost."""
        ...

    async def update(self, info: NodeInfo) -> None:
        """Changes what others see of the node.

        Raises:
            ClusterUnavailableError: nobody knows whether it was changed; or the node has not joined, or has lost its lease.
        """
        ...

    async def take(self, shard: int) -> ShardOwner | None:
        """Takes a shard that nobody owns; None if another node does.

        A shard that is this node's already is returned as it stands. A call that ended in an error may still take effect: if
        the view says that this node owns a shard which it does not hold, it takes the shard again, or releases it.

        Raises:
            ClusterUnavailableError: nobody knows whether it was taken; or the node has not joined, or has lost its lease.
        """
        ...

    async def release(self, shard: int) -> None:
        """Gives a shard of this node away; it must accept nothing more for it, and count no append that is still under way.

        Does nothing to a shard that is not this node's. Once it was asked for, the shard is not ours under that epoch any more,
        even after an error: it may be released late. Then one releases it again, or takes it, under a new epoch.

        Raises:
            ClusterUnavailableError: nobody knows whether it was released; or the node has not joined, or has lost its lease.
        """
        ...

    async def leave(self) -> None:
        """Gives up the lease, and with it the registration and all shards, at once; nothing if there is none.

        Also one that is over for this node alone, since it ended it, or was not answered in time: the others need not wait for
        the coordinator to find out.

        If the coordinator does not answer, the others learn it when the lease's time to live is over.
        """
        ...


class ClusterUnavailableError(Exception):
    """The coordinator does not answer. What was taken stays ours until `deadline_s`."""
