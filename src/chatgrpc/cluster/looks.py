"""Shows users of any node that they look at each other before there is a chat between them; see `core.looks`.

As with presence nobody is told: every two seconds, and at once for a device that begins to look, a node says who looks at whom
here, and reads who looks back (ADR 6).
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from chatgrpc.cluster.news import news_or_time
from chatgrpc.core.looks import Looks
from chatgrpc.edge.audience import Touched
from chatgrpc.edge.connection import Connection
from chatgrpc.ports.shared_looks import SharedLooks, SharedLooksUnavailableError
from chatgrpc.trouble import Trouble
from chatgrpc.v1 import session_pb2

_LOOK_INTERVAL_S = 2.0


class LookScreens:
    """The screens of one node's devices, as far as they show users with whom there is no chat yet."""

    def __init__(
        self,
        touched: Touched,
        shared: SharedLooks,
        is_watched: Callable[[Connection, str], bool],
        *,
        look_interval_s: float = _LOOK_INTERVAL_S,
    ) -> None:
        """
        Args:
            touched: told of each connection that is to be shown something.
            shared: knows who looks at whom on other nodes.
            is_watched: whether a device is shown the presence of a user anyhow, for a chat on its screen.
            look_interval_s: how often it is asked.
        """
        self._touched = touched
        self._shared = shared
        self._is_watched = is_watched
        self._look_interval_s = look_interval_s
        self._looks: Looks[Connection] = Looks()
        self._shown: dict[Connection, frozenset[str]] = {}  # who looks back, as was shown last
        self._news: dict[tuple[str, str], None] = {}  # pairs of which a device has begun to look since the last look at all
        self._has_news = asyncio.Event()
        self._trouble = Trouble("looks_unavailable")

    def look(self, watcher: Connection, user_ids: Sequence[str]) -> None:
        """From now on the device looks at these users, and at no others; it is shown when they look back."""
        user_id = watcher.session.user_id
        self._looks.look(watcher, user_id, user_ids)
        shown = self._shown.pop(watcher, frozenset()) & frozenset(user_ids)
        if shown:
            self._shown[watcher] = shown
        if user_ids:
            self._news |= dict.fromkeys((user_id, at_user_id) for at_user_id in user_ids)
            self._has_news.set()

    def look_away(self, watcher: Connection) -> None:
        """The device looks at nobody; again does nothing."""
        self.look(watcher, ())

    async def run(self) -> NoReturn:
        """Finds who looks back. Ends when cancelled."""
        loop = asyncio.get_running_loop()
        look_at_s = loop.time()
        while True:
            is_due = await news_or_time(self._has_news, look_at_s)
            news, self._news = self._news, {}
            if is_due:
                look_at_s = loop.time() + self._look_interval_s
                await self._find(self._looks.pairs())
            else:
                await self._find([pair for pair in news if self._looks.lookers(*pair)])

    async def _find(self, pairs: Collection[tuple[str, str]]) -> None:
        if not pairs:
            return
        try:
            returned = await self._shared.look(pairs)
        except SharedLooksUnavailableError as error:
            self._trouble.failed(error)
            return
        self._trouble.worked()
        for pair in pairs:
            for watcher in self._looks.lookers(*pair):
                self._show(watcher, pair[1], looks_back=pair in returned)

    def _show(self, watcher: Connection, user_id: str, *, looks_back: bool) -> None:
        shown = self._shown.get(watcher, frozenset())
        if looks_back == (user_id in shown) or self._is_watched(watcher, user_id):
            return
        self._shown[watcher] = shown ^ {user_id}
        watcher.session.show_presence(session_pb2.Presence(user_id=user_id, online=looks_back))
        self._touched(watcher)
