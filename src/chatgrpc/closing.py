"""The end of a process: what was opened is closed, the last first, and what does not end in time is left as it is.

When parts are closed, all that was acknowledged is safe, and there is nothing to wait for but politeness. Yet a part may wait
for a service that hangs, or for a thread of a driver, for ever. So each has a bound, and all have one together.
"""

import asyncio
import contextlib
import faulthandler
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, Final, NoReturn

import structlog

PART_TIMEOUT_S: Final = 3.0
CLOSE_TIMEOUT_S: Final = 8.0
"""For all parts together."""
UNFINISHED_STATUS: Final = os.EX_TEMPFAIL
"""Exit status of a process that ended in time, but left something unfinished."""

_log = structlog.get_logger()


class Closing:
    """What is to be closed."""

    def __init__(self, begins: Callable[[], None] | None = None) -> None:
        """`begins` is called when the closing does."""
        self.unfinished: list[str] = []
        """What did not end in order; the log says why."""
        self._parts: list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]] = []
        self._begins = begins

    def add(self, part: str, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Something was opened; `part` names it to people."""
        self._parts.append((part, close))

    async def close(self) -> None:
        """Closes all parts, the last added first, each within `PART_TIMEOUT_S`, all within `CLOSE_TIMEOUT_S`; never raises."""
        if self._begins is not None:
            self._begins()
        loop = asyncio.get_running_loop()
        give_up_at_s = loop.time() + CLOSE_TIMEOUT_S
        while self._parts:
            part, close = self._parts.pop()
            await self.finish(part, close(), min(PART_TIMEOUT_S, max(0.0, give_up_at_s - loop.time())))

    async def finish(self, part: str, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """Runs what belongs to the end; what has not ended after `timeout_s`, or raises, is logged, and not waited for."""
        task = asyncio.create_task(work, name=part)
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            # Waited for no longer, not even for its cancellation: that may hang too.
            _log.error("left_unfinished", part=part, after_s=round(timeout_s, 1), waits_in=_waits_in(task), threads=_threads())
            self.unfinished.append(part)
            task.cancel()
        elif task.cancelled() or (defect := task.exception()) is not None:
            _log.error("left_unfinished", part=part, exc_info=None if task.cancelled() else defect)
            self.unfinished.append(part)


def end_within(seconds: float) -> None:
    """Ends the process after so long, whatever it does then; replaces what was said before.

    For when the event loop hangs, or the interpreter: a thread that needs neither writes to standard error where all others
    stand, and ends the process with status 1.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)


def leave(status: int) -> NoReturn:
    """Ends the process now.

    Skips the exit handlers of Python and C, which hang now and then, since threads of gRPC and of the driver run on meanwhile.
    """
    try:
        with contextlib.suppress(OSError, ValueError):  # nobody reads what is printed any more
            sys.stdout.flush()
        logging.shutdown()
    finally:
        os._exit(status)


def _waits_in(task: asyncio.Task[None]) -> str:
    """The functions in which a task waits, the outermost first."""
    places: list[str] = []
    inner: object = task.get_coro()
    while isinstance(inner, CoroutineType):
        if inner.cr_frame is not None:
            places.append(f"{inner.__qualname__}:{inner.cr_frame.f_lineno}")
        inner = inner.cr_await
    return " > ".join(places)


def _threads() -> dict[str, str]:
    """Where the other threads stand, by name: the part may wait for one of them."""
    frames = sys._current_frames()
    return {
        thread.name: " > ".join(f"{place.name}:{place.lineno}" for place in traceback.extract_stack(frames[thread.ident], 8))
        for thread in threading.enumerate()
        if thread is not threading.current_thread() and thread.ident in frames
    }
