"""Connections to Cassandra: the driver, whose work is done in threads of its own, behind asyncio.

What holds for every request: QUORUM, a bound on its time, another replica tried early, errors of the ports.
"""

import asyncio
import logging
import re
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cassandra import ConsistencyLevel, UnresolvableContactPoints
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, ResultSet, Session
from cassandra.policies import (
    ConstantReconnectionPolicy,
    ConstantSpeculativeExecutionPolicy,
    DCAwareRoundRobinPolicy,
    RetryPolicy,
    TokenAwarePolicy,
)
from cassandra.query import BatchStatement, BatchType, tuple_factory

from chatgrpc.adapters.cassandra.errors import described, failed_read, failed_write
from chatgrpc.adapters.cassandra.handback import Handback
from chatgrpc.ports.errors import StoreError, StoreUnavailableError

REQUEST_TIMEOUT_S: Final = 5.0
"""After which a request is given up; the server's own limits are shorter."""
CONNECT_TIMEOUT_S: Final = 5.0
DDL_TIMEOUT_S: Final = 30.0
PATIENCE_S: Final = 30.0
"""Nodes of Cassandra learn late of a table that one of them just made: whoever asks another is told that there is none. Later
still where they have just started, and on a busy machine."""
_POLL_INTERVAL_S: Final = 0.25
REQUESTS_UNDER_WAY_MAX: Final = 64
"""Besides batches. Enough for 20,000 a second at 3 ms each. When thousands of devices open at once, the rest wait here, in
order: a store that everything is asked of at once is late with every answer, is asked at another replica too, and then answers
nothing in time."""
ANOTHER_REPLICA_AFTER_S: Final = 0.25
"""When a read is sent to another node as well; the first answer counts."""
ANOTHER_COORDINATOR_AFTER_S: Final = 1.0
"""The same for writes, which are harmless when repeated; a busy cluster must not be sent everything twice."""
PAGE_ROWS: Final = 1_000

_PROTOCOL_VERSION = 4
"""Spoken by Cassandra 3 to 5. Version 5 adds checksums in Python: 10 µs a request, measured."""
_KEYSPACE = re.compile(r"[a-z][a-z0-9_]{0,47}")
_WRITES = "writes"

Statement = Any
"""A bound statement of the driver, which has no types."""
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class CassandraSettings:
    """Where Cassandra is, and what in it is ours."""

    hosts: Sequence[tuple[str, int]]
    """Some of the nodes; the others are learned from them. All in one data centre, the one that serves this node."""
    keyspace: str = "chatgrpc"
    """Made if there is none: a small letter, then small letters, digits and underscores."""
    replication_factor: int = 3
    """Of a keyspace that is made, in each data centre."""
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: Path | None = None
    """PEM; given, connections use TLS, and a node's certificate must be signed by it and name the address that is dialled."""

    def __post_init__(self) -> None:
        if _KEYSPACE.fullmatch(self.keyspace) is None:
            raise ValueError(f"{self.keyspace!r} cannot be a keyspace: a small letter, then small letters, digits, underscores")


