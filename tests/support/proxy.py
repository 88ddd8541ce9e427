"""A TCP proxy before a server, which cuts connections at a byte of the test's choice."""

import asyncio
import contextlib
import enum
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass


class Way(enum.Enum):
    """Which way bytes go."""

    TO_SERVER = enum.auto()
    TO_CLIENT = enum.auto()


@dataclass(frozen=True, slots=True)
class Cut:
    """How a connection ends: once so many bytes went this way, both sides lose it."""

    way: Way
    after_bytes: int
    reset: bool
    """With a reset, which takes with it what was not read yet; else with an orderly end of TCP."""


class CuttingProxy:
    """Passes connections on, each to the next address; the first one ends by the first of `cuts`, and so on; those after the
    last go on."""

    def __init__(self, addresses: Sequence[str], cuts: Iterable[Cut]) -> None:
        self.connections = 0
        """How many came so far."""
        self._addresses = itertools.cycle(addresses)
        self._cuts: Iterator[Cut] = iter(cuts)
        self._listener: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """What clients dial."""
        assert self._listener is not None
        return f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        """Begins to listen."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Ends every connection."""
        assert self._listener is not None
        self._listener.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        self.connections += 1
        cut = next(self._cuts, None)
        try:
            host, port = next(self._addresses).split(":")
            upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
        else:
            await _pass_on((reader, writer), (upstream_reader, upstream_writer), cut)
        finally:
            self._passing.discard(task)


_Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _pass_on(client: _Side, server: _Side, cut: Cut | None) -> None:
    budgets = {cut.way: cut.after_bytes} if cut is not None else {}
    ways = {
        asyncio.create_task(_pump(client[0], server[1], budgets.get(Way.TO_SERVER))),
        asyncio.create_task(_pump(server[0], client[1], budgets.get(Way.TO_CLIENT))),
    }
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for _, writer in (client, server):
            if cut is not None and cut.reset:
                writer.transport.abort()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None) -> None:
    """Passes bytes on until the side that sends ends, or the budget is spent to the byte."""
    with contextlib.suppress(OSError):
        while budget != 0:
            data = await reader.read(65_536 if budget is None else min(budget, 65_536))
            if not data:
                return
            writer.write(data)
            await writer.drain()
            if budget is not None:
                budget -= len(data)


@contextlib.asynccontextmanager
async def cutting_proxy(addresses: Sequence[str], cuts: Iterable[Cut]) -> AsyncIterator[CuttingProxy]:
    """A proxy for the length of the block."""
    proxy = CuttingProxy(addresses, cuts)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
