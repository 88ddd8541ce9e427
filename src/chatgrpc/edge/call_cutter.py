"""Ends calls whose peers do not take what they are sent.

grpc.aio has no way to cancel a call from the server's side, and a status waits behind an unread message for as long as the peer
likes. The core resets a call (RST_STREAM) once nothing refers to it, so cutting means letting go of it. The connection stays,
on which a proxy may carry many devices. grpc.aio itself refers to the last call it accepted, until the next comes, and to its
very first; these end with their connection.
"""

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

_CUT_TOGETHER_S = 0.1
_CUTTING_SHARE_MAX = 0.05
"""Share of the loop's time that may go into finding what still refers to calls that were cut: the more streams, the longer."""


class CallCutter:
    """Cuts the calls of one server, some at a time."""

    def __init__(self) -> None:
        self._overdue: list[tuple[asyncio.Task[Any], Callable[[], object]]] = []
        self._cut_not_before_s = 0.0

    def cut(self, call: asyncio.Task[Any], let_go: Callable[[], object]) -> None:
        """Cuts a call, soon.

        Args:
            call: the task in which grpc.aio runs the handler.
            let_go: lets go of what else refers to the call.
        """
        if not self._overdue:
            loop = asyncio.get_running_loop()
            loop.call_at(max(loop.time() + _CUT_TOGETHER_S, self._cut_not_before_s), self._cut_overdue)
        self._overdue.append((call, let_go))

    def _cut_overdue(self) -> None:
        loop, began_s = asyncio.get_running_loop(), time.perf_counter()
        overdue, self._overdue = self._overdue, []
        watchers = _cancellation_watchers(loop)
        for call, let_go in overdue:
            let_go()
            if watcher := watchers.get(call):
                watcher.cancel()
        self._cut_not_before_s = loop.time() + (time.perf_counter() - began_s) / _CUTTING_SHARE_MAX


def _cancellation_watchers(loop: asyncio.AbstractEventLoop) -> dict[object, asyncio.Task[object]]:
    """Maps the task in which a handler runs to the one in which grpc.aio waits for the peer to cancel the call.

    Nothing public leads from one to the other. The latter's coroutine refers to the former, and the garbage collector knows.
    """
    watchers: dict[object, asyncio.Task[object]] = {}
    for task in asyncio.all_tasks(loop):
        if task.get_name() == "rpc_task":
            for scope in gc.get_referents(task.get_coro()):
                watchers.update((referent, task) for referent in gc.get_referents(scope) if isinstance(referent, asyncio.Task))
    return watchers
