"""What was acknowledged survives kill -9 at any moment (G1), and nothing is half there."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatgrpc.adapters.sqlite import SqliteStore
from tests.contract.stores.entries import event
from tests.unit.adapters.sqlite.append_until_killed import CHATS, GROUP

PROJECT = Path(__file__).parents[4]
ROUNDS = 30
LIFETIME_MAX_S = 0.15


@contextmanager
def appender() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.unit.adapters.sqlite.append_until_killed"]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def one_life(process: subprocess.Popen[str], folder: Path, lifetime_s: float) -> dict[str, int]:
    """Lets a child write for a while and kills it; returns the last acknowledged seq of each chat."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{folder}\n")
    process.stdin.flush()
    acknowledged: dict[str, int] = {}
    for line in process.stdout:
        match line.split():
            case ["pid", pid]:
                time.sleep(lifetime_s)
                os.kill(int(pid), signal.SIGKILL)
            case ["dead"]:
                break
            case [chat_id, seq]:
                acknowledged[chat_id] = int(seq)
    return acknowledged


async def test_acknowledged_entries_survive_kill_9(tmp_path: Path) -> None:
    randomness = random.Random(20)
    acknowledged = dict.fromkeys(CHATS, 0)
    with appender() as process:
        for lives in itertools.count():
            if lives >= ROUNDS and min(acknowledged.values()) > 0:
                break
            # On a busy machine they get nothing done in so short lives; they live longer then, until they do.
            lifetime_max_s = LIFETIME_MAX_S * (1 + lives // ROUNDS)
            acknowledged |= one_life(process, tmp_path, randomness.uniform(0, lifetime_max_s))
            store = await SqliteStore.open(tmp_path / "chatgrpc.db")
            for chat_id in CHATS:
                await check(store, chat_id, acknowledged[chat_id])
            await store.close()


async def check(store: SqliteStore, chat_id: str, acknowledged_seq: int) -> None:
    chat = await store.log.load(chat_id)
    if chat is None:
        assert acknowledged_seq == 0
        return
    assert chat.head_seq >= acknowledged_seq
    # An append is there whole or not at all, its views included.
    assert chat.head_seq % GROUP == 0
    assert chat.chat == str(chat.head_seq).encode()
    membership = await store.log.membership("alice", chat_id)
    assert membership is not None
    assert [interval.joined_seq for interval in membership.intervals] == list(range(GROUP, chat.head_seq + 1, GROUP))
    stored = await store.log.read_after(chat_id, 0, chat.head_seq, 1 << 30, 1 << 30)
    assert [(e.seq, e.event) for e in stored] == [
        (seq, event(chat_id, seq, f"message {seq}")) for seq in range(1, chat.head_seq + 1)
    ]


async def test_every_commit_is_flushed_to_the_disk(tmp_path: Path) -> None:
    """Losing power cannot be tried here; that SQLite is told to reckon with it can."""
    store = await SqliteStore.open(tmp_path / "chatgrpc.db")
    pragmas = {name: store._files.writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}
    await store.close()
