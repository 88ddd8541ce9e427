"""The store of a clustered node in Cassandra: opening, closing, and the ports it serves."""

import asyncio
import threading
from typing import Self

from chatgrpc.adapters.cassandra.accounts import CassandraDeviceStore, CassandraProfileStore
from chatgrpc.adapters.cassandra.batches import BESIDE_UNDER_WAY_MAX, Batches
from chatgrpc.adapters.cassandra.client import CassandraClient, CassandraSettings
from chatgrpc.adapters.cassandra.committed import CassandraCommittedLog
from chatgrpc.adapters.cassandra.cursors import CassandraCursorStore
from chatgrpc.adapters.cassandra.owner import KeyspaceOwner, KeyspaceUse, claim
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
        self._use: KeyspaceUse | None = None
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
                store._use = KeyspaceUse(client)
            if given_up.is_set():
                raise StoreUnavailableError("nobody waits for the store any more")
            return store
        except BaseException:
            client.abandon()
            raise

    @property
    def use(self) -> KeyspaceUse:
        """Who uses the keyspace; of a store that was opened with an owner."""
        assert self._use is not None, "there is a place for it only in a keyspace that was taken"
        return self._use

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
