"""One server for all tests that do not stop it, and the people of each test."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.cast import Cast
from tests.support.server import ServerProcess

_numbers = itertools.count(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a seed runs with many, each of which repeats exactly what the test decides by it."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--seeds")))


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


@pytest.fixture(scope="session")
def impatient_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server that expects a sign of life every second."""
    settings = {"CHATGRPC_SESSION__HEARTBEAT_INTERVAL_S": "1"}
    server = ServerProcess(tmp_path_factory.mktemp("impatient") / "data", settings)
    try:
        asyncio.run(server.start())
        yield server
    finally:
        server.close()


@pytest.fixture
async def impatient_cast(impatient_server: ServerProcess) -> AsyncIterator[Cast]:
    """The people of this test, on the impatient server."""
    people = Cast(impatient_server, f"t{next(_numbers)}")
    yield people
    await people.close()


@pytest.fixture
async def cast(server: ServerProcess) -> AsyncIterator[Cast]:
    """The people of this test."""
    people = Cast(server, f"t{next(_numbers)}")
    yield people
    await people.close()
