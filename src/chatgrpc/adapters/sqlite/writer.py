"""The one thread that writes: calls that wait while a transaction is under way are committed together in the next one."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar, cast

from chatgrpc.adapters.sqlite.errors import ENGINE_ERRORS, failed_commit, is_of_the_file, refused, unavailable
from chatgrpc.adapters.sqlite.handback import Handback, Result
from chatgrpc.ports.errors import StoreError, StoreUnavailableError

A = TypeVar("A")
R = TypeVar("R")

Apply = Callable[[sqlite3.Connection, Sequence[A]], Sequence[R | Exception]]
"""Writes the arguments of any number of calls in the transaction under way, and returns one outcome for each: a result, or an
error that concerns this call only and wrote nothing. It raises if the transaction as a whole cannot go on."""

Upkeep = Callable[[sqlite3.Connection], None]
"""Work on the writer's connection outside of a transaction."""

_QUEUE_WEIGHT_MAX = 64 * 1024 * 1024
_GROUP_WEIGHT_MAX = 4 * 1024 * 1024
"""A transaction takes no further call past this, or the first ones would wait long for the last ones."""
_CALL_WEIGHT = 512
"""What a call costs in memory besides its content."""


class _Call(NamedTuple):
    apply: Apply[Any, Any]
    argument: Any
    weight: int
    future: asyncio.Future[Any]


class Writer:
    """Group commit. Flushing to the disk costs the same for one row and for hundreds, and so does waking the event loop.

    A group is written by few statements, whatever its size: SQLite releases Python's interpreter lock at each one, and has to
    wait for it again, up to a switch interval (`sys.getswitchinterval`), while the event loop is busy.
    """

    def __init__(self, db: sqlite3.Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Takes the connection over; `start` begins."""
        self._db = db
        self._loop = loop
        self._queue: SimpleQueue[_Call | Upkeep] = SimpleQueue()
        self._waiting_weight = 0
        self._handback = Handback(loop, self._release)
        self._working = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._closed = False
        self.after_rollback: list[Callable[[], None]] = []
        """Run in the writer's thread when what the applies wrote was undone. Complete before `start`."""

    def start(self) -> None:
        """Starts the thread."""
        self._working.start()

    async def call(self, apply: Apply[A, R], argument: A, content_bytes: int = 0) -> R:
        """Writes durably; `content_bytes` is about the size of the argument.

        Raises:
            StoreError: as the port says.
        """
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        if self._waiting_weight >= _QUEUE_WEIGHT_MAX:
            raise StoreUnavailableError("too many writes are waiting for the disk")
        call = _Call(apply, argument, content_bytes + _CALL_WEIGHT, self._loop.create_future())
        self._waiting_weight += call.weight
        self._queue.put(call)
        return cast("R", await call.future)

    def upkeep(self, work: Upkeep) -> None:
        """Has `work` done between two transactions; called from any thread. What it raises of SQLite is passed over."""
        self._queue.put(work)

    def refuse(self) -> None:
        """Takes no more calls from now on. Called on the event loop, so that none can slip in behind the last one."""
        self._closed = True

    def close(self) -> None:
        """Finishes what was asked before, then ends the thread and the connection. After `refuse`.

        Waits for them, so it is not for the event loop.
        """
        self._queue.put(_stop)
        self._working.join()
        self._db.close()

    def _release(self, weight: int) -> None:
        self._waiting_weight -= weight

    def _run(self) -> None:
        while True:
            calls, upkeep = self._take()
            if calls:
                self._handback.put(self._commit(calls))
            if upkeep is _stop:
                return
            if upkeep is not None:
                with suppress(*ENGINE_ERRORS):
                    upkeep(self._db)

    def _take(self) -> tuple[list[_Call], Upkeep | None]:
        """Waits for work; returns all calls that wait, and the upkeep that stands after them, if any."""
        calls: list[_Call] = []
        weight = 0
        item = self._queue.get()
        while isinstance(item, _Call):
            calls.append(item)
            weight += item.weight
            if weight > _GROUP_WEIGHT_MAX or self._queue.empty():
                return calls, None
            item = self._queue.get()
        return calls, item

    def _commit(self, calls: Sequence[_Call]) -> list[Result]:
        try:
            return self._transact(calls)
        except _EngineFailedError as failure:
            return [Result(call.future, call.weight, error=type(failure.outcome)(str(failure.outcome))) for call in calls]
        except Exception as error:
            if len(calls) == 1:
                return [Result(calls[0].future, calls[0].weight, error=_as_port_error(error))]
        # One of them cannot be written, and nothing was: each gets a transaction of its own, so that it learns its own truth.
        return [result for call in calls for result in self._commit([call])]

    def _transact(self, calls: Sequence[_Call]) -> list[Result]:
        alike: dict[Apply[Any, Any], list[_Call]] = {}
        for call in calls:
            alike.setdefault(call.apply, []).append(call)
        results: list[Result] = []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for apply, same in alike.items():
                outcomes = apply(self._db, [call.argument for call in same])
                results += map(_result, same, outcomes)
        except ENGINE_ERRORS as error:
            self._roll_back()
            if is_of_the_file(error):
                raise _EngineFailedError(unavailable(error)) from error
            raise
        except Exception:
            self._roll_back()
            raise
        try:
            self._db.execute("COMMIT")
        except ENGINE_ERRORS as error:
            self._roll_back()
            raise _EngineFailedError(failed_commit(error)) from error
        return results

    def _roll_back(self) -> None:
        # Some errors make SQLite roll back by itself.
        with suppress(*ENGINE_ERRORS):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        for note in self.after_rollback:
            note()


class _EngineFailedError(Exception):
    """The trouble is not one call's, see `is_of_the_file`, or is of COMMIT. `outcome` is true of every call of the group."""

    def __init__(self, outcome: StoreError) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome


def _result(call: _Call, outcome: object) -> Result:
    if isinstance(outcome, Exception):
        return Result(call.future, call.weight, error=outcome)
    return Result(call.future, call.weight, value=outcome)


def _as_port_error(error: Exception) -> Exception:
    return refused(error) if isinstance(error, sqlite3.Error) else error


def _stop(_db: sqlite3.Connection) -> None:
    """The last upkeep."""
