"""Presence: who has a live session, and which sessions want to know.

Derived from sessions, never stored (M11). A user is shown offline only after a while without a session, so that a device that
changes networks does not flicker.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from collections.abc import Set as AbstractSet

from chatgrpc.core.clock import Now
from chatgrpc.core.limits import Limits
from chatgrpc.v1 import session_pb2

Watcher = Hashable
LINGER_MS = 3_000
"""How long after their last session a user is still shown online."""


class PresenceBook:
    """Live sessions per user, and the sessions that watch them."""

    def __init__(self, limits: Limits) -> None:
        self._last_seen_max = limits.last_seen_max
        self._sessions: dict[str, int] = {}
        self._leaving: OrderedDict[str, int] = OrderedDict()  # user id -> when to show them offline, in this order
        self._left_ms: OrderedDict[str, int] = OrderedDict()  # when the last session ended
        self._watchers: dict[str, set[Watcher]] = {}
        self._watched: dict[Watcher, dict[str, None]] = {}

    def connected(self, user_id: str) -> bool:
        """A session opened; returns whether the user is news as online."""
        count = self._sessions.get(user_id, 0)
        self._sessions[user_id] = count + 1
        return count == 0 and self._leaving.pop(user_id, None) is None

    def disconnected(self, user_id: str, now: Now) -> None:
        """A session ended."""
        count = self._sessions[user_id] - 1
        if count:
            self._sessions[user_id] = count
            return
        del self._sessions[user_id]
        self._leaving[user_id] = now.monotonic_ms + LINGER_MS
        self._left_ms[user_id] = now.monotonic_ms
        self._left_ms.move_to_end(user_id)
        if len(self._left_ms) > self._last_seen_max:
            self._left_ms.popitem(last=False)

    def take_offline(self, now_ms: int) -> Iterator[str]:
        """Users who are to be shown offline from now on, by the monotonic clock; who is not taken stays for the next call."""
        while self._leaving:
            user_id, at_ms = next(iter(self._leaving.items()))
            if at_ms > now_ms:
                break
            del self._leaving[user_id]
            yield user_id

    def presence(self, user_id: str, now: Now) -> session_pb2.Presence:
        """What is shown of the user now."""
        online = user_id in self._sessions or user_id in self._leaving
        left_ms = None if online else self._left_ms.get(user_id)
        # By the wall clock as it is now, so that a step that it made since has not moved the time.
        last_seen_ms = now.wall_ms - (now.monotonic_ms - left_ms) if left_ms is not None else 0
        return session_pb2.Presence(user_id=user_id, online=online, last_seen_ms=last_seen_ms)

    def watch(self, watcher: Watcher, user_ids: Iterable[str]) -> None:
        """The watcher wants to know of these users, and of no others."""
        self.unwatch(watcher)
        self.watch_also(watcher, user_ids)

    def watch_also(self, watcher: Watcher, user_ids: Iterable[str]) -> None:
        """The watcher wants to know of these users too."""
        watched = self._watched.setdefault(watcher, {})
        for user_id in user_ids:
            watched[user_id] = None
            self._watchers.setdefault(user_id, set()).add(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """The watcher wants to know of nobody."""
        for user_id in self._watched.pop(watcher, ()):
            watchers = self._watchers[user_id]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[user_id]

    def watched(self, watcher: Watcher) -> AbstractSet[str]:
        """Of whom the watcher wants to know."""
        return self._watched.get(watcher, {}).keys()

    def watchers(self, user_id: str) -> tuple[Watcher, ...]:
        """Who wants to know of the user."""
        return tuple(self._watchers.get(user_id, ()))
