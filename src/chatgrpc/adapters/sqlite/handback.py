"""The way of results from worker threads back to the event loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Result(NamedTuple):
    """What became of one call."""

    future: asyncio.Future[Any]
    weight: int
    """What the call counts towards the limit of its queue."""
    value: Any = None
    error: BaseException | None = None


class Handback:
    """Gives results to their callers on the event loop, whatever thread they come from.

    Waking the loop is a system call and a turn of the loop, so results that come while a wake-up is on its way share it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_weight: Callable[[int], None]) -> None:
        """`on_weight` runs on the loop with the weight of each call that is done."""
        self._loop = loop
        self._on_weight = on_weight
        self._results: deque[Result] = deque()
        self._waking = False

    def put(self, results: Iterable[Result]) -> None:
        """Hands results over; called from any thread."""
        self._results.extend(results)
        # `_deliver` lowers the flag before it looks at the results: what was added before that is found, and who adds later
        # sees the flag lowered. Two wake-ups at once do no harm.
        if self._waking:
            return
        self._waking = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            # The loop is closed, so nobody waits any more.
            self._results.clear()

    def _deliver(self) -> None:
        self._waking = False
        while self._results:
            result = self._results.popleft()
            self._on_weight(result.weight)
            # A caller that was cancelled does not want it any more.
            if result.future.done():
                continue
            if result.error is not None:
                result.future.set_exception(result.error)
            else:
                result.future.set_result(result.value)
