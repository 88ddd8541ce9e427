"""The engines that the suites of this folder run against, and chats that nobody else writes to."""

import secrets
from collections.abc import AsyncIterator

import pytest

from chatgrpc.adapters.memory import MemoryRowStore
from tests.contract.cassandra_stores import open_store
from tests.contract.rows.writes import Rows


@pytest.fixture(params=["memory", "cassandra"])
async def rows(request: pytest.FixtureRequest) -> AsyncIterator[Rows]:
    """A store of rows of each engine."""
    if request.param == "memory":
        memory = MemoryRowStore()
        yield Rows(memory, memory)
        return
    cassandra = await open_store(request.getfixturevalue("shared_cassandra"), "rows")
    yield Rows(cassandra.rows, cassandra.committed)
    await cassandra.close()


@pytest.fixture
def chat() -> str:
    """A chat that is new to every engine."""
    return f"g.{secrets.token_hex(11)}"


@pytest.fixture
def user() -> str:
    """A user who is new to every engine."""
    return f"u{secrets.token_hex(8)}"
