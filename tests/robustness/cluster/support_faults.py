"""The scene of the cluster's faults: one cluster for all of them, a load of its own for each, and a line in a table."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.checker import check
from tests.support.cluster import ClusterNode, RunningCluster, running_cluster
from tests.support.load import Load, Recovery
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer

LEASE_TTL_S = 5
RECOVERY_MAX_S = 120.0
"""Far above what it takes, also where three nodes and three Cassandras share a slow processor."""
LONG_STANDSTILL_S = 5.0
"""Half as long as a node lets a send wait for the chat's owner; some had waited before the fault."""
_WARM_UP_S = 1.0
_NAME = "faults"


@dataclass
class Line:
    """What one fault, or what followed it, did to the load."""

    name: str
    acknowledged: int = 0
    failed: int = 0
    """Messages of which a try was answered by an error; all were sent again until they were acknowledged."""
    recovery: Recovery | None = None
    verdict: str = "held"


LINES: list[Line] = []
"""In the order in which they happened; printed at the end of the run."""


class Fault:
    """A fault under a load."""

    def __init__(self, load: Load, lines: list[Line]) -> None:
        self.load = load
        self._lines = lines
        self._since_s = 0.0
        self._before = (0, 0)

    def begins(self, name: str, *, is_outage: bool = False) -> None:
        """It happens now, or what undoes it does; in an outage nothing recovers by itself."""
        self._close_line()
        self._lines.append(Line(name, verdict="held" if is_outage else "NOT RECOVERED"))
        self._since_s = time.monotonic()
        self._before = self.load.acknowledged, self.load.failed

    async def recovered(self) -> None:
        """Waits until every chat is at work again.

        Raises:
            AssertionError: some are not, in `RECOVERY_MAX_S`.
        """
        recovery = await self.load.recovered(self._since_s, RECOVERY_MAX_S)
        self._lines[-1].recovery = recovery
        self._lines[-1].verdict = "held"

    def check_none_failed(self) -> None:
        """No try of a send was answered by an error, unless a chat stood still for so long that one had to be.

        Whether one does is the machine's speed: where nodes start in a second or two, none does.
        """
        stood_still_s = max((line.recovery.max_s for line in self._lines if line.recovery is not None), default=0.0)
        assert self.load.failed == 0 or stood_still_s > LONG_STANDSTILL_S, self.load.why_failed()

    def _close_line(self) -> None:
        if self._lines:
            acknowledged, failed = self._before
            self._lines[-1].acknowledged = self.load.acknowledged - acknowledged
            self._lines[-1].failed = self.load.failed - failed

    def end(self, problems: list[str]) -> None:
        """The load is over, and was checked."""
        self._close_line()
        if problems:
            for line in self._lines:
                line.verdict = f"{len(problems)} BROKEN"


class Scene:
    """One cluster on which fault after fault happens."""

    def __init__(self, cluster: RunningCluster, long: bool, logs: Path) -> None:
        self.cluster = cluster
        self.long = long
        """Whether faults last as long as they do in earnest."""
        self._logs = logs
        self._faults = 0

    @contextlib.asynccontextmanager
    async def fault(self) -> AsyncIterator[Fault]:
        """A load, which is at work when the block begins; at its end all is mended, and the history is checked."""
        await self.cluster.mend()
        self._faults += 1
        lines: list[Line] = []
        load = Load(lambda: self.cluster.addresses, self.cluster.token, f"f{self._faults}", seed=self._faults)
        fault = Fault(load, lines)
        try:
            async with load.going_on():
                await load.recovered(time.monotonic(), RECOVERY_MAX_S)
                await asyncio.sleep(_WARM_UP_S)
                yield fault
                await self.cluster.mend()
            problems = await load.problems()
            fault.end(problems)
            check(problems)
        finally:
            LINES.extend(lines)
            self.save_logs()

    async def nodes_by_id(self) -> list[ClusterNode]:
        """The nodes by rising id: of two, the first dials the other, through the other's link."""
        ids = {node.address: await self.cluster.id_of(node) for node in self.cluster.nodes}
        return sorted(self.cluster.nodes, key=lambda node: ids[node.address])

    def save_logs(self) -> None:
        """Copies what the nodes have logged to where pytest keeps files of failed runs."""
        for node in (*self.cluster.nodes, *self.cluster.removed):
            shutil.copy(node.process.log_path, self._logs / f"{node.name}.log")


@contextlib.asynccontextmanager
async def scene_on(
    etcd: EtcdCluster, redis: RedisServer, cassandra: CassandraCluster, folder: Path, long: bool
) -> AsyncIterator[Scene]:
    """Three nodes for the length of the block, on services that run already."""
    environment = {"CHATGRPC_LOG__FORMAT": "json", "CHATGRPC_CLUSTER__LEASE_TTL_S": str(LEASE_TTL_S)}
    async with running_cluster(
        folder / "data", etcd, redis, cassandra, _NAME, environment=environment, proxied=True
    ) as cluster:
        scene = Scene(cluster, long, folder)
        try:
            yield scene
        finally:
            scene.save_logs()
