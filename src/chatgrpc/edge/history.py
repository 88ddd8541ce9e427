"""Pages of a chat's history as one user may see it (G6), for the unary services and the streams alike."""

from dataclasses import dataclass
from typing import Literal

from chatgrpc.core.limits import Limits
from chatgrpc.core.visibility import next_visible, segments_after, segments_before
from chatgrpc.ports.chat_log import ChatReader, Membership, StoredEvent

Side = Literal["before", "after", "around"]
"""Where a page lies: just below a seq, just above it, or half of it below and half from it on."""


@dataclass(frozen=True, slots=True)
class Page:
    """Neighbouring visible events."""

    events: list[StoredEvent]
    """By rising seq; what lies between two intervals of membership is left out without a trace."""
    more_before: bool
    """There are visible events below the page."""
    more_after: bool
    """There are visible events above the page."""


async def read_page(log: ChatReader, membership: Membership, side: Side, seq: int, *, limit: int, limits: Limits) -> Page:
    """Reads one page. It costs one read of the log per interval of membership that it touches, wherever it lies.

    Args:
        log: where the chat is.
        membership: the reader's, present or past; the page ends at its `head_seq`.
        side: how the page lies to `seq`; the newest page is the one before `head_seq + 1`.
        seq: any number from 0; it need not be visible, or exist.
        limit: events wanted; 0 = `limits.history_page_default`; more than `limits.history_page_max` is cut to it.
        limits: the page also ends early, by whole events, once it is larger than `limits.page_bytes_max`.

    Raises:
        StoreError: the log cannot be read.
    """
    wanted = min(limit or limits.history_page_default, limits.history_page_max)
    match side:
        case "before":
            events = await _read_before(log, membership, seq, wanted, limits.page_bytes_max)
            below, above = seq, seq - 1
        case "after":
            events = await _read_after(log, membership, seq, wanted, limits.page_bytes_max)
            below, above = seq + 1, seq
        case "around":
            half_bytes = limits.page_bytes_max // 2
            events = await _read_before(log, membership, seq, wanted // 2, half_bytes)
            events += await _read_after(log, membership, seq - 1, wanted - wanted // 2, half_bytes)
            below, above = seq, seq - 1
    if events:
        below, above = events[0].seq, events[-1].seq
    following = next_visible(membership.intervals, above)
    return Page(
        events,
        more_before=bool(segments_before(membership.intervals, below, membership.head_seq)),
        more_after=following is not None and following <= membership.head_seq,
    )


async def _read_after(log: ChatReader, membership: Membership, seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
    events: list[StoredEvent] = []
    for segment in segments_after(membership.intervals, seq, membership.head_seq):
        if limit <= 0 or bytes_max <= 0:
            break
        part = await log.read_after(membership.chat_id, segment.first_seq - 1, segment.last_seq, limit, bytes_max)
        events += part
        if not part or part[-1].seq < segment.last_seq:
            break
        limit -= len(part)
        bytes_max -= sum(len(event.event) for event in part)
    return events


async def _read_before(log: ChatReader, membership: Membership, seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
    parts: list[list[StoredEvent]] = []
    for segment in segments_before(membership.intervals, seq, membership.head_seq):
        if limit <= 0 or bytes_max <= 0:
            break
        part = await log.read_before(membership.chat_id, segment.last_seq + 1, segment.first_seq, limit, bytes_max)
        parts.append(part)
        if not part or part[0].seq > segment.first_seq:
            break
        limit -= len(part)
        bytes_max -= sum(len(event.event) for event in part)
    return [event for part in reversed(parts) for event in part]
