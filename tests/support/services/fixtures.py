"""Services for tests: started when the first test asks for one, ended with the run."""

from collections.abc import Iterator

import pytest

from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """A Redis for tests that leave it running and ask for nothing but their own keys."""
    server = RedisServer("redis-shared")
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def own_redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A Redis that the test may stop, kill and start."""
    server = RedisServer(f"redis-{request.node.name[:40]}")
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def shared_etcd() -> Iterator[EtcdCluster]:
    """An etcd of one member for tests that leave it running and keep to their own keys."""
    cluster = EtcdCluster(name="etcd-shared")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def own_etcd(request: pytest.FixtureRequest) -> Iterator[EtcdCluster]:
    """An etcd of three members that the test may stop, kill and start."""
    cluster = EtcdCluster(members=3, name=f"etcd-{request.node.name[:40]}")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def shared_cassandra() -> Iterator[CassandraCluster]:
    """A Cassandra of one node for tests that leave it running and keep to their own keyspaces."""
    cluster = CassandraCluster(name="cassandra-shared", durable=False)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
