"""The load and its checker, against the embedded server: they go on through its death, and notice what does not come back."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.server import ServerProcess, running_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with running_server(tmp_path / "data") as running:
        yield running


async def test_it_goes_on_through_a_kill_and_finds_all_in_order(server: ServerProcess) -> None:
    load = Load(lambda: [server.address], server.token, "kill", seed=1)
    async with load.going_on():
        await load.recovered(time.monotonic(), timeout_s=20)
        killed_at_s = time.monotonic()
        server.kill()
        await server.start()
        recovery = await load.recovered(killed_at_s, timeout_s=20)
    assert await load.problems() == []
    assert load.failed == 0
    assert load.acknowledged > 0
    print(f"{load.acknowledged} acknowledged, {load.duplicates} duplicates, {recovery}")


async def test_a_chat_that_stands_still_is_named(server: ServerProcess) -> None:
    load = Load(lambda: [server.address], server.token, "still", seed=1, people=6)
    async with load.going_on():
        server.kill()
        with pytest.raises(AssertionError, match="chats are not at work again"):
            await load.recovered(time.monotonic(), timeout_s=0.5)
        await server.start()
