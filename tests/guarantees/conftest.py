"""One server for all tests that do not stop it, and the people of each test."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.cast import Cast
from tests.support.server import ServerProcess

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server. Tests share it, each with users of its own."""
    server = ServerProcess(tmp_path_factory.mktemp("guarantees") / "data")
    try:
        asyncio.run(server.start())
        yield server
        assert server.terminate() == 0
    finally:
        server.close()


@pytest.fixture
async def cast(server: ServerProcess) -> AsyncIterator[Cast]:
    """The people of this test."""
    people = Cast(server, f"t{next(_numbers)}")
    yield people
    await people.close()
