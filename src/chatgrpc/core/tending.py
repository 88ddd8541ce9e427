"""Which shards a node takes, and which it gives away (design §4).

Rendezvous hashing over the live nodes says who should own a shard: when a node comes or goes only its own shards move. A node
takes a shard that nobody owns and that should be its own, and gives away one that should be another's. It also takes what the
coordinator says is its own already: the answer to an earlier take was lost, and a shard that nobody tends is dead until the
lease is over.
"""

import hashlib
from collections.abc import Callable, Collection, Container, Mapping
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from chatgrpc.core.ids import SHARD_COUNT


class ShardOwner(NamedTuple):
    """Who owns a shard, and since when."""

    node_id: str
    epoch: int
    """Unique among all owners of all shards, and rising: a later owner of a shard has a greater one."""


WantedOwner: TypeAlias = Callable[[tuple[str, ...], int], str]
"""Says which of these nodes should own a shard; empty if there are none."""


@lru_cache(maxsize=4 * SHARD_COUNT)
def wanted_owner(node_ids: tuple[str, ...], shard: int) -> str:
    """Rendezvous hashing: the node with the greatest weight for the shard, whatever the order of `node_ids`."""
    return max(node_ids, key=lambda node_id: _weight(node_id, shard), default="")


class Tending:
    """The shards of one node, as far as what to do next is concerned."""

    def __init__(self, node_id: str, shard_count: int = SHARD_COUNT) -> None:
        self._node_id = node_id
        self._shard_count = shard_count
        self._taken: dict[int, int] = {}  # shard to the epoch under which it was ours last

    def to_take(
        self,
        node_ids: tuple[str, ...],
        owners: Mapping[int, ShardOwner],
        held: Container[int],
        wanted: WantedOwner = wanted_owner,
    ) -> list[int]:
        """Shards to take now.

        Args:
            node_ids: the live nodes that may own shards, in any fixed order.
            owners: who owns what, as the coordinator last said.
            held: the shards in this node's hands.
            wanted: who should own a shard.
        """
        return [
            shard
            for shard in range(self._shard_count)
            if shard not in held and self._may_take(node_ids, shard, owners.get(shard), wanted)
        ]

    def to_leave(self, node_ids: tuple[str, ...], held: Collection[int], wanted: WantedOwner = wanted_owner) -> list[int]:
        """Shards in this node's hands that should be another's."""
        return [shard for shard in held if wanted(node_ids, shard) not in {self._node_id, ""}]

    def took(self, shard: int, epoch: int) -> bool:
        """The coordinator answered a take; returns whether the shard is ours thereby.

        An old answer, that comes after the shard was given away, does not give it back.
        """
        if epoch <= self._taken.get(shard, 0):
            return False
        self._taken[shard] = epoch
        return True

    def _may_take(self, node_ids: tuple[str, ...], shard: int, owner: ShardOwner | None, wanted: WantedOwner) -> bool:
        if owner is None:
            return wanted(node_ids, shard) == self._node_id
        return owner.node_id == self._node_id and owner.epoch > self._taken.get(shard, 0)


def _weight(node_id: str, shard: int) -> bytes:
    return hashlib.blake2b(f"{node_id} {shard}".encode(), digest_size=8).digest()
