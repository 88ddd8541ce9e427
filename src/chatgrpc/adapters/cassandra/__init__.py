"""The ports of a clustered node's store over Cassandra."""

from chatgrpc.adapters.cassandra.client import CassandraSettings
from chatgrpc.adapters.cassandra.errors import SchemaError
from chatgrpc.adapters.cassandra.owner import KeyspaceOwner
from chatgrpc.adapters.cassandra.store import CassandraStore

__all__ = ["CassandraSettings", "CassandraStore", "KeyspaceOwner", "SchemaError"]