class CassandraClient:
    """One node's connections; the adapters of all ports share them. Used from the event loop that it was made for."""

    def __init__(self, settings: CassandraSettings, loop: asyncio.AbstractEventLoop, given_up: threading.Event) -> None:
        """Connects, which blocks; call it in a thread. `given_up` is set once nobody waits for that thread any more.

        Raises:
            StoreUnavailableError: no node answers, or none lets us in.
        """
        self.keyspace = settings.keyspace
        self._loop = loop
        self._given_up = given_up
        self._handback = Handback(loop)
        self._slots = asyncio.Semaphore(REQUESTS_UNDER_WAY_MAX)
        self._under_way = 0
        self._closed = False
        self._idle: asyncio.Future[None] | None = None
        self._cluster: Cluster = _cluster(settings)
        try:
            self._session: Session = self._cluster.connect()
        except Exception as error:
            self._cluster.shutdown()
            raise StoreUnavailableError(described(error)) from error
        # Where order counts the statements say it; else the server's clock, which conditional writes go by too.
        self._session.use_client_timestamp = False
        self._session.default_fetch_size = PAGE_ROWS

    # In a thread, before anything else runs.

    def prepare(self, text: str, *, idempotent: bool = True) -> Any:
        """Prepares a statement, which blocks.

        Args:
            text: CQL; `{keyspace}` stands for the keyspace.
            idempotent: whether it may run twice, so that another node may be asked to run it too.

        Raises:
            StoreUnavailableError: it cannot be prepared.
        """
        prepared = self._patiently(lambda: self._session.prepare(text.replace("{keyspace}", self.keyspace)))
        prepared.is_idempotent = idempotent
        return prepared

    def execute(self, text: str, values: Sequence[Any] = (), *, once: bool = False) -> Rows:
        """Runs a statement that may run twice, which blocks; changes of the schema return when all nodes that answer have them.

        Args:
            text: CQL; `{keyspace}` stands for the keyspace.
            values: what stands for its `%s`.
            once: whether it is not tried again for a while if it fails.

        Raises:
            StoreUnavailableError: it failed all the time, or nobody knows.
        """
        statement = text.replace("{keyspace}", self.keyspace)
        return list(self._patiently(lambda: self._session.execute(statement, values, timeout=DDL_TIMEOUT_S), once=once))

    def wait(self) -> None:
        """Waits a moment, which blocks.

        Raises:
            StoreUnavailableError: nobody waits for the store any more.
        """
        if self._given_up.wait(_POLL_INTERVAL_S):
            raise StoreUnavailableError("nobody waits for the store any more")

    def _patiently(self, call: Callable[[], Any], *, once: bool = False) -> Any:
        give_up_at_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call()
            except Exception as error:
                if once or time.monotonic() > give_up_at_s:
                    raise StoreUnavailableError(described(error)) from error
            self.wait()

    def replicas(self, routing_key: bytes) -> frozenset[Any]:
        """The nodes that hold a partition, as far as is known."""
        return frozenset(self._cluster.metadata.get_replicas(self.keyspace, routing_key))

    # On the event loop.

    async def read(self, statement: Statement) -> Rows:
        """Reads all rows.

        Raises:
            StoreUnavailableError: it cannot be read now.
        """
        rows: Rows = []
        async for page in self.pages(statement):
            rows += page
        return rows

    async def pages(self, statement: Statement) -> AsyncIterator[Rows]:
        """Reads page after page, of `statement.fetch_size` rows, the next one only when it is wanted.

        Raises:
            StoreUnavailableError: it cannot be read now.
        """
        place = None
        while True:
            # Not by the driver's own way to the next page, which has no bound on its time.
            response, rows, error = await self._answer(statement, EXEC_PROFILE_DEFAULT, place)
            if error is not None:
                raise failed_read(error) from error
            place = ResultSet(response, rows).paging_state
            yield rows
            if place is None:
                return

    async def write(self, statement: Statement) -> None:
        """Writes.

        Raises:
            StoreUnavailableError: nothing was written.
            OutcomeUnknownError: nobody knows.
        """
        await self.compare_and_set(statement)

    async def compare_and_set(self, statement: Statement) -> Rows:
        """Runs a conditional write; the first column of the one row says whether it was done.

        Raises:
            StoreUnavailableError: nothing was written.
            OutcomeUnknownError: nobody knows.
        """
        response, rows, error = await self._answer(statement, _WRITES, None)
        if error is not None:
            raise _write_error(response, statement, error) from error
        return list(rows or ())

    def begin_write(self, statement: Statement, on_done: Callable[[StoreError | None], None]) -> None:
        """Begins to write; for callers who bound how many they have under way. `on_done` runs on the event loop, later."""
        if self._closed:
            self._handback.put(on_done, StoreUnavailableError("the store is closed"))
            return

        def done(response: Any, _rows: Rows | None, error: BaseException | None) -> None:
            on_done(None if error is None else _write_error(response, statement, error))

        self._send(statement, _WRITES, None, done)

    def batch(self, statements: Sequence[Statement]) -> Statement:
        """An unlogged batch. To one partition it is atomic, and others see all of it or nothing."""
        batch = BatchStatement(BatchType.UNLOGGED)
        batch.is_idempotent = all(statement.is_idempotent for statement in statements)
        batch.keyspace = self.keyspace
        batch.routing_key = statements[0].routing_key
        for statement in statements:
            batch.add(statement)
        return batch

    async def close(self) -> None:
        """Waits for what is under way, each of which ends by itself, and lets the connections go."""
        self._closed = True
        if self._under_way:
            self._idle = self._loop.create_future()
            await self._idle
        await asyncio.to_thread(self._cluster.shutdown)

    def abandon(self) -> None:
        """Lets the connections go, which blocks; for an opening that failed."""
        self._cluster.shutdown()

    async def _answer(
        self, statement: Statement, profile: object, place: bytes | None
    ) -> tuple[Any, Any, BaseException | None]:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S if self._slots.locked() else None):
                await self._slots.acquire()
        except TimeoutError as error:
            raise StoreUnavailableError("Cassandra: too many requests wait for an answer") from error
        answer: asyncio.Future[tuple[Any, Any, BaseException | None]] = self._loop.create_future()

        def done(response: Any, rows: Any, error: BaseException | None) -> None:
            self._slots.release()
            if not answer.done():  # else its caller was cancelled
                answer.set_result((response, rows, error))

        self._send(statement, profile, place, done)
        return await answer

    def _send(self, statement: Statement, profile: object, place: bytes | None, done: "_Done") -> None:
        self._under_way += 1
        request = _Request(done)
        try:
            request.response = self._session.execute_async(statement, execution_profile=profile, paging_state=place)
        except Exception as error:
            self._handback.put(self._answered, request, None, error)
            return
        request.response.add_callbacks(
            lambda rows: self._handback.put(self._answered, request, rows, None),
            lambda error: self._handback.put(self._answered, request, None, error),
        )

    def _answered(self, request: "_Request", rows: Any, error: BaseException | None) -> None:
        if request.answered:
            return
        request.answered = True
        self._under_way -= 1
        if self._idle is not None and not self._under_way and not self._idle.done():
            self._idle.set_result(None)
        request.done(request.response, rows, error)


