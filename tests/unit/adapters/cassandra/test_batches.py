"""How writes are gathered: what Cassandra is asked, and how often."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from cassandra.query import BatchStatement

from chatgrpc.adapters.cassandra import CassandraStore
from chatgrpc.adapters.cassandra.batches import (
    BATCHES_UNDER_WAY_MAX,
    BESIDE_UNDER_WAY_MAX,
    BYTES_PER_BATCH_MAX,
    PARTITIONS_PER_BATCH_MAX,
    STATEMENTS_PER_BATCH_MAX,
)
from chatgrpc.adapters.cassandra.client import REQUESTS_UNDER_WAY_MAX
from chatgrpc.core.row_store import ReadBucket, WriteMark
from chatgrpc.ports.cursors import Cursor
from chatgrpc.ports.errors import OutcomeUnknownError, StoreError
from chatgrpc.ports.receipts import Mark
from tests.contract.cassandra_stores import open_store
from tests.contract.rows.writes import BYTES_MAX, Rows, log, row, views
from tests.contract.stores.entries import view
from tests.support.services import CassandraCluster


def answer_twice(store: CassandraStore) -> None:
    """Lets each request be answered by two nodes, as it is when one was slow and another was asked as well."""
    session = store._client._session
    execute_async = session.execute_async

    def execute(statement: Any, **named: Any) -> Any:
        response = execute_async(statement, **named)
        add_callbacks = response.add_callbacks

        def add(callback: Callable[[Any], None], errback: Callable[[Any], None]) -> None:
            for _ in range(2):
                add_callbacks(callback, errback)

        response.add_callbacks = add
        return response

    session.execute_async = execute


class Requests:
    """Listens to what a store sends."""

    def __init__(self, store: CassandraStore) -> None:
        self.sizes: list[int] = []
        """How many statements each request has."""
        self.partitions: list[int] = []
        self.under_way_max = 0
        self._under_way = 0
        self._begin_write = store._client.begin_write
        store._client.begin_write = self._listen  # type: ignore[method-assign]

    def _listen(self, statement: Any, on_done: Callable[[StoreError | None], None]) -> None:
        parts = statement._statements_and_parameters if isinstance(statement, BatchStatement) else None
        self.sizes.append(len(parts) if parts is not None else 1)
        self.partitions.append(len({tuple(values[:2]) for _, _, values in parts}) if parts is not None else 1)
        self._under_way += 1
        self.under_way_max = max(self.under_way_max, self._under_way)

        def done(error: StoreError | None) -> None:
            self._under_way -= 1
            on_done(error)

        self._begin_write(statement, done)


@pytest.fixture
async def store(shared_cassandra: CassandraCluster) -> AsyncIterator[CassandraStore]:
    opened = await open_store(shared_cassandra, "unit")
    yield opened
    await opened.close()


@pytest.fixture
def chat() -> str:
    return f"g.{secrets.token_hex(11)}"


async def test_rows_of_many_chats_share_requests(store: CassandraStore, chat: str) -> None:
    requests = Requests(store)
    await Rows(store.rows, store.committed).write(*(row(f"{chat}{n}", 1) for n in range(100)))
    assert len(requests.sizes) == 100 // PARTITIONS_PER_BATCH_MAX
    assert set(requests.partitions) == {PARTITIONS_PER_BATCH_MAX}


async def test_rows_of_one_chat_share_requests(store: CassandraStore, chat: str) -> None:
    requests = Requests(store)
    await Rows(store.rows, store.committed).write(*log(chat, range(1, 101)))
    assert requests.sizes == [STATEMENTS_PER_BATCH_MAX] * 5
    assert set(requests.partitions) == {1}


async def test_a_lone_row_goes_alone(store: CassandraStore, chat: str) -> None:
    requests = Requests(store)
    await Rows(store.rows, store.committed).write(row(chat, 1))
    assert requests.sizes == [1]


async def test_large_rows_of_one_chat_are_spread_over_requests(store: CassandraStore, chat: str) -> None:
    requests = Requests(store)
    sizes = [BYTES_PER_BATCH_MAX // 3] * 4 + [BYTES_PER_BATCH_MAX + 30_000] * 2
    await Rows(store.rows, store.committed).write(*(row(chat, n, text="x" * size) for n, size in enumerate(sizes)))
    assert requests.sizes == [2, 2, 1, 1]


async def test_only_so_many_are_under_way(store: CassandraStore, chat: str) -> None:
    requests = Requests(store)
    await Rows(store.rows, store.committed).write(*(row(f"{chat}{n}", 1, text="x" * 6_000) for n in range(1_000)))
    assert requests.under_way_max == BATCHES_UNDER_WAY_MAX


async def test_a_row_does_not_wait_behind_what_goes_beside(store: CassandraStore, chat: str) -> None:
    """Ten thousand devices acknowledge, a thousand receipts and marks rise, and Cassandra answers none of it yet."""
    begin_write = store._client.begin_write
    held: list[tuple[Any, Callable[[StoreError | None], None]]] = []
    store._client.begin_write = lambda statement, on_done: held.append((statement, on_done))  # type: ignore[method-assign]
    beside = asyncio.gather(
        store.cursors.save([Cursor(f"user{n}", "phone", chat, 1) for n in range(10_000)]),
        store.receipts.save([Mark(chat, f"user{n}", 1, 1, 1) for n in range(1_000)]),
        store.rows.write_marks([WriteMark(f"{chat}{n}", 1) for n in range(1_000)]),
    )
    while len(held) < BESIDE_UNDER_WAY_MAX:
        await asyncio.sleep(0)
    store._client.begin_write = begin_write  # type: ignore[method-assign]
    await Rows(store.rows, store.committed).write(row(chat, 1), views(chat, 1, view(b"one", alice=(1, 0))))
    assert not beside.done()
    assert len(held) == BESIDE_UNDER_WAY_MAX
    for statement, on_done in held:
        begin_write(statement, on_done)
    await beside


async def test_none_is_of_a_size_that_cassandra_warns_of(
    store: CassandraStore, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    writes = [row(f"{chat}{n % 400}", n, text="x" * (n % 13) ** 3) for n in range(3_000)]
    await Rows(store.rows, store.committed).write(*writes)
    assert [record.message for record in caplog.records if record.name.startswith("cassandra")] == []


async def test_one_that_cassandra_refuses_fails_alone_and_is_not_told(store: CassandraStore, chat: str) -> None:
    secret = "swordfish " * 500_000
    rows = Rows(store.rows, store.committed)
    errors = await rows.try_to_write(row(chat, 1), row(f"{chat}x", 1, text=secret), *log(chat, range(2, 60)))
    failed = [error for error in errors if error is not None]
    assert [type(error) for error in failed] == [OutcomeUnknownError]
    assert "swordfish" not in str(failed[0])
    assert len((await store.rows.read_bucket(ReadBucket(chat, 0, 0))).rows) == 59


async def test_a_second_answer_to_a_request_changes_nothing(shared_cassandra: CassandraCluster, chat: str) -> None:
    store = await open_store(shared_cassandra, "unit")
    answer_twice(store)
    rows = Rows(store.rows, store.committed)
    await rows.write(*log(chat, range(1, 50)), *(row(f"{chat}{n}", 1) for n in range(50)), views(chat, 1, view(b"one")))
    assert len(await store.committed.read_after(chat, 0, 49, 100, BYTES_MAX)) == 49
    assert store._batches._under_way == 0
    assert store._client._slots._value == REQUESTS_UNDER_WAY_MAX
    await asyncio.wait_for(store.close(), 30)
