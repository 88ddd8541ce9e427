"""Opening and closing the file."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from chatgrpc.adapters.sqlite import SqliteStore, StoreInUseError
from chatgrpc.ports.errors import ChatDamagedError, StoreUnavailableError
from tests.contract.stores.entries import BYTES_MAX, entry, event, view

PROJECT = Path(__file__).parents[4]
CHAT = "g.AAAAAAAAAAAAAAAAAAAAAA"


async def test_what_is_stored_is_there_after_reopening(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    await store.log.append([entry(CHAT, 1)])
    assert await store.epochs.next_epoch() == 1
    await store.close()
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    assert [e.event for e in await store.log.read_after(CHAT, 0, 9, 9, BYTES_MAX)] == [event(CHAT, 1, "hello")]
    assert await store.epochs.next_epoch() == 2
    await store.close()


async def test_a_chat_whose_events_are_gone_is_damaged_and_does_not_begin_anew(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    await store.log.append([entry(CHAT, 1)])
    await store.close()
    with sqlite3.connect(tmp_path / "chatgrpc.db") as db:
        db.execute("DELETE FROM log")
    db.close()
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    with pytest.raises(ChatDamagedError, match="gone"):
        await store.log.load(CHAT)
    await store.close()


async def test_a_chat_that_is_gone_does_not_begin_anew_while_it_has_members(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    begun = [entry(CHAT, 1, view=view(b"state", alice=(1, 0), bob=(1, 0))), entry(CHAT, 2)]
    await store.log.append(begun)
    await store.close()
    with sqlite3.connect(tmp_path / "chatgrpc.db") as db:
        assert db.execute("DELETE FROM chats").rowcount == 1
    db.close()
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    for _ in range(2):
        with pytest.raises(ChatDamagedError, match="gone"):
            await store.log.append(begun)
    assert await store.log.load(CHAT) is None
    other = "g.BBBBBBBBBBBBBBBBBBBBBB"
    await store.log.append([entry(other, 1, view=view(b"state", alice=(1, 0)))])
    assert await store.log.load(other) is not None
    await store.close()


@pytest.mark.parametrize(
    "harm",
    [
        f"DELETE FROM chats WHERE chat_id = '{CHAT}'",
        f"UPDATE log SET chat_number = {2**63 - 1}",
        f"UPDATE chats SET number = {2**63 - 1}",
        f"UPDATE chats SET number = -{2**63}",
    ],
    ids=["its chat is gone", "its events are of the greatest", "the greatest", "the least"],
)
async def test_whatever_became_of_the_newest_chats_number_others_begin_with_their_own(tmp_path: Path, harm: str) -> None:
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    await store.log.append([entry(CHAT, 1)])
    await store.close()
    with sqlite3.connect(tmp_path / "chatgrpc.db") as db:
        assert db.execute(harm).rowcount == 1
    db.close()
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    new = ["g.BBBBBBBBBBBBBBBBBBBBBB", "g.CCCCCCCCCCCCCCCCCCCCCC", "g.DDDDDDDDDDDDDDDDDDDDDD"]
    await store.log.append([entry(new[0], 1), entry(new[1], 1)])
    await store.log.append([entry(new[1], 2), entry(new[2], 1)])
    for chat_id, seqs in zip(new, ([1], [1, 2], [1]), strict=True):
        stored = await store.log.read_after(chat_id, 0, 9, 9, BYTES_MAX)
        assert [e.event for e in stored] == [event(chat_id, seq, "hello") for seq in seqs]
    await store.close()


async def test_makes_the_folder_and_lets_nobody_else_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "chatgrpc.db"
    store = await SqliteStore.open(path)
    await store.log.append([entry(CHAT, 1)])
    files = list(path.parent.iterdir())
    assert {file.name for file in files} == {"chatgrpc.db", "chatgrpc.db-wal", "chatgrpc.db-shm", "chatgrpc.db.lock"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    await store.close()


async def test_a_restored_copy_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "chatgrpc.db"
    store = await SqliteStore.open(path)
    await store.log.append([entry(CHAT, 1)])
    companions = [path.with_name(f"chatgrpc.db{ending}") for ending in ("-wal", "-shm")]
    copies = [(file, file.read_bytes()) for file in (path, *companions)]  # as a copy of a folder holds them
    await store.close()
    for file, content in copies:
        file.write_bytes(content)
        file.chmod(0o644)
    store = await SqliteStore.open(path)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (path, *companions)} == {0o600}
    await store.close()


async def test_a_path_with_characters_that_mean_something_in_an_address(tmp_path: Path) -> None:
    path = tmp_path / "100% ?mode=memory#ä" / "chatgrpc.db"
    store = await SqliteStore.open(path)
    await store.log.append([entry(CHAT, 1)])
    assert await store.log.load(CHAT) is not None
    await store.close()
    assert path.stat().st_size > 0


class TestTwoServers:
    async def test_the_second_is_refused_until_the_first_is_done(self, tmp_path: Path) -> None:
        store = await SqliteStore.open(tmp_path / "chatgrpc.db")
        with pytest.raises(StoreInUseError, match=r"in use by process \d+: one server at a time"):
            await SqliteStore.open(tmp_path / "chatgrpc.db")
        await store.close()
        await (await SqliteStore.open(tmp_path / "chatgrpc.db")).close()

    async def test_one_that_died_does_not_stand_in_the_way(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "tests.unit.adapters.sqlite.hold_open", str(tmp_path / "chatgrpc.db")]
        with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "open\n"
            with pytest.raises(StoreInUseError, match=f"process {holder.pid}:"):
                await SqliteStore.open(tmp_path / "chatgrpc.db")
            holder.kill()
        await (await SqliteStore.open(tmp_path / "chatgrpc.db")).close()


class TestThatCannotBeOpened:
    async def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        path = tmp_path / "chatgrpc.db"
        path.write_bytes(b"no database" * 1_000)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="SQLITE_NOTADB"):
                await SqliteStore.open(path)
        assert path.read_bytes() == b"no database" * 1_000

    async def test_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("")
        with pytest.raises(StoreUnavailableError, match="data"):
            await SqliteStore.open(tmp_path / "data" / "chatgrpc.db")


async def test_an_operator_may_look_into_the_file_meanwhile(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    await store.log.append([entry(CHAT, 1)])
    onlooker = sqlite3.connect(tmp_path / "chatgrpc.db", isolation_level=None)
    onlooker.execute("BEGIN")
    assert onlooker.execute("SELECT count(*) FROM log").fetchone() == (1,)
    await store.log.append([entry(CHAT, 2)])
    assert onlooker.execute("SELECT count(*) FROM log").fetchone() == (1,)
    onlooker.close()
    await store.close()


async def test_a_caller_cancelled_while_closing_leaves_it_to_close(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await store.close()
    await (await SqliteStore.open(tmp_path / "chatgrpc.db")).close()
