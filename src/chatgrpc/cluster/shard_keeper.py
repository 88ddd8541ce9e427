"""Keeps a node's place in the cluster: its registration and lease, the shards it takes and those it gives away."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from chatgrpc import background
from chatgrpc.cluster.store_runner import StoreRunner
from chatgrpc.core.ids import SHARD_COUNT
from chatgrpc.core.lanes import OwnerLanes
from chatgrpc.core.lease import Holds, Lease
from chatgrpc.core.owner_desk import OwnerDesk, Tenure
from chatgrpc.core.shard import Shard
from chatgrpc.core.tending import ShardOwner, Tending
from chatgrpc.damage_book import DamageBook
from chatgrpc.ports.cluster import Cluster, ClusterUnavailableError, ClusterView, NodeInfo
from chatgrpc.ports.lease_clock import lease_clock_ms
from chatgrpc.start_error import StartError
from chatgrpc.trouble import Trouble

_log = structlog.get_logger()

_LANES_PER_SHARD_MAX = 128
_CALLS_MAX = 32
"""Of the coordinator at the same time."""

Seen = Callable[[Mapping[int, ShardOwner], Mapping[str, NodeInfo]], None]


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a keeper is."""

    tend_interval_s: float = 0.02
    """The cluster changes in bursts: all changes of this time are looked at together."""
    look_again_s: float = 1.0
    """Before what the coordinator refused or did not answer is tried again."""
    retry_s: float = 0.3
    """Between two tries to join, to release a shard, to announce something."""
    failed_pause_s: float = 1.0
    """Before a shard that failed is given back, so that one which fails each time does not go round and round."""
    finish_timeout_s: float = 5.0
    """How long a shard that is given away may take to finish what it has accepted. Edges wait twice as long for an outcome,
    and ask the next owner."""


