"""What callers are told when SQLite cannot do it, and what is stored then."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from chatgrpc.adapters.sqlite import SqliteStore
from chatgrpc.adapters.sqlite.errors import failed_commit, unavailable
from chatgrpc.ports.cursors import Cursor
from chatgrpc.ports.errors import OutcomeUnknownError, StaleOwnerError, StoreError, StoreUnavailableError
from tests.contract.stores.entries import BYTES_MAX, entry, event, run
from tests.unit.adapters.sqlite.write_past_a_limit import CHAT, TEXT

PROJECT = Path(__file__).parents[4]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "chatgrpc.db")
    yield opened
    await opened.close()


async def set_pages_max(store: SqliteStore, pages: int) -> None:
    """SQLite's own limit of the file, which answers like a full disk."""

    def pragma(db: sqlite3.Connection, _calls: Sequence[None]) -> list[None]:
        db.execute(f"PRAGMA max_page_count = {pages}")
        return [None]

    await store._writer.call(pragma, None)


class TestFullDisk:
    async def test_says_unavailable_stores_nothing_of_it_and_recovers(self, store: SqliteStore) -> None:
        await set_pages_max(store, 100)
        await store.log.append(run(CHAT, range(1, 1_001)))
        seq = 1_001
        with pytest.raises(StoreUnavailableError, match="SQLITE_FULL"):
            await store.log.append(run(CHAT, range(seq, seq + 10_000)))
        head = await store.log.load(CHAT)
        assert head is not None
        assert head.head_seq == seq - 1
        await set_pages_max(store, 1_000_000)
        await store.log.append(run(CHAT, range(seq, seq + 1_000)))
        stored = await store.log.read_after(CHAT, 0, seq + 999, 1 << 30, 1 << 30)
        assert [(e.seq, e.event) for e in stored] == [(e.seq, e.event) for e in run(CHAT, range(1, seq + 1_000))]

    async def test_of_a_new_chat_leaves_it_unknown(self, store: SqliteStore) -> None:
        await set_pages_max(store, 1)
        with pytest.raises(StoreUnavailableError):
            await store.log.append([entry(CHAT, 1, "x" * 60_000)])
        assert await store.log.load(CHAT) is None
        await set_pages_max(store, 1_000_000)
        other = "g.BBBBBBBBBBBBBBBBBBBBBB"
        await store.log.append([entry(other, 1, "other")])
        await store.log.append([entry(CHAT, 1, "one")])
        assert [e.event for e in await store.log.read_after(other, 0, 9, 9, BYTES_MAX)] == [event(other, 1, "other")]
        assert [e.event for e in await store.log.read_after(CHAT, 0, 9, 9, BYTES_MAX)] == [event(CHAT, 1, "one")]


async def test_a_write_that_breaks_in_the_middle_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.adapters.sqlite.write_past_a_limit", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    limited, _, unlimited = done.stdout.partition("unlimited\n")
    outcomes = {line.split()[1] for line in limited.splitlines()}
    assert outcomes - {"stored"}, "the limit was not reached"
    assert outcomes <= {"stored", OutcomeUnknownError.__name__, StoreUnavailableError.__name__}
    assert {line.split()[1] for line in unlimited.splitlines()} == {"stored"}

    stored_seqs = {
        seq
        for line in done.stdout.replace("unlimited\n", "").splitlines()
        if line.endswith(" stored")
        for seq in (int(line.split()[0]), int(line.split()[0]) + 1)
    }
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    events = {e.seq: e.event for e in await store.log.read_after(CHAT, 0, 1 << 20, 1 << 20, 1 << 30)}
    await store.close()
    assert events.keys() >= stored_seqs
    assert events == {seq: event(CHAT, seq, TEXT) for seq in range(1, len(events) + 1)}
    assert len(events) % 2 == 0


