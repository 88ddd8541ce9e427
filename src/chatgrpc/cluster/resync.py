"""Finds pushes that were lost where no heartbeat can tell (G4, G6).

An owner's heartbeat names the chats it has pushed to this node. It cannot name one when the owner is gone, or when it took this
node for gone, or when the session map had forgotten that a member's device is here. And a feed that does not know a chat cannot
miss it: the push that let a user in may be the one that was lost. So after such an event the heads of the sessions' chats are
asked for again, and their users' memberships are read again; the latter also now and then without any reason.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.session import State
from chatgrpc.core.tending import Owner
from chatgrpc.core.visibility import last_change
from chatgrpc.edge.connection import Connection, Connections
from chatgrpc.ports.errors import ChatDamagedError, StoreError
from chatgrpc.ports.row_store import CommittedLog
from chatgrpc.trouble import Trouble

_PAUSE_S = 1.0
"""Between two passes: what gives rise to them comes in swarms."""
_SLOW_PASS_S = 300.0
_RETURNED_S = 60.0
"""By then every node has heard that this one was gone and has come back, and has linked with it anew."""
_QUESTIONS_MAX = 256
"""Heads that are asked for at the same time."""
_USERS_MAX = 8
"""Users whose memberships are read at the same time."""
_CHATS_PER_READ = 500

_Item = TypeVar("_Item")


@dataclass(slots=True)
class _Doubt:
    """Of which chats a session may have missed the last events."""

    everything: bool = False
    shards: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return self.everything or bool(self.shards)

    def __or__(self, other: "_Doubt") -> "_Doubt":
        return _Doubt(self.everything or other.everything, self.shards | other.shards)


class Resync:
    """Looks again, one pass at a time."""

    def __init__(
        self,
        connections: Connections,
        desk: EdgeDesk,
        committed: CommittedLog,
        heads: Callable[[Iterable[str]], Awaitable[list[int]]],
        shard_of: Callable[[str], int],
        touched: Callable[[Connection], None],
        doubted: Callable[[Callable[[str], bool]], None],
        *,
        pause_s: float = _PAUSE_S,
        slow_pass_s: float = _SLOW_PASS_S,
    ) -> None:
        """
        Args:
            connections: whose sessions are looked after.
            desk: told of heads that memberships state.
            committed: the store.
            heads: asks the owners for the heads of chats, and raises `StoreError` if that takes too long.
            shard_of: a chat's shard.
            touched: called with each connection whose session may have something to read now.
            doubted: told, for others to look too, which chats may have changed without our hearing of it.
            pause_s: between two passes.
            slow_pass_s: memberships are read so often without any reason.
        """
        self._connections = connections
        self._desk = desk
        self._committed = committed
        self._heads = heads
        self._shard_of = shard_of
        self._touched = touched
        self._doubted = doubted
        self._pause_s = pause_s
        self._slow_pass_s = slow_pass_s
        self._had: dict[str, set[int]] = {}  # the shards that each live node has ever owned
        self._returned_at_s = -_RETURNED_S
        self._wanted = asyncio.Event()
        self._everyone_wanted = False
        self._doubt = _Doubt()  # for everyone
        self._late: dict[Connection, _Doubt] = {}  # those who could not be looked after yet
        self._heads_unanswered = 0
        self._users_unread = 0
        self._asking_fails = Trouble("heads_not_stated", lambda: {"chats": self._heads_unanswered})
        self._reading_fails = Trouble("memberships_not_read", lambda: {"users": self._users_unread})

    # What gives rise to doubt.

    def see(self, owners: Mapping[int, Owner], live_node_ids: Collection[str]) -> None:
        """The cluster, whenever it has changed: owners that are gone may have taken along what they had not pushed yet."""
        for node_id in [node_id for node_id in self._had if node_id not in live_node_ids]:
            self._suspect(_Doubt(shards=self._had.pop(node_id)))
        for shard, owner in owners.items():
            self._had.setdefault(owner.node_id, set()).add(shard)

    def returned(self) -> None:
        """Others took this node for gone for a while, and pushed nothing to it.

        Who is asked now may not have heard of it yet, and leave this node out after the answer. But then it drops its link.
        """
        self._returned_at_s = asyncio.get_running_loop().time()
        self.suspect_all()

    def linked(self, node_id: str) -> None:
        """The link with a node is up."""
        if asyncio.get_running_loop().time() - self._returned_at_s < _RETURNED_S and node_id in self._had:
            self._suspect(_Doubt(shards=set(self._had[node_id])))

    def suspect_all(self) -> None:
        """Pushes of any chat may have passed this node by."""
        self._suspect(_Doubt(everything=True))

    def suspect_memberships(self) -> None:
        """A push was lost that may have let a user in or out."""
        self._suspect(_Doubt())

    def _suspect(self, doubt: _Doubt) -> None:
        self._doubted(lambda chat_id: self._concerns(doubt, chat_id))
        self._doubt |= doubt
        self._everyone_wanted = True
        self._wanted.set()

    # Passes.

    async def run(self) -> None:
        """Ends when cancelled."""
        loop = asyncio.get_running_loop()
        slow_pass_at_s = loop.time() + self._slow_pass_s
        while True:
            try:
                async with asyncio.timeout_at(slow_pass_at_s):
                    await self._wanted.wait()
            except TimeoutError:
                self._everyone_wanted = True
            self._wanted.clear()
            if self._everyone_wanted:
                slow_pass_at_s = loop.time() + self._slow_pass_s
            await self._look_after(self._take_work())
            await asyncio.sleep(self._pause_s)

    def _take_work(self) -> dict[Connection, _Doubt]:
        doubt, self._doubt = self._doubt, _Doubt()
        late, self._late = self._late, {}
        connections = list(self._connections if self._everyone_wanted else late)
        self._everyone_wanted = False
        work: dict[Connection, _Doubt] = {}
        for connection in connections:
            of_it = doubt | late.get(connection, _Doubt())
            match connection.session.state:
                case State.OPEN:
                    work[connection] = of_it
                case State.OPENING:  # it has asked for its heads, perhaps too early, and cannot be told yet
                    self._look_later(connection, of_it)
        return work

    def _look_later(self, connection: Connection, doubt: _Doubt) -> None:
        self._late[connection] = self._late.get(connection, _Doubt()) | doubt
        self._wanted.set()

    def _concerns(self, doubt: _Doubt, chat_id: str) -> bool:
        return doubt.everything or self._shard_of(chat_id) in doubt.shards

    async def _look_after(self, work: Mapping[Connection, _Doubt]) -> None:
        by_chat: dict[str, list[Connection]] = {}
        by_user: dict[str, list[Connection]] = {}
        for connection, doubt in work.items():
            by_user.setdefault(connection.session.user_id, []).append(connection)
            for chat_id in connection.session.feed.open_chats() if doubt else ():
                if self._concerns(doubt, chat_id):
                    by_chat.setdefault(chat_id, []).append(connection)
        await self._ask_heads(by_chat)
        await self._read_memberships(by_user)

    async def _ask_heads(self, by_chat: Mapping[str, list[Connection]]) -> None:
        unanswered: list[StoreError] = []

        async def ask(item: tuple[str, list[Connection]]) -> None:
            chat_id, connections = item
            try:
                (seq,) = await self._heads([chat_id])
            except ChatDamagedError:
                return  # nothing more can be known of it, and to ask again and again would not mend it
            except StoreError as error:
                unanswered.append(error)
                for connection in connections:
                    self._look_later(connection, _Doubt(shards={self._shard_of(chat_id)}))
                return
            for connection in connections:
                connection.session.note_head(chat_id, seq)
                self._touched(connection)

        await _each(list(by_chat.items()), _QUESTIONS_MAX, ask)
        self._heads_unanswered = len(unanswered)
        if unanswered:
            self._asking_fails.failed(unanswered[-1])
        elif by_chat:
            self._asking_fails.worked()

    async def _read_memberships(self, by_user: dict[str, list[Connection]]) -> None:
        if not by_user:
            self._users_unread = 0
            return

        async def read(item: tuple[str, list[Connection]]) -> None:
            user_id, connections = item
            await self._read_memberships_of(user_id, connections)
            del by_user[user_id]

        try:
            await _each(list(by_user.items()), _USERS_MAX, read)
        except* StoreError as errors:
            self._users_unread = len(by_user)
            self._reading_fails.failed(errors.exceptions[0])
            for connections in by_user.values():
                for connection in connections:
                    self._look_later(connection, _Doubt())
        else:
            self._users_unread = 0
            self._reading_fails.worked()

    async def _read_memberships_of(self, user_id: str, connections: list[Connection]) -> None:
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


async def _each(items: Collection[_Item], at_once: int, work: Callable[[_Item], Coroutine[Any, Any, None]]) -> None:
    """Works on all items, so many at the same time; what the first failure leaves is not worked on."""
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, len(items))):
            group.create_task(worker())
