"""One node's place in a cluster in memory, whose calls can be held up, can fail, and can be done although they failed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from chatgrpc.adapters.memory import MemoryCluster, MemoryCoordinator
from chatgrpc.core.lease import Lease
from chatgrpc.core.tending import ShardOwner
from chatgrpc.ports.cluster import ClusterUnavailableError, ClusterView, NodeInfo


class StubbornCluster(MemoryCluster):
    """Notes what it is asked for."""

    def __init__(self, coordinator: MemoryCoordinator) -> None:
        super().__init__(coordinator)
        self.failing: set[str] = set()
        """Calls of these names are not done, and fail."""
        self.forgetful: set[str] = set()
        """Calls of these names are done, and fail."""
        self.joins = 0
        self.updates = 0
        self.takes: list[int] = []
        self.releases: list[int] = []
        self._coordinator_lent = coordinator
        self._open = {name: _open_gate() for name in ("join", "update", "take", "release")}
        self._waiting = dict.fromkeys(self._open, 0)

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[None]:
        """While this lasts, calls of this name are done, and their answers do not come."""
        self._open[name].clear()
        try:
            yield
        finally:
            self._open[name].set()

    async def until_held(self, name: str, calls: int = 1) -> None:
        """Returns when so many calls of this name wait for their answer."""
        while self._waiting[name] < calls:
            await asyncio.sleep(0)

    def waiting(self, name: str) -> int:
        """How many calls of this name wait for their answer."""
        return self._waiting[name]

    def lose_lease(self) -> None:
        """The coordinator ends the node's lease; the node learns it at once."""
        assert self._membership is not None
        self._coordinator_lent.revoke(self._membership.lease)
        self.keep_alive()

    async def join(self, info: NodeInfo, on_change: Callable[[ClusterView], None], on_lost: Callable[[], None]) -> Lease:
        self.joins += 1
        self._fail("join", self.failing)
        lease = await super().join(info, on_change, on_lost)
        await self._answer("join")
        return lease

    async def update(self, info: NodeInfo) -> None:
        self.updates += 1
        self._fail("update", self.failing)
        await super().update(info)
        await self._answer("update")

    async def take(self, shard: int) -> ShardOwner | None:
        self.takes.append(shard)
        self._fail("take", self.failing)
        owner = await super().take(shard)
        await self._answer("take")
        return owner

    async def release(self, shard: int) -> None:
        self.releases.append(shard)
        self._fail("release", self.failing)
        await super().release(shard)
        await self._answer("release")

    def _fail(self, name: str, names: set[str]) -> None:
        if name in names:
            raise ClusterUnavailableError("the coordinator does not answer")

    async def _answer(self, name: str) -> None:
        self._waiting[name] += 1
        try:
            await self._open[name].wait()
        finally:
            self._waiting[name] -= 1
        self._fail(name, self.forgetful)


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate
