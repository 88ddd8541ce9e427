"""Looks again where pushes may have been lost that no heartbeat can name: `core.doubts` says where that is.

Heads of the sessions' chats are asked for, their users' memberships are read; the latter also now and then without any reason,
and with them the users' devices: the stream of a device that was revoked ends, though nobody said so here. All of that is done
a little at a time and at a bounded rate, since a node may have tens of thousands of sessions, and others do the same just then.

What a heartbeat does name is found much more cheaply: the sessions that know the chat are told its head, and the events that
were missed say whom they let in or out.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from chatgrpc.cluster.missed import users_concerned
from chatgrpc.core.damage import DamageError
from chatgrpc.core.doubts import Doubt, Doubts
from chatgrpc.core.edge_desk import EdgeDesk, Missed
from chatgrpc.core.membership_pages import MembershipPages
from chatgrpc.core.session import State
from chatgrpc.core.tending import ShardOwner
from chatgrpc.core.visibility import Interval, is_member, last_change
from chatgrpc.edge.connection import Connection, Connections
from chatgrpc.ports.errors import StoreError, StoreUnavailableError
from chatgrpc.ports.row_store import CommittedLog
from chatgrpc.trouble import Trouble

_PAUSE_S = 1.0
"""Between two passes, since what gives rise to them comes in bursts."""
_JITTER_S = 1.0
"""At most this much is added to the pause at random: what befalls one node befalls all at the same moment."""
_SLOW_PASS_S = 300.0
_QUESTIONS_TOGETHER = 16
_QUESTIONS_MAX = 32 * _QUESTIONS_TOGETHER
"""Heads that are asked for at the same time; some together, which takes half as long as one by one."""
_QUESTIONS_PER_S = 10_000
_USERS_MAX = 16
"""Users whose memberships are read at the same time."""
_USERS_PER_S = 1_500
"""These two so that 20,000 sessions of 20 chats are looked after within one heartbeat of 30 s (G4)."""
_CHATS_PER_READ = 500
_CHATS_PER_SLICE = 1_000
"""Chats of a session that are looked at for doubt before other work has its turn."""
_SESSIONS_PER_SLICE = 2_000
"""The same, where a session costs a microsecond."""
_STATED_MAX = 50_000
"""Heads that are remembered for the length of a pass."""
_MISSED_MAX = 10_000
"""Chats of which pushes were missed, and whose events are still to be read; beyond it everybody's memberships are read."""
_MISSED_AT_ONCE = 16
_MISSED_EVENTS_MAX = 256
"""Of more events that one chat lacks, its members of now are looked at."""
_MISSED_TRIES = 5

_Item = TypeVar("_Item")


