"""Keeps a node's place in the cluster: its registration and lease, the shards it takes and those it gives away."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import structlog

from chatgrpc.cluster.store_runner import StoreRunner
from chatgrpc.core.lanes import OwnerLanes
from chatgrpc.core.lease import Holds
from chatgrpc.core.owner_desk import OwnerDesk, Tenure
from chatgrpc.core.shard import Shard
from chatgrpc.core.tending import Owner, Tending
from chatgrpc.ports.cluster import Cluster, ClusterUnavailableError, ClusterView, NodeInfo

_log = structlog.get_logger()

_LANES_PER_SHARD_MAX = 10_000
_CALLS_MAX = 32
"""Of the coordinator at the same time."""
_TEND_INTERVAL_S = 0.02
"""Changes of the cluster come in swarms; one look serves those of so long."""
_LOOK_AGAIN_S = 1.0
"""What the coordinator refused or did not answer is tried again."""
_REJOIN_S = 0.3

Seen = Callable[[Mapping[int, Owner], Mapping[str, NodeInfo]], None]


class JoinedLease:
    """`core.lease.Holds`: one lease of the node, kept alive by the adapter."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._over = False

    def end(self) -> None:
        """It is lost, or given up."""
        self._over = True

    def holds(self, now_ms: int) -> bool:
        """See the protocol; `now_ms` is `time.monotonic` in milliseconds, rounded down."""
        self._over = self._over or now_ms + 1 >= self._cluster.deadline_s * 1000
        return not self._over


