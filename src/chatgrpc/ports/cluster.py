"""The ports of the cluster: which nodes live, and which of them owns each shard."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


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


@dataclass(frozen=True, slots=True)
class ShardOwner:
    """Who owns a shard, and since when."""

    node_id: str
    epoch: int
    """Unique among all owners of all shards, and rising: a later owner of a shard has a greater one."""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as one node has last heard of it; every change comes, in order, though late."""

    nodes: Mapping[str, NodeInfo]
    """By node id."""
    owners: Mapping[int, ShardOwner]
    """By shard."""


class Cluster(Protocol):
    """One node's place in the cluster.

    The lease rule (design §4) is what all ordering rests on. `deadline_s` is the monotonic time *before sending* the last
    keepalive that was answered, plus the lease's time to live, minus a margin for the drift of clocks. Until then no other node
    can have taken a shard that this one holds. Past it this node holds nothing, whatever it believes; it may rejoin by `join`.
    """

    async def join(self, info: NodeInfo, on_change: Callable[[ClusterView], None], on_lost: Callable[[], None]) -> None:
        """Registers the node under a new lease, and keeps it alive.

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
        """`time.monotonic()` until which what this node has taken is its own; 0 before `join` and after the lease is lost."""
        ...

    async def update(self, info: NodeInfo) -> None:
        """Changes what others see of the node."""
        ...

    async def take(self, shard: int) -> ShardOwner | None:
        """Takes a shard that nobody owns; None if somebody does."""
        ...

    async def release(self, shard: int) -> None:
        """Gives a shard of this node away; it must accept nothing more for it, and have no append under way."""
        ...

    async def leave(self) -> None:
        """Gives up the lease, and with it the registration and all shards, at once."""
        ...


class ClusterUnavailableError(Exception):
    """The coordinator does not answer. What was taken stays ours until `deadline_s`."""
