"""Erased content is gone from the disk, not only from the answers."""

import asyncio
import random
import re
import sqlite3
from pathlib import Path

import pytest

from chatgrpc.adapters.sqlite import SqliteStore
from chatgrpc.adapters.sqlite.chat_log import _header_bytes, _padding_bytes
from chatgrpc.ports.chat_log import Entry
from tests.contract.stores.entries import entry

CHATS = [f"g.{number:022}" for number in range(20)]
MARKER = re.compile(rb"MARKER<(g\.\d+):(\d+)>")
POLL_INTERVAL_S = 0.1
POLLS_MAX = 600
"""It takes two seconds; this is when we give up."""

Place = tuple[str, int]


def texts_on_disk(folder: Path) -> set[Place]:
    """Of which messages any file still holds the text."""
    found: set[Place] = set()
    for file in folder.iterdir():
        found |= {(match[1].decode(), int(match[2])) for match in MARKER.finditer(file.read_bytes())}
    return found


async def chatter(store: SqliteStore, randomness: random.Random) -> set[Place]:
    """Messages of all sizes, many of them erased later; returns those that are left."""
    heads = dict.fromkeys(CHATS, 0)
    alive: list[Place] = []
    for _ in range(60):
        group: list[Entry] = []
        for _ in range(randomness.randint(1, 30)):
            chat_id = randomness.choice(CHATS)
            heads[chat_id] += 1
            targets = [seq for its_chat_id, seq in alive if its_chat_id == chat_id]
            if targets and randomness.random() < 0.3:
                target = randomness.choice(targets)
                alive.remove((chat_id, target))
                group.append(entry(chat_id, heads[chat_id], "deleted", erases_seq=target))
            else:
                text = f"MARKER<{chat_id}:{heads[chat_id]}>" + "x" * randomness.choice([0, 10, 300, 2_000, 4_100, 9_000])
                alive.append((chat_id, heads[chat_id]))
                group.append(entry(chat_id, heads[chat_id], text))
        await store.log.append(group)
    return set(alive)


@pytest.mark.parametrize("seed", range(3))
async def test_is_in_no_file_after_closing(tmp_path: Path, seed: int) -> None:
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    alive = await chatter(store, random.Random(seed))
    await store.close()
    assert texts_on_disk(tmp_path) == alive


@pytest.mark.parametrize("text_bytes", [300, 5_000])
async def test_is_in_no_file_when_neighbours_were_erased_before(tmp_path: Path, text_bytes: int) -> None:
    """Pages that get too empty would be merged, and leave copies of what stayed in them."""
    chat_id, count = CHATS[0], 400
    order = random.Random(1).sample(range(1, count + 1), count)
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    texts = [f"MARKER<{chat_id}:{seq}>" + "x" * text_bytes for seq in range(1, count + 1)]
    await store.log.append([entry(chat_id, seq, text) for seq, text in enumerate(texts, 1)])
    for number, target in enumerate(order[:-5], count + 1):
        await store.log.append([entry(chat_id, number, erases_seq=target)])
    await store.close()
    assert texts_on_disk(tmp_path) == {(chat_id, seq) for seq in order[-5:]}


async def test_is_soon_in_no_file_while_the_store_is_open(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    alive = await chatter(store, random.Random(7))
    await gone(tmp_path, alive)
    await store.close()


async def test_is_gone_once_an_onlooker_of_the_old_state_has_left(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    await store.log.append([entry(CHATS[0], 1, f"MARKER<{CHATS[0]}:1>")])
    onlooker = sqlite3.connect(tmp_path / "chatgrpc.db", isolation_level=None)
    onlooker.execute("BEGIN")
    onlooker.execute("SELECT count(*) FROM log").fetchone()
    await store.log.append([entry(CHATS[0], 2, erases_seq=1)])
    await asyncio.sleep(2.5)
    await store.log.append([entry(CHATS[0], 3)])
    assert texts_on_disk(tmp_path) == {(CHATS[0], 1)}
    onlooker.close()
    await gone(tmp_path, set())
    await store.close()


async def gone(folder: Path, alive: set[Place]) -> None:
    for _ in range(POLLS_MAX):
        if texts_on_disk(folder) == alive:
            return
        await asyncio.sleep(POLL_INTERVAL_S)
    assert texts_on_disk(folder) == alive


def test_padding_keeps_the_size_of_a_row() -> None:
    rest_bytes = 70
    for event_bytes in (*range(70, 400), *range(8_100, 8_300), *range(16_350, 16_450)):
        padding_bytes = _padding_bytes(event_bytes, rest_bytes)
        before = event_bytes + _header_bytes(event_bytes) + _header_bytes(0)
        after = rest_bytes + _header_bytes(rest_bytes) + padding_bytes + _header_bytes(padding_bytes)
        assert before - 1 <= after <= before
