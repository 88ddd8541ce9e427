"""A session map in memory that can be held up, and that can be away."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from chatgrpc.adapters.memory import MemorySessionMap
from chatgrpc.ports.session_map import SessionEntry, SessionMapUnavailableError


class StubbornMap(MemorySessionMap):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        """Every trip fails."""
        self.loses_after_puts = 0
        """After so many more puts all is lost, once."""
        self.read: list[list[str]] = []
        """The user ids of each read that was begun."""
        self.puts = 0
        self.written: list[SessionEntry] = []
        self.removed: list[SessionEntry] = []
        self._open = {name: _open_gate() for name in ("put", "remove", "of_users")}
        self._waiting = dict.fromkeys(self._open, 0)

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[None]:
        """While this lasts, trips of this name do not come back, nor do anything yet."""
        self._open[name].clear()
        try:
            yield
        finally:
            self._open[name].set()

    async def until_held(self, name: str) -> None:
        """Returns when a trip of this name waits."""
        while not self._waiting[name]:
            await asyncio.sleep(0)

    async def put(self, entries: Sequence[SessionEntry]) -> list[SessionEntry]:
        await self._trip("put")
        self.puts += 1
        self.written += entries
        replaced = await super().put(entries)
        if self.loses_after_puts:
            self.loses_after_puts -= 1
            if not self.loses_after_puts:
                self.lose()
        return replaced

    async def remove(self, entries: Sequence[SessionEntry]) -> None:
        await self._trip("remove")
        self.removed += entries
        await super().remove(entries)

    async def of_users(self, user_ids: Sequence[str]) -> dict[str, list[SessionEntry]]:
        self.read.append(list(user_ids))
        await self._trip("of_users")
        return await super().of_users(user_ids)

    async def stands(self, user_id: str) -> bool:
        self.read.append([user_id])
        await self._trip("of_users")
        return await super().stands(user_id)

    async def _trip(self, name: str) -> None:
        self._waiting[name] += 1
        await self._open[name].wait()
        self._waiting[name] -= 1
        await asyncio.sleep(0)
        if self.away:
            raise SessionMapUnavailableError("away")


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate
