"""Finds the nodes that an owner's news is for: one read of the session map at a time, for all that came since the last one."""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from chatgrpc import background
from chatgrpc.core.owner_desk import Notice, OwnerDesk
from chatgrpc.core.sequencer import Delivery
from chatgrpc.ports.session_map import SessionEntry, SessionMap, SessionMapUnavailableError
from chatgrpc.trouble import Trouble

_BLIND_S = 1.0
"""After the map failed it is looked for this often."""
_REMEMBERED_S = 60.0
_PLACES_MAX = 200_000
_CHATS_BY_MEMORY_MAX = 10_000
_STALE_S = 600.0
_STALE_MAX = 10_000
_NOBODY = "!"
"""Asked for to see whether the map answers; no user id begins like this."""


@dataclass(frozen=True, slots=True)
class _Batch:
    deliveries: Sequence[Delivery]
    notices: Sequence[Notice]
    nodes_of_user: Mapping[str, Collection[str]]


class Router:
    """The way of an owner's news to the nodes.

    Without the session map news goes for a while to where its users were last found; to users whose place is not known, and
    after that while to all, by way of every live node, each of which finds its own users in it: a lost Redis makes the links
    busier. News is late once, by the time that it takes to find out that the map does not answer; that it answers again is
    found out beside the news.

    Users may have moved while only their last places were known. So when that is over, or the node leaves, the other nodes are
    told of the heads of all chats whose events went by those, and find by them who was left out (G4).

    Entries of nodes that are gone for long are taken out where they are met: nobody else does, if their device never returns.
    """

    def __init__(
        self,
        desk: OwnerDesk,
        session_map: SessionMap,
        live_node_ids: Callable[[], Collection[str]],
        wake_up: Callable[[], None],
        on_defect: Callable[[BaseException], None],
        *,
        blind_s: float = _BLIND_S,
        remembered_s: float = _REMEMBERED_S,
        stale_s: float = _STALE_S,
    ) -> None:
        """
        Args:
            desk: whose news is routed.
            session_map: where users are.
            live_node_ids: the nodes that live.
            wake_up: called when nodes were found.
            on_defect: called when something that cannot fail has failed.
            blind_s: after the map failed it is looked for this often.
            remembered_s: how long places that were found before are used after the map failed.
            stale_s: how long a node must have been gone before its entries are taken out.
        """
        self._remembered_s = remembered_s
        self._stale_s = stale_s
        self._places: OrderedDict[str, tuple[str, ...]] = OrderedDict()  # of users, the one found longest ago first
        self._blind_since_s = 0.0
        self._by_memory: dict[str, int] = {}  # heads of chats whose news went by remembered places, while that lasts
        self._stale: dict[SessionEntry, float] = {}  # entries of nodes that are gone, and since when that is known
        self._sweep_at_s = 0.0
        self._desk = desk
        self._session_map = session_map
        self._live_node_ids = live_node_ids
        self._wake_up = wake_up
        self._on_defect = on_defect
        self._deliveries: list[Delivery] = []
        self._notices: list[Notice] = []
        self._found: list[_Batch] = []
        self._task: asyncio.Task[None] | None = None
        self._asked_for = 0  # deliveries of the read under way
        self._blind_s = blind_s
        self._looking: asyncio.Task[None] | None = None  # for the map; nobody is asked meanwhile
        self._sweeping: asyncio.Task[None] | None = None
        self._trouble = Trouble("session_map_unavailable")

    @property
    def is_idle(self) -> bool:
        """Nothing waits to be routed."""
        return self._task is None and not self._deliveries and not self._found

    @property
    def is_blind(self) -> bool:
        """The map did not answer, and is looked for."""
        return self._looking is not None

    @property
    def deliveries_waiting(self) -> int:
        """Events whose members' nodes are not known yet."""
        return len(self._deliveries) + self._asked_for

    def take_in(self) -> None:
        """Hands the desk what was found."""
        found, self._found = self._found, []
        for batch in found:
            self._desk.route(batch.deliveries, batch.notices, batch.nodes_of_user)

    def start(self, deliveries: list[Delivery], notices: list[Notice]) -> None:
        """Takes more to route; in the order in which it comes."""
        self._deliveries += deliveries
        self._notices += notices
        if self._task is None and (self._deliveries or self._notices):
            self._task = background.start(self._look_up(), self._on_defect)
            self._task.add_done_callback(self._done)

    async def stop(self) -> None:
        """Ends the reads under way."""
        tasks = [task for task in (self._task, self._looking, self._sweeping) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._trouble.stop()

    async def _look_up(self) -> None:
        deliveries, self._deliveries = self._deliveries, []
        notices, self._notices = self._notices, []
        self._asked_for = len(deliveries)
        user_ids = dict.fromkeys(user_id for delivery in deliveries for user_id in delivery.recipients)
        user_ids |= dict.fromkeys(user_id for notice in notices for user_id in notice.user_ids)
        nodes_of_user = await self._nodes_of(list(user_ids))
        if self.is_blind:
            self._note_by_memory(deliveries)
        self._found.append(_Batch(deliveries, notices, nodes_of_user))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._asked_for = 0
        if task.cancelled():
            return
        self._wake_up()
        self.start([], [])

    async def _nodes_of(self, user_ids: list[str]) -> dict[str, Collection[str]]:
        live = frozenset(self._live_node_ids())
        if self._looking is None:
            try:
                found = await self._session_map.of_users(user_ids)
            except Exception as error:  # whatever it is that cannot be read: the news must go on
                self._trouble.failed(error)
                self._blind_since_s = time.monotonic()
                self._looking = background.start(self._look_for_map(), self._on_defect)
                self._looking.add_done_callback(self._found_map)
            else:
                self._trouble.worked()
                return self._placed(user_ids, found, live)
        if self._remembers():
            places = self._places
            return {user_id: places.get(user_id, live) for user_id in user_ids}
        return dict.fromkeys(user_ids, live)

    def _placed(
        self, user_ids: list[str], found: Mapping[str, Sequence[SessionEntry]], live: frozenset[str]
    ) -> dict[str, Collection[str]]:
        """Where the map says that users are, also on nodes that are not seen: they may have come a moment ago. Remembers it."""
        placed: dict[str, Collection[str]] = {}
        for user_id in user_ids:
            entries = found.get(user_id, ())
            node_ids = tuple(dict.fromkeys(entry.node_id for entry in entries))
            if node_ids:
                placed[user_id] = node_ids
            if any(entry.node_id not in live for entry in entries):
                self._note_stale(entry for entry in entries if entry.node_id not in live)
            self._places[user_id] = node_ids
            self._places.move_to_end(user_id)
        while len(self._places) > _PLACES_MAX:
            self._places.popitem(last=False)
        self._sweep(live)
        return placed

    def _remembers(self) -> bool:
        """Whether last places still count."""
        return time.monotonic() - self._blind_since_s < self._remembered_s

    def _note_by_memory(self, deliveries: Sequence[Delivery]) -> None:
        if not self._remembers():
            self.tell_of_memory()
            return
        if len(self._by_memory) > _CHATS_BY_MEMORY_MAX:
            self.tell_of_memory()
        for delivery in deliveries:
            self._by_memory[delivery.chat_id] = max(delivery.seq, self._by_memory.get(delivery.chat_id, 0))

    def tell_of_memory(self) -> None:
        """Has all nodes told of the heads of chats whose events went by last places."""
        heads, self._by_memory = self._by_memory, {}
        if heads:
            self._desk.doubt(heads, self._live_node_ids())

    def _note_stale(self, entries: Iterable[SessionEntry]) -> None:
        now_s = time.monotonic()
        for entry in entries:
            if len(self._stale) < _STALE_MAX:
                self._stale.setdefault(entry, now_s)

    def _sweep(self, live: Collection[str]) -> None:
        """Takes out entries of nodes that have been gone for long, beside the news; a node is not taken for gone because it has
        just come."""
        now_s = time.monotonic()
        if not self._stale or now_s < self._sweep_at_s:
            return
        self._sweep_at_s = now_s + self._stale_s / 2
        self._stale = {entry: since_s for entry, since_s in self._stale.items() if entry.node_id not in live}
        gone = [entry for entry, since_s in self._stale.items() if now_s - since_s >= self._stale_s]
        for entry in gone:
            del self._stale[entry]
        if gone and (self._sweeping is None or self._sweeping.done()):
            self._sweeping = background.start(self._take_out(gone), background.logged("session_map_sweep"))

    async def _take_out(self, gone: Sequence[SessionEntry]) -> None:
        with contextlib.suppress(SessionMapUnavailableError):  # they are met again
            await self._session_map.remove(gone)

    async def _look_for_map(self) -> None:
        """Returns when the map answers again."""
        while True:
            await asyncio.sleep(self._blind_s)
            try:
                await self._session_map.of_users([_NOBODY])
            except Exception as error:
                self._trouble.failed(error)
            else:
                self._trouble.worked()
                return
            if not self._remembers():  # also if nothing more is to be routed
                self.tell_of_memory()

    def _found_map(self, _: asyncio.Task[None]) -> None:
        self._looking = None
        self.tell_of_memory()
