"""Reading a chat's history, however long it is: the newest page, a jump to the middle, and page by page to the first message.

Each page is asked for through the port, as a device's request would. A page must cost the same wherever in the log it lies, so
the walk is shown in ten tenths.

    python -m benchmarks.history [--events 1000000]
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from chatgrpc.adapters.sqlite import SqliteStore
from chatgrpc.core import ids
from chatgrpc.ports.chat_log import Entry, StoredEvent
from chatgrpc.v1 import chat_pb2, content_pb2

CHAT = ids.direct_chat_id("alice", "bob")
PAGE = 20
PAGE_BYTES_MAX = 512 * 1024
GROUP = 5_000
"""Events in one append while the chat is built."""
REPEATS = 500
"""Times that the newest page and the one in the middle are read."""
TENTHS = 10


def measure(events: int) -> list[dict[str, Any]]:
    """Builds a chat of `events` events in a folder of its own and reads it; returns rows
    `{row, rate_per_s, p50_ms, p99_ms}`."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(Path(folder), events))


async def _measure(folder: Path, events: int) -> list[dict[str, Any]]:
    store = await SqliteStore.open(folder / "chatgrpc.db")
    began = time.perf_counter()
    for start in range(1, events + 1, GROUP):
        await store.log.append([_entry(seq) for seq in range(start, min(start + GROUP, events + 1))])
    built_s = time.perf_counter() - began
    # Opened anew, so that nothing is warm but what the operating system keeps.
    await store.close()
    store = await SqliteStore.open(folder / "chatgrpc.db")
    rows = [
        {"row": f"history: append {events:,} events, {GROUP:,} a group", "rate_per_s": events / built_s},
        _row("history: newest page", await _repeated(lambda: _page(store, events + 1))),
        _row("history: page in the middle", await _repeated(lambda: _page(store, events // 2))),
        *await _walk(store, events),
    ]
    await store.close()
    return rows


async def _walk(store: SqliteStore, events: int) -> list[dict[str, Any]]:
    """From the newest event to the first, page by page."""
    took_s: list[float] = []
    before_seq = events + 1
    while before_seq > 1:
        began = time.perf_counter()
        page = await _page(store, before_seq)
        took_s.append(time.perf_counter() - began)
        assert [stored.seq for stored in page] == list(range(max(1, before_seq - PAGE), before_seq))
        before_seq = page[0].seq
    rows = [_row("history: walk to the first message", took_s)]
    size = -(-len(took_s) // TENTHS)
    tenths = [took_s[start : start + size] for start in range(0, len(took_s), size)]
    return rows + [_row(f"history: walk, tenth {number}", tenth) for number, tenth in enumerate(tenths, 1)]


async def _page(store: SqliteStore, before_seq: int) -> list[StoredEvent]:
    return await store.log.read_before(CHAT, before_seq, 1, PAGE, PAGE_BYTES_MAX)


async def _repeated(read: Callable[[], Awaitable[list[StoredEvent]]]) -> list[float]:
    took_s: list[float] = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        page = await read()
        took_s.append(time.perf_counter() - began)
        assert page
    return took_s


def _row(name: str, took_s: list[float]) -> dict[str, Any]:
    in_order = sorted(took_s)
    p50, p99 = (in_order[int(len(in_order) * share)] * 1_000 for share in (0.5, 0.99))
    return {"row": name, "rate_per_s": len(took_s) / sum(took_s), "p50_ms": p50, "p99_ms": p99}


def _entry(seq: int) -> Entry:
    event = chat_pb2.ChatEvent(
        chat_id=CHAT,
        seq=seq,
        message_id=seq.to_bytes(16),
        client_message_id=(seq << 64).to_bytes(16),
        sender_user_id=("alice", "bob")[seq % 2],
        sender_device_id="phone",
        sent_at_ms=1_700_000_000_000 + seq,
        content=content_pb2.Content(text=content_pb2.TextContent(text=f"message {seq} " + "." * (seq * 37 % 160))),
    )
    return Entry(CHAT, seq, 1, event.SerializeToString())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    rows = measure(parser.parse_args().events)
    print(f"{'':46}{'per s':>10}{'p50 ms':>10}{'p99 ms':>10}")
    for row in rows:
        times = f"{row['p50_ms']:10.3f}{row['p99_ms']:10.3f}" if "p50_ms" in row else ""
        print(f"{row['row']:46}{row['rate_per_s']:10,.0f}{times}")


if __name__ == "__main__":
    main()
