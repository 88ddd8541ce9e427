"""The session map: one engine in one place, that may be down for a while, lose everything, or do what it was asked too late."""

from collections.abc import Callable, Sequence
from typing import Any

from chatgrpc.ports.session_map import NODES_PER_DEVICE_MAX, SessionEntry, SessionMapUnavailableError
from tests.sim.climate import Climate
from tests.sim.tasks import Promise
from tests.sim.world import World

TIMEOUT_MS = 100
_LATE_MS_MAX = 400
"""After it was given up, something may still be done: a connection held it back. Less than what a node takes to look again."""


class MapEngine:
    """What all nodes ask."""

    def __init__(self, world: World, climate: Climate) -> None:
        self.world = world
        self.climate = climate
        self.entries: dict[str, dict[tuple[str, str], None]] = {}
        """By user: devices and nodes."""
        self._down_until_ms = 0
        self._puts_until_lost = 0

    @property
    def is_down(self) -> bool:
        """Nobody gets an answer."""
        return self.world.now_ms < self._down_until_ms and not self.world.calm

    def lose_everything(self, then_after_puts: int = 0) -> None:
        """Perhaps once more, as soon as it has been told so many times what to keep."""
        self.world.note("map", "loses everything")
        self.entries.clear()
        self._puts_until_lost = then_after_puts

    def has_put(self) -> None:
        """It was told something."""
        if self._puts_until_lost and not self.world.calm:
            self._puts_until_lost -= 1
            if not self._puts_until_lost:
                self.lose_everything()

    def go_down(self, duration_ms: int) -> None:
        self.world.note("map", f"is down for {duration_ms} ms")
        self._down_until_ms = self.world.now_ms + duration_ms


class NodeMap:
    """`ports.session_map.SessionMap`, as one node has it: what it asks is done in that order, or late."""

    def __init__(self, engine: MapEngine, run: Callable[[Callable[[], None]], None], one_a_device: bool) -> None:
        """`run` does something in the node's process, when that goes on."""
        self._one_a_device = one_a_device
        self._engine = engine
        self._world = engine.world
        self._run = run
        self._last_ms = 0

    async def put(self, entries: Sequence[SessionEntry]) -> list[SessionEntry]:
        """See the port; returns the entries of the same devices at other nodes."""

        def put() -> list[SessionEntry]:
            others: list[SessionEntry] = []
            for entry in entries:
                of_user = self._engine.entries.setdefault(entry.user_id, {})
                for key in [key for key in of_user if key[0] == entry.device_id and key[1] != entry.node_id]:
                    others.append(SessionEntry(entry.user_id, *key))
                    if self._one_a_device:
                        del of_user[key]
                of_user.pop((entry.device_id, entry.node_id), None)  # the last one written stands last
                of_user[entry.device_id, entry.node_id] = None
                for key in [key for key in of_user if key[0] == entry.device_id][:-NODES_PER_DEVICE_MAX]:
                    del of_user[key]
            self._engine.has_put()
            return others

        others: list[SessionEntry] = await self._ask(put)
        return others

    async def remove(self, entries: Sequence[SessionEntry]) -> None:
        """See the port."""

        def remove() -> None:
            for entry in entries:
                self._engine.entries.get(entry.user_id, {}).pop((entry.device_id, entry.node_id), None)

        await self._ask(remove)

    async def of_users(self, user_ids: Sequence[str]) -> dict[str, list[SessionEntry]]:
        """See the port."""

        def of_users() -> dict[str, list[SessionEntry]]:
            return {
                user_id: [SessionEntry(user_id, *found) for found in of_user]
                for user_id in user_ids
                if (of_user := self._engine.entries.get(user_id))
            }

        found: dict[str, list[SessionEntry]] = await self._ask(of_users)
        return found

    async def stands(self, user_id: str) -> bool:
        """See the port."""
        return bool(await self._ask(lambda: bool(self._engine.entries.get(user_id))))

    async def _ask(self, request: Callable[[], Any]) -> Any:
        promise: Promise[Any] = Promise()

        def fail() -> None:
            self._run(lambda: promise.fail(SessionMapUnavailableError("no answer")))

        def arrive() -> None:
            if self._engine.is_down:
                self._world.after(TIMEOUT_MS, fail)
                return
            unsure = self._world.chance(self._engine.climate.map_unsure)
            if unsure and self._world.chance(0.5):
                self._world.after(TIMEOUT_MS, fail)
                if self._world.chance(0.5):
                    self._world.after(TIMEOUT_MS + self._world.between(1, _LATE_MS_MAX), request)
                return
            answer = request()
            if unsure:
                self._world.after(TIMEOUT_MS, fail)
            else:
                self._world.after(self._world.between(1, 3), lambda: self._run(lambda: promise.keep(answer)))

        self._last_ms = max(self._last_ms, self._world.now_ms + self._world.between(1, 3))
        self._world.after(self._last_ms - self._world.now_ms, arrive)
        return await promise
