"""A look-up keeps the meta of events: what was said passes through memory page by page."""

import asyncio
import tracemalloc
from collections.abc import Sequence

import pytest

from chatgrpc.core.active_chat import ActiveChat
from chatgrpc.core.damage import DamageError
from chatgrpc.core.entries import StoredEvent
from chatgrpc.core.sequencer import Lookup
from chatgrpc.edge.look_up import LookUps, look_up
from chatgrpc.v1 import chat_pb2, content_pb2


class LongLog:
    """A log whose events are made as they are read."""

    def __init__(self, length: int, text_bytes: int) -> None:
        self.length = length
        self.read_bytes = 0
        self._content = content_pb2.Content(text=content_pb2.TextContent(text="x" * text_bytes))

    async def read_after(self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        page: list[StoredEvent] = []
        size_bytes = 0
        for seq in range(after_seq + 1, min(up_to_seq, self.length) + 1):
            if len(page) == limit or size_bytes > bytes_max:
                break
            key = seq.to_bytes(16)
            event = chat_pb2.ChatEvent(
                chat_id=chat_id, seq=seq, sender_user_id="alice", client_message_id=key, content=self._content
            )
            page.append(StoredEvent(seq, event.SerializeToString()))
            size_bytes += len(page[-1].event)
        self.read_bytes += size_bytes
        return page

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys(user_ids, 3)


def wanted(*ranges: tuple[int, int], user_ids: tuple[str, ...] = ()) -> Lookup:
    return Lookup(ActiveChat("c", 1, 1), ranges, user_ids, frozenset())


async def test_a_look_up_of_two_hundred_megabytes_holds_a_few() -> None:
    log = LongLog(4_096, 60_000)
    tracemalloc.start()
    try:
        metas, _ = await look_up(log, wanted((0, 4_096)))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert log.read_bytes > 240_000_000
    assert peak_bytes < 8_000_000
    assert [meta.seq for meta in metas] == list(range(1, 4_097))
    assert metas[7].client_message_id == (8).to_bytes(16)


async def test_all_ranges_are_read_and_no_more() -> None:
    metas, counts = await look_up(LongLog(2_000, 10), wanted((3, 5), (300, 1_000), user_ids=("alice", "bob")))
    assert [meta.seq for meta in metas] == [4, 5, *range(301, 1_001)]
    assert counts == {"alice": 3, "bob": 3}


async def test_a_log_that_ends_early_is_damaged() -> None:
    with pytest.raises(DamageError, match="no row at seq 5"):
        await look_up(LongLog(4, 10), wanted((0, 9)))


async def test_short_ones_do_not_wait_behind_long_ones() -> None:
    log = LongLog(4_096, 10)
    going_on = asyncio.Event()
    under_way: list[int] = []
    read_after = log.read_after

    async def held(chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        under_way.append(up_to_seq)
        if up_to_seq == 4_000:
            await going_on.wait()
        return await read_after(chat_id, after_seq, up_to_seq, limit, bytes_max)

    log.read_after = held  # type: ignore[method-assign]
    look_ups = LookUps(log)
    long = [asyncio.create_task(look_ups.run(wanted((0, 4_000)), lambda: True)) for _ in range(100)]
    unwanted = asyncio.create_task(look_ups.run(wanted((0, 4_000)), lambda: False))
    while len(under_way) < 4:
        await asyncio.sleep(0)
    found = await look_ups.run(wanted((10, 12)), lambda: True)
    assert found is not None
    assert [meta.seq for meta in found[0]] == [11, 12]
    assert under_way.count(4_000) == 4, "a few at a time, since each holds a page"
    going_on.set()
    assert all(one is not None and len(one[0]) == 4_000 for one in await asyncio.gather(*long))
    assert await unwanted is None
