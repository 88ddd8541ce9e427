"""The ports of a clustered node's store over Cassandra."""

from chatgrpc.adapters.cassandra.client import CassandraSettings
from chatgrpc.adapters.cassandra.errors import SchemaError
from chatgrpc.adapters.cassandra.owner import USE_INTERVAL_S, KeyspaceOwner
from chatgrpc.adapters.cassandra.store import CassandraStore

__all__ = ["USE_INTERVAL_S", "CassandraSettings", "CassandraStore", "KeyspaceOwner", "SchemaError"]
