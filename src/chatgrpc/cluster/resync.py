"""Finds pushes that were lost where no heartbeat can tell (G4, G6).

An owner's heartbeat names the chats it has pushed to this node. It cannot name one when the owner is gone, or when the session
map had forgotten that a member's device is here. And a feed that does not know a chat cannot miss it: the push that let a user
in may be the one that was lost. So after such an event the heads of the sessions' chats are asked for again, and their users'
memberships are read again; the latter also now and then without any reason.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import structlog

from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.ids import shard_of
from chatgrpc.core.session import State
from chatgrpc.core.visibility import last_change
from chatgrpc.edge.connection import Connection, Connections
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.row_store import CommittedLog

_log = structlog.get_logger()

_PAUSE_S = 1.0
"""Between two passes: what gives rise to them comes in swarms."""
_SLOW_PASS_S = 300.0
_QUESTIONS_MAX = 256
"""Heads that are asked for at the same time."""
_USERS_MAX = 8
"""Users whose memberships are read at the same time."""
_CHATS_PER_READ = 500

_Item = TypeVar("_Item")


class Resync:
    """Looks again, one pass at a time."""

    def __init__(
        self,
        connections: Connections,
        desk: EdgeDesk,
        committed: CommittedLog,
        monotonic_ms: Callable[[], int],
        touched: Callable[[Connection], None],
    ) -> None:
        """`touched` is called with each connection whose session may have something to read now."""
        self._connections = connections
        self._desk = desk
        self._committed = committed
        self._monotonic_ms = monotonic_ms
        self._touched = touched
        self._wanted = asyncio.Event()
        self._suspects: set[int] = set()
        self._all_suspect = False

    def suspect_owners(self, shards: Collection[int]) -> None:
        """Owners of these shards are gone, and with them what they had not pushed yet."""
        if shards:
            self._suspects.update(shards)
            self._wanted.set()

    def suspect_all(self) -> None:
        """Pushes of any chat may have passed this node by."""
        self._all_suspect = True
        self._wanted.set()

    def suspect_memberships(self) -> None:
        """A push was lost that may have let a user in or out."""
        self._wanted.set()

    async def run(self) -> None:
        """Ends when cancelled."""
        while True:
            try:
                async with asyncio.timeout(_SLOW_PASS_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            suspects, self._suspects = self._suspects, set()
            all_suspect, self._all_suspect = self._all_suspect, False
            try:
                await self._pass(suspects, all_suspect)
            except* StoreError as errors:
                _log.warning("resync_failed", error=str(errors.exceptions[0]))
                self._suspects |= suspects
                self._all_suspect = self._all_suspect or all_suspect
                self._wanted.set()
            await asyncio.sleep(_PAUSE_S)

    async def _pass(self, suspects: Collection[int], all_suspect: bool) -> None:
        # A session that is just opening asked for its heads, perhaps too early; it is looked at in the next pass.
        if any(connection.session.state is State.OPENING for connection in self._connections):
            self._wanted.set()
        by_user: dict[str, list[Connection]] = {}
        by_chat: dict[str, list[Connection]] = {}
        for connection in self._connections:
            session = connection.session
            if session.state is State.OPEN:
                by_user.setdefault(session.user_id, []).append(connection)
                for chat_id in session.feed.open_chats() if all_suspect or suspects else ():
                    if all_suspect or shard_of(chat_id) in suspects:
                        by_chat.setdefault(chat_id, []).append(connection)
        await self._ask_heads(by_chat)
        await _each(by_user.items(), _USERS_MAX, self._read_memberships)

    async def _ask_heads(self, by_chat: Mapping[str, list[Connection]]) -> None:
        async def ask(item: tuple[str, list[Connection]]) -> None:
            chat_id, connections = item
            head: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._desk.ask_head(chat_id, head.set_result, self._monotonic_ms())
            seq = await head
            for connection in connections:
                connection.session.note_head(chat_id, seq)
                self._touched(connection)

        await _each(by_chat.items(), _QUESTIONS_MAX, ask)

    async def _read_memberships(self, item: tuple[str, list[Connection]]) -> None:
        user_id, connections = item
        after_chat_id = ""
        while True:
            page = await self._committed.intervals_of_user(user_id, after_chat_id, _CHATS_PER_READ)
            for chat_id, intervals in page:
                seq = last_change(intervals)
                self._desk.note_stated(chat_id, seq)
                for connection in connections:
                    connection.session.note_membership(chat_id, seq)
            if len(page) < _CHATS_PER_READ:
                break
            after_chat_id = page[-1][0]
        for connection in connections:
            self._touched(connection)


async def _each(items: Iterable[_Item], at_once: int, work: Callable[[_Item], Coroutine[Any, Any, None]]) -> None:
    """Works on all items, so many at the same time."""
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
