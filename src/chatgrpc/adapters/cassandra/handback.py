"""The way from the driver's thread back to the event loop."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class Handback:
    """Runs callbacks on the event loop, in the order in which they were handed over.

    Waking the loop is a system call and a turn of the loop, so callbacks that come while a wake-up is on its way share it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._waking = False

    def put(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Hands a callback over; from any thread."""
        self._calls.append((callback, arguments))
        # `_run` lowers the flag before it looks at the calls: what was added before that is found, and who adds later sees the
        # flag lowered. Two wake-ups at once do no harm.
        if self._waking:
            return
        self._waking = True
        try:
            self._loop.call_soon_threadsafe(self._run)
        except RuntimeError:
            # The loop is closed, so nobody waits any more.
            self._calls.clear()

    def _run(self) -> None:
        self._waking = False
        try:
            while self._calls:
                callback, arguments = self._calls.popleft()
                callback(*arguments)
        finally:
            # A callback that raises, which is a defect, must not keep from others what came with it: nobody may wake us again.
            if self._calls:
                self._loop.call_soon(self._run)
