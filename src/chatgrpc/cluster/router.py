"""Finds the nodes that an owner's news is for: one read of the session map at a time, for all that came since the last one."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from chatgrpc.core.owner_desk import Notice, OwnerDesk
from chatgrpc.core.sequencer import Delivery
from chatgrpc.ports.session_map import SessionMap, SessionMapUnavailableError
from chatgrpc.trouble import Trouble

_BLIND_S = 1.0
"""After the map failed it is looked for this often."""
_NOBODY = "!"
"""Asked for to see whether the map answers; no user id begins like this."""


@dataclass(frozen=True, slots=True)
class _Batch:
    deliveries: Sequence[Delivery]
    notices: Sequence[Notice]
    nodes_of_user: Mapping[str, Collection[str]]


class Router:
    """The way of an owner's news to the nodes.

    Without the session map everything goes to every live node, each of which finds its own users in it: a lost Redis makes the
    links busier. News is late once, by the time that it takes to find out that the map does not answer; when it answers again
    is found out beside the news.
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
    ) -> None:
        """`wake_up` is called when nodes were found; `on_defect` when something that cannot fail has failed.

        After the map failed it is looked for every `blind_s`.
        """
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
            self._task = asyncio.get_running_loop().create_task(self._look_up())
            self._task.add_done_callback(self._done)

    async def stop(self) -> None:
        """Ends the reads under way."""
        tasks = [task for task in (self._task, self._looking) if task is not None]
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
        self._found.append(_Batch(deliveries, notices, nodes_of_user))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._asked_for = 0
        if task.cancelled():
            return
        if (defect := task.exception()) is not None:
            self._on_defect(defect)
        self._wake_up()
        self.start([], [])

    async def _nodes_of(self, user_ids: list[str]) -> dict[str, Collection[str]]:
        live = frozenset(self._live_node_ids())
        if self._looking is None:
            try:
                found = await self._session_map.of_users(user_ids)
            except SessionMapUnavailableError as error:
                self._trouble.failed(error)
                self._looking = asyncio.get_running_loop().create_task(self._look_for_map())
                self._looking.add_done_callback(self._found_map)
            else:
                self._trouble.worked()
                return {
                    user_id: dict.fromkeys(entry.node_id for entry in entries if entry.node_id in live)
                    for user_id, entries in found.items()
                }
        return dict.fromkeys(user_ids, live)

    async def _look_for_map(self) -> None:
        """Returns when the map answers again."""
        while True:
            await asyncio.sleep(self._blind_s)
            try:
                await self._session_map.of_users([_NOBODY])
            except SessionMapUnavailableError as error:
                self._trouble.failed(error)
            else:
                self._trouble.worked()
                return

    def _found_map(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled() and (defect := task.exception()) is not None:
            self._on_defect(defect)
