"""A real cluster of three nodes, started when the first test asks for it, and shared by all that leave it whole."""

import json
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.cluster import RunningCluster, running_cluster
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer

_PATIENCE = {"CHATGRPC_CLUSTER__LEASE_TTL_S": "20", "CHATGRPC_LOG__FORMAT": "json", "CHATGRPC_LOG__LEVEL": "info"}
"""No node is to die in these tests; a machine that stands still for seconds must not make it look so."""


@pytest.fixture(scope="session")
def cluster_redis() -> Iterator[RedisServer]:
    """A Redis for these clusters alone: what other tests do to the shared one is none of their business."""
    server = RedisServer("redis-cluster")
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_cluster(
    shared_etcd: EtcdCluster,
    cluster_redis: RedisServer,
    shared_cassandra: CassandraCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[RunningCluster]:
    """Three nodes; each test has users of its own."""
    folder = tmp_path_factory.mktemp("cluster")
    async with running_cluster(
        folder / "data", shared_etcd, cluster_redis, shared_cassandra, "shared", environment=_PATIENCE
    ) as cluster:
        yield cluster
        await end_in_order(cluster, folder)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def impatient_cluster(
    shared_etcd: EtcdCluster,
    cluster_redis: RedisServer,
    shared_cassandra: CassandraCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[RunningCluster]:
    """Three nodes that expect a sign of life every second."""
    folder = tmp_path_factory.mktemp("impatient-cluster")
    settings = {**_PATIENCE, "CHATGRPC_SESSION__HEARTBEAT_INTERVAL_S": "1"}
    async with running_cluster(
        folder / "data", shared_etcd, cluster_redis, shared_cassandra, "impatient", environment=settings
    ) as cluster:
        yield cluster
        await end_in_order(cluster, folder)


async def end_in_order(cluster: RunningCluster, folder: Path) -> None:
    """Ends all nodes; keeps their logs in `folder`, where they outlive the cluster.

    Raises:
        AssertionError: a node had ended before, did not end in order, or has logged an error.
    """
    problems: list[str] = []
    for node in cluster.nodes:
        if not node.process.running:
            problems.append(f"{node.name} has ended: {node.process.log_tail()}")
        elif (status := await node.stop()) != 0:
            problems.append(f"{node.name} ended with status {status}: {node.process.log_tail()}")
        shutil.copy(node.process.log_path, folder / f"{node.name}.log")
        problems += [f"{node.name} logged: {line}" for line in _errors(node.process.log_path)]
    assert not problems, "\n".join(problems)


def _errors(log_path: Path) -> list[str]:
    """Lines that a healthy node does not write: errors, and tracebacks that did not become one."""
    return [line for line in log_path.read_text().splitlines() if _is_error(line)]


def _is_error(line: str) -> bool:
    if not line.startswith("{"):
        return "Traceback" in line
    logged: Mapping[str, object] = json.loads(line)
    return logged.get("level") in {"error", "critical"}
