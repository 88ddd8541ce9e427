"""The store of a clustered node in Cassandra: opening, closing, and the ports it serves."""

import asyncio
import threading
from typing import Any, Self

from chatgrpc.adapters.cassandra.accounts import CassandraDeviceStore, CassandraProfileStore
from chatgrpc.adapters.cassandra.batches import BESIDE_UNDER_WAY_MAX, Batches
from chatgrpc.adapters.cassandra.client import CassandraClient, CassandraSettings
from chatgrpc.adapters.cassandra.committed import CassandraCommittedLog
from chatgrpc.adapters.cassandra.cursors import CassandraCursorStore
from chatgrpc.adapters.cassandra.owner import NOTE_USE, KeyspaceOwner, claim, claim_base, identity, use_of
from chatgrpc.adapters.cassandra.receipts import CassandraReceiptStore
from chatgrpc.adapters.cassandra.rows import CassandraRowStore
from chatgrpc.adapters.cassandra.schema import migrate, packaged_migrations
from chatgrpc.ports.errors import StoreUnavailableError


class CassandraStore:
    """The ports of one node's store, for the event loop that opened it. Every call ends in bounded time."""

    def __init__(self, client: CassandraClient, loop: asyncio.AbstractEventLoop) -> None:
        """Use `open`."""
        self._client = client
        self._batches = Batches(client, loop)
        self._beside = Batches(client, loop, BESIDE_UNDER_WAY_MAX)
        self._note_use: Any = None  # there is a place for it only in a keyspace that was taken
        self._closing: asyncio.Future[None] | None = None
        self.rows = CassandraRowStore(client, self._batches, self._beside, loop)
        self.committed = CassandraCommittedLog(client)
        self.receipts = CassandraReceiptStore(client, self._beside)
        self.cursors = CassandraCursorStore(client, self._beside)
        self.profiles = CassandraProfileStore(client)
        self.devices = CassandraDeviceStore(client)

    @classmethod
    async def open(cls, settings: CassandraSettings, owner: KeyspaceOwner | None = None) -> Self:
        """Connects, and makes the keyspace or brings it to the current schema; any number of nodes may do so at once.

        With an `owner`, takes the keyspace for it.

        Raises:
            SchemaError: the keyspace is another program's or another cluster's, or written by a newer chatgrpc.
            StoreUnavailableError: no node answers, none lets us in, or too few are alive.
        """
        given_up = threading.Event()
        try:
            return await asyncio.to_thread(cls._open, settings, owner, asyncio.get_running_loop(), given_up)
        except asyncio.CancelledError:
            given_up.set()
            raise

    @classmethod
    def _open(
        cls,
        settings: CassandraSettings,
        owner: KeyspaceOwner | None,
        loop: asyncio.AbstractEventLoop,
        given_up: threading.Event,
    ) -> Self:
        client = CassandraClient(settings, loop, given_up)
        try:
            migrate(client, settings.replication_factor, packaged_migrations())
            if owner is not None:
                claim(client, owner)
            store = cls(client, loop)
            if owner is not None:
                store._note_use = client.prepare(NOTE_USE)
            if given_up.is_set():
                raise StoreUnavailableError("nobody waits for the store any more")
            return store
        except BaseException:
            client.abandon()
            raise

    async def claim_base(self, etcd_base: int) -> None:
        """Notes from where the cluster's etcd counts epochs: see `owner.claim_base`.

        Raises:
            SchemaError: the keyspace was used with an etcd that counts from later, or is used with another one.
            StoreUnavailableError: nobody knows.
        """
        await asyncio.to_thread(claim_base, self._client, etcd_base)

    async def identity(self) -> str:
        """What tells the keyspace from all others: see `owner.identity`.

        Raises:
            StoreUnavailableError: nobody knows.
        """
        return await asyncio.to_thread(identity, self._client)

    async def note_use(self, node_id: str, etcd_base: int) -> None:
        """Says for `owner.USE_KEPT_S` that a node uses the keyspace, which it has taken, by the etcd that counts from there.

        Raises:
            StoreError: nobody may know of it.
        """
        await self._client.write(self._note_use.bind(use_of(node_id, etcd_base)))

    async def close(self) -> None:
        """Finishes what was asked before, then lets the connections go. Calls after it raise `StoreUnavailableError`."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        # Shielded: a caller that is cancelled must not leave it half closed.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self.rows.close()
        await self._batches.close()
        await self._beside.close()
        await self._client.close()
