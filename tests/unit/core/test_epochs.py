"""Which rows count: the rules, and random logs against their words."""

from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.epochs import Row, adopted_tail, bucket_of, committed_run, is_void

rows_st = st.dictionaries(st.tuples(st.integers(1, 12), st.integers(1, 5)), st.binary(min_size=1, max_size=2), max_size=40).map(
    lambda found: [Row(seq, epoch, event) for (seq, epoch), event in found.items()]
)
boundaries_st = st.dictionaries(st.integers(1, 6), st.integers(1, 12))


def seqs(rows: list[Row]) -> list[tuple[int, int]]:
    return [(row.seq, row.epoch) for row in rows]


def row(seq: int, epoch: int) -> Row:
    return Row(seq, epoch, f"{seq}/{epoch}".encode())


def test_a_row_is_void_from_the_first_seq_that_a_later_epoch_rules() -> None:
    assert is_void(row(5, 1), {2: 5})
    assert not is_void(row(4, 1), {2: 5})
    assert not is_void(row(5, 2), {2: 5})
    assert not is_void(row(5, 3), {2: 5})


def test_the_highest_epoch_counts() -> None:
    assert seqs(adopted_tail([row(1, 2), row(1, 1), row(1, 3)], {}, 0)) == [(1, 3)]


def test_what_stands_beyond_a_hole_is_not_adopted() -> None:
    assert seqs(adopted_tail([row(3, 1), row(4, 1), row(6, 1)], {}, 2)) == [(3, 1), (4, 1)]


def test_a_void_row_leaves_a_hole() -> None:
    assert seqs(adopted_tail([row(3, 2), row(4, 1), row(5, 2)], {2: 3}, 2)) == [(3, 2)]


def test_a_reader_sees_nothing_above_what_was_stated() -> None:
    rows = [row(1, 1), row(2, 1), row(3, 1)]
    assert seqs(committed_run(rows, 0, 2)) == [(1, 1), (2, 1)]
    assert seqs(committed_run(rows, 1, 3)) == [(2, 1), (3, 1)]
    assert committed_run([row(2, 1)], 0, 2) == []


def test_buckets_are_counted_from_seq_0() -> None:
    assert [bucket_of(seq) for seq in (1, 9_999, 10_000, 20_000)] == [0, 0, 1, 2]


@given(rows_st, boundaries_st, st.integers(0, 12))
def test_the_tail_is_as_the_words_say(rows: list[Row], boundaries: dict[int, int], mark_seq: int) -> None:
    tail = adopted_tail(rows, boundaries, mark_seq)
    assert [adopted.seq for adopted in tail] == list(range(mark_seq + 1, mark_seq + 1 + len(tail)))
    for adopted in tail:
        rivals = [other for other in rows if other.seq == adopted.seq and not is_void(other, boundaries)]
        assert adopted.epoch == max(other.epoch for other in rivals)
    beyond = [other for other in rows if other.seq == mark_seq + len(tail) + 1]
    assert all(is_void(other, boundaries) for other in beyond)


@given(rows_st, boundaries_st, st.integers(0, 12), st.permutations(range(40)))
def test_the_order_of_rows_does_not_matter(
    rows: list[Row], boundaries: dict[int, int], mark_seq: int, order: list[int]
) -> None:
    shuffled = [rows[index] for index in order if index < len(rows)]
    assert adopted_tail(rows, boundaries, mark_seq) == adopted_tail(shuffled, boundaries, mark_seq)
    assert committed_run(rows, mark_seq, 12) == committed_run(shuffled, mark_seq, 12)
