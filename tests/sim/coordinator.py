"""The coordinator: leases, shard keys whose create revision is the epoch, and watches that arrive late."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from chatgrpc.core.tending import ShardOwner
from tests.sim.climate import Climate
from tests.sim.world import World


@dataclass(frozen=True)
class View:
    """What a watch tells: of one revision of the whole."""

    revision: int
    nodes: tuple[str, ...]
    owners: dict[int, ShardOwner]
    salt: int
    """Another one moves shards about: a hand-over storm."""

    def wanted_owner(self, node_ids: tuple[str, ...], shard: int) -> str:
        """Rendezvous hashing, as in `core.tending`, and salted."""
        return _wanted_owner(node_ids, shard, self.salt)


class Coordinator:
    """Linearizable, and never down for long; the way to it is what fails."""

    def __init__(self, world: World, climate: Climate, ttl_ms: int) -> None:
        self.world = world
        self._climate = climate
        self.ttl_ms = ttl_ms
        self._revision = 0
        self._salt = 0
        self._leases: dict[int, tuple[str, int]] = {}  # id to node and end
        self._owners: dict[int, tuple[str, int, int]] = {}  # shard to node, epoch and lease
        self._watches: dict[str, Callable[[View], None]] = {}
        self._rate = world.rng.uniform(0.99, 1.01)

    def ask(self, request: Callable[[], Callable[[], None]], answer_ms: int = 0) -> None:
        """Runs a request there, and brings its answer back, so much later; either may get lost, or come late."""

        def arrive() -> None:
            answer = request()
            self.world.after(answer_ms, lambda: self._travel(answer))

        self._travel(arrive)

    def grant(self, node_id: str) -> int:
        self._revision += 1
        lease_id = self._revision
        self._leases[lease_id] = (node_id, self.world.now_ms + self._lifetime_ms())
        self._expire_later(lease_id)
        self._tell()
        return lease_id

    def keep_alive(self, lease_id: int) -> bool:
        """False = the lease is gone."""
        if lease_id not in self._leases:
            return False
        self._leases[lease_id] = (self._leases[lease_id][0], self.world.now_ms + self._lifetime_ms())
        self._expire_later(lease_id)
        return True

    def take(self, shard: int, lease_id: int) -> int:
        """The epoch; 0 = it is somebody else's, or the lease is gone."""
        if lease_id not in self._leases:
            return 0
        owner = self._owners.get(shard)
        if owner is not None:
            return owner[1] if owner[2] == lease_id else 0
        self._revision += 1
        self._owners[shard] = (self._leases[lease_id][0], self._revision, lease_id)
        self.world.note("etcd", f"shard {shard} is {self._leases[lease_id][0]}'s, epoch {self._revision}")
        self._tell()
        return self._revision

    def release(self, shard: int, epoch: int) -> None:
        if shard in self._owners and self._owners[shard][1] == epoch:
            self._revision += 1
            del self._owners[shard]
            self._tell()

    def watch(self, node_id: str, push: Callable[[View], None]) -> None:
        self._watches[node_id] = push
        self._tell()

    def shuffle(self) -> None:
        """All shards want other owners."""
        self._revision += 1
        self._salt += 1
        self._tell()

    def _lifetime_ms(self) -> int:
        return int(self.ttl_ms / self._rate)

    def _expire_later(self, lease_id: int) -> None:
        end_ms = self._leases[lease_id][1]
        self.world.after(end_ms - self.world.now_ms, lambda: self._expire(lease_id))

    def _expire(self, lease_id: int) -> None:
        lease = self._leases.get(lease_id)
        if lease is None or lease[1] > self.world.now_ms:
            return
        del self._leases[lease_id]
        self._revision += 1
        self._owners = {shard: owner for shard, owner in self._owners.items() if owner[2] != lease_id}
        self.world.note("etcd", f"the lease of {lease[0]} is over")
        self._tell()

    def _tell(self) -> None:
        nodes = tuple(dict.fromkeys(node_id for node_id, _ in self._leases.values()))
        owners = {shard: ShardOwner(node_id, epoch) for shard, (node_id, epoch, _) in self._owners.items()}
        view = View(self._revision, nodes, owners, self._salt)
        for push in self._watches.values():
            delay_ms = self.world.between(1, 20)
            if self.world.chance(self._climate.watch_slow):
                delay_ms = self.world.between(100, 2_000)
            self.world.after(delay_ms, lambda push=push: push(view))  # type: ignore[misc]

    def _travel(self, action: Callable[[], None]) -> None:
        if self.world.chance(self._climate.coordinator_loss):
            return
        delay_ms = self.world.between(1, 10)
        if self.world.chance(self._climate.coordinator_slow):
            delay_ms = self.world.between(50, 900)
        self.world.after(delay_ms, action)


@lru_cache(maxsize=4_096)
def _wanted_owner(node_ids: tuple[str, ...], shard: int, salt: int) -> str:
    return max(node_ids, key=lambda node_id: _weight(node_id, shard, salt), default="")


def _weight(node_id: str, shard: int, salt: int) -> bytes:
    return hashlib.blake2b(f"{node_id} {shard} {salt}".encode(), digest_size=8).digest()