_Done = Callable[[Any, Any, BaseException | None], None]
"""Called with the driver's response, the rows and the error."""


@dataclass(slots=True)
class _Request:
    """One request, which the driver may have sent to two nodes: then it calls back for the second answer too."""

    done: _Done
    response: Any = None
    answered: bool = False


class _CountingRetries(RetryPolicy):  # type: ignore[misc]
    """The driver's policy; also counts on the statement how often a node refused it before anything was done."""

    def on_unavailable(self, query: Any, *arguments: Any, **named: Any) -> Any:
        query.refusals = getattr(query, "refusals", 0) + 1
        return super().on_unavailable(query, *arguments, **named)


def _write_error(response: Any, statement: Statement, error: BaseException) -> StoreError:
    tries = len(response.attempted_hosts) if response is not None else 0
    return failed_write(error, nothing_sent=getattr(statement, "refusals", 0) >= tries)


def _cluster(settings: CassandraSettings) -> Cluster:
    credentials = PlainTextAuthProvider(settings.username, settings.password) if settings.username else None
    tls = _tls(settings.ca_file) if settings.ca_file is not None else None
    _quieten()
    try:
        return Cluster(
            contact_points=list(settings.hosts),
            port=settings.hosts[0][1],
            auth_provider=credentials,
            ssl_context=tls,
            protocol_version=_PROTOCOL_VERSION,
            execution_profiles={
                EXEC_PROFILE_DEFAULT: _profile(ANOTHER_REPLICA_AFTER_S),
                _WRITES: _profile(ANOTHER_COORDINATOR_AFTER_S),
            },
            connect_timeout=CONNECT_TIMEOUT_S,
            control_connection_timeout=CONNECT_TIMEOUT_S,
            # A node that is back serves again within a second; one that is silent is noticed within a few.
            reconnection_policy=ConstantReconnectionPolicy(1.0, max_attempts=None),
            idle_heartbeat_interval=2,
            idle_heartbeat_timeout=3,
        )
    except UnresolvableContactPoints as error:
        names = ", ".join(host for host, _ in settings.hosts)
        raise StoreUnavailableError(f"Cassandra: none of these names has an address: {names}") from error


def _quieten() -> None:
    # At INFO and below the driver speaks of statements and their results. Its pools warn at every try to reconnect; that a node
    # is down is said elsewhere, once.
    for name, level in (("cassandra", logging.WARNING), ("cassandra.pool", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.getEffectiveLevel(), level))


def _tls(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:
        raise StoreUnavailableError(f"{ca_file}: {error}") from error


def _profile(another_after_s: float) -> ExecutionProfile:
    return ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy()),
        retry_policy=_CountingRetries(),
        consistency_level=ConsistencyLevel.QUORUM,
        serial_consistency_level=ConsistencyLevel.SERIAL,
        request_timeout=REQUEST_TIMEOUT_S,
        row_factory=tuple_factory,
        speculative_execution_policy=ConstantSpeculativeExecutionPolicy(another_after_s, 1),
    )
