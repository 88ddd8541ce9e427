"""Group commit and the bounds of its queue."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from chatgrpc.adapters.sqlite import writer as writer_module
from chatgrpc.adapters.sqlite.connections import open_writer
from chatgrpc.adapters.sqlite.writer import Writer
from chatgrpc.ports.errors import StoreError, StoreUnavailableError


class Counted(Writer):
    """A writer over a table of numbers that knows what it told SQLite."""

    def __init__(self, path: Path) -> None:
        db = open_writer(path)
        super().__init__(db, asyncio.get_running_loop())
        self._statements: list[str] = []
        db.set_trace_callback(self._statements.append)
        self.rollbacks_noted = 0
        self.after_rollback.append(self._note_rollback)

    @property
    def commits(self) -> int:
        return self._statements.count("COMMIT")

    def _note_rollback(self) -> None:
        self.rollbacks_noted += 1

    async def hold(self) -> threading.Event:
        """Keeps the thread busy until the event is set."""
        held, go_on = threading.Event(), threading.Event()

        def wait(_db: sqlite3.Connection) -> None:
            held.set()
            go_on.wait(60)

        self.upkeep(wait)
        await asyncio.to_thread(held.wait, 60)
        return go_on


def put(db: sqlite3.Connection, numbers: Sequence[int]) -> list[int | Exception]:
    db.execute("CREATE TABLE IF NOT EXISTS numbers (number INTEGER PRIMARY KEY)")
    for number in numbers:
        db.execute("INSERT INTO numbers VALUES (?)", (number,))
    return [ValueError(number) if number == 13 else number * 2 for number in numbers]


@pytest.fixture
async def writer(tmp_path: Path) -> AsyncIterator[Counted]:
    opened = Counted(tmp_path / "numbers.db")
    opened.start()
    yield opened
    opened.refuse()
    await asyncio.to_thread(opened.close)


async def test_calls_that_wait_are_committed_together_and_each_gets_its_result(writer: Counted) -> None:
    go_on = await writer.hold()
    calls = [asyncio.ensure_future(writer.call(put, number)) for number in range(100)]
    await asyncio.sleep(0)
    go_on.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert writer.commits == 1
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [n * 2 for n in range(100) if n != 13]
    assert isinstance(outcomes[13], ValueError)


async def test_a_group_that_fails_is_written_call_by_call(writer: Counted) -> None:
    await writer.call(put, 5)
    go_on = await writer.hold()
    calls = [asyncio.ensure_future(writer.call(put, number)) for number in range(10)]
    await asyncio.sleep(0)
    go_on.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [number for number, outcome in enumerate(outcomes) if type(outcome) is StoreError] == [5]
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [n * 2 for n in range(10) if n != 5]
    assert (writer.commits, writer.rollbacks_noted) == (1 + 9, 2)


async def test_a_large_group_is_cut(writer: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_GROUP_WEIGHT_MAX", 10_000)
    go_on = await writer.hold()
    calls = [asyncio.ensure_future(writer.call(put, number, content_bytes=5_000)) for number in range(20, 30)]
    await asyncio.sleep(0)
    go_on.set()
    assert await asyncio.gather(*calls) == [number * 2 for number in range(20, 30)]
    assert writer.commits == 5


async def test_the_queue_is_bounded_and_drains(writer: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_QUEUE_WEIGHT_MAX", 10_000)
    go_on = await writer.hold()
    calls = [asyncio.ensure_future(writer.call(put, number, content_bytes=5_000)) for number in range(20, 30)]
    await asyncio.sleep(0)
    # A caller that gives up does not make room: its call is still in the queue.
    calls[0].cancel()
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailableError, match="too many writes"):
        await writer.call(put, 99)
    go_on.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [asyncio.CancelledError, int] + [StoreUnavailableError] * 8
    assert await writer.call(put, 99) == 198


async def test_upkeep_that_fails_harms_nothing(writer: Counted) -> None:
    def fails(db: sqlite3.Connection) -> None:
        db.execute("SELECT * FROM nowhere")

    writer.upkeep(fails)
    assert await writer.call(put, 1) == 2