class Resync:
    """Looks again, one pass at a time."""

    def __init__(
        self,
        connections: Connections,
        desk: EdgeDesk,
        committed: CommittedLog,
        heads: Callable[[list[str]], Awaitable[Mapping[str, int | None]]],
        shard_of: Callable[[str], int],
        touched: Callable[[Connection], None],
        doubted: Callable[[Callable[[str], bool]], None],
        end_revoked: Callable[[str], Awaitable[None]],
        now_ms: Callable[[], int],
        *,
        pause_s: float = _PAUSE_S,
        jitter_s: float = _JITTER_S,
        slow_pass_s: float = _SLOW_PASS_S,
    ) -> None:
        """
        Args:
            connections: whose sessions are looked after.
            desk: told of heads that memberships state.
            committed: the store.
            heads: asks the owners for the heads of chats; returns those that they stated in time, None of one that is damaged.
            shard_of: a chat's shard.
            touched: called with each connection whose session may have something to read now.
            doubted: told, for others to look too, which chats may have changed without our hearing of it.
            end_revoked: reads what was taken away from a user's devices and tokens, and ends the streams that it concerns;
                raises `StoreError`.
            now_ms: a monotonic clock.
            pause_s: between two passes.
            jitter_s: at most so much longer.
            slow_pass_s: memberships are read so often without any reason.
        """
        self._connections = connections
        self._desk = desk
        self._committed = committed
        self._heads = heads
        self._shard_of = shard_of
        self._touched = touched
        self._doubted = doubted
        self._end_revoked = end_revoked
        self._now_ms = now_ms
        self._pause_s = pause_s
        self._jitter_s = jitter_s
        self._slow_pass_s = slow_pass_s
        self._doubts: Doubts[Connection] = Doubts()
        self._wanted = asyncio.Event()
        self._has_run = False
        self._missed: dict[str, Missed] = {}
        self._missed_tries: dict[str, int] = {}
        self._missed_wanted = asyncio.Event()
        self._random = random.Random()  # noqa: S311  spreads work, hides nothing
        self._heads_unanswered = 0
        self._users_unread = 0
        self._asking_fails = Trouble("heads_not_stated", lambda: {"chats": self._heads_unanswered})
        self._reading_fails = Trouble("memberships_not_read", lambda: {"users": self._users_unread})

    # What gives rise to doubt.

    def see(
        self, owners: Mapping[int, ShardOwner], live_node_ids: Collection[str], drained_node_ids: Collection[str] = ()
    ) -> None:
        """The cluster, whenever it has changed: see `Doubts.see`."""
        self._suspect(self._doubts.see(owners, live_node_ids, drained_node_ids))

    def returned(self) -> None:
        """This node has lost its lease, and has joined again: see `Doubts.returned`."""
        self._suspect(self._doubts.returned(self._now_ms()))

    def linked(self, node_id: str) -> None:
        """The link with a node is up."""
        self._suspect(self._doubts.linked(node_id, self._now_ms()))

    def suspect_all(self) -> None:
        """Pushes of any chat may have passed this node by."""
        self._suspect(self._doubts.suspect_all())

    def suspect_memberships(self) -> None:
        """Somebody may have been let in or out without this node being told."""
        self._suspect(self._doubts.suspect_memberships())

    def missed(self, missed: Mapping[str, Missed]) -> None:
        """Pushes were lost. Open sessions that know the chats were told their heads; nobody else knows whom they concern."""
        self._doubts.missed(missed.keys(), self._sessions())
        self._note_wanted()
        for chat_id, found in missed.items():
            known = self._missed.get(chat_id)
            self._missed[chat_id] = found if known is None else known | found
        if len(self._missed) > _MISSED_MAX:
            self._missed.clear()
            self._missed_tries.clear()
            self.suspect_memberships()
        self._missed_wanted.set()

    def _suspect(self, doubt: Doubt | None) -> None:
        if doubt is not None:
            self._doubted(lambda chat_id: doubt.concerns(chat_id, self._shard_of))
            self._note_wanted()

    def _look_later(self, connection: Connection, doubt: Doubt) -> None:
        self._doubts.look_later(connection, doubt)
        self._note_wanted()

    def _note_wanted(self) -> None:
        if self._doubts.wanted:
            self._wanted.set()

    def _sessions(self) -> Iterator[tuple[Connection, State]]:
        return ((connection, connection.session.state) for connection in self._connections)

    # Passes.

    async def run(self) -> NoReturn:
        """Ends when cancelled. If a mistake of ours ended it before, what it had taken up then is in doubt once more."""
        if self._has_run:
            self.suspect_all()
        self._has_run = True
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_passes())
            group.create_task(self._find_missed())
        raise AssertionError("both go on until they are cancelled")

    async def _run_passes(self) -> None:
        loop = asyncio.get_running_loop()
        slow_pass_at_s = loop.time() + self._slow_pass_s * self._random.uniform(0.5, 1)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(slow_pass_at_s):
                    await self._wanted.wait()
                await asyncio.sleep(self._random.uniform(0, self._jitter_s))
            if loop.time() >= slow_pass_at_s:  # also if what could not be looked at before is wanted in each pass
                self._doubts.suspect_memberships()
            self._wanted.clear()
            if self._doubts.of_all_memberships:
                slow_pass_at_s = max(slow_pass_at_s, loop.time() + self._slow_pass_s)
            await self._look_after(self._doubts.take(self._sessions()))
            self._note_wanted()
            await asyncio.sleep(self._pause_s)

    async def _look_after(self, work: list[tuple[Connection, Doubt]]) -> None:
        await self._ask_heads(work)
        await self._read_memberships(work)

    async def _ask_heads(self, work: list[tuple[Connection, Doubt]]) -> None:
        if not any(doubt.of_heads for _, doubt in work):
            return
        asking = _Asking(self._heads, self._note_head)
        in_doubt = self._in_doubt(work)
        async with asyncio.TaskGroup() as group:
            for _ in range(_QUESTIONS_MAX // _QUESTIONS_TOGETHER):
                group.create_task(asking.ask(in_doubt))
        for connection, chat_id in asking.unanswered:
            self._look_later(connection, Doubt(chats=frozenset({chat_id}), memberships=False))
        self._heads_unanswered = len({chat_id for _, chat_id in asking.unanswered})
        if asking.unanswered:
            self._asking_fails.failed(StoreUnavailableError("nodes that order chats did not answer in time"))
        elif asking.stated:
            self._asking_fails.worked()

    def _in_doubt(self, work: Iterable[tuple[Connection, Doubt]]) -> Iterator[tuple[Connection, str] | None]:
        """Each session's chats that are in doubt; None whenever other work should have its turn."""
        looked_at = 0
        for connection, doubt in work:
            for chat_id in connection.session.feed.chats_in_doubt() if doubt.of_heads else ():
                looked_at += 1
                if looked_at % _CHATS_PER_SLICE == 0:
                    yield None
                if doubt.concerns(chat_id, self._shard_of):
                    yield connection, chat_id

    def _note_head(self, connection: Connection, chat_id: str, seq: int) -> None:
        connection.session.note_head(chat_id, seq)
        self._touched(connection)

    async def _read_memberships(self, work: list[tuple[Connection, Doubt]]) -> None:
        by_user: dict[str, list[tuple[Connection, Doubt]]] = {}
        for number, (connection, doubt) in enumerate(work):
            if number % _SESSIONS_PER_SLICE == 0:
                await asyncio.sleep(0)
            if doubt.memberships or doubt.chats:
                by_user.setdefault(connection.session.user_id, []).append((connection, doubt))
        self._users_unread = 0
        if not by_user:
            return
        pace = _Pace(_USERS_PER_S)

        async def read(item: tuple[str, list[tuple[Connection, Doubt]]]) -> None:
            user_id, looked_after = item
            await pace.turn(1)
            await self._read_memberships_of(user_id, looked_after)
            del by_user[user_id]

        try:
            await _each(list(by_user.items()), _USERS_MAX, read)
        except StoreError as error:
            self._users_unread = len(by_user)
            self._reading_fails.failed(error)
            for looked_after in by_user.values():
                for connection, doubt in looked_after:
                    self._look_later(connection, Doubt(chats=doubt.chats, memberships=doubt.memberships))
        else:
            self._reading_fails.worked()

    async def _read_memberships_of(self, user_id: str, looked_after: list[tuple[Connection, Doubt]]) -> None:
        connections = [connection for connection, doubt in looked_after if doubt.memberships]
        if connections:
            await self._read_all_memberships_of(user_id, connections)
            await self._end_revoked(user_id)
        for connection, doubt in looked_after:
            for chat_id in () if doubt.memberships else doubt.chats:
                if not connection.session.feed.knows(chat_id):  # who knows it was told of its head
                    self._note_membership([connection], chat_id, await self._committed.intervals(user_id, chat_id))
            self._touched(connection)

    async def _read_all_memberships_of(self, user_id: str, connections: list[Connection]) -> None:
        pages = MembershipPages()
        open_chats = {chat_id for connection in connections for chat_id in connection.session.feed.open_chats()}
        while not pages.is_done:
            page = await self._committed.intervals_of_user(
                user_id, pages.after_chat_id, _CHATS_PER_READ, present_only=pages.present_only
            )
            for chat_id, intervals in page:
                self._note_membership(connections, chat_id, intervals)
                open_chats.discard(chat_id)
            past = sum(not is_member(intervals) for _, intervals in page)
            pages.took(page[-1][0] if page else "", past, is_last=len(page) < _CHATS_PER_READ)
        for chat_id in sorted(open_chats) if pages.present_only else ():  # those that are over meanwhile
            self._note_membership(connections, chat_id, await self._committed.intervals(user_id, chat_id))

    def _note_membership(self, connections: Iterable[Connection], chat_id: str, intervals: tuple[Interval, ...]) -> None:
        seq = last_change(intervals)
        if seq:
            self._desk.note_stated(chat_id, seq)
        for connection in connections:
            connection.session.note_membership(chat_id, seq)

    # Pushes that a heartbeat has named.

    async def _find_missed(self) -> None:
        while True:
            await self._missed_wanted.wait()
            self._missed_wanted.clear()
            missed, self._missed = self._missed, {}
            await _each(list(missed.items()), _MISSED_AT_ONCE, self._find_one_missed)
            await asyncio.sleep(self._pause_s)

    async def _find_one_missed(self, item: tuple[str, Missed]) -> None:
        """Tells the users whom the missed events let in or out; what cannot be read now is read later."""
        chat_id, missed = item
        try:
            for user_id in await users_concerned(self._committed, chat_id, missed, _MISSED_EVENTS_MAX):
                connections = [
                    connection for connection in self._connections.of_user(user_id) if connection.session.state is State.OPEN
                ]
                if connections:
                    self._note_membership(connections, chat_id, await self._committed.intervals(user_id, chat_id))
                for connection in connections:
                    self._touched(connection)
        except DamageError:  # it is told of by whoever owns the chat, or shows it
            self.suspect_memberships()
        except StoreError as error:
            self._reading_fails.failed(error)
            tries = self._missed_tries[chat_id] = self._missed_tries.get(chat_id, 0) + 1
            if tries < _MISSED_TRIES:
                known = self._missed.get(chat_id)
                self._missed[chat_id] = missed if known is None else known | missed
                self._missed_wanted.set()
                return
            self.suspect_memberships()
        self._missed_tries.pop(chat_id, None)


class _Asking:
    """The heads of one pass: each is asked for once, whoever wants to know it."""

    def __init__(
        self, heads: Callable[[list[str]], Awaitable[Mapping[str, int | None]]], tell: Callable[[Connection, str, int], None]
    ) -> None:
        self.stated: dict[str, int] = {}
        self.unanswered: list[tuple[Connection, str]] = []
        self._heads = heads
        self._tell = tell
        self._waiting: dict[str, list[Connection]] = {}
        self._pace = _Pace(_QUESTIONS_PER_S)

    async def ask(self, in_doubt: Iterator[tuple[Connection, str] | None]) -> None:
        """Asks for what is in doubt, some together; of several who do that each takes a part."""
        wanted: list[str] = []
        for item in in_doubt:
            if item is None:
                await asyncio.sleep(0)
                continue
            connection, chat_id = item
            if chat_id in self._waiting:
                self._waiting[chat_id].append(connection)
            elif chat_id in self.stated:
                self._tell(connection, chat_id, self.stated[chat_id])
            else:
                self._waiting[chat_id] = [connection]
                wanted.append(chat_id)
                if len(wanted) == _QUESTIONS_TOGETHER:
                    await self._ask(wanted)
                    wanted = []
        if wanted:
            await self._ask(wanted)

    async def _ask(self, chat_ids: list[str]) -> None:
        await self._pace.turn(len(chat_ids))
        found = await self._heads(chat_ids)
        if len(self.stated) >= _STATED_MAX:
            self.stated.clear()
        for chat_id in chat_ids:
            connections = self._waiting.pop(chat_id)
            if chat_id not in found:
                self.unanswered += ((connection, chat_id) for connection in connections)
            elif (seq := found[chat_id]) is not None:  # else nothing more can be known of it, and asking would not mend it
                self.stated[chat_id] = seq
                for connection in connections:
                    self._tell(connection, chat_id, seq)


class _Pace:
    """Turns at a bounded rate, in small swarms, since timers are not that fine."""

    _SWARM_S = 0.02

    def __init__(self, per_s: int) -> None:
        self._interval_s = 1 / per_s
        self._at_s = 0.0

    async def turn(self, turns: int) -> None:
        """Returns when it is somebody's turn, who takes so many."""
        now_s = asyncio.get_running_loop().time()
        self._at_s = max(self._at_s, now_s) + turns * self._interval_s
        if self._at_s - now_s > self._SWARM_S:
            await asyncio.sleep(self._at_s - now_s)


async def _each(items: Iterable[_Item], at_once: int, work: Callable[[_Item], Coroutine[Any, Any, None]]) -> None:
    """Works on all items, so many at the same time. One that fails holds up no other; once that many have failed in a row the
    store is away, and none is begun any more.

    Raises:
        StoreError: the first failure.
    """
    remaining = iter(items)
    failures: list[StoreError] = []
    failed_in_a_row = 0

    async def worker() -> None:
        nonlocal failed_in_a_row
        for item in remaining:
            try:
                await work(item)
            except StoreError as error:  # not for the group, which may lose its own cancellation over what a worker raises
                failures.append(error)
                failed_in_a_row += 1
            else:
                failed_in_a_row = 0
            if failed_in_a_row >= at_once:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    if failures:
        raise failures[0]
