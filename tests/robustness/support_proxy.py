"""A proxy that freezes: from then on it passes nothing on, and says nothing, as a network does that has lost a peer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class FreezingProxy:
    """Passes connections on to a server until it is frozen."""

    def __init__(self, server_port: int) -> None:
        self.address = ""
        self._server_port = server_port
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def freeze(self) -> None:
        """From now on nothing passes; the connections stay open."""
        self._thawed.clear()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        try:
            await asyncio.gather(self._pass_on(reader, server_writer), self._pass_on(server_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for each in (writer, server_writer):
                each.transport.abort()
            self._tasks.discard(task)

    async def stop(self) -> None:
        """Ends all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._thawed.wait()
            writer.write(data)
            await writer.drain()
        await self._thawed.wait()
        writer.close()


@contextlib.asynccontextmanager
async def freezing_proxy(server_port: int) -> AsyncIterator[FreezingProxy]:
    """A proxy for the length of the block."""
    proxy = FreezingProxy(server_port)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.stop()
