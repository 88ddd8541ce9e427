"""Keeps the session map true: which devices have their stream on this node.

An entry is written before a device's chats are read, so that no push falls in between, and taken away a while after its stream
ended, so that a device that comes straight back does not flicker. The map may lose everything: an entry of the node's own, that
must stand there, tells; then what lacks is written again. It may also lose single entries, as when a Redis fails over to a copy
that lags: so now and then all are looked at. Whenever entries lacked, whoever is told by `rebuilt` looks for
pushes that were lost meanwhile.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from itertools import takewhile

import structlog

from chatgrpc import background
from chatgrpc.ports.session_map import SessionEntry, SessionMap, SessionMapUnavailableError
from chatgrpc.trouble import Trouble

_log = structlog.get_logger()

LINGER_S = 3.0
"""How long after its stream ended a device still counts as connected."""
_CHECK_INTERVAL_S = 1.0
_AUDIT_INTERVAL_S = 120.0
_SETTLED_S = 5.0
"""A write to the map that failed may still take effect this much later."""
_TELL_INTERVAL_S = 10.0
"""While the map cannot be reached, `rebuilt` is told this often."""
_DEVICES_PER_TRIP = 1_000
"""Entries looked at in one trip, which devices that are opening may have to wait for."""

Device = tuple[str, str]
"""User id and device id."""


class Sessions:
    """The session map's entries of one node."""

    def __init__(
        self,
        node_id: str,
        session_map: SessionMap,
        moved: Callable[[SessionEntry], None],
        rebuilt: Callable[[], None],
        *,
        linger_s: float = LINGER_S,
        check_interval_s: float = _CHECK_INTERVAL_S,
        audit_interval_s: float = _AUDIT_INTERVAL_S,
        settled_s: float = _SETTLED_S,
    ) -> None:
        """
        Args:
            node_id: of this node.
            session_map: where the entries stand.
            moved: told of each entry at another node that a device which came here has.
            rebuilt: told when entries were written late: pushes may have passed this node by meanwhile.
            linger_s: how long after its stream ended a device's entry stays.
            check_interval_s: how often it is looked whether the map has lost its memory.
            audit_interval_s: how often all entries are looked at without any reason.
            settled_s: how long after a trip that failed all entries are looked at once more.
        """
        self._map = session_map
        self._node_id = node_id
        self._moved = moved
        self._rebuilt = rebuilt
        self._linger_s = linger_s
        self._check_interval_s = check_interval_s
        self._audit_interval_s = audit_interval_s
        self._settled_s = settled_s
        self._canary = SessionEntry(f"!{node_id}", "node", node_id)  # no user id begins like this
        self._live: dict[Device, None] = {}
        self._leaving: OrderedDict[Device, float] = OrderedDict()  # when to take them out, the soonest first
        self._opening: list[tuple[Device, asyncio.Future[None]]] = []
        self._unwritten: dict[Device, None] = {}  # of the live ones, those whose entry could not be written when they opened
        self._writing: asyncio.Task[None] | None = None
        self._trip = asyncio.Lock()  # an entry that was taken out and is written again must not be taken out by the first trip
        self._tell_at_s = 0.0
        self._in_doubt = False  # entries may lack
        self._lacked = False  # entries did lack, and `rebuilt` was not told yet
        self._audit_at_s = 0.0
        self._left = False
        self._trouble = Trouble("session_map_unavailable", lambda: {"sessions": len(self._unwritten)})

    def __len__(self) -> int:
        return len(self._live)

    async def opened(self, user_id: str, device_id: str) -> None:
        """The device has its stream here; returns when the map says so, or cannot be reached: then it says so later.

        It is written again even if it may still stand since the last stream here: the device may have been elsewhere meanwhile.
        """
        device = (user_id, device_id)
        self._live[device] = None
        self._leaving.pop(device, None)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opening.append((device, written))
        if self._writing is None:
            self._write_opening()
        await written

    def closed(self, user_id: str, device_id: str) -> None:
        """The device's stream here has ended."""
        device = (user_id, device_id)
        if device not in self._live:
            return
        del self._live[device]
        self._unwritten.pop(device, None)
        self._leaving[device] = asyncio.get_running_loop().time() + self._linger_s

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

    async def has_moved(self, user_id: str, device_id: str) -> bool:
        """Whether a device that has its stream here has opened one on another node since; if that node says so.

        What it says may be old: the device may have come back here meanwhile.
        """
        device = (user_id, device_id)
        if device not in self._live:
            # Its entry stands although it was taken out: the map was set back, or did what it was asked too late.
            self._leaving.setdefault(device, asyncio.get_running_loop().time() + self._linger_s)
            return False
        async with self._trip:
            try:
                entries = [entry for entry in await self._read([user_id]) if entry.device_id == device_id]
            except SessionMapUnavailableError as error:
                self._trouble.failed(error)
                return device in self._live
            is_written = device not in self._unwritten and all(opening != device for opening, _ in self._opening)
            return device in self._live and is_written and bool(entries) and entries[-1] != self._entry(device)

    async def run(self) -> None:
        """Takes out who has left, and looks whether the map has lost its memory. Ends when cancelled."""
        self._audit_at_s = asyncio.get_running_loop().time() + self._audit_interval_s
        while True:
            try:
                await self._check()
                await self._take_out()
                self._trouble.worked()
            except SessionMapUnavailableError as error:
                self._trouble.failed(error)
                self._in_doubt = True
                self._tell_of_unwritten()
            await asyncio.sleep(self._check_interval_s)

    def _tell_of_unwritten(self) -> None:
        """Others may read the map though this node cannot: they see nobody there to push to."""
        now_s = asyncio.get_running_loop().time()
        if self._unwritten and now_s >= self._tell_at_s:
            self._tell_at_s = now_s + _TELL_INTERVAL_S
            self._rebuilt()

    async def leave(self) -> None:
        """The node stops: its entries go, as far as the map can be reached, and are not written again."""
        self._left = True
        try:
            async with self._trip:
                await self._map.remove([self._entry(device) for device in (*self._live, *self._leaving)] + [self._canary])
        except SessionMapUnavailableError as error:
            self._trouble.failed(error)
        self._trouble.stop()

    async def _check(self) -> None:
        stands = await self._map.stands(self._canary.user_id)
        now_s = asyncio.get_running_loop().time()
        if stands and not self._in_doubt and now_s < self._audit_at_s:
            return
        was_in_doubt, self._in_doubt = self._in_doubt, False
        await self._write_what_lacks()
        self._audit_at_s = now_s + (self._settled_s if was_in_doubt else self._audit_interval_s)
        if self._lacked:
            self._lacked = False
            _log.info("sessions_written", sessions=len(self._live))
            self._rebuilt()

    async def _take_out(self) -> None:
        async with self._trip:
            now_s = asyncio.get_running_loop().time()
            gone = [device for device, _ in takewhile(lambda leaving: leaving[1] <= now_s, self._leaving.items())]
            if not gone:
                return
            await self._map.remove([self._entry(device) for device in gone])
            for device in gone:
                self._leaving.pop(device, None)

    def _write_opening(self) -> None:
        # What it raises is a mistake of ours: the devices have gone on, and the next look at the map finds what lacks.
        self._writing = background.start(self._write_opening_once(), self._failed)
        self._writing.add_done_callback(self._opening_written)

    def _failed(self, defect: BaseException) -> None:
        background.logged("sessions_opening")(defect)
        self._in_doubt = True

    def _opening_written(self, task: asyncio.Task[None]) -> None:
        self._writing = None
        if self._opening and not task.cancelled():
            self._write_opening()

    async def _write_opening_once(self) -> None:
        """Writes all that came since the last trip."""
        async with self._trip:
            opening, self._opening = self._opening, []
            devices = dict.fromkeys(device for device, _ in opening)
            try:
                if not self._left:
                    await self._write_opened(devices)
            except SessionMapUnavailableError as error:
                self._trouble.failed(error)
                self._unwritten |= dict.fromkeys(device for device in devices if device in self._live)
                self._in_doubt = True
            finally:
                for _, written in opening:
                    if not written.done():
                        written.set_result(None)

    async def _write_what_lacks(self) -> None:
        async with self._trip:
            if self._left:
                return
            # Its own entry first: if the map loses its memory again while the others are written, the next check sees it.
            await self._map.put([self._canary])
        devices = list(self._live)
        for start in range(0, len(devices), _DEVICES_PER_TRIP):
            async with self._trip:
                if self._left:
                    return
                asked = devices[start : start + _DEVICES_PER_TRIP]
                never_written = self._unwritten.keys() | {device for device, _ in self._opening}
                await self._write_lacking([device for device in asked if device not in never_written])
                late = [device for device in asked if device in self._unwritten]
                self._lacked = self._lacked or bool(late)
                await self._write_opened(late)

    async def _write_opened(self, devices: Collection[Device]) -> None:
        """Writes the entries of devices that have opened here; what stands at other nodes is told, if they have not gone on."""
        live = [device for device in devices if device in self._live]
        if not live:
            return
        elsewhere = await self._map.put([self._entry(device) for device in live])
        for device in live:
            self._unwritten.pop(device, None)
        for entry in elsewhere:
            if (entry.user_id, entry.device_id) in self._live:
                self._moved(entry)

    async def _write_lacking(self, devices: Collection[Device]) -> None:
        """Writes the entries of devices that have opened here before, and have none here.

        Nobody is told of what stands at other nodes: the device may be there by now, its old stream here not found dead yet.
        """
        found = set(await self._read([user_id for user_id, _ in devices]))
        lacking = [entry for device in devices if device in self._live and (entry := self._entry(device)) not in found]
        if lacking:
            self._lacked = True
            await self._map.put(lacking)

    async def _read(self, user_ids: Iterable[str]) -> list[SessionEntry]:
        found = await self._map.of_users(list(dict.fromkeys(user_ids)))
        return [entry for entries in found.values() for entry in entries]

    def _entry(self, device: Device) -> SessionEntry:
        return SessionEntry(*device, self._node_id)
