"""The engines that the suites of this folder run against. A new embedded engine is one more line in `OPENERS`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.adapters.sqlite import SqliteStore
from chatgrpc.ports.store import Store
from tests.contract.cassandra_stores import empty, open_store
from tests.contract.stores.engines import Engine, clustered, embedded


async def _open_memory(_folder: Path) -> MemoryStore:
    return MemoryStore()


async def _open_sqlite(folder: Path) -> SqliteStore:
    return await SqliteStore.open(folder / "chatgrpc.db")


OPENERS: dict[str, Callable[[Path], Awaitable[Store]]] = {"memory": _open_memory, "sqlite": _open_sqlite}


@pytest.fixture(params=OPENERS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A new store of each engine."""
    opened = await OPENERS[request.param](tmp_path)
    yield opened
    await opened.close()


@pytest.fixture(params=[*OPENERS, "cassandra"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    """A new store of marks and accounts of each engine."""
    if request.param == "cassandra":
        cassandra = await open_store(request.getfixturevalue("shared_cassandra"), "stores")
        await empty(cassandra)
        yield clustered(cassandra)
        await cassandra.close()
        return
    opened = await OPENERS[request.param](tmp_path)
    yield embedded(opened)
    await opened.close()


@pytest.fixture(params=["memory", "sqlite"])
async def embedded_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryStore | SqliteStore]:
    """A new store of each engine that also counts the embedded owner's epochs."""
    opened = MemoryStore() if request.param == "memory" else await SqliteStore.open(tmp_path / "chatgrpc.db")
    yield opened
    await opened.close()
