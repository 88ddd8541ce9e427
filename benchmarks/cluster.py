"""A cluster under test: three nodes on the servers' CPU; etcd, Redis and Cassandra, all real, beside the load generator."""

import asyncio
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

from benchmarks.processes import BenchError, Cpus, pinned
from tests.support.cluster import RunningCluster, running_cluster
from tests.support.services import CassandraCluster, EtcdCluster, RedisServer, ServiceError

NODES = 3
_LOG_LINES = 4
"""Of each node, when something is wrong."""
_ENVIRONMENT = {"CHATGRPC_LOG__LEVEL": "warning", "CHATGRPC_LOG__FORMAT": "json"}


class Services:
    """What the nodes of clusters use. Every cluster has a keyspace of its own in Cassandra."""

    def __init__(self, cassandra_nodes: int, cpus: Cpus) -> None:
        """Starts nothing.

        Raises:
            BenchError: one of their programs cannot be had here; the message says what to do about it.
        """
        name = f"bench-rf{cassandra_nodes}"
        try:
            # First what is likely to be missing.
            self.cassandra = CassandraCluster(cassandra_nodes, f"cassandra-{name}")
            self.etcd = EtcdCluster(name=f"etcd-{name}")
            self.redis = RedisServer(f"redis-{name}")
        except ServiceError as error:
            raise BenchError(str(error)) from None
        self.cpus = cpus
        self.clusters = 0

    def start(self, stack: ExitStack) -> None:
        """Starts them, to be ended with the stack.

        Raises:
            BenchError: one did not start.
        """
        try:
            with pinned(self.cpus.loadgen):
                for service in (self.redis, self.etcd, self.cassandra):
                    stack.callback(service.close)
                    service.start()
        except ServiceError as error:
            raise BenchError(str(error)) from None

    @property
    def pids(self) -> Mapping[str, Sequence[int]]:
        """Their processes, by name."""
        return {
            "cassandra": [node.process.pid for node in self.cassandra.nodes],
            "redis": [self.redis.process.pid],
            "etcd": [member.process.pid for member in self.etcd.members],
        }


class LoadedCluster:
    """A cluster that runs, as the load generator sees it; see `benchmarks.processes.Loaded`."""

    def __init__(self, cluster: RunningCluster, services: Services) -> None:
        self.targets = cluster.addresses
        self.pids = [node.process.pid for node in cluster.nodes]
        self.service_pids = services.pids
        self._cluster = cluster

    def log_tail(self) -> str:
        """The last lines that each node wrote."""
        return "\n".join(line for node in self._cluster.nodes for line in node.process.log_tail().splitlines()[-_LOG_LINES:])

    def check_alive(self) -> None:
        """Raises:
        BenchError: a node has ended by itself.
        """
        for node in self._cluster.nodes:
            if not node.process.running:
                raise BenchError(f"{node.name} has ended; its log ends with:\n{node.process.log_tail()}")


@contextmanager
def chat_cluster(services: Services, parent: Path, edge: str) -> Iterator[tuple[LoadedCluster, Path]]:
    """New nodes with this edge on an empty keyspace, their shards owned; yields them and their data folder, below `parent`.

    Raises:
        BenchError: a node did not start, or the shards are not owned in time.
    """
    parent.mkdir(parents=True, exist_ok=True)
    services.clusters += 1
    name = f"bench-{os.getpid()}-{services.clusters}"
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as folder, asyncio.Runner() as runner:
        data_dir, stack = Path(folder), AsyncExitStack()
        environment = _ENVIRONMENT | {"CHATGRPC_SERVER__EDGE": edge}
        starting = running_cluster(
            data_dir, services.etcd, services.redis, services.cassandra, name, NODES, environment=environment
        )
        try:
            with pinned(services.cpus.server):
                cluster = runner.run(stack.enter_async_context(starting))
        except (ServiceError, AssertionError) as error:
            raise BenchError(f"the cluster does not start: {error}") from None
        try:
            yield LoadedCluster(cluster, services), data_dir
        finally:
            runner.run(stack.aclose())
