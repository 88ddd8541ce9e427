"""Keeps the session map true: which devices have their stream on this node. What is written when, `core.session_book` says."""

import asyncio
from collections.abc import Callable, Collection
from typing import NoReturn

import structlog

from chatgrpc import background
from chatgrpc.core.session_book import (
    AUDIT_INTERVAL_MS,
    LINGER_MS,
    SETTLED_MS,
    Answer,
    Look,
    Put,
    Read,
    Remove,
    SessionBook,
    SessionEntry,
    Trip,
)
from chatgrpc.ports.session_map import SessionMap, SessionMapUnavailableError
from chatgrpc.trouble import Trouble

_log = structlog.get_logger()

_CHECK_INTERVAL_S = 1.0


class Sessions:
    """The session map's entries of one node."""

    def __init__(
        self,
        node_id: str,
        session_map: SessionMap,
        moved: Callable[[SessionEntry], None],
        rebuilt: Callable[[], None],
        *,
        linger_s: float = LINGER_MS / 1_000,
        check_interval_s: float = _CHECK_INTERVAL_S,
        audit_interval_s: float = AUDIT_INTERVAL_MS / 1_000,
        settled_s: float = SETTLED_MS / 1_000,
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
        self._moved = moved
        self._rebuilt = rebuilt
        self._check_interval_s = check_interval_s
        self._book = SessionBook(
            node_id,
            linger_ms=int(linger_s * 1_000),
            audit_interval_ms=int(audit_interval_s * 1_000),
            settled_ms=int(settled_s * 1_000),
        )
        self._making_trips: asyncio.Task[None] | None = None
        self._trouble = Trouble("session_map_unavailable", lambda: {"sessions": self._book.unwritten})

    def __len__(self) -> int:
        return len(self._book)

    async def opened(self, user_id: str, device_id: str) -> None:
        """The device has its stream here; returns when the map says so, or cannot be reached: then it says so later."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._book.opened((user_id, device_id), written)
        self._go_on()
        await written

    def closed(self, user_id: str, device_id: str) -> None:
        """The device's stream here has ended."""
        self._book.closed((user_id, device_id), _now_ms())

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
        """Whether a device that has its stream here has opened one on another node since; if that node says so."""
        verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._book.ask_moved((user_id, device_id), verdict, _now_ms())
        self._go_on()
        return await verdict

    async def run(self) -> NoReturn:
        """Takes out who has left, and looks whether the map has lost its memory. Ends when cancelled."""
        while True:
            self._book.look(_now_ms())
            self._go_on()
            await asyncio.sleep(self._check_interval_s)

    async def leave(self) -> None:
        """The node stops: its entries go, as far as the map can be reached, and are not written again."""
        removed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._book.leave(removed)
        self._go_on()
        await removed
        self._trouble.stop()

    # Trips, one after the other.

    def _go_on(self) -> None:
        if self._making_trips is None:
            # What it raises is a mistake of ours: the devices have gone on, and the next look at the map finds what lacks.
            self._making_trips = background.start(self._make_trips(), background.logged("session_map"))

    async def _make_trips(self) -> None:
        try:
            while (trip := self._book.next_trip(_now_ms())) is not None:
                await self._make_one(trip)
                self._tell()
        finally:
            self._making_trips = None  # before the rest is told: whoever hears of it may have more to do
            self._tell()

    async def _make_one(self, trip: Trip) -> None:
        try:
            answer = await self._ask(trip)
        except BaseException as error:
            self._book.failed(_now_ms())
            if not isinstance(error, SessionMapUnavailableError):
                raise
            self._trouble.failed(error)
        else:
            self._book.answered(answer, _now_ms())

    async def _ask(self, trip: Trip) -> Answer:
        match trip:
            case Look(user_id=user_id):
                return await self._map.stands(user_id)
            case Read(user_ids=user_ids):
                found = await self._map.of_users(user_ids)
                return [entry for entries in found.values() for entry in entries]
            case Put(entries=entries):
                return await self._map.put(entries)
            case Remove(entries=entries):
                await self._map.remove(entries)
                return ()

    def _tell(self) -> None:
        news = self._book.take_news()
        for written in news.written:
            _keep(written, None)
        for verdict, has_moved in news.verdicts:
            _keep(verdict, has_moved)
        for entry in news.moved:
            self._moved(entry)
        if news.all_well:
            self._trouble.worked()
        if news.wrote_back:
            _log.info("sessions_written", sessions=len(self._book))
        if news.in_doubt:
            self._rebuilt()


def _keep(future: object, value: object) -> None:
    assert isinstance(future, asyncio.Future)
    if not future.done():
        future.set_result(value)


def _now_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1_000)
