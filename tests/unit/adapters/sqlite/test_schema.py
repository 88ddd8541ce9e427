"""Bringing a database to the current schema."""

import sqlite3
from pathlib import Path

import pytest

from chatgrpc.adapters.sqlite import SchemaError, SqliteStore
from chatgrpc.adapters.sqlite.schema import Migration, migrate, packaged_migrations, schema_version
from chatgrpc.ports.accounts import Device, Profile
from chatgrpc.ports.chat_log import Interval, Membership, StoredChat, StoredEvent
from chatgrpc.ports.receipts import Mark
from tests.contract.stores.entries import BYTES_MAX

FIRST = Migration(1, "first", "CREATE TABLE things (name TEXT) STRICT; INSERT INTO things VALUES ('a;b');")
SECOND = Migration(2, "second", "ALTER TABLE things ADD COLUMN size INTEGER; UPDATE things SET size = length(name);")
BROKEN = Migration(3, "broken", "DROP TABLE things; INSERT INTO nowhere VALUES (1);")

CHAT = "g.AAAAAAAAAAAAAAAAAAAAAA"

ROWS_OF_VERSION_1 = f"""
    INSERT INTO chats (number, chat_id, chat) VALUES (7, '{CHAT}', x'0102');
    INSERT INTO log (chat_number, seq, epoch, amends_seq, event) VALUES (7, 1, 1, NULL, x'AA'), (7, 2, 1, 1, x'BB');
    INSERT INTO members (user_id, chat_id, joined_seq, left_seq) VALUES ('alice', '{CHAT}', 1, 2);
    INSERT INTO receipts VALUES ('{CHAT}', 'alice', 2, 1, 100);
    INSERT INTO cursors VALUES ('alice', 'phone', '{CHAT}', 2);
    INSERT INTO profiles VALUES ('alice', 'Alice', 'about', 'https://example.org/a.png');
    INSERT INTO devices VALUES ('alice', 'phone', 'Phone', 10, 20, 0);
    INSERT INTO epochs VALUES (1, 4);
"""


@pytest.fixture
def db() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


class TestMigrate:
    def test_applies_the_steps_that_are_missing_in_order(self, db: sqlite3.Connection) -> None:
        assert schema_version(db) == 0
        migrate(db, [FIRST])
        assert schema_version(db) == 1
        migrate(db, [FIRST, SECOND])
        assert schema_version(db) == 2
        migrate(db, [FIRST, SECOND])
        assert db.execute("SELECT name, size FROM things").fetchall() == [("a;b", 3)]

    def test_a_step_that_fails_leaves_the_version_before_it(self, db: sqlite3.Connection) -> None:
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            migrate(db, [FIRST, SECOND, BROKEN])
        assert schema_version(db) == 2
        assert not db.in_transaction
        assert db.execute("SELECT name, size FROM things").fetchall() == [("a;b", 3)]

    def test_a_newer_database_is_refused_untouched(self, db: sqlite3.Connection) -> None:
        migrate(db, [FIRST, SECOND])
        with pytest.raises(SchemaError, match=r"version 2.*up to 1.*start the newer chatgrpc"):
            migrate(db, [FIRST])
        assert schema_version(db) == 2

    @pytest.mark.parametrize("sql", ["CREATE TABLE theirs (x)", "PRAGMA user_version = 1"])
    def test_another_programs_database_is_refused_untouched(self, db: sqlite3.Connection, sql: str) -> None:
        db.execute(sql)
        with pytest.raises(SchemaError, match="another program"):
            migrate(db, [FIRST])
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'things'").fetchone() == (0,)


def test_packaged_steps_are_numbered_from_one() -> None:
    steps = packaged_migrations()
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))
    assert steps[0].name == "initial"


async def test_what_version_1_stored_is_read_by_this_version(tmp_path: Path) -> None:
    """Stays as it is when steps are added: it is then the test of them."""
    path = tmp_path / "chatgrpc.db"
    old = sqlite3.connect(path, isolation_level=None)
    migrate(old, packaged_migrations()[:1])
    old.executescript(ROWS_OF_VERSION_1)
    old.close()
    store = await SqliteStore.open(path)
    assert await store.log.load(CHAT) == StoredChat(b"\1\2", 2, b"\xbb")
    assert await store.log.read_after(CHAT, 0, 9, 9, BYTES_MAX) == [StoredEvent(1, b"\xaa"), StoredEvent(2, b"\xbb")]
    assert await store.log.membership("alice", CHAT) == Membership(CHAT, (Interval(1, 2),), 2)
    assert await store.receipts.of_chat(CHAT) == [Mark(CHAT, "alice", 2, 1, 100)]
    assert await store.cursors.of_device("alice", "phone") == {CHAT: 2}
    assert await store.profiles.get("alice") == Profile("alice", "Alice", "about", "https://example.org/a.png")
    assert await store.devices.list("alice") == [Device("alice", "phone", "Phone", 10, 20)]
    assert await store.epochs.next_epoch() == 5
    await store.close()


async def test_a_store_of_a_newer_program_is_refused_and_not_left_locked(tmp_path: Path) -> None:
    path = tmp_path / "chatgrpc.db"
    await (await SqliteStore.open(path)).close()
    db = sqlite3.connect(path)
    newer = schema_version(db) + 1
    db.execute(f"PRAGMA user_version = {newer}")
    for _ in range(2):
        with pytest.raises(SchemaError, match=f"version {newer}"):
            await SqliteStore.open(path)
    db.execute(f"PRAGMA user_version = {newer - 1}")
    db.close()
    await (await SqliteStore.open(path)).close()
