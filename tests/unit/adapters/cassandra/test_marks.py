"""Committed marks are bound a few at a time: a busy node has one of each of thousands of chats to store every second."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from chatgrpc.adapters.cassandra.batches import Batches
from chatgrpc.adapters.cassandra.client import CassandraClient
from chatgrpc.adapters.cassandra.rows import CassandraRowStore
from chatgrpc.core.row_store import WriteMark
from chatgrpc.ports.errors import StoreUnavailableError

MARKS = [WriteMark(f"g.{number}", number) for number in range(1, 2_001)]


class Prepared:
    """Binds values to nothing."""

    fetch_size = 0

    def bind(self, values: Sequence[Any]) -> Sequence[Any]:
        return values


class Client:
    """Prepares statements without a database."""

    def prepare(self, query: str) -> Prepared:
        return Prepared()


class Beside:
    """Notes what is written; refuses it once it has taken so much."""

    def __init__(self, takes: int) -> None:
        self.written: list[Sequence[Any]] = []
        self._takes = takes

    async def write(self, statements: Sequence[Any]) -> None:
        await asyncio.sleep(0)
        if len(self.written) == self._takes:
            raise StoreUnavailableError("away")
        self.written.append(statements)


def row_store(beside: Beside) -> CassandraRowStore:
    client, batches = cast("CassandraClient", Client()), cast("Batches", beside)
    return CassandraRowStore(client, batches, batches, asyncio.get_running_loop())


async def test_all_marks_are_written_and_no_stretch_is_of_many() -> None:
    beside = Beside(takes=len(MARKS))
    await row_store(beside).write_marks(MARKS)
    assert [chat_id for some in beside.written for _, _, chat_id in some] == [mark.chat_id for mark in MARKS]
    assert max(len(some) for some in beside.written) <= 256


async def test_a_part_that_was_not_written_is_told() -> None:
    with pytest.raises(StoreUnavailableError):
        await row_store(Beside(takes=3)).write_marks(MARKS)
