"""Runs a `Store` beside the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

from .store import Store, disk_errors

P = ParamSpec("P")
T = TypeVar("T")


class StoreThread:
    """Calls the store on one thread of its own, in the order of the calls."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chatgrpc-store")

    async def call(self, method: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a method of the store, and returns what it returns; carried out also if the caller is cancelled.

        Raises:
            DiskError: the disk takes nothing now.
            DataDirError: the store is damaged.
        """
        loop = asyncio.get_running_loop()
        with disk_errors():
            return await loop.run_in_executor(self._executor, lambda: method(self._store, *args, **kwargs))

    async def close(self) -> None:
        """Waits for what was called, and closes the store."""
        await self.call(Store.close)
        self._executor.shutdown()
