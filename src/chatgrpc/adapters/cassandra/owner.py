"""Whose a keyspace is: one row says it, and a node of another cluster, or with other constants, does not start.

Two clusters with keyspaces of one name on one Cassandra would be two owners of each chat, and the older epochs' acknowledged
messages void without a word. The constants are those by which rows are placed and chats find their owner.

Its table is no step of the schema, so that nodes of the version before, which know of none, may still start beside this one.
Like the lock's (`schema`) it is given its identity by us, so that creating it twice is creating the same.
"""

import uuid
from dataclasses import dataclass

from chatgrpc.adapters.cassandra.client import CassandraClient
from chatgrpc.adapters.cassandra.errors import SchemaError
from chatgrpc.core.epochs import BUCKET_SEQS
from chatgrpc.core.ids import SHARD_COUNT

_IDENTITIES = uuid.UUID("b6a9f6c1-0a3e-4f0a-8a52-7d1c2f4e9c11")

_CREATE = """
    CREATE TABLE IF NOT EXISTS {keyspace}.owner (
        only        int PRIMARY KEY,   -- 1
        cluster     text,
        bucket_seqs int,
        shard_count int,
        etcd_base   bigint             -- what epochs are counted from; the latest that was ever seen
    ) WITH id = '{id}'"""
_EXISTS = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s AND table_name = 'owner'"
_CLAIM = "INSERT INTO {keyspace}.owner (only, cluster, bucket_seqs, shard_count) VALUES (1, %s, %s, %s) IF NOT EXISTS"
_READ = "SELECT cluster, bucket_seqs, shard_count, etcd_base FROM {keyspace}.owner WHERE only = 1"
_SET_FIRST_BASE = "UPDATE {keyspace}.owner SET etcd_base = %s WHERE only = 1 IF etcd_base = null"
_RAISE_BASE = "UPDATE {keyspace}.owner SET etcd_base = %s WHERE only = 1 IF etcd_base < %s"


@dataclass(frozen=True, slots=True)
class KeyspaceOwner:
    """What a keyspace is taken for."""

    cluster: str
    """The cluster's name."""
    bucket_seqs: int = BUCKET_SEQS
    shard_count: int = SHARD_COUNT


def claim(client: CassandraClient, owner: KeyspaceOwner) -> None:
    """Takes a keyspace that is nobody's yet, as one of an earlier version is; blocks.

    Raises:
        SchemaError: it is another cluster's.
        StoreUnavailableError: nobody knows.
    """
    if not client.execute(_EXISTS, (client.keyspace,)):
        identity = uuid.uuid5(_IDENTITIES, f"{client.keyspace}.owner")
        client.execute(_CREATE.replace("{id}", str(identity)))
    client.execute(_CLAIM, (owner.cluster, owner.bucket_seqs, owner.shard_count))
    # What the conditional write answered may be that to the driver's second try: so it is read.
    (cluster, bucket_seqs, shard_count, _) = client.execute(_READ, ())[0]
    if cluster != owner.cluster:
        raise SchemaError(
            f"the keyspace {client.keyspace} belongs to the cluster {cluster!r}, and this node is of {owner.cluster!r}: give "
            "each cluster a keyspace of its own (--cluster-keyspace), or this node the cluster's name (--cluster-name)"
        )
    if (bucket_seqs, shard_count) != (owner.bucket_seqs, owner.shard_count):
        raise SchemaError(
            f"the keyspace {client.keyspace} was made with {bucket_seqs} seqs a bucket and {shard_count} shards, and this "
            f"chatgrpc has {owner.bucket_seqs} and {owner.shard_count}: start the chatgrpc that made it"
        )


def claim_base(client: CassandraClient, etcd_base: int) -> None:
    """Notes from where the cluster's etcd counts epochs; blocks. An etcd that was set up anew counts from later.

    Raises:
        SchemaError: the keyspace was used with an etcd that counts from later: epochs of this one stand below what is stored.
        StoreUnavailableError: nobody knows.
    """
    client.execute(_SET_FIRST_BASE, (etcd_base,))
    client.execute(_RAISE_BASE, (etcd_base, etcd_base))
    (*_, stored) = client.execute(_READ, ())[0]
    if stored != etcd_base:
        raise SchemaError(
            f"the keyspace {client.keyspace} was used with an etcd that counts epochs from {stored}, and this one counts from "
            f"{etcd_base}: is it an older etcd, another cluster's, or restored from a backup?"
        )
