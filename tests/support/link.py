"""A TCP link to a server that a test cuts and mends: with a reset, or so that bytes just do not arrive any more."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine

from tests.support.proxy import Way


class Link:
    """Passes connections on while it is whole. A cut reaches the connections that are open, and those that come."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._refuses = False
        self._passes = {way: asyncio.Event() for way in Way}
        self.mend()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    @property
    def address(self) -> str:
        """What clients dial."""
        assert self._listener is not None
        return f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Ends what is open, and refuses what comes: both sides learn it."""
        self._refuses = True
        for task in self._connections:
            task.cancel()

    def silence(self, *ways: Way) -> None:
        """Holds back every byte that goes these ways, or any if none is named: nobody learns it.

        To both ends this is a network that drops packets: TCP sends them again, until they arrive or somebody gives up.
        """
        for way in ways or Way:
            self._passes[way].clear()

    def mend(self) -> None:
        """Passes on again; what was held back arrives now."""
        self._refuses = False
        for passes in self._passes.values():
            passes.set()

    async def start(self) -> None:
        """Begins to listen."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Ends everything."""
        assert self._listener is not None
        self._listener.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = [writer]
        try:
            if not self._refuses:
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
                writers.append(up_writer)
                await self._pass_both_ways(
                    self._pump(reader, up_writer, Way.TO_SERVER), self._pump(up_reader, writer, Way.TO_CLIENT)
                )
        except (OSError, asyncio.CancelledError):
            pass  # an end of this connection; the task ends with it
        finally:
            self._connections.discard(task)
            for each in writers:
                each.transport.abort()

    async def _pass_both_ways(self, *ways: Coroutine[None, None, None]) -> None:
        pumps = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._passes[way].wait()
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def link_to(server_port: int) -> AsyncIterator[Link]:
    """A link for the length of the block."""
    link = Link(server_port)
    await link.start()
    try:
        yield link
    finally:
        await link.stop()
