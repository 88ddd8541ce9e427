"""The threads that read, beside the one that writes and never in its way."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar, cast

from chatgrpc.adapters.sqlite.errors import ENGINE_ERRORS, unavailable
from chatgrpc.adapters.sqlite.handback import Handback, Result
from chatgrpc.ports.errors import StoreUnavailableError

R = TypeVar("R")

Query = Callable[[sqlite3.Connection], R]
"""Reads with ONE statement: each statement sees one state of the database, two may see two."""

_READS_WAITING_MAX = 10_000


class _Read(NamedTuple):
    query: Query[Any]
    future: asyncio.Future[Any]


class Readers:
    """A thread for each connection. In WAL mode a reader sees the last commit and neither waits for the writer nor stops it."""

    def __init__(self, connections: Sequence[sqlite3.Connection], loop: asyncio.AbstractEventLoop) -> None:
        """Takes the connections over; `start` begins."""
        self._connections = connections
        self._loop = loop
        self._queue: SimpleQueue[_Read | None] = SimpleQueue()
        self._waiting = 0
        self._handback = Handback(loop, self._release)
        self._threads = [
            threading.Thread(target=self._run, args=(db,), name=f"sqlite-reader-{number}", daemon=True)
            for number, db in enumerate(connections)
        ]
        self._closed = False

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    async def read(self, query: Query[R]) -> R:
        """Runs a query on the next free connection.

        Raises:
            StoreUnavailableError: SQLite cannot read, or too many reads wait.
        """
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        if self._waiting >= _READS_WAITING_MAX:
            raise StoreUnavailableError("too many reads are waiting for the disk")
        read = _Read(query, self._loop.create_future())
        self._waiting += 1
        self._queue.put(read)
        return cast("R", await read.future)

    def refuse(self) -> None:
        """Takes no more reads from now on. Called on the event loop, so that none can slip in behind the last one."""
        self._closed = True

    def close(self) -> None:
        """Finishes the reads that wait, then ends threads and connections. After `refuse`.

        Waits for them, so it is not for the event loop.
        """
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        for db in self._connections:
            db.close()

    def _release(self, weight: int) -> None:
        self._waiting -= weight

    def _run(self, db: sqlite3.Connection) -> None:
        while (read := self._queue.get()) is not None:
            self._handback.put([_answer(db, read)])


def _answer(db: sqlite3.Connection, read: _Read) -> Result:
    if read.future.cancelled():
        return Result(read.future, weight=1)
    try:
        return Result(read.future, weight=1, value=read.query(db))
    except ENGINE_ERRORS as error:
        return Result(read.future, weight=1, error=unavailable(error))
    except Exception as error:
        return Result(read.future, weight=1, error=error)
