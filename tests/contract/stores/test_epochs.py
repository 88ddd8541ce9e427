"""The contract of `ports.epochs.EpochCounter`."""

import asyncio

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.adapters.sqlite import SqliteStore


async def test_counts_from_one(embedded_store: MemoryStore | SqliteStore) -> None:
    assert [await embedded_store.epochs.next_epoch() for _ in range(3)] == [1, 2, 3]


async def test_gives_no_epoch_twice(embedded_store: MemoryStore | SqliteStore) -> None:
    epochs = await asyncio.gather(*(embedded_store.epochs.next_epoch() for _ in range(10)))
    assert sorted(epochs) == list(range(1, 11))
