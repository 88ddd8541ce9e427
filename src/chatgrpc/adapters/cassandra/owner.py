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

from chatgrpc.adapters.cassandra.client import CassandraClient, Statement
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
_READ = "SELECT cluster, bucket_seqs, shard_count FROM {keyspace}.owner WHERE only = 1"
_READ_TAKEN_AT = "SELECT WRITETIME(cluster) FROM {keyspace}.owner WHERE only = 1"
_READ_BASE = "SELECT etcd_base FROM {keyspace}.owner WHERE only = 1"
_READ_USES = "SELECT only, cluster, etcd_base FROM {keyspace}.owner"
_NOTE_USE = "INSERT INTO {keyspace}.owner (only, cluster, etcd_base) VALUES (?, ?, ?) USING TTL ?"
_SET_FIRST_BASE = "UPDATE {keyspace}.owner SET etcd_base = ? WHERE only = 1 IF etcd_base = null"
_RAISE_BASE = "UPDATE {keyspace}.owner SET etcd_base = ? WHERE only = 1 IF etcd_base < ?"


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
    (cluster, bucket_seqs, shard_count) = client.execute(_READ, ())[0]
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


class KeyspaceUse:
    """Who uses a keyspace that was taken, and by which etcd. Each call is a few requests, and bounded in time."""

    def __init__(self, client: CassandraClient) -> None:
        """Prepares its statements, which blocks.

        Raises:
            StoreUnavailableError: they cannot be prepared.
        """
        self._client = client
        self._read_taken_at = client.prepare(_READ_TAKEN_AT)
        self._read_base = client.prepare(_READ_BASE)
        self._read_uses = client.prepare(_READ_USES)
        self._set_first_base = client.prepare(_SET_FIRST_BASE, idempotent=False)
        self._raise_base = client.prepare(_RAISE_BASE, idempotent=False)
        self._note_use = client.prepare(_NOTE_USE)

    async def identity(self) -> str:
        """What tells the keyspace from all others, also from one of its name on another Cassandra.

        It is the moment of the conditional write by which it was taken, which is done once. A backup brings it back.

        Raises:
            SchemaError: it is nobody's any more.
            StoreUnavailableError: nobody knows.
        """
        taken_at_us = await self._read_one(self._read_taken_at)
        return f"{self._client.keyspace} of {taken_at_us}"

    async def base(self) -> int:
        """From where the latest etcd counts epochs by which the keyspace was ever used; 0 before the first.

        Raises:
            SchemaError: it is nobody's any more.
            StoreUnavailableError: nobody knows.
        """
        return await self._read_one(self._read_base) or 0

    async def claim_base(self, etcd_base: int) -> None:
        """Notes from where the cluster's etcd counts epochs. An etcd that was set up anew counts from later.

        Raises:
            SchemaError: the keyspace was used with an etcd that counts from later: epochs of this one stand below what is
                stored. Or nodes use it with one that counts from earlier.
            StoreError: nobody knows.
        """
        stored = await self.base()
        if not stored:
            await self._client.write(self._set_first_base.bind((etcd_base,)))
            stored = await self.base()  # another node's may have come first
        if stored < etcd_base:
            others = await self._users_by_others_than(etcd_base)
            if others:
                raise SchemaError(
                    f"nodes use the keyspace {self._client.keyspace} by another etcd, which counts epochs from earlier than "
                    f"this one: {', '.join(others)}. Is this the cluster's etcd (--cluster-etcd)? If that was lost and set up "
                    f"anew, stop all nodes, wait for {USE_KEPT_S} s, and start them"
                )
            await self._client.write(self._raise_base.bind((etcd_base, etcd_base)))
            stored = await self.base()
        if stored != etcd_base:
            raise SchemaError(
                f"the keyspace {self._client.keyspace} was used with an etcd that counts epochs from {stored}, and this one "
                f"counts from {etcd_base}: is it an older etcd, another cluster's, or restored from a backup?"
            )

    async def note_use(self, node_id: str, etcd_base: int) -> None:
        """Says for `USE_KEPT_S` that a node uses the keyspace by the etcd that counts from there.

        Raises:
            StoreError: nobody may know of it.
        """
        await self._client.write(self._note_use.bind(use_of(node_id, etcd_base)))

    async def _read_one(self, statement: Statement) -> int | None:
        """A value of the owner's row."""
        rows = await self._client.read(statement.bind(()))
        if not rows:
            raise SchemaError(f"nobody owns the keyspace {self._client.keyspace} any more: was it made anew?")
        ((value,),) = rows
        return None if value is None else int(value)

    async def _users_by_others_than(self, etcd_base: int) -> list[str]:
        uses = await self._client.read(self._read_uses.bind(()))
        return sorted(node_id for only, node_id, base in uses if only != _OWNER_ROW and base is not None and base != etcd_base)


def use_of(node_id: str, etcd_base: int) -> tuple[int, str, int, int]:
    """What stands there of a node, in a row that is not the owner's."""
    return (-1 - zlib.crc32(node_id.encode()) // 2, node_id, etcd_base, USE_KEPT_S)
