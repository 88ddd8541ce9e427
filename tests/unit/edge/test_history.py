"""Pages of history against a brute-force filter of the whole log."""

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.core.limits import Limits
from chatgrpc.edge.history import Page, Side, read_page
from chatgrpc.ports.chat_log import ChatLog, Entry, Interval, Membership
from chatgrpc.v1 import chat_pb2, content_pb2

CHAT_ID = "g." + "A" * 22
LIMITS = Limits()
HORIZON = 40


async def log_of(text_sizes: list[int]) -> ChatLog:
    """A log with one text message per size; seqs count from 1."""
    log = MemoryStore().log
    await log.append([Entry(CHAT_ID, seq, epoch=1, event=event(seq, size)) for seq, size in enumerate(text_sizes, 1)])
    return log


def event(seq: int, text_size: int) -> bytes:
    content = content_pb2.Content(text=content_pb2.TextContent(text="x" * text_size))
    return chat_pb2.ChatEvent(chat_id=CHAT_ID, seq=seq, content=content).SerializeToString()


def seqs_of(page: Page) -> list[int]:
    return [stored.seq for stored in page.events]


@st.composite
def memberships(draw: st.DrawFn) -> Membership:
    """A membership with gaps, past or present, in a log that ends at `head_seq`."""
    head_seq = draw(st.integers(1, HORIZON))
    bounds = sorted(draw(st.sets(st.integers(1, head_seq), min_size=1, max_size=10)))
    closed = [Interval(joined, left) for joined, left in zip(bounds[::2], bounds[1::2], strict=False)]
    intervals = (*closed, Interval(bounds[-1])) if len(bounds) % 2 else tuple(closed)
    return Membership(CHAT_ID, intervals, head_seq)


def visible_seqs(membership: Membership) -> list[int]:
    """The model: every seq of the log that lies in an interval."""
    return [
        seq
        for seq in range(1, membership.head_seq + 1)
        if any(i.joined_seq <= seq and (i.left_seq == 0 or seq <= i.left_seq) for i in membership.intervals)
    ]


sizes = st.lists(st.integers(0, 60), min_size=HORIZON, max_size=HORIZON)


@given(memberships(), st.integers(0, HORIZON + 2), st.integers(1, 12))
async def test_before(membership: Membership, seq: int, limit: int) -> None:
    page = await read_page(await log_of([1] * HORIZON), membership, "before", seq, limit=limit, limits=LIMITS)
    visible = visible_seqs(membership)
    assert seqs_of(page) == [s for s in visible if s < seq][-limit:]
    assert page.more_before == (len([s for s in visible if s < seq]) > limit)
    assert page.more_after == any(s >= seq for s in visible)


@given(memberships(), st.integers(0, HORIZON + 2), st.integers(1, 12))
async def test_after(membership: Membership, seq: int, limit: int) -> None:
    page = await read_page(await log_of([1] * HORIZON), membership, "after", seq, limit=limit, limits=LIMITS)
    visible = visible_seqs(membership)
    assert seqs_of(page) == [s for s in visible if s > seq][:limit]
    assert page.more_after == (len([s for s in visible if s > seq]) > limit)
    assert page.more_before == any(s <= seq for s in visible)


@given(memberships(), st.integers(0, HORIZON + 2), st.integers(1, 12))
async def test_around(membership: Membership, seq: int, limit: int) -> None:
    page = await read_page(await log_of([1] * HORIZON), membership, "around", seq, limit=limit, limits=LIMITS)
    visible = visible_seqs(membership)
    below, above = [s for s in visible if s < seq], [s for s in visible if s >= seq]
    half = limit // 2
    expected = (below[-half:] if half else []) + above[: limit - half]
    assert seqs_of(page) == expected
    assert page.more_before == (len(below) > half)
    assert page.more_after == (len(above) > limit - half)


@given(memberships(), sizes, st.integers(1, 12), st.integers(1, 400), st.sampled_from(["before", "after"]))
async def test_pages_joined_are_all_that_is_visible(
    membership: Membership, text_sizes: list[int], limit: int, bytes_max: int, side: Literal["before", "after"]
) -> None:
    log, limits = await log_of(text_sizes), replace(LIMITS, page_bytes_max=bytes_max)
    seq = membership.head_seq + 1 if side == "before" else 0
    seen: list[int] = []
    while True:
        page = await read_page(log, membership, side, seq, limit=limit, limits=limits)
        assert 0 < len(page.events) <= limit
        assert sum(len(stored.event) for stored in page.events[:-1]) <= bytes_max or side == "before"
        assert sum(len(stored.event) for stored in page.events[1:]) <= bytes_max or side == "after"
        seen = seqs_of(page) + seen if side == "before" else seen + seqs_of(page)
        seq = page.events[0 if side == "before" else -1].seq
        if not (page.more_before if side == "before" else page.more_after):
            break
    assert seen == visible_seqs(membership)


@pytest.mark.parametrize(("limit", "length"), [(0, 20), (7, 7), (100, 100), (101, 100), (1_000_000, 100)])
@pytest.mark.parametrize("side", ["before", "after", "around"])
async def test_limit_has_a_default_and_a_maximum(side: Side, limit: int, length: int) -> None:
    log = await log_of([1] * 300)
    membership = Membership(CHAT_ID, (Interval(1),), head_seq=300)
    seq = {"before": 301, "after": 0, "around": 150}[side]
    page = await read_page(log, membership, side, seq, limit=limit, limits=LIMITS)
    assert len(page.events) == length
