"""Writes gathered into fewer requests.

A request costs the client several times what a row in it does (`benchmarks/cassandra_append.py`), so what is asked for in one
turn of the event loop goes together: by partition, in which a batch is a single mutation, and then by replicas, so that any of
them can coordinate and holds all of it. There is no order among them, and each batch succeeds or fails for itself.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chatgrpc.adapters.cassandra.client import CassandraClient, Statement
from chatgrpc.ports.errors import StoreError, StoreUnavailableError

BATCHES_UNDER_WAY_MAX: Final = 128
"""Further writes wait, and are gathered meanwhile."""
BESIDE_UNDER_WAY_MAX: Final = 16
"""The same of what nobody waits for: marks, receipts, cursors."""
STATEMENTS_PER_BATCH_MAX: Final = 20
BYTES_PER_BATCH_MAX: Final = 64 * 1024
"""Size of a batch to one partition; a larger statement goes alone."""
PARTITIONS_PER_BATCH_MAX: Final = 10
BYTES_PER_SPREAD_BATCH_MAX: Final = 5_000
"""Size of a batch to several partitions. Beyond these two sizes Cassandra, as it is shipped, logs a warning for every batch."""
STATEMENT_BYTES: Final = 100
"""What a statement of ours takes beside its blobs."""

Landed = Callable[[list[Any], StoreError | None], None]
"""Called with the tags of statements and what became of them."""


@dataclass(slots=True)
class _Waiting:
    statement: Statement
    size_bytes: int
    tag: Any
    landed: Landed


@dataclass(slots=True)
class _Spread:
    """A batch to several partitions, being filled."""

    items: list[_Waiting] = field(default_factory=list)
    partitions: int = 0
    size_bytes: int = 0

    def has_room(self, items: Sequence[_Waiting], size_bytes: int) -> bool:
        return (
            self.partitions < PARTITIONS_PER_BATCH_MAX
            and len(self.items) + len(items) <= STATEMENTS_PER_BATCH_MAX
            and self.size_bytes + size_bytes <= BYTES_PER_SPREAD_BATCH_MAX
        )

    def add(self, items: Sequence[_Waiting], size_bytes: int) -> None:
        self.items += items
        self.partitions += 1
        self.size_bytes += size_bytes


class Batches:
    """Gathers the writes of one node, those that a message waits for or those that go beside. Used from the event loop.

    A burst of receipts must not make a message wait, so each kind has places of its own.
    """

    def __init__(
        self, client: CassandraClient, loop: asyncio.AbstractEventLoop, under_way_max: int = BATCHES_UNDER_WAY_MAX
    ) -> None:
        self._under_way_max = under_way_max
        self._client = client
        self._loop = loop
        self._waiting: dict[bytes, list[_Waiting]] = {}
        """By partition key. Rows of several tables under one key are one mutation to Cassandra, too."""
        self._under_way = 0
        self._flush_comes = False
        self._closed = False
        self._idle: asyncio.Future[None] | None = None

    def put(self, statement: Statement, blob_bytes: int, tag: Any, landed: Landed) -> None:
        """Begins to write; returns at once. `landed` is called on the event loop, later, with `tag` among others of its own.

        Args:
            statement: a bound statement that may run any number of times, to one partition.
            blob_bytes: size of the large values in it.
            tag: names the statement to `landed`.
            landed: statements that share it are reported together when they were sent together.
        """
        if self._closed:
            self._loop.call_soon(landed, [tag], StoreUnavailableError("the store is closed"))
            return
        item = _Waiting(statement, blob_bytes + STATEMENT_BYTES, tag, landed)
        self._waiting.setdefault(statement.routing_key, []).append(item)
        self._flush_soon()

    async def write(self, statements: Sequence[Statement], blob_bytes: int = 0) -> None:
        """Writes all of them.

        Raises:
            StoreError: some or all were not written, or nobody knows.
        """
        if not statements:
            return
        done: asyncio.Future[StoreError | None] = self._loop.create_future()
        left = len(statements)
        first_error: StoreError | None = None

        def landed(tags: list[Any], error: StoreError | None) -> None:
            nonlocal left, first_error
            left -= len(tags)
            first_error = first_error or error
            if not left and not done.done():  # else the caller was cancelled
                done.set_result(first_error)

        for statement in statements:
            self.put(statement, blob_bytes, None, landed)
        error = await done
        if error is not None:
            raise error

    async def close(self) -> None:
        """Refuses what comes, and waits for what was asked before."""
        self._closed = True
        if self._waiting or self._under_way:
            self._idle = self._loop.create_future()
            await self._idle

    def _flush_soon(self) -> None:
        if not self._flush_comes:
            self._flush_comes = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_comes = False
        spread: dict[frozenset[Any], _Spread] = {}
        while self._waiting and self._under_way + len(spread) < self._under_way_max:
            routing_key, items = next(iter(self._waiting.items()))
            del self._waiting[routing_key]
            size_bytes = sum(item.size_bytes for item in items)
            if size_bytes > BYTES_PER_SPREAD_BATCH_MAX or len(items) > STATEMENTS_PER_BATCH_MAX:
                self._send_apart(items)
                continue
            replicas = self._client.replicas(routing_key)
            batch = spread.setdefault(replicas, _Spread())
            if not batch.has_room(items, size_bytes):
                self._send(batch.items)
                batch = spread[replicas] = _Spread()
            batch.add(items, size_bytes)
        for batch in spread.values():
            self._send(batch.items)

    def _send_apart(self, items: Sequence[_Waiting]) -> None:
        """Sends what is for one partition."""
        batch: list[_Waiting] = []
        size_bytes = 0
        for item in items:
            if batch and (len(batch) == STATEMENTS_PER_BATCH_MAX or size_bytes + item.size_bytes > BYTES_PER_BATCH_MAX):
                self._send(batch)
                batch, size_bytes = [], 0
            batch.append(item)
            size_bytes += item.size_bytes
        self._send(batch)

    def _send(self, items: list[_Waiting]) -> None:
        self._under_way += 1
        statements = [item.statement for item in items]
        statement = statements[0] if len(statements) == 1 else self._client.batch(statements)
        self._client.begin_write(statement, lambda error: self._landed(items, error))

    def _landed(self, items: Sequence[_Waiting], error: StoreError | None) -> None:
        self._under_way -= 1
        if self._waiting:
            self._flush_soon()
        elif self._idle is not None and not self._under_way and not self._idle.done():
            self._idle.set_result(None)
        tags: dict[Landed, list[Any]] = {}
        for item in items:
            tags.setdefault(item.landed, []).append(item.tag)
        for landed, landed_tags in tags.items():
            landed(landed_tags, error)