class ShardKeeper:
    """The shards of one node, as the coordinator and the desk agree on them."""

    def __init__(
        self,
        cluster: Cluster,
        info: NodeInfo,
        desk: OwnerDesk,
        runner: StoreRunner,
        new_shard: Callable[[int, Holds], Shard],
        finish: Callable[[Tenure], Awaitable[None]],
        seen: Seen,
        on_defect: Callable[[BaseException], None],
    ) -> None:
        """
        Args:
            cluster: the coordinator.
            info: what others see of this node.
            desk: where shards are put.
            runner: stores the marks of a shard that is given away.
            new_shard: makes a shard of an epoch and a lease.
            finish: lets a shard accept nothing more; returns when all that it had accepted is done and said.
            seen: told of each change of the cluster: the owners that live, by shard, and the nodes.
            on_defect: told when something that cannot fail has failed.
        """
        self.info = info
        self.nodes: Mapping[str, NodeInfo] = {}
        """The live nodes, as last heard."""
        self.owners: Mapping[int, Owner] = {}
        """By shard, those that live."""
        self.joined = False
        """The lease holds, as far as we know."""
        self.has_joined = asyncio.Event()
        """Set once it has joined for the first time."""
        self._cluster = cluster
        self._desk = desk
        self._runner = runner
        self._new_shard = new_shard
        self._finish = finish
        self._seen = seen
        self._on_defect = on_defect
        self._tending = Tending(info.node_id)
        self._lease = JoinedLease(cluster)
        self._view = ClusterView({}, {})
        self._look = asyncio.Event()
        self._calls = asyncio.Semaphore(_CALLS_MAX)
        self._taking: set[int] = set()
        self._leaving: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Joins, and joins again whenever the lease was lost; tends the shards. Ends when cancelled."""
        while True:
            lost = asyncio.Event()
            try:
                await self._cluster.join(self.info, self._changed, lost.set)
            except ClusterUnavailableError as error:
                _log.warning("join_failed", error=str(error))
                await asyncio.sleep(_REJOIN_S)
                continue
            self._lease = JoinedLease(self._cluster)
            self.joined = True
            self.has_joined.set()
            _log.info("joined", node_id=self.info.node_id)
            await self._tend_until(lost)
            self._lose()

    async def announce(self, info: NodeInfo) -> None:
        """Changes what others see of the node; what cannot be said now is said when it joins again."""
        self.info = info
        try:
            await self._cluster.update(info)
        except ClusterUnavailableError as error:
            _log.warning("announcement_failed", error=str(error))

    async def give_all_away(self, timeout_s: float) -> None:
        """Takes no shard any more and gives all away, each once its appends are done; returns when that is so, or after a time.

        Without another node that could take them they are kept to the end.
        """
        await self.announce(replace(self.info, draining=True))
        give_up_at_s = time.monotonic() + timeout_s
        while self._desk.tenures and self.joined and self._has_heirs():
            if time.monotonic() > give_up_at_s:
                _log.warning("shards_not_given_away", shards=len(self._desk.tenures))
                break
            self._look.set()
            await asyncio.sleep(_TEND_INTERVAL_S)

    async def leave(self) -> None:
        """Gives up the lease, and with it whatever is left."""
        for task in self._tasks:
            task.cancel()
        self._lease.end()
        self._desk.drop_all()
        await self._cluster.leave()

    # The cluster as it is seen.

    def _has_heirs(self) -> bool:
        return any(not info.draining for node_id, info in self._view.nodes.items() if node_id != self.info.node_id)

    def _changed(self, view: ClusterView) -> None:
        self._view = view
        self._look.set()

    async def _tend_until(self, lost: asyncio.Event) -> None:
        waits_for_loss = asyncio.ensure_future(lost.wait())
        try:
            while not lost.is_set():
                looks = asyncio.ensure_future(self._look.wait())
                await asyncio.wait({looks, waits_for_loss}, timeout=_LOOK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
                looks.cancel()
                self._look.clear()
                if not lost.is_set():
                    self._tend()
                    await asyncio.sleep(_TEND_INTERVAL_S)
        finally:
            waits_for_loss.cancel()

    def _lose(self) -> None:
        _log.warning("lease_lost", node_id=self.info.node_id, shards=len(self._desk.tenures))
        self.joined = False
        self._lease.end()
        self._desk.drop_all()

    def _tend(self) -> None:
        view = self._view
        self.nodes = view.nodes
        self.owners = {
            shard: Owner(owner.node_id, owner.epoch) for shard, owner in view.owners.items() if owner.node_id in view.nodes
        }
        self._seen(self.owners, self.nodes)
        may_own = tuple(sorted(node_id for node_id, info in view.nodes.items() if not info.draining))
        if not self._lease.holds(time.monotonic_ns() // 1_000_000):
            return
        for shard in self._tending.to_take(may_own, self.owners, self._desk.tenures.keys() | self._taking | self._leaving):
            self._taking.add(shard)
            self._start(self._take(shard))
        for shard in self._tending.to_leave(may_own, self._desk.tenures):
            if shard not in self._leaving:
                self._leaving.add(shard)
                self._start(self._give_away(self._desk.tenures[shard]))

    # Taking and giving away.

    async def _take(self, shard: int) -> None:
        lease = self._lease
        try:
            async with self._calls:
                owner = await self._cluster.take(shard)
        except ClusterUnavailableError as error:
            _log.warning("take_failed", shard=shard, error=str(error))
            return
        finally:
            self._taking.discard(shard)
        if owner is None or owner.node_id != self.info.node_id or lease is not self._lease:
            return
        if self._tending.took(shard, owner.epoch):
            self._desk.take(Tenure(shard, self._new_shard(owner.epoch, lease), OwnerLanes(_LANES_PER_SHARD_MAX)))

    async def _give_away(self, tenure: Tenure) -> None:
        try:
            await self._finish(tenure)
            if not self._desk.holds(tenure):
                return
            await self._runner.save_marks_of(tenure)
            self._desk.drop(tenure)
            await self._release(tenure)
        finally:
            self._leaving.discard(tenure.number)

    async def _release(self, tenure: Tenure) -> None:
        """Until the coordinator says that it is done, or that the lease is over."""
        lease = self._lease
        while lease is self._lease and lease.holds(time.monotonic_ns() // 1_000_000):
            try:
                async with self._calls:
                    await self._cluster.release(tenure.number)
                return
            except ClusterUnavailableError as error:
                _log.warning("release_failed", shard=tenure.number, error=str(error))
            await asyncio.sleep(_REJOIN_S)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (defect := task.exception()) is not None:
            self._on_defect(defect)
