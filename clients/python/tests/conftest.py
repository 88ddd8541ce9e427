"""A real server for the tests of the client, and devices on it."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chatgrpc import compiled
from chatgrpc_client import Client, ClientConfig
from tests.support.server import ServerProcess, running_server

from .shell import TIMEOUT_S, Shell

os.environ.setdefault(compiled.SWITCH, "0")  # as tests/conftest.py has it

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that leave it running; each takes users of its own from `names`."""
    server = ServerProcess(tmp_path_factory.mktemp("shared") / "data")
    try:
        asyncio.run(server.start())
        yield server
    finally:
        server.close()


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A server that the test may kill."""
    async with running_server(tmp_path / "server") as server:
        yield server


@dataclass
class Home:
    """A machine on which users have devices."""

    server: ServerProcess
    folder: Path
    minted: list[str] = field(default_factory=list)
    """Users for whom a token was made, in order."""

    def device(self, user_id: str, device: str = "phone", *, ttl_s: int = 3600, **settings: Any) -> Client:
        """A device; opened again under the same name it finds its folder again."""

        async def token() -> str:
            self.minted.append(user_id)
            return self.server.token(user_id, ttl_s)

        defaults: dict[str, Any] = {"address": self.server.address, "backoff_cap_s": 0.5}
        config = ClientConfig(
            user_id=user_id,
            data_dir=self.folder / user_id / device,
            device_name=device,
            **(defaults | settings),
        )
        return Client(config, token)


@pytest.fixture
def home(shared_server: ServerProcess, tmp_path: Path) -> Home:
    """Devices on the shared server."""
    return Home(shared_server, tmp_path / "home")


@pytest.fixture
def names() -> tuple[str, str, str]:
    """Three users whom no other test knows."""
    number = next(_numbers)
    return f"alice{number}", f"bob{number}", f"carol{number}"


async def until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Waits until something is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


class Watcher:
    """Consumes a device's events and keeps them."""

    def __init__(self, client: Client) -> None:
        self.events: list[Any] = []
        self.error: Exception | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._watch(client))

    async def _watch(self, client: Client) -> None:
        try:
            async for event in client.events():
                self.events.append(event)
                self._changed.set()
        except Exception as error:
            self.error = error
        self._changed.set()

    def of(self, *kinds: type) -> list[Any]:
        """The events of these kinds, in order."""
        return [event for event in self.events if isinstance(event, kinds)]

    async def until(self, condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Waits until something is true of what was seen."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        """Stops consuming."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def watching(client: Client) -> AsyncIterator[Watcher]:
    """Watches a device for the length of the block."""
    watcher = Watcher(client)
    try:
        yield watcher
    finally:
        await watcher.close()


@pytest.fixture
def shell(shared_server: ServerProcess, tmp_path: Path) -> Shell:
    """Commands on the shared server, on a machine of their own."""
    return Shell(shared_server, tmp_path)
