"""Stores in the shared Cassandra, for suites that run on it."""

import asyncio

from chatgrpc.adapters.cassandra import CassandraSettings, CassandraStore
from tests.support.services import CassandraCluster

TABLES = ("log", "amendments", "chats", "members", "receipts", "cursors", "profiles", "devices", "token_bounds")


def settings(cluster: CassandraCluster, keyspace: str) -> CassandraSettings:
    """How to reach a keyspace of a cluster of one node."""
    return CassandraSettings([(host, cluster.port) for host in cluster.hosts], keyspace, replication_factor=1)


async def open_store(cluster: CassandraCluster, keyspace: str) -> CassandraStore:
    """Opens a store; the first of a keyspace makes it."""
    return await CassandraStore.open(settings(cluster, keyspace))


async def empty(store: CassandraStore) -> None:
    """Takes everything out of a store."""
    for table in TABLES:
        await asyncio.to_thread(store._client.execute, f"TRUNCATE {{keyspace}}.{table}")
