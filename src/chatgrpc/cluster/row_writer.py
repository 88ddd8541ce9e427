"""Writes what shards want stored, each until it succeeds, cannot, or its shard is not in our hands any more."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from chatgrpc.core.backoff import Backoff
from chatgrpc.core.owner_desk import Tenure
from chatgrpc.core.row_store import StoreWrite
from chatgrpc.ports.errors import CannotBeStoredError, StoreError
from chatgrpc.ports.row_store import RowStore
from chatgrpc.trouble import Trouble

RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 1.0
WRITES_RETRIED_MAX: Final = 256
"""Writes of all shards tried again at the same time, so that a store that has just come back is not flooded."""
_RETRY_GRID_S = 0.05
"""Shards begin their rounds at multiples of this, so that the store can gather writes of several into one request."""


@dataclass(slots=True)
class _Backlog:
    """What of one shard has failed, and has not succeeded since."""

    backoff: Backoff = field(default_factory=lambda: Backoff(RETRY_FIRST_S, RETRY_MAX_S))
    unfinished: int = 0
    """Writes, wherever they are: here, due, or under way."""
    for_next_round: list[StoreWrite] = field(default_factory=list)


class RowWriter:
    """The writes of one node's shards.

    Each is tried at once. One that fails joins the backlog of its shard, which is tried again in rounds, ever further apart,
    until all of it has succeeded. New writes do not wait for failed ones, which may be for other replicas.
    """

    def __init__(
        self,
        rows: RowStore,
        holds: Callable[[Tenure], bool],
        stored: Callable[[Tenure, Sequence[StoreWrite]], None],
        cannot_be_stored: Callable[[Tenure, Sequence[StoreWrite], CannotBeStoredError], None],
        trouble: Trouble,
    ) -> None:
        """
        Args:
            rows: the store.
            holds: whether a shard is still in our hands, under its epoch.
            stored: called with writes that succeeded, on the event loop.
            cannot_be_stored: called with those that never will.
            trouble: told what fails and what works.
        """
        self.under_way = 0
        """Writes that have not succeeded yet, and are or will be tried."""
        self.retried = 0
        """Those of them that have failed at least once."""
        self._rows = rows
        self._holds = holds
        self._stored = stored
        self._cannot_be_stored = cannot_be_stored
        self._trouble = trouble
        self._backlogs: dict[Tenure, _Backlog] = {}
        self._due: deque[tuple[Tenure, list[StoreWrite]]] = deque()
        self._room = WRITES_RETRIED_MAX

    def write(self, tenure: Tenure, writes: Sequence[StoreWrite]) -> None:
        """Begins to write; returns at once."""
        self.under_way += len(writes)
        self._rows.write(writes, partial(self._tried, tenure))

    def _tried(self, tenure: Tenure, writes: Sequence[StoreWrite], error: StoreError | None) -> None:
        if error is None:
            self.under_way -= len(writes)
            self._succeeded(tenure, writes)
            return
        if isinstance(error, CannotBeStoredError):
            self.under_way -= len(writes)
            self._cannot_be_stored(tenure, writes, error)
            return
        if self._holds(tenure):
            self.retried += len(writes)
            self._backlogs.setdefault(tenure, _Backlog()).unfinished += len(writes)
            self._put_by(tenure, writes)
        else:
            self.under_way -= len(writes)
        self._trouble.failed(error)

    def _put_by(self, tenure: Tenure, writes: Sequence[StoreWrite]) -> None:
        backlog = self._backlogs[tenure]
        if not backlog.for_next_round:
            loop = asyncio.get_running_loop()
            soonest_s = loop.time() + backlog.backoff.next_s()
            loop.call_at(math.ceil(soonest_s / _RETRY_GRID_S) * _RETRY_GRID_S, self._round_is_due, tenure)
        backlog.for_next_round += writes

    def _round_is_due(self, tenure: Tenure) -> None:
        backlog = self._backlogs[tenure]
        writes, backlog.for_next_round = backlog.for_next_round, []
        self._due.append((tenure, writes))
        self._begin_due()

    def _begin_due(self) -> None:
        while self._due and self._room:
            tenure, writes = self._due.popleft()
            if not self._holds(tenure):
                self._leave_backlog(tenure, writes)
                continue
            now, later = writes[: self._room], writes[self._room :]
            if later:
                self._due.append((tenure, later))
            self._room -= len(now)
            self._rows.write(now, partial(self._tried_again, tenure))

    def _tried_again(self, tenure: Tenure, writes: Sequence[StoreWrite], error: StoreError | None) -> None:
        self._room += len(writes)
        if error is None:
            self._leave_backlog(tenure, writes)
            self._succeeded(tenure, writes)
        elif isinstance(error, CannotBeStoredError):
            self._leave_backlog(tenure, writes)
            self._cannot_be_stored(tenure, writes, error)
        else:
            self._trouble.failed(error)
            self._put_by(tenure, writes)
        self._begin_due()

    def _leave_backlog(self, tenure: Tenure, writes: Sequence[StoreWrite]) -> None:
        self.under_way -= len(writes)
        self.retried -= len(writes)
        backlog = self._backlogs[tenure]
        backlog.unfinished -= len(writes)
        if not backlog.unfinished:
            del self._backlogs[tenure]

    def _succeeded(self, tenure: Tenure, writes: Sequence[StoreWrite]) -> None:
        self._trouble.worked()
        self._stored(tenure, writes)
