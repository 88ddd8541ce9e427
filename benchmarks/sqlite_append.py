"""How fast groups of events reach the disk while the event loop is busy.

SQLite releases Python's interpreter lock at every statement and must take it back from the event loop's thread. So this keeps
that thread busy in Python, in slices that end in a turn of the loop, and appends from the writer's thread by

- `one statement`: what the store does, one multi-row INSERT per 512 events;
- `executemany`: one statement a row;

each under Python's own switch interval (5 ms) and a shorter one. `loop` says how much of its speed the event loop keeps.

    python -m benchmarks.sqlite_append [--folder FOLDER]
"""

import argparse
import asyncio
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatgrpc.adapters.sqlite.chat_log import _insert
from chatgrpc.adapters.sqlite.connections import open_writer
from chatgrpc.adapters.sqlite.schema import migrate, packaged_migrations

Row = tuple[int, int, int, int | None, bytes]

GROUPS = {1: 200, 8: 200, 64: 100, 512: 40}
"""Events in a group, and how many groups are measured."""
CHATS = 50
EVENT_BYTES = 300
SLICES_S = (0.002, 0.02)
SWITCH_INTERVALS_S = (0.005, 0.0005)


def executemany(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """The plain way."""
    db.executemany("INSERT INTO log (chat_number, seq, epoch, amends_seq, event) VALUES (?, ?, ?, ?, ?)", rows)


def one_statement(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """The store's way."""
    _insert(db, rows)


@dataclass(frozen=True, slots=True)
class Appended:
    """What committing groups of events took."""

    each_s: list[float]
    """Of each group, rising."""
    total_s: float
    cpu_s: float
    """Of the thread that appends."""

    def quantile_ms(self, share: float) -> float:
        """What this share (0 to 1) of the groups did not exceed."""
        return self.each_s[int(len(self.each_s) * share)] * 1_000


def append_groups(path: Path, insert: Callable[[sqlite3.Connection, Sequence[Row]], None], size: int, count: int) -> Appended:
    """Commits `count` groups of `size` events."""
    db = open_writer(path)
    migrate(db, packaged_migrations())
    event = bytes(range(256)) * 2
    rows = [(n % CHATS, n // CHATS + 1, 1, None, event[:EVENT_BYTES]) for n in range(size * count)]
    took: list[float] = []
    began, began_cpu = time.perf_counter(), time.thread_time()
    for start in range(0, len(rows), size):
        before = time.perf_counter()
        db.execute("BEGIN IMMEDIATE")
        insert(db, rows[start : start + size])
        db.execute("COMMIT")
        took.append(time.perf_counter() - before)
    total, cpu = time.perf_counter() - began, time.thread_time() - began_cpu
    db.close()
    return Appended(sorted(took), total, cpu)


def floor(folder: Path, size: int) -> dict[str, object]:
    """What appends of so many events to a commit reach with nothing else to do, on the calling thread.

    Returns: events per second, milliseconds of a commit, CPU seconds for 1,000 events; named as in the rows of `make bench`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="append-", dir=folder) as place:
        appended = append_groups(Path(place) / "append.db", one_statement, size, GROUPS[size])
    events = size * GROUPS[size]
    return {
        "rate_per_s": events / appended.total_s,
        "p50_ms": appended.quantile_ms(0.5),
        "p99_ms": appended.quantile_ms(0.99),
        "cpu_s_per_1000": appended.cpu_s / events * 1000,
    }


async def spin(slice_s: float, done: threading.Event) -> float:
    """Runs Python in slices until `done`; returns rounds per second."""
    rounds = 0
    began = time.perf_counter()
    while not done.is_set():
        end = time.perf_counter() + slice_s
        while time.perf_counter() < end:
            rounds += 1
        await asyncio.sleep(0)
    return rounds / (time.perf_counter() - began)


async def beside_a_busy_loop(
    folder: Path, insert: Callable[[sqlite3.Connection, Sequence[Row]], None], size: int, slice_s: float
) -> tuple[Appended, float]:
    """Appends in a thread while this one is busy; also returns the loop's rounds per second."""
    done = threading.Event()
    results: list[Appended] = []

    def work() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            results.append(append_groups(Path(place) / "append.db", insert, size, GROUPS[size]))
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    rounds = await spin(slice_s, done)
    thread.join()
    return results[0], rounds


async def spin_alone(slice_s: float) -> float:
    """The loop's rounds per second when nothing else runs."""
    done = threading.Event()
    timer = threading.Timer(1.0, done.set)
    timer.start()
    return await spin(slice_s, done)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files are written; a folder of the system's otherwise")
    folder = parser.parse_args().folder
    print("slice ms  switch ms  group  how            rows/s  commit ms p50    p99   loop")
    for slice_s in SLICES_S:
        alone = asyncio.run(spin_alone(slice_s))
        for switch_s in SWITCH_INTERVALS_S:
            sys.setswitchinterval(switch_s)
            for size, count in GROUPS.items():
                for insert in (one_statement, executemany):
                    appended, rounds = asyncio.run(beside_a_busy_loop(folder, insert, size, slice_s))
                    p50, p99 = (appended.quantile_ms(share) for share in (0.5, 0.99))
                    print(
                        f"{slice_s * 1_000:8.0f}  {switch_s * 1_000:9.1f}  {size:5}  {insert.__name__:13}"
                        f"{size * count / appended.total_s:8.0f}  {p50:13.2f} {p99:6.2f} {rounds / alone:6.0%}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
