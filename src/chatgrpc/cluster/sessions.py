"""Keeps the session map true: which devices have their stream on this node.

An entry is written before a device's chats are read, so that no push falls in between, and taken away a while after its stream
ended, so that a device that comes straight back does not flicker. The map may lose everything: an entry of the node's own, that
must stand there, tells; then all are written again, and whoever is told by `rebuilt` looks for pushes that were lost meanwhile.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection

import structlog

from chatgrpc.ports.session_map import SessionEntry, SessionMap, SessionMapUnavailableError

_log = structlog.get_logger()

LINGER_S = 3.0
"""How long after its stream ended a device still counts as connected."""
_CHECK_INTERVAL_S = 1.0

Device = tuple[str, str]
"""User id and device id."""


class Sessions:
    """The session map's entries of one node."""

    def __init__(
        self, node_id: str, session_map: SessionMap, moved: Callable[[SessionEntry], None], rebuilt: Callable[[], None]
    ) -> None:
        """
        Args:
            node_id: of this node.
            session_map: where the entries stand.
            moved: told of the entry of another node that a device which came here had.
            rebuilt: told when entries were written late: pushes may have passed this node by meanwhile.
        """
        self._map = session_map
        self._node_id = node_id
        self._moved = moved
        self._rebuilt = rebuilt
        self._canary = SessionEntry(f"!{node_id}", "node", node_id)  # no user id begins like this
        self._live: dict[Device, None] = {}
        self._leaving: OrderedDict[Device, float] = OrderedDict()  # when to take them out, the soonest first
        self._opening: list[tuple[SessionEntry, asyncio.Future[bool]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._trip = asyncio.Lock()  # an entry that was taken out and is written again must not be taken out by the first trip
        self._late = False

    def __len__(self) -> int:
        return len(self._live)

    async def opened(self, user_id: str, device_id: str) -> None:
        """The device has its stream here; returns when the map says so, or cannot be reached: then it says so later."""
        device = (user_id, device_id)
        self._live[device] = None
        if self._leaving.pop(device, None) is not None:
            return
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._opening.append((self._entry(device), written))
        if self._writing is None:
            self._write()
        if not await written:
            self._late = True

    def closed(self, user_id: str, device_id: str) -> None:
        """The device's stream here has ended."""
        device = (user_id, device_id)
        if device not in self._live:
            return
        del self._live[device]
        self._leaving[device] = asyncio.get_running_loop().time() + LINGER_S

    async def devices_of(self, user_ids: Collection[str], live_node_ids: Collection[str]) -> dict[str, frozenset[str]]:
        """Which devices of these users are connected, on any live node.

        Raises:
            SessionMapUnavailableError: the map cannot be read.
        """
        found = await self._map.of_users(list(user_ids))
        return {
            user_id: frozenset(entry.device_id for entry in entries if entry.node_id in live_node_ids)
            for user_id, entries in found.items()
        }

    async def node_of(self, user_id: str, device_id: str) -> str | None:
        """The node that holds the device's stream, as far as the map says.

        Raises:
            SessionMapUnavailableError: the map cannot be read.
        """
        found = await self._map.of_users([user_id])
        return next((entry.node_id for entry in found.get(user_id, ()) if entry.device_id == device_id), None)

    async def run(self) -> None:
        """Takes out who has left, and looks whether the map has lost its memory. Ends when cancelled."""
        while True:
            try:
                await self._check()
                await self._take_out()
            except SessionMapUnavailableError as error:
                _log.warning("session_map_unavailable", error=str(error))
                self._late = True
            await asyncio.sleep(_CHECK_INTERVAL_S)

    async def leave(self) -> None:
        """The node stops: its entries go, as far as the map can be reached."""
        entries = [self._entry(device) for device in (*self._live, *self._leaving)]
        try:
            await self._map.remove([*entries, self._canary])
        except SessionMapUnavailableError as error:
            _log.warning("session_map_unavailable", error=str(error))

    async def _check(self) -> None:
        if not self._late and await self._map.of_users([self._canary.user_id]):
            return
        self._late = False
        # The own entry last: where it stands, the others do.
        async with self._trip:
            await self._map.put([self._entry(device) for device in self._live])
            await self._map.put([self._canary])
        _log.info("sessions_written", sessions=len(self._live))
        self._rebuilt()

    async def _take_out(self) -> None:
        now_s = asyncio.get_running_loop().time()
        gone: list[SessionEntry] = []
        while self._leaving and next(iter(self._leaving.values())) <= now_s:
            device, _ = self._leaving.popitem(last=False)
            gone.append(self._entry(device))
        if not gone:
            return
        try:
            async with self._trip:
                await self._map.remove(gone)
        except SessionMapUnavailableError:
            for entry in gone:
                device = (entry.user_id, entry.device_id)
                if device not in self._live:
                    self._leaving.setdefault(device, now_s)
            raise

    def _write(self) -> None:
        self._writing = asyncio.get_running_loop().create_task(self._write_opening())
        self._writing.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing = None
        if self._opening and not task.cancelled():
            self._write()

    async def _write_opening(self) -> None:
        """Writes all that came since the last trip, and finds where those devices were before."""
        opening, self._opening = self._opening, []
        entries = [entry for entry, _ in opening]
        written = False
        try:
            async with self._trip:
                before = await self._map.of_users(list(dict.fromkeys(entry.user_id for entry in entries)))
                await self._map.put(entries)
            written = True
        except SessionMapUnavailableError as error:
            _log.warning("session_map_unavailable", error=str(error))
            before = {}
        finally:
            for _, waiting in opening:
                if not waiting.done():
                    waiting.set_result(written)
        devices = {(entry.user_id, entry.device_id) for entry in entries}
        for entry in (entry for found in before.values() for entry in found):
            if entry.node_id != self._node_id and (entry.user_id, entry.device_id) in devices:
                self._moved(entry)

    def _entry(self, device: Device) -> SessionEntry:
        return SessionEntry(*device, self._node_id)
