"""Work that must not be left half done when whoever waits for it is cancelled."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T], undo: Callable[[T], object] | None = None) -> T:
    """Does bounded work to its end, and then lets a cancellation that came meanwhile have its way.

    Args:
        work: what to do; the cancellation does not reach it.
        undo: called with the result if nobody takes it any more.
    """
    doing = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not doing.done():
        try:
            await asyncio.wait({doing})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return doing.result()
    if not doing.cancelled() and doing.exception() is None and undo is not None:
        undo(doing.result())
    raise cancelled
