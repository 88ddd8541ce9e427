"""A look-up keeps the meta of events: what was said passes through memory page by page."""

import asyncio
import tracemalloc
from collections.abc import Sequence

import pytest

from chatgrpc.core.active_chat import ActiveChat
from chatgrpc.core.damage import DamageError
from chatgrpc.core.entries import StoredEvent
from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.receipts import Mark
from chatgrpc.core.sequencer import Lookup
from chatgrpc.edge.look_up import LookUps, read_metas
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


class MarksBook:
    """Marks by chat; notes of which chats they are read."""

    def __init__(self, **of_chat: Mark) -> None:
        self.marks = {mark.chat_id: mark for mark in of_chat.values()}
        self.read: list[str] = []

    async def of_chat(self, chat_id: str) -> list[Mark]:
        self.read.append(chat_id)
        return [self.marks[chat_id]] if chat_id in self.marks else []


def wanted(*ranges: tuple[int, int], user_ids: tuple[str, ...] = (), sender: str = "zoe") -> Lookup:
    return Lookup(ActiveChat("c", 1, 1), ranges, user_ids, frozenset(), sender)


def new_look_ups(log: LongLog, groups_by_others_max: int = 4, marks: MarksBook | None = None) -> LookUps:
    return LookUps(log, marks or MarksBook(), groups_by_others_max)


async def test_a_look_up_of_two_hundred_megabytes_holds_a_few() -> None:
    log = LongLog(4_096, 60_000)
    tracemalloc.start()
    try:
        metas = await read_metas(log, wanted((0, 4_096)))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert log.read_bytes > 240_000_000
    assert peak_bytes < 8_000_000
    assert [meta.seq for meta in metas] == list(range(1, 4_097))
    assert metas[7].client_message_id == (8).to_bytes(16)


async def test_all_ranges_are_read_and_no_more() -> None:
    found = await new_look_ups(LongLog(2_000, 10)).run(wanted((3, 5), (300, 1_000), user_ids=("alice", "bob")), lambda: True)
    assert found is not None
    assert [meta.seq for meta in found.metas] == [4, 5, *range(301, 1_001)]
    assert (found.group_counts, found.opened) == ({"alice": 3, "bob": 3}, frozenset())


async def test_a_log_that_ends_early_is_damaged() -> None:
    with pytest.raises(DamageError, match="no row at seq 5"):
        await read_metas(LongLog(4, 10), wanted((0, 9)))


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
    look_ups = new_look_ups(log)
    long = [asyncio.create_task(look_ups.run(wanted((0, 4_000), sender=f"user{n}"), lambda: True)) for n in range(100)]
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


async def test_who_has_many_long_ones_keeps_others_waiting_for_one() -> None:
    log = LongLog(4_096, 10)
    begun: list[str] = []
    read_after = log.read_after

    async def noted(chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        await asyncio.sleep(0)
        return await read_after(chat_id, after_seq, up_to_seq, limit, bytes_max)

    log.read_after = noted  # type: ignore[method-assign]
    look_ups = new_look_ups(log)

    async def run(sender: str) -> None:
        def is_wanted() -> bool:
            begun.append(sender)
            return True

        assert await look_ups.run(wanted((0, 4_000), sender=sender), is_wanted) is not None

    await asyncio.gather(*(run("greedy") for _ in range(20)), run("other"))
    assert begun.index("other") <= 1
    assert len(begun) == 21


async def test_who_has_groups_of_many_counted_does_so_one_after_the_other_and_keeps_nobody_waiting() -> None:
    log = LongLog(4_096, 10)
    going_on = asyncio.Event()
    counted: list[Sequence[str]] = []
    ended: list[str] = []

    async def held(user_ids: Sequence[str]) -> dict[str, int]:
        counted.append(user_ids)
        if user_ids[0].startswith("u"):
            await going_on.wait()
        return dict.fromkeys(user_ids, 3)

    log.count_groups = held  # type: ignore[method-assign]
    look_ups = new_look_ups(log)
    many = tuple(f"u{number}" for number in range(20))

    async def run(sender: str, *user_ids: str) -> None:
        found = await look_ups.run(wanted(user_ids=user_ids, sender=sender), lambda: True)
        assert found is not None
        assert found.group_counts == dict.fromkeys(user_ids, 3)
        ended.append(sender)

    greedy = [asyncio.create_task(run("greedy", *many)) for _ in range(50)]
    others = [asyncio.create_task(run("one", "alice")), asyncio.create_task(run("several", "alice", "bob"))]
    for _ in range(1_000):
        await asyncio.sleep(0)
    assert sorted(ended) == ["one", "several"]
    assert [user_ids for user_ids in counted if user_ids[0].startswith("u")] == [many[:8]], "one of theirs, a few at a time"
    going_on.set()
    await asyncio.gather(*greedy, *others)
    assert sum(len(user_ids) for user_ids in counted) == 3 + 50 * 20


async def test_of_users_in_many_groups_it_is_read_whether_they_have_opened_their_chat_with_the_writer() -> None:
    marks = MarksBook(
        read=Mark(direct_chat_id("alice", "zoe"), "alice", 2, 2, 0),
        delivered=Mark(direct_chat_id("bob", "zoe"), "bob", 2, 0, 0),
        others=Mark(direct_chat_id("carol", "zoe"), "zoe", 2, 2, 0),
    )
    asked = wanted(user_ids=("alice", "bob", "carol", "zoe"))
    found = await new_look_ups(LongLog(0, 0), 3, marks).run(asked, lambda: True)
    assert found is not None
    assert found.opened == {"alice"}
    marks.read.clear()
    found = await new_look_ups(LongLog(0, 0), 4, marks).run(asked, lambda: True)
    assert found is not None
    assert (found.opened, marks.read) == (frozenset(), [])