class TestGroups:
    """Calls that share a transaction do not share their failures."""

    async def test_each_caller_learns_its_own_truth(self, store: SqliteStore) -> None:
        await store.log.append([entry(CHAT, 1)])

        def fails(_db: sqlite3.Connection, _calls: Sequence[None]) -> list[None]:
            raise ZeroDivisionError

        def cannot_be_bound(db: sqlite3.Connection, _calls: Sequence[None]) -> list[None]:
            db.execute("SELECT ?", (object(),))
            return [None]

        outcomes = await asyncio.gather(
            store.log.append([entry("g.BBBBBBBBBBBBBBBBBBBBBB", 1)]),
            store.log.append([entry(CHAT, 1)]),
            store._writer.call(fails, None),
            store.cursors.save([Cursor("alice", "phone", CHAT, 7)]),
            store._writer.call(cannot_be_bound, None),
            store.epochs.next_epoch(),
            return_exceptions=True,
        )
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [type(None), StaleOwnerError, ZeroDivisionError, type(None), StoreError, int]
        assert await store.log.load("g.BBBBBBBBBBBBBBBBBBBBBB") is not None
        assert await store.cursors.of_device("alice", "phone") == {CHAT: 7}
        assert await store.epochs.next_epoch() == 2

    @pytest.mark.parametrize("name", ["SQLITE_NOTADB", "SQLITE_FULL", "SQLITE_NOMEM"])
    async def test_what_is_none_of_a_single_calls_is_told_to_all(self, store: SqliteStore, name: str) -> None:
        """One by one they would all be refused, each as if it were its own fault."""
        tries: list[int] = []

        def fails(_db: sqlite3.Connection, calls: Sequence[None]) -> list[None]:
            tries.append(len(calls))
            raise raised_for(name)

        outcomes = await asyncio.gather(*(store._writer.call(fails, None) for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 3
        assert sum(tries) == 3, "each was tried once"
        assert await store.epochs.next_epoch() == 1

    async def test_without_memory_a_read_is_no_defect_and_upkeep_is_passed_over(self, store: SqliteStore) -> None:
        def fails(_db: sqlite3.Connection) -> None:
            raise MemoryError

        store._writer.upkeep(fails)
        with pytest.raises(StoreUnavailableError):
            await store._readers.read(fails)
        assert await store.epochs.next_epoch() == 1

    async def test_a_cancelled_caller_harms_nobody(self, store: SqliteStore) -> None:
        calls = [asyncio.ensure_future(store.log.append([entry(CHAT, seq)])) for seq in range(1, 11)]
        await asyncio.sleep(0)
        calls[4].cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None)] * 4 + [asyncio.CancelledError] + [type(None)] * 5
        # It had been handed over, so it is stored all the same.
        assert [e.seq for e in await store.log.read_after(CHAT, 0, 99, 99, BYTES_MAX)] == list(range(1, 11))


class TestErrors:
    @pytest.mark.parametrize("name", ["SQLITE_FULL", "SQLITE_BUSY", "SQLITE_BUSY_SNAPSHOT", "SQLITE_READONLY"])
    def test_of_commit_that_come_before_its_record_mean_nothing_was_stored(self, name: str) -> None:
        assert type(failed_commit(engine_error(name))) is StoreUnavailableError

    @pytest.mark.parametrize("name", ["SQLITE_IOERR_FSYNC", "SQLITE_IOERR_WRITE", "SQLITE_CORRUPT"])
    def test_other_errors_of_commit_leave_the_outcome_unknown(self, name: str) -> None:
        assert type(failed_commit(engine_error(name))) is OutcomeUnknownError

    def test_name_the_engines_error(self) -> None:
        assert "SQLITE_FULL" in str(unavailable(engine_error("SQLITE_FULL")))

    async def test_of_reads_are_mapped(self, store: SqliteStore) -> None:
        def query(db: sqlite3.Connection) -> None:
            db.execute("SELECT * FROM nowhere")

        with pytest.raises(StoreError, match="nowhere"):
            await store._readers.read(query)


def raised_for(name: str) -> Exception:
    """What Python's module makes of it."""
    if name == "SQLITE_NOMEM":
        return MemoryError()
    error = engine_error(name)
    if name != "SQLITE_NOTADB":
        return error
    plain = sqlite3.DatabaseError(*error.args)
    plain.sqlite_errorcode = error.sqlite_errorcode
    plain.sqlite_errorname = error.sqlite_errorname
    return plain


def engine_error(name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("engine's words")
    error.sqlite_errorcode = getattr(sqlite3, name)
    error.sqlite_errorname = name
    return error
