"""Background tasks, none of which can end unnoticed.

asyncio drops the exception of a task that nobody awaits: its work is no longer done, and everything else goes on as if it were.
So every task of a node is started here, or by somebody who awaits it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from chatgrpc.core.backoff import Backoff

RESTART_FIRST_S: Final = 0.1
RESTART_MAX_S: Final = 10.0

_log = structlog.get_logger()

Told = Callable[[BaseException], None]


def start(work: Coroutine[Any, Any, None], told: Told, *, name: str | None = None) -> "asyncio.Task[None]":
    """Runs work; `told` is called with what it raises. Whoever starts it keeps the task, lest it be collected."""

    def done(task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (defect := task.exception()) is not None:
            told(defect)

    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(done)
    return task


async def again(work: Callable[[], Coroutine[Any, Any, bool]], name: str) -> None:
    """Runs work that must go on until it says that it is done, by returning True, or is cancelled.

    When it raises, or returns False, that is logged, and it begins anew after a pause. Once this is cancelled it does not: what
    the work raised may have taken the place of its cancellation, as it does when a TaskGroup fails and is cancelled at the same
    time (gh-116720, Python before 3.13).
    """
    backoff = Backoff(RESTART_FIRST_S, RESTART_MAX_S)
    loop = asyncio.get_running_loop()
    while True:
        began_s, defect = loop.time(), None
        try:
            # In a task of its own: one in which a TaskGroup fails looks cancelled ever after (gh-116720 too).
            if await loop.create_task(work(), name=name):
                return
        except Exception as error:
            if _is_cancelled():
                raise asyncio.CancelledError from error
            defect = error
        if loop.time() - began_s > RESTART_MAX_S:
            backoff.reset()  # it had done its work for a while
        pause_s = backoff.next_s()
        _log.error("background_failed" if defect else "background_ended", work=name, again_in_s=pause_s, exc_info=defect)
        await asyncio.sleep(pause_s)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def log_callbacks(loop: asyncio.AbstractEventLoop) -> None:
    """Has the loop log in the node's own words what a callback raised, or a task that nobody awaited.

    Without what it was called with, which may be a peer's.
    """
    loop.set_exception_handler(_log_context)


def _log_context(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    what, _, _ = str(context["message"]).partition(" <")
    what, _, _ = what.partition("(")
    _log.error("background_failed", work=what, exc_info=context.get("exception"))


def logged(name: str) -> Told:
    """For work that others do again when it is needed: what it raises is logged, and that is all."""
    return lambda defect: _log.error("background_failed", work=name, exc_info=defect)
