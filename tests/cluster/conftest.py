"""The people of each test, on the cluster that the guarantees are held on too."""

import itertools
from collections.abc import AsyncIterator

import pytest_asyncio

from tests.cluster.support_people import People
from tests.support.cluster import RunningCluster

_numbers = itertools.count(1)


@pytest_asyncio.fixture(loop_scope="session")
async def people(shared_cluster: RunningCluster) -> AsyncIterator[People]:
    """The people of this test; each is where the test puts them."""
    people = People(shared_cluster, f"c{next(_numbers)}")
    yield people
    await people.close()
