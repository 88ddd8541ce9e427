"""What callers are told when Cassandra is gone or silent, and how it goes on."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from chatgrpc.adapters.cassandra import CassandraStore
from chatgrpc.adapters.cassandra.client import REQUESTS_UNDER_WAY_MAX
from chatgrpc.core.row_store import ReadBucket, ReadHead, StoreWrite, WriteMark
from chatgrpc.ports.accounts import Profile
from chatgrpc.ports.cursors import Cursor
from chatgrpc.ports.errors import OutcomeUnknownError, StoreError, StoreUnavailableError
from chatgrpc.ports.receipts import Mark
from tests.contract.cassandra_stores import open_store
from tests.contract.rows.writes import BYTES_MAX, Rows, log, row, views
from tests.contract.stores.entries import view
from tests.support.services import CassandraCluster, CassandraNode

GIVE_UP_S = 90.0
"""Far above any bound, so that a busy machine fails no test; without a bound a test would hang."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[CassandraCluster]:
    """A Cassandra of one node, which each test leaves running."""
    cluster = CassandraCluster(name="cassandra-failing")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def node(cluster: CassandraCluster) -> CassandraNode:
    return cluster.nodes[0]


@pytest.fixture
async def store(cluster: CassandraCluster) -> AsyncIterator[CassandraStore]:
    opened = await open_store(cluster, "failing")
    yield opened
    await opened.close()


@pytest.fixture
def chat() -> str:
    return f"g.{secrets.token_hex(11)}"


def reads(store: CassandraStore, chat: str) -> list[Awaitable[Any]]:
    return [
        store.rows.read_head(ReadHead(chat)),
        store.rows.read_bucket(ReadBucket(chat, 0, 0)),
        store.committed.read_after(chat, 0, 1, 1, BYTES_MAX),
        store.committed.read_before(chat, 2, 1, 1, BYTES_MAX),
        store.committed.chat_view(chat),
        store.committed.intervals_of_user("alice", "", 1),
        store.committed.intervals("alice", chat),
        store.committed.count_groups(["alice"]),
        store.receipts.of_chat(chat),
        store.receipts.of_user_chats("alice", 0),
        store.cursors.of_device("alice", "phone"),
        store.profiles.get("alice"),
        store.devices.list("alice"),
        store.devices.connect("alice", "phone", "", 1, 1),  # it begins with a read
    ]


def writes(store: CassandraStore, chat: str) -> list[Awaitable[Any]]:
    return [
        store.rows.write_marks([WriteMark(chat, 1)]),
        store.receipts.save([Mark(chat, "alice", 1, 1, 1)]),
        store.cursors.save([Cursor("alice", "phone", chat, 1)]),
        store.profiles.put(Profile("alice", "Alice")),
    ]


async def kinds_of_errors(calls: list[Awaitable[Any]]) -> set[type]:
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), GIVE_UP_S)
    return {type(outcome) for outcome in outcomes}


async def until_it_works(call: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(GIVE_UP_S):
        while True:
            try:
                return await call()
            except StoreError:
                await asyncio.sleep(0.1)


async def write_or_raise(rows: Rows, *writes: StoreWrite) -> None:
    for error in await rows.try_to_write(*writes):
        if error is not None:
            raise error


@pytest.mark.slow
async def test_without_a_node_each_call_says_so_and_with_it_all_go_on(
    store: CassandraStore, cluster: CassandraCluster, node: CassandraNode, chat: str
) -> None:
    rows = Rows(store.rows, store.committed)
    await rows.write(*log(chat, [1, 2]), views(chat, 1, view(b"one", alice=(1, 0))))
    node.kill()
    try:
        # The first to ask may have been heard; once the connection is known to be lost nobody is.
        assert await kinds_of_errors(writes(store, chat)) <= {OutcomeUnknownError, StoreUnavailableError}
        errors = await rows.try_to_write(
            *log(chat, range(3, 200)), views(chat, 3, view(b"three")), views(chat, 4, erases_seq=1)
        )
        assert {type(error) for error in errors} == {StoreUnavailableError}
        assert await kinds_of_errors(reads(store, chat)) == {StoreUnavailableError}
        assert await kinds_of_errors(writes(store, chat)) == {StoreUnavailableError}
        with pytest.raises(StoreUnavailableError):
            await open_store(cluster, "failing")
    finally:
        node.start()
    await until_it_works(lambda: store.profiles.put(Profile("alice", "Alice")))
    await rows.write(*log(chat, range(3, 200)), views(chat, 4, erases_seq=1))
    assert len(await store.committed.read_after(chat, 0, 199, 1_000, BYTES_MAX)) == 199
    assert await store.committed.chat_view(chat) == b"one"


async def test_a_node_that_is_silent_is_given_up(store: CassandraStore, node: CassandraNode, chat: str) -> None:
    rows = Rows(store.rows, store.committed)
    await rows.write(row(chat, 1))
    node.process.pause()
    try:
        wrote = asyncio.create_task(rows.try_to_write(*log(chat, range(2, 100)), row(f"{chat}x", 1)))
        of_reads, of_writes = await asyncio.gather(kinds_of_errors(reads(store, chat)), kinds_of_errors(writes(store, chat)))
        assert (of_reads, of_writes) == ({StoreUnavailableError}, {OutcomeUnknownError})
        assert {type(error) for error in await wrote} == {OutcomeUnknownError}
    finally:
        node.process.resume()
    await until_it_works(lambda: write_or_raise(rows, *log(chat, range(2, 100))))
    assert len(await store.committed.read_after(chat, 0, 99, 1_000, BYTES_MAX)) == 99


async def test_a_caller_that_is_cancelled_takes_nothing_from_the_others(store: CassandraStore, chat: str) -> None:
    await Rows(store.rows, store.committed).write(row(chat, 1))
    for turn in range(5):
        # Some wait for a slot, and none so long on a slow machine that it is told that the store is busy.
        reads = (store.committed.read_after(chat, 0, 1, 1, BYTES_MAX) for _ in range(4 * REQUESTS_UNDER_WAY_MAX))
        asked = [asyncio.create_task(read) for read in reads]
        await asyncio.sleep(0.002 * turn)
        for task in asked[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(outcome, list) for outcome in outcomes[1::2])
    assert store._client._slots._value == REQUESTS_UNDER_WAY_MAX
