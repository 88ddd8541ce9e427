"""What the suites of marks and accounts see of an engine: embedded ones keep a chat's log besides, the cluster's its rows."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from chatgrpc.adapters.cassandra import CassandraStore
from chatgrpc.core.row_store import StoreWrite, WriteViews
from chatgrpc.ports.accounts import DeviceStore, ProfileStore
from chatgrpc.ports.chat_log import Entry
from chatgrpc.ports.cursors import CursorStore
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.receipts import ReceiptStore
from chatgrpc.ports.store import Store


@dataclass(frozen=True, slots=True)
class Engine:
    """The stores of one engine, and a way to have members of chats in it."""

    receipts: ReceiptStore
    cursors: CursorStore
    profiles: ProfileStore
    devices: DeviceStore
    commit: Callable[[Entry], Awaitable[None]]
    """Stores an event with its views."""


def embedded(store: Store) -> Engine:
    """An engine that has the log."""
    return Engine(store.receipts, store.cursors, store.profiles, store.devices, lambda entry: store.log.append([entry]))


def clustered(store: CassandraStore) -> Engine:
    """An engine that has rows."""

    async def commit(entry: Entry) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def written(_writes: Sequence[StoreWrite], error: StoreError | None) -> None:
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(None)

        store.rows.write([WriteViews(entry)], written)
        await done

    return Engine(store.receipts, store.cursors, store.profiles, store.devices, commit)
