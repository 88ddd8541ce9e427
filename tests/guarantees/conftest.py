"""One server for all tests that do not stop it, or three nodes in its place, and the people of each test."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.cast import Cast, Served
from tests.support.server import ServerProcess

ALONE, CLUSTER = "alone", "cluster"

ON_BOTH = {
    "test_chats",
    "test_g2_one_order",
    "test_g3_once",
    "test_g4_no_hole_at_the_seam",
    "test_g6_no_cross_talk",
    "test_history",
    "test_marks",
    "test_presence_and_typing",
    "test_repeated_keys",
    "test_revocation",
    "test_sessions",
}
"""Modules whose tests run on a cluster too without `--on-cluster`; those with seeds with a few of them."""
SEEDS_ON_BOTH = 1

_numbers = itertools.count(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a seed runs with many, each of which repeats exactly what the test decides by it.

    A test that takes a server runs on the one process, on a cluster, or on both.
    """
    seeds = list(range(metafunc.config.getoption("--seeds"))) if "seed" in metafunc.fixturenames else []
    places = _places(metafunc)
    if seeds and places == [ALONE, CLUSTER]:
        runs = [(place, seed) for place in places for seed in (seeds if place == ALONE else seeds[:SEEDS_ON_BOTH])]
        metafunc.parametrize(("server", "seed"), runs, indirect=["server"])
        return
    if seeds:
        metafunc.parametrize("seed", seeds)
    for fixture in ("server", "impatient_server"):
        if fixture in metafunc.fixturenames and places != [ALONE]:
            metafunc.parametrize(fixture, places, indirect=True)


def _places(metafunc: pytest.Metafunc) -> list[str]:
    """Where a test runs."""
    if metafunc.definition.get_closest_marker("embedded_only") is not None:
        return [ALONE]
    if metafunc.config.getoption("--on-cluster"):
        return [CLUSTER]
    # Of nodes that are impatient there would have to be three more.
    if "server" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[2] in ON_BOTH:
        return [ALONE, CLUSTER]
    return [ALONE]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Served:
    """Where the people of a test are. Tests share it, each with users of its own."""
    place: Served = request.getfixturevalue(
        "shared_cluster" if getattr(request, "param", ALONE) == CLUSTER else "shared_server"
    )
    return place


@pytest.fixture
def impatient_server(request: pytest.FixtureRequest) -> Served:
    """The same, where a sign of life is expected every second."""
    place: Served = request.getfixturevalue(
        "impatient_cluster" if getattr(request, "param", ALONE) == CLUSTER else "shared_impatient_server"
    )
    return place


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server."""
    server = ServerProcess(tmp_path_factory.mktemp("guarantees") / "data")
    try:
        asyncio.run(server.start())
        yield server
        assert server.terminate() == 0
    finally:
        server.close()


@pytest.fixture(scope="session")
def shared_impatient_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server that expects a sign of life every second."""
    settings = {"CHATGRPC_SESSION__HEARTBEAT_INTERVAL_S": "1"}
    server = ServerProcess(tmp_path_factory.mktemp("impatient") / "data", settings)
    try:
        asyncio.run(server.start())
        yield server
    finally:
        server.close()


@pytest.fixture
async def impatient_cast(impatient_server: Served) -> AsyncIterator[Cast]:
    """The people of this test, where they must not be silent."""
    people = Cast(impatient_server, f"t{next(_numbers)}")
    yield people
    await people.close()


@pytest.fixture
async def cast(server: Served) -> AsyncIterator[Cast]:
    """The people of this test."""
    people = Cast(server, f"t{next(_numbers)}")
    yield people
    await people.close()
