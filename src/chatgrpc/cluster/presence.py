"""Who is there, for all who have them on the screen, where everyone may be connected to any node.

It is read from the session map: of all users whom somebody on this node watches, once in a while and for all of them in one
trip; for who has just begun to watch at once. So nothing has to be told when a user comes or goes, and nothing is wrong for
long when it was not. Who is in a chat its owner says, who is asked again whenever that changes, or may have changed.

There may be as many screens as there are streams, so they are looked at a few at a time, and other work goes on in between.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from time import perf_counter
from typing import NoReturn

from chatgrpc.cluster.news import news_or_time
from chatgrpc.cluster.sessions import Sessions
from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.edge.audience import Touched
from chatgrpc.edge.connection import Connection
from chatgrpc.edge.in_slices import in_slices
from chatgrpc.ports.last_seen import LastSeen, LastSeenUnavailableError
from chatgrpc.ports.lease_clock import wall_clock_ms
from chatgrpc.ports.session_map import SessionMapUnavailableError
from chatgrpc.trouble import Trouble
from chatgrpc.v1 import session_pb2

_LOOK_INTERVAL_S = 2.0
_UNSAVED_MAX = 100_000
"""Users who left and whose time could not be stored yet; beyond this the oldest are forgotten."""

Presence = tuple[bool, int]
"""Whether a user is online, and when they were seen last if not, in milliseconds since the Unix epoch; 0 = not known."""


@dataclass(slots=True)
class _Watchers:
    """Who has a chat on the screen: one question for all of them, however often it is asked."""

    found: Callable[[tuple[str, ...]], None]
    screens: dict[Connection, None] = field(default_factory=dict)


class PresenceScreens:
    """The screens of one node's devices, as far as they show who is there."""

    def __init__(
        self,
        touched: Touched,
        desk: EdgeDesk,
        sessions: Sessions,
        last_seen: LastSeen,
        live_node_ids: Callable[[], Collection[str]],
        monotonic_ms: Callable[[], int],
        *,
        look_interval_s: float = _LOOK_INTERVAL_S,
        clock_s: Callable[[], float] = perf_counter,
    ) -> None:
        """
        Args:
            touched: told of each connection that is to be shown something.
            desk: asks owners who is in a chat.
            sessions: knows who is connected.
            last_seen: knows when who is not was connected last.
            live_node_ids: the nodes whose entries in the session map count.
            monotonic_ms: the clock of the desk.
            look_interval_s: how often it is looked who is there.
            clock_s: says when a slice of work is over.
        """
        self._touched = touched
        self._desk = desk
        self._sessions = sessions
        self._last_seen = last_seen
        self._live_node_ids = live_node_ids
        self._monotonic_ms = monotonic_ms
        self._look_interval_s = look_interval_s
        self._clock_s = clock_s
        self._chats: dict[Connection, tuple[str, ...]] = {}  # that each has on the screen
        self._watchers: dict[str, _Watchers] = {}  # the same by chat
        self._members: dict[Connection, dict[str, tuple[str, ...]]] = {}  # of the chats that each watches
        self._watched: dict[Connection, frozenset[str]] = {}  # the same together, without themselves
        self._shown: dict[Connection, dict[str, Presence]] = {}  # what each was shown last
        self._news: dict[Connection, None] = {}  # who watches others than at the last look
        self._has_news = asyncio.Event()
        self._unsaved: dict[str, int] = {}  # users who left, and when
        self._looking_fails = Trouble("presence_unavailable")
        self._saving_fails = Trouble("last_seen_not_saved", lambda: {"users": len(self._unsaved)})

    # Who watches whom.

    def watch(self, watcher: Connection, chat_ids: tuple[str, ...]) -> None:
        """From now on the device has these chats on its screen, and no others; it is shown who is there."""
        self.unwatch(watcher)
        self._chats[watcher] = chat_ids = tuple(dict.fromkeys(chat_ids))
        self._members[watcher] = {}
        self._watched[watcher] = frozenset()
        self._shown[watcher] = {}
        for chat_id in chat_ids:
            self._watchers.setdefault(chat_id, _Watchers(partial(self._found, chat_id))).screens[watcher] = None
            self.members_changed(chat_id)

    def unwatch(self, watcher: Connection) -> None:
        """The device has nothing on its screen; again does nothing."""
        for chat_id in self._chats.pop(watcher, ()):
            watchers = self._watchers[chat_id]
            del watchers.screens[watcher]
            if not watchers.screens:
                del self._watchers[chat_id]
                self._desk.withdraw_members(chat_id, watchers.found)
        self._members.pop(watcher, None)
        self._watched.pop(watcher, None)
        self._shown.pop(watcher, None)
        self._news.pop(watcher, None)

    def members_changed(self, chat_id: str) -> None:
        """Someone came into the chat, or left it, or may have."""
        watchers = self._watchers.get(chat_id)
        if watchers is not None:
            self._desk.ask_members(chat_id, watchers.found, self._monotonic_ms())

    def doubt(self, concerns: Callable[[str], bool]) -> None:
        """Nobody knows whether someone came into the chats that it `concerns`, or left them."""
        for chat_id in list(self._watchers):
            if concerns(chat_id):
                self.members_changed(chat_id)

    def _found(self, chat_id: str, user_ids: tuple[str, ...]) -> None:
        for watcher in self._watchers[chat_id].screens:
            self._note_members(watcher, chat_id, user_ids)

    def _note_members(self, watcher: Connection, chat_id: str, user_ids: tuple[str, ...]) -> None:
        """A user who is not a member themselves watches nobody (G6)."""
        members = self._members[watcher]
        members[chat_id] = user_ids if watcher.session.user_id in user_ids else ()
        watched = self._watched[watcher] = frozenset().union(*members.values()) - {watcher.session.user_id}
        self._shown[watcher] = {user_id: shown for user_id, shown in self._shown[watcher].items() if user_id in watched}
        self._news[watcher] = None
        self._has_news.set()

    def is_watched(self, watcher: Connection, user_id: str) -> bool:
        """Whether the device has a chat on its screen of which the user is a member."""
        return user_id in self._watched.get(watcher, ())

    # Who is there.

    async def run(self) -> NoReturn:
        """Looks who is there, for all who watch, and stores who has left. Ends when cancelled."""
        loop = asyncio.get_running_loop()
        look_at_s = loop.time()
        while True:
            is_due = await news_or_time(self._has_news, look_at_s)
            news, self._news = self._news, {}
            if not is_due:
                await self._look(list(news))
                continue
            look_at_s = loop.time() + self._look_interval_s
            await self.save_last_seen()
            await self._look(list(self._chats))

    async def _look(self, watchers: Collection[Connection]) -> None:
        """Shows each watcher what has changed since they were shown it last."""
        user_ids: set[str] = set()
        async for watcher in in_slices(watchers, self._clock_s):
            user_ids |= self._watched.get(watcher, frozenset())
        if not user_ids:
            return
        try:
            online = await self._sessions.devices_of(user_ids, self._live_node_ids())
            away = [user_id for user_id in user_ids if not online.get(user_id)]
            seen_ms = await self._last_seen.of_users(away) if away else {}
        except (SessionMapUnavailableError, LastSeenUnavailableError) as error:
            self._looking_fails.failed(error)
            return
        self._looking_fails.worked()
        now_ms = wall_clock_ms()  # nobody was seen later than now: the clock of their node was wrong
        found: dict[str, Presence] = {}
        async for user_id in in_slices(user_ids, self._clock_s):
            is_online = bool(online.get(user_id))
            found[user_id] = (is_online, 0 if is_online else min(seen_ms.get(user_id, 0), now_ms))
        async for watcher in in_slices(watchers, self._clock_s):
            for user_id in self._watched.get(watcher, ()):  # who may have gone meanwhile, or watch others
                if user_id in found:
                    self._show(watcher, user_id, found[user_id])

    def _show(self, watcher: Connection, user_id: str, presence: Presence) -> None:
        shown = self._shown[watcher]
        if shown.get(user_id) != presence:
            shown[user_id] = presence
            online, last_seen_ms = presence
            watcher.session.show_presence(session_pb2.Presence(user_id=user_id, online=online, last_seen_ms=last_seen_ms))
            self._touched(watcher)

    # Who has left.

    def left(self, user_id: str, now_ms: int) -> None:
        """A device of the user has gone; `now_ms` is since the Unix epoch."""
        self._unsaved[user_id] = now_ms

    async def save_last_seen(self) -> None:
        """Stores when users left; what cannot be stored now is kept for the next time."""
        unsaved, self._unsaved = self._unsaved, {}
        if not unsaved:
            return
        try:
            await self._last_seen.put(unsaved)
        except LastSeenUnavailableError as error:
            kept = unsaved | self._unsaved
            self._unsaved = dict(islice(kept.items(), max(0, len(kept) - _UNSAVED_MAX), None))
            self._saving_fails.failed(error)
        else:
            self._saving_fails.worked()
