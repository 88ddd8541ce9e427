"""Epochs: which rows of a chat's log count when owners come and go (design §4, ADR 4).

A row is keyed by seq and epoch, so an owner that was replaced and does not know it yet can overwrite nothing. What it wrote
too late is told from the log by *boundaries*: `boundary[e] = s` says that the owner of epoch `e` rules from seq `s` on, and a
row of an earlier epoch at or above `s` is void.

Two questions are asked of rows, by two who know different things:

- The next owner asks what it must take over (`adopted_tail`). It knows the committed mark, below which all is settled, and the
  boundaries.
- A reader asks for events up to a seq that an owner stated as committed (`committed_run`). The highest epoch at each seq is the
  answer, without any boundary: an owner that came later has found that seq committed, so it wrote the same content there or
  nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

BUCKET_SEQS = 10_000
"""Seqs of a chat that share a partition of the store."""
SEQ_MAX = 2**31 * BUCKET_SEQS - 1
"""The last seq of the last bucket, whose number takes 31 bits in the store. No chat gets there."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a chat's log, as the store holds it; not yet an event (see `committed_run`)."""

    seq: int
    epoch: int
    event: bytes
    """Serialized ChatEvent."""


def bucket_of(seq: int, bucket_seqs: int = BUCKET_SEQS) -> int:
    """The bucket that a seq's rows, and the boundaries that judge them, lie in."""
    return seq // bucket_seqs


def is_void(row: Row, boundaries: Mapping[int, int]) -> bool:
    """Whether a later owner ruled at the row's seq; `boundaries` maps an epoch to the first seq it rules."""
    return any(epoch > row.epoch and first_seq <= row.seq for epoch, first_seq in boundaries.items())


def adopted_tail(rows: Iterable[Row], boundaries: Mapping[int, int], mark_seq: int) -> list[Row]:
    """What a new owner takes over above the committed mark: the longest run without a gap of rows that are not void.

    Of several rows at one seq the highest epoch counts. Rows beyond a hole were never acknowledged: acknowledgements leave in
    order of seq, so the one in the hole would have been first.

    Args:
        rows: all rows above the mark, in any order.
        boundaries: of the mark's bucket and of all buckets above it. The mark's own bucket matters also when the rows begin in
            the next one: an owner writes its boundary there only before its first row there.
        mark_seq: a seq at or below which everything is committed.
    """
    best = _highest_epochs(row for row in rows if row.seq > mark_seq and not is_void(row, boundaries))
    return _run(best, mark_seq)


def committed_run(rows: Iterable[Row], after_seq: int, stated_seq: int) -> list[Row]:
    """The events `after_seq < seq <= stated_seq`, as a reader may show them; it ends early where a row is missing.

    Nothing above `stated_seq` is an event yet. Below it nothing is missing from a QUORUM read that began after the statement;
    a reader that finds a hole has read too early or too little, and reads again.
    """
    best = _highest_epochs(row for row in rows if after_seq < row.seq <= stated_seq)
    return _run(best, after_seq)


def _highest_epochs(rows: Iterable[Row]) -> dict[int, Row]:
    best: dict[int, Row] = {}
    for row in rows:
        other = best.get(row.seq)
        if other is None or other.epoch < row.epoch:
            best[row.seq] = row
    return best


def _run(rows: Mapping[int, Row], after_seq: int) -> list[Row]:
    run: list[Row] = []
    while (row := rows.get(after_seq + len(run) + 1)) is not None:
        run.append(row)
    return run
