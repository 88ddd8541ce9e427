"""Appends under way: what is let out when, and what counts when."""

from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.append_pipeline import AppendPipeline
from chatgrpc.core.entries import ChatView, Entry
from chatgrpc.core.row_store import StoreWrite, WriteBoundary, WriteRow, WriteViews


def entry(seq: int, changes_chat: bool = False) -> Entry:
    return Entry("c", seq, 7, f"event {seq}".encode(), view=ChatView(b"chat") if changes_chat else None)


def pipeline(
    head_seq: int = 0, window: int = 256, bucket_seqs: int = 10_000, bounded: tuple[int, ...] = (0,)
) -> AppendPipeline:
    return AppendPipeline("c", 7, head_seq, head_seq + 1, set(bounded), window, bucket_seqs)


def row_seqs(writes: list[StoreWrite]) -> list[int]:
    return [write.row.seq for write in writes if isinstance(write, WriteRow)]


def test_events_count_in_order_of_seq() -> None:
    appends = pipeline()
    for seq in (1, 2, 3):
        appends.append(entry(seq))
    first, second, third = appends.take_writes()
    assert appends.stored(third) == []
    assert appends.stored(first) == [1]
    assert appends.stored(first) == [], "a repeated success is no news"
    assert appends.stored(second) == [2, 3]
    assert appends.is_idle


def test_the_window_bounds_what_is_under_way() -> None:
    appends = pipeline(window=2)
    for seq in (1, 2, 3, 4):
        appends.append(entry(seq))
    first, second = appends.take_writes()
    assert appends.stored(second) == []
    assert appends.take_writes() == [], "the window counts from the oldest that does not count yet"
    assert appends.stored(first) == [1, 2]
    assert row_seqs(appends.take_writes()) == [3, 4]


def test_no_row_before_the_boundary_in_its_bucket() -> None:
    appends = pipeline(head_seq=8, bucket_seqs=10, bounded=())
    for seq in (9, 10, 11):
        appends.append(entry(seq))
    assert appends.take_writes() == [WriteBoundary("c", 0, 7, 9)]
    appends.stored(WriteBoundary("c", 0, 7, 9))
    ninth, boundary = appends.take_writes()
    assert row_seqs([ninth]) == [9]
    assert boundary == WriteBoundary("c", 1, 7, 9)
    appends.stored(boundary)
    assert row_seqs(appends.take_writes()) == [10, 11]


def test_a_chat_is_sealed_by_its_boundary_without_a_row() -> None:
    appends = pipeline(head_seq=9, bucket_seqs=10, bounded=())
    assert not appends.is_sealed
    appends.seal()
    appends.seal()
    assert appends.take_writes() == [WriteBoundary("c", 1, 7, 10)], "where the next row would stand, once"
    appends.append(entry(10))
    assert appends.take_writes() == [], "nor does the row need another one"
    appends.stored(WriteBoundary("c", 1, 7, 10))
    assert appends.is_sealed
    assert row_seqs(appends.take_writes()) == [10]
    appends.seal()
    assert appends.take_writes() == []


def test_an_event_that_changes_the_chat_counts_when_its_views_are_stored() -> None:
    appends = pipeline()
    for seq in (1, 2, 3):
        appends.append(entry(seq, changes_chat=seq == 2))
    first, second, third = appends.take_writes()
    assert appends.stored(second) == []
    assert appends.take_writes() == [], "a view of an event with a hole below it would be a lie"
    assert appends.stored(first) == [1]
    assert appends.stored(third) == []
    (views,) = appends.take_writes()
    assert views == WriteViews(entry(2, changes_chat=True))
    assert appends.stored(views) == [2, 3]


@given(st.data())
def test_in_whatever_order_writes_land_all_events_count_once_in_order(data: st.DataObject) -> None:
    count, window = data.draw(st.integers(1, 25)), data.draw(st.integers(1, 6))
    appends = pipeline(window=window, bucket_seqs=data.draw(st.integers(2, 8)), bounded=())
    views = data.draw(st.sets(st.integers(1, 25)))
    counted: list[int] = []
    landed: list[StoreWrite] = []
    under_way: list[StoreWrite] = []
    appended = 0
    while len(counted) < count:
        if appended < count and (not under_way or data.draw(st.booleans())):
            appended += 1
            appends.append(entry(appended, changes_chat=appended in views))
        under_way += appends.take_writes()
        if under_way:
            write = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            if data.draw(st.booleans()):
                under_way.append(write)  # it will succeed a second time
            landed.append(write)
            for seq in appends.stored(write):
                assert any(isinstance(other, WriteRow) and other.row.seq == seq for other in landed)
                assert seq not in views or any(isinstance(other, WriteViews) and other.entry.seq == seq for other in landed)
                counted.append(seq)
            under_way += appends.take_writes()
    assert counted == list(range(1, count + 1))
    assert appends.is_idle
