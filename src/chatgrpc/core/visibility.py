"""What of a chat's log a user may see (G6): arithmetic on the intervals in which they were a member.

Seqs count from 1 and 0 stands for "none", so `after_seq=0` is before everything. Intervals stand by rising seq and do not
overlap: the event that takes a user out and the one that lets them in again are two events. Only the last may be open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Interval:
    """The seqs at which a user was a member: from the event that let them in to the one that took them out."""

    joined_seq: int
    left_seq: int = 0
    """Seq of the event that took them out, the last one they may see; 0 = they are a member."""


class Segment(NamedTuple):
    """A run of visible events, both ends included; never empty."""

    first_seq: int
    last_seq: int


def is_member(intervals: Sequence[Interval]) -> bool:
    """Whether the user is a member now."""
    return bool(intervals) and intervals[-1].left_seq == 0


def is_visible(intervals: Sequence[Interval], seq: int) -> bool:
    """Whether the user may see the event `seq`; of a seq above the head, whether they could see it as things stand."""
    return any(interval.joined_seq <= seq and (interval.left_seq == 0 or seq <= interval.left_seq) for interval in intervals)


def first_visible(intervals: Sequence[Interval]) -> int:
    """The first event that the user may see; 0 without intervals."""
    return intervals[0].joined_seq if intervals else 0


def last_visible(intervals: Sequence[Interval], head_seq: int) -> int:
    """The last event up to `head_seq` that the user may see; 0 if there is none."""
    segments = segments_before(intervals, head_seq + 1, head_seq)
    return segments[0].last_seq if segments else 0


def last_change(intervals: Sequence[Interval]) -> int:
    """The latest event that changed the membership; 0 without intervals.

    A membership is stored once its event is committed, so the chat's head is at least this, whatever else was said of it.
    """
    return max(intervals[-1].joined_seq, intervals[-1].left_seq) if intervals else 0


def next_visible(intervals: Sequence[Interval], after_seq: int) -> int | None:
    """The lowest seq above `after_seq` that the user may see, committed already or not; None once they left for good."""
    for interval in intervals:
        if interval.left_seq == 0 or interval.left_seq > after_seq:
            return max(interval.joined_seq, after_seq + 1)
    return None


def segments_after(intervals: Sequence[Interval], after_seq: int, up_to_seq: int) -> list[Segment]:
    """The visible runs in `after_seq < seq <= up_to_seq`, oldest first."""
    return [
        Segment(first, last)
        for interval in intervals
        if (first := max(interval.joined_seq, after_seq + 1)) <= (last := min(interval.left_seq or up_to_seq, up_to_seq))
    ]


def segments_before(intervals: Sequence[Interval], before_seq: int, head_seq: int) -> list[Segment]:
    """The visible runs in `1 <= seq < before_seq` up to `head_seq`, newest first."""
    return segments_after(intervals, 0, min(before_seq - 1, head_seq))[::-1]
