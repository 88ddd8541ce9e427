"""Slices of work that goes on in a task of its own. Apart from `slices`: mypyc cannot compile asynchronous generators."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeVar

from chatgrpc.edge.slices import Slice

_Item = TypeVar("_Item")


async def in_slices(items: Iterable[_Item], clock_s: Callable[[], float], pause_s: float = 0) -> AsyncIterator[_Item]:
    """Each of many items; what is done with them makes way for other work, for `pause_s`, whenever a slice of time is over."""
    slice_ = Slice(clock_s)
    for item in items:
        yield item
        if slice_.is_over:
            await asyncio.sleep(pause_s)
            slice_ = slice_.anew()
