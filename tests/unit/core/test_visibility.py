"""The arithmetic of visibility against a model that writes every visible seq into a set."""

from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.visibility import (
    Interval,
    Segment,
    first_visible,
    is_member,
    is_visible,
    last_visible,
    next_visible,
    segments_after,
    segments_before,
)

HORIZON = 80
"""The model's log ends here; no interval of the strategy begins above it."""

seqs = st.integers(0, HORIZON)


@st.composite
def intervals_of_a_user(draw: st.DrawFn) -> tuple[Interval, ...]:
    """Intervals as the log makes them: rising, apart, and only the last one may be open."""
    bounds = sorted(draw(st.sets(st.integers(1, HORIZON), max_size=12)))
    closed = [Interval(joined, left) for joined, left in zip(bounds[::2], bounds[1::2], strict=False)]
    return (*closed, Interval(bounds[-1])) if len(bounds) % 2 else tuple(closed)


def visible_set(intervals: tuple[Interval, ...]) -> set[int]:
    """The model: all visible seqs up to the horizon."""
    return {seq for interval in intervals for seq in range(interval.joined_seq, (interval.left_seq or HORIZON) + 1)}


def flatten(segments: list[Segment]) -> list[int]:
    return [seq for segment in segments for seq in range(segment.first_seq, segment.last_seq + 1)]


@given(intervals_of_a_user(), seqs)
def test_is_visible(intervals: tuple[Interval, ...], seq: int) -> None:
    assert is_visible(intervals, seq) == (seq in visible_set(intervals))


@given(intervals_of_a_user(), seqs)
def test_ends(intervals: tuple[Interval, ...], head: int) -> None:
    assert first_visible(intervals) == min(visible_set(intervals), default=0)
    assert last_visible(intervals, head) == max((seq for seq in visible_set(intervals) if seq <= head), default=0)


@given(intervals_of_a_user(), seqs)
def test_next_visible(intervals: tuple[Interval, ...], after: int) -> None:
    expected = min((seq for seq in visible_set(intervals) if seq > after), default=None)
    if expected is None and is_member(intervals):
        expected = HORIZON + 1
    assert next_visible(intervals, after) == expected


@given(intervals_of_a_user(), seqs, seqs)
def test_segments_after(intervals: tuple[Interval, ...], after: int, up_to: int) -> None:
    segments = segments_after(intervals, after, up_to)
    assert flatten(segments) == sorted(seq for seq in visible_set(intervals) if after < seq <= up_to)
    assert all(segment.first_seq <= segment.last_seq for segment in segments)


@given(intervals_of_a_user(), st.integers(0, HORIZON + 1), seqs)
def test_segments_before(intervals: tuple[Interval, ...], before: int, head: int) -> None:
    segments = segments_before(intervals, before, head)
    assert flatten(segments[::-1]) == sorted(seq for seq in visible_set(intervals) if seq < before and seq <= head)
    assert segments == sorted(segments, reverse=True)


def test_membership_now() -> None:
    assert is_member((Interval(1, 3), Interval(5)))
    assert not is_member((Interval(1, 3), Interval(5, 9)))
    assert not is_member(())
