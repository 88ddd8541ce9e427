"""The services and the cluster of the faults, started once for all of them, and the table of what the faults did."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.robustness.cluster.support_faults import LINES, Scene, scene_on
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer


@pytest.fixture(scope="package")
def etcd_of_three() -> Iterator[EtcdCluster]:
    """An etcd of three members, to be ended and started."""
    cluster = EtcdCluster(members=3, name="etcd-faults")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="package")
def mortal_redis() -> Iterator[RedisServer]:
    """A Redis, to be emptied, ended and started."""
    server = RedisServer("redis-faults")
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="package")
def cassandra_of_three() -> Iterator[CassandraCluster]:
    """A Cassandra of three nodes, to be ended and started."""
    cluster = CassandraCluster(nodes=3, name="cassandra-faults")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def scene(
    etcd_of_three: EtcdCluster,
    mortal_redis: RedisServer,
    cassandra_of_three: CassandraCluster,
    tmp_path_factory: pytest.TempPathFactory,
    long: bool,
) -> AsyncIterator[Scene]:
    """Three nodes on three Cassandra nodes (replication factor 3), three members of etcd, and Redis."""
    folder = tmp_path_factory.mktemp("cluster")
    async with scene_on(etcd_of_three, mortal_redis, cassandra_of_three, folder, long) as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what the faults did, one line each."""
    if not LINES:
        return
    terminalreporter.section("what faults did to chats on a cluster of three")
    terminalreporter.write_line(f"{'fault':62}{'acknowledged':>13}{'failed':>8}{'recover p50':>13}{'max':>9}  verdict")
    for line in LINES:
        recovery = line.recovery
        figures = f"{recovery.p50_s:>11.2f} s{recovery.max_s:>7.2f} s" if recovery is not None else f"{'-':>13}{'-':>9}"
        terminalreporter.write_line(f"{line.name:62}{line.acknowledged:>13}{line.failed:>8}{figures}  {line.verdict}")
