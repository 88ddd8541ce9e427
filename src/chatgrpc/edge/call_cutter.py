"""Ends calls whose peers do not take what they are sent.

grpc.aio has no way to cancel a call from the server's side, and a status waits behind an unread message for as long as the peer
likes. The core resets a call (RST_STREAM) once nothing refers to it, so cutting means letting go of it. The connection stays,
on which a proxy may carry many devices. grpc.aio itself refers to the last call it accepted, until the next comes, and to its
very first; these end with their connection.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Iterable
from typing import Any

from chatgrpc import background
from chatgrpc.edge.in_slices import in_slices

_PAUSE_S = 0.1
"""Before each slice of the search for what still refers to calls that were cut, which takes the longer the more streams there
are: so a twentieth of the loop's time goes into it at most."""


class CallCutter:
    """Cuts the calls of one server, some at a time."""

    def __init__(self, *, clock_s: Callable[[], float] = time.perf_counter) -> None:
        """`clock_s` says when a slice of work is over."""
        self._clock_s = clock_s
        self._overdue: list[tuple[asyncio.Task[Any], Callable[[], object]]] = []
        self._cutting: asyncio.Task[None] | None = None

    def cut(self, call: asyncio.Task[Any], let_go: Callable[[], object]) -> None:
        """Cuts a call, soon.

        Args:
            call: the task in which grpc.aio runs the handler.
            let_go: lets go of what else refers to the call.
        """
        self._overdue.append((call, let_go))
        if self._cutting is None or self._cutting.done():
            self._cutting = background.start(self._cut_overdue(), background.logged("cutting of calls"))

    async def _cut_overdue(self) -> None:
        while self._overdue:
            await asyncio.sleep(_PAUSE_S)
            overdue, self._overdue = self._overdue, []
            watchers = await self._cancellation_watchers({call for call, _ in overdue})
            for call, let_go in overdue:
                let_go()
                if watcher := watchers.get(call):
                    watcher.cancel()

    async def _cancellation_watchers(self, calls: set[asyncio.Task[Any]]) -> dict[asyncio.Task[Any], asyncio.Task[object]]:
        """Maps tasks in which handlers run to those in which grpc.aio waits for the peer to cancel the call.

        Nothing public leads from one to the other. The coroutine of the latter refers to the former; the garbage collector
        knows.
        """
        watchers: dict[asyncio.Task[Any], asyncio.Task[object]] = {}
        async for task in in_slices(asyncio.all_tasks(), self._clock_s, _PAUSE_S):
            if task.get_name() == "rpc_task":
                watchers.update((call, task) for call in _referred_to(task) if call in calls)
        return watchers


def _referred_to(task: asyncio.Task[object]) -> Iterable[asyncio.Task[object]]:
    """The tasks that a coroutine's closures refer to."""
    for scope in gc.get_referents(task.get_coro()):
        yield from (referent for referent in gc.get_referents(scope) if isinstance(referent, asyncio.Task))