class ShardKeeper:
    """The shards of one node, as the coordinator and the desk agree on them."""

    def __init__(
        self,
        cluster: Cluster,
        info: NodeInfo,
        claim: Callable[[], Awaitable[None]],
        desk: OwnerDesk,
        runner: StoreRunner,
        new_shard: Callable[[int, Holds], Shard],
        finish: Callable[[Tenure], Awaitable[None]],
        seen: Seen,
        returned: Callable[[], None],
        book: DamageBook,
        on_defect: Callable[[BaseException], None],
        *,
        pace: Pace | None = None,
        shard_count: int = SHARD_COUNT,
    ) -> None:
        """
        Args:
            cluster: the coordinator.
            info: what others see of this node.
            claim: makes sure, before each try to join, that coordinator and store belong together; raises StartError if they do
                not, or if nobody knows.
            desk: where shards are put.
            runner: stores the marks of a shard that is given away.
            new_shard: makes a shard of an epoch and a lease.
            finish: lets a shard accept nothing more; returns when all that it had accepted is done and said.
            seen: told of the cluster, at least whenever it has changed: the owners that live, by shard, and the nodes.
            returned: told when the node has joined again after it had lost its lease: others may have taken it for gone.
            book: told of shards that a mistake of the program has cost.
            on_defect: told when something that cannot fail has failed.
            pace: how patient it is.
            shard_count: of the cluster.
        """
        self.info = info
        self.has_joined = asyncio.Event()
        """Set once it has joined for the first time, and has seen the cluster."""
        self.drained: set[str] = set()
        """Nodes, long gone perhaps, that said that they had drained. A node's id is never used again."""
        self.join_error: Exception | None = None
        """Why it could not join, the last time that it could not."""
        self._cluster = cluster
        self._claim = claim
        self._desk = desk
        self._runner = runner
        self._new_shard = new_shard
        self._finish = finish
        self._seen = seen
        self._returned = returned
        self._book = book
        self._on_defect = on_defect
        self._pace = pace or Pace()
        self._tending = Tending(info.node_id, shard_count)
        self._lease: Lease | None = None
        self._view = ClusterView({}, {})
        self._look = asyncio.Event()
        self._calls = asyncio.Semaphore(_CALLS_MAX)
        self._taking: set[int] = set()
        self._leaving: set[int] = set()
        self._announcing = False
        self._was_lost = False
        self._trouble = Trouble("coordinator_failed")
        self._not_joined = Trouble("join_failed")
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_joined(self) -> bool:
        """Whether the node holds a lease, as far as it knows."""
        return self.has_joined.is_set() and self._holds(self._lease)

    # Life.

    async def run(self) -> None:
        """Joins, and joins again whenever the lease was lost; tends the shards. Ends when cancelled."""
        while True:
            self._lease = await self._join()
            _log.info("joined", node_id=self.info.node_id)
            self._tend()
            if self.has_joined.is_set():
                self._returned()
            self.has_joined.set()
            await self._tend_while_joined()
            self._was_lost = True
            _log.warning("lease_lost", node_id=self.info.node_id, shards=len(self._desk.tenures))
            self._lose()
            # The adapter may not have seen yet that the lease is over.
            await self._cluster.leave()

    async def _join(self) -> Lease:
        """Tries until it succeeds.

        A node that must not join waits without shards until it may, as it does without a coordinator: what keeps it out may be
        over by itself, or is for an operator to mend.
        """
        while True:
            try:
                await self._claim()
                lease = await self._cluster.join(self.info, self._changed, self._look.set)
            except (StartError, ClusterUnavailableError) as error:
                self.join_error = error
                self._not_joined.failed(error)
                await asyncio.sleep(self._pace.look_again_s if isinstance(error, StartError) else self._pace.retry_s)
            else:
                self._not_joined.worked()
                return lease

    def let_go(self) -> None:
        """Gives up the lease and all shards, for somebody learnt that this node must not have them; then `run` goes on."""
        self._lose()
        self._look.set()

    async def give_all_away(self, timeout_s: float) -> None:
        """Takes no shard any more and gives all away, each once its appends are done; returns when that is so, or after a time.

        Without another node that could take them they are kept to the end.
        """
        self.info = replace(self.info, draining=True)
        try:
            async with asyncio.timeout(timeout_s):
                await self._announce()
                while self._has_heirs() and self._has_shards():
                    self._look.set()
                    await asyncio.sleep(self._pace.tend_interval_s)
        except TimeoutError:
            _log.warning("shards_not_given_away", shards=len(self._desk.tenures))

    async def say_drained(self) -> None:
        """All that this node pushed was heard. Says so, unless it holds shards yet, or was without a lease once: it may have
        dropped then what it had not pushed.

        The others are told while it still lives, and need not look for anything when it is gone.
        """
        if self._has_shards() or self._was_lost or not self._holds(self._lease):
            return
        self.info = replace(self.info, drained=True)
        await self._announce()

    async def leave(self) -> None:
        """Gives up the lease, and with it whatever is left. To be called when `run` has ended."""
        self._lose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._trouble.stop()
        self._not_joined.stop()
        await self._cluster.leave()

    def _lose(self) -> None:
        if self._lease is not None:
            self._lease.end()
        self._desk.drop_all()

    # The cluster as it is seen.

    def _changed(self, view: ClusterView) -> None:
        self.drained |= {node_id for node_id, info in view.nodes.items() if info.drained}
        self._view = view
        self._look.set()

    def _has_heirs(self) -> bool:
        others = (info for node_id, info in self._view.nodes.items() if node_id != self.info.node_id)
        return self._holds(self._lease) and any(not info.draining for info in others)

    def _has_shards(self) -> bool:
        return bool(self._desk.tenures or self._taking or self._leaving)

    def _holds(self, lease: Lease | None) -> bool:
        """Whether what was asked for under this lease still counts."""
        return lease is not None and lease is self._lease and lease.holds(lease_clock_ms())

    async def _tend_while_joined(self) -> None:
        while self._holds(self._lease):
            self._look.clear()
            self._tend()
            await asyncio.sleep(self._pace.tend_interval_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.look_again_s):
                    await self._look.wait()

    def _tend(self) -> None:
        """Looks at the cluster, and begins what is to be done."""
        own_id, nodes = self.info.node_id, self._view.nodes
        owners = {shard: owner for shard, owner in self._view.owners.items() if owner.node_id in nodes}
        self._seen(owners, nodes)
        if nodes.get(own_id) != self.info and not self._announcing:
            self._start(self._announce())
        may_own = tuple(sorted(node_id for node_id, info in nodes.items() if not info.draining))
        # While we drain we leave only shards that another node will take (they do once they see us drain), and take none.
        may_take = tuple(node_id for node_id in may_own if node_id != own_id) if self.info.draining else may_own
        for shard in self._tending.to_take(may_take, owners, self._desk.tenures.keys() | self._taking | self._leaving):
            self._taking.add(shard)
            self._start(self._take(shard, self._lease))
        for shard in self._tending.to_leave(may_own, self._desk.tenures.keys() - self._leaving):
            self._leaving.add(shard)
            self._start(self._give_away(self._desk.tenures[shard], self._lease))

    def shard_failed(self, tenure: Tenure, defect: Exception) -> None:
        """A mistake of the program has cost a shard: unless the coordinator learns it the shard is dead until the lease ends.

        Whoever takes it then, perhaps this node, begins from the log, under a new epoch.
        """
        self._book.defect("shard", defect, shard=tenure.number)
        self._leaving.add(tenure.number)
        self._start(self._give_back(tenure.number, self._lease))

    async def _give_back(self, shard: int, lease: Lease | None) -> None:
        try:
            await asyncio.sleep(self._pace.failed_pause_s)
            await self._release(shard, lease)
        finally:
            self._leaving.discard(shard)

    async def _announce(self) -> None:
        """What cannot be said now is said at a later look, or when the node joins again."""
        self._announcing = True
        try:
            await self._cluster.update(self.info)
            self._trouble.worked()
        except ClusterUnavailableError as error:
            self._trouble.failed(error)
            await asyncio.sleep(self._pace.retry_s)
        finally:
            self._announcing = False

    # Taking and giving away.

    async def _take(self, shard: int, lease: Lease | None) -> None:
        try:
            async with self._calls:
                owner = await self._cluster.take(shard) if self._holds(lease) else None
        except ClusterUnavailableError as error:
            self._trouble.failed(error)
            return
        finally:
            self._taking.discard(shard)
        if owner is None:
            return
        self._trouble.worked()
        if owner.node_id != self.info.node_id or lease is None or not self._holds(lease):
            return
        if self._tending.took(shard, owner.epoch):
            lanes = OwnerLanes(owner.epoch, _LANES_PER_SHARD_MAX)
            self._desk.take(Tenure(shard, self._new_shard(owner.epoch, lease), lanes))

    async def _give_away(self, tenure: Tenure, lease: Lease | None) -> None:
        try:
            await self._finish_in_time(tenure)
            self._desk.drop(tenure)
            await self._release(tenure.number, lease)
        finally:
            self._leaving.discard(tenure.number)

    async def _finish_in_time(self, tenure: Tenure) -> None:
        """What the store does not take in time is left to the next owner, as after a crash: nobody was told of it."""
        try:
            async with asyncio.timeout(self._pace.finish_timeout_s):
                await self._finish(tenure)
                await self._runner.save_marks_of(tenure)
        except TimeoutError:
            _log.warning("shard_not_finished", shard=tenure.number, appends=tenure.shard.appends_waiting)

    async def _release(self, shard: int, lease: Lease | None) -> None:
        """Until the coordinator says that it is done, or the lease is over, and the shard with it."""
        while self._holds(lease):
            try:
                async with self._calls:
                    await self._cluster.release(shard)
                self._trouble.worked()
                return
            except ClusterUnavailableError as error:
                self._trouble.failed(error)
            await asyncio.sleep(self._pace.retry_s)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = background.start(work, self._on_defect)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
