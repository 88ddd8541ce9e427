"""Whose a keyspace is: one row says it, and a node of another cluster, or with other constants, does not start.

Two clusters with keyspaces of one name on one Cassandra would be two owners of each chat, and the older epochs' acknowledged
messages void without a word. The constants are those by which rows are placed and chats find their owner.

Its table is no step of the schema, so that nodes of the version before, which know of none, may still start beside this one.
Like the lock's (`schema`) it is given its identity by us, so that creating it twice is creating the same.

In the table stand also the nodes that use the keyspace, each for half a minute after it said so, and by which etcd they do: one
that comes with another etcd would give each chat a second owner, as long as they live.
"""

import uuid
import zlib
from dataclasses import dataclass
from typing import Final

from chatgrpc.adapters.cassandra.client import CassandraClient
from chatgrpc.adapters.cassandra.errors import SchemaError
from chatgrpc.core.epochs import BUCKET_SEQS
from chatgrpc.core.ids import SHARD_COUNT

USE_KEPT_S: Final = 30
"""How long it is known of a node that it uses the keyspace."""
USE_INTERVAL_S: Final = 7.0
"""So often a node says so."""

_OWNER_ROW: Final = 1
_IDENTITIES = uuid.UUID("b6a9f6c1-0a3e-4f0a-8a52-7d1c2f4e9c11")

_CREATE = """
    CREATE TABLE IF NOT EXISTS {keyspace}.owner (
        only        int PRIMARY KEY,   -- 1; others are those of nodes
        cluster     text,              -- or the node's id
        bucket_seqs int,
        shard_count int,
        etcd_base   bigint             -- what epochs are counted from; the latest that was ever seen
    ) WITH id = '{id}'"""
_EXISTS = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s AND table_name = 'owner'"
_CLAIM = "INSERT INTO {keyspace}.owner (only, cluster, bucket_seqs, shard_count) VALUES (1, %s, %s, %s) IF NOT EXISTS"
_READ = "SELECT cluster, bucket_seqs, shard_count, etcd_base FROM {keyspace}.owner WHERE only = 1"
_READ_TAKEN_AT = "SELECT WRITETIME(cluster) FROM {keyspace}.owner WHERE only = 1"
_READ_ALL = "SELECT only, cluster, etcd_base FROM {keyspace}.owner"
NOTE_USE = "INSERT INTO {keyspace}.owner (only, cluster, etcd_base) VALUES (?, ?, ?) USING TTL ?"
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


def identity(client: CassandraClient) -> str:
    """What tells the keyspace from all others, also from one of its name on another Cassandra; blocks.

    It is the moment of the conditional write by which it was taken, which is done once. A backup brings it back.

    Raises:
        StoreUnavailableError: nobody knows.
    """
    ((taken_at_us,),) = client.execute(_READ_TAKEN_AT)
    return f"{client.keyspace} of {taken_at_us}"


def claim_base(client: CassandraClient, etcd_base: int) -> None:
    """Notes from where the cluster's etcd counts epochs; blocks. An etcd that was set up anew counts from later.

    Raises:
        SchemaError: the keyspace was used with an etcd that counts from later: epochs of this one stand below what is stored.
            Or nodes use it with one that counts from earlier.
        StoreUnavailableError: nobody knows.
    """
    client.execute(_SET_FIRST_BASE, (etcd_base,))
    if _stored_base(client) < etcd_base:
        uses = [row for row in client.execute(_READ_ALL) if row[0] != _OWNER_ROW]
        others = sorted(node_id for _, node_id, base in uses if base is not None and base != etcd_base)
        if others:
            raise SchemaError(
                f"nodes use the keyspace {client.keyspace} by another etcd, which counts epochs from earlier than this one: "
                f"{', '.join(others)}. Is this the cluster's etcd (--cluster-etcd)? If that was lost and set up anew, stop all "
                f"nodes, wait for {USE_KEPT_S} s, and start them"
            )
        client.execute(_RAISE_BASE, (etcd_base, etcd_base))
    stored = _stored_base(client)
    if stored != etcd_base:
        raise SchemaError(
            f"the keyspace {client.keyspace} was used with an etcd that counts epochs from {stored}, and this one counts from "
            f"{etcd_base}: is it an older etcd, another cluster's, or restored from a backup?"
        )


def use_of(node_id: str, etcd_base: int) -> tuple[int, str, int, int]:
    """What `NOTE_USE` says of a node, in a row that is not the owner's."""
    return (-1 - zlib.crc32(node_id.encode()) // 2, node_id, etcd_base, USE_KEPT_S)


def _stored_base(client: CassandraClient) -> int:
    (*_, stored) = client.execute(_READ)[0]
    return int(stored)
