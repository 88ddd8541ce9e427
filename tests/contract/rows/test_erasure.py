"""The contract of `ports.row_store.RowStore`: erasing the content of a message and of what amends it."""

import itertools

import pytest

from chatgrpc.core.epochs import Row, adopted_tail
from chatgrpc.core.events import erased
from chatgrpc.core.row_store import ReadBucket, WriteBoundary, WriteRow
from tests.contract.rows.writes import BYTES_MAX, Rows, log, row, views
from tests.contract.stores.entries import event, is_erased


async def stored(rows: Rows, chat_id: str, bucket: int = 0) -> dict[tuple[int, int], bool]:
    """By seq and epoch of each row: whether it is erased."""
    found = await rows.store.read_bucket(ReadBucket(chat_id, bucket, 0))
    return {(row.seq, row.epoch): is_erased(row.event) for row in sorted(found.rows, key=lambda row: (row.seq, row.epoch))}


async def test_replaces_the_content_and_keeps_the_rest(rows: Rows, chat: str) -> None:
    await rows.write(*log(chat, range(1, 5)))
    await rows.write(views(chat, 4, erases_seq=2))
    events = await rows.committed.read_after(chat, 0, 4, 10, BYTES_MAX)
    assert [(e.seq, e.event) for e in events] == [
        (1, event(chat, 1, "message 1 of 1")),
        (2, erased(event(chat, 2, "message 2 of 1"))),
        (3, event(chat, 3, "message 3 of 1")),
        (4, event(chat, 4, "message 4 of 1")),
    ]


async def test_reaches_what_amends_it_below_the_erasing_event(rows: Rows, chat: str) -> None:
    await rows.write(*log(chat, range(1, 9)))
    for seq, amends in ((3, 2), (4, 1), (5, 2)):
        await rows.write(views(chat, seq, amends_seq=amends))
    await rows.write(views(chat, 6, erases_seq=2))
    assert await stored(rows, chat) == {(seq, 1): seq in {2, 3, 5} for seq in range(1, 9)}


async def test_twice_is_once(rows: Rows, chat: str) -> None:
    await rows.write(*log(chat, range(1, 5)), views(chat, 2, amends_seq=1))
    for _ in range(2):
        await rows.write(views(chat, 4, erases_seq=1))
    assert await stored(rows, chat) == {(1, 1): True, (2, 1): True, (3, 1): False, (4, 1): False}


async def test_of_what_is_not_there_is_passed_over(rows: Rows, chat: str) -> None:
    await rows.write(*log(chat, [1]))
    await rows.write(views(chat, 1, erases_seq=1), views(chat, 1, erases_seq=7), views(chat, 1, erases_seq=70_000))
    assert await stored(rows, chat) == {(1, 1): False}


async def test_in_another_bucket(rows: Rows, chat: str) -> None:
    await rows.write(*log(chat, [9_998, 9_999, 10_000, 10_001]))
    await rows.write(views(chat, 10_000, amends_seq=9_998))
    await rows.write(views(chat, 10_001, erases_seq=9_998))
    assert await stored(rows, chat, 0) == {(9_998, 1): True, (9_999, 1): False}
    assert await stored(rows, chat, 1) == {(10_000, 1): True, (10_001, 1): False}


async def test_reaches_rows_that_land_later(rows: Rows, chat: str) -> None:
    await rows.write(row(chat, 1, 5))
    await rows.write(views(chat, 2, epoch=6, erases_seq=1))
    await rows.write(row(chat, 1, 5), row(chat, 1, 3), row(chat, 1, 6))
    assert await stored(rows, chat) == {(1, 6): True}


async def test_leaves_what_its_owner_may_adopt_again(rows: Rows, chat: str) -> None:
    """An owner that reads an older mark than before adopts what it has erased, writes it again, and then its boundary."""
    await rows.write(*log(chat, range(1, 5), epoch=5))
    await rows.write(views(chat, 4, epoch=6, erases_seq=2))
    adopted = (await rows.store.read_bucket(ReadBucket(chat, 0, 0))).rows
    await rows.write(*(WriteRow(chat, 0, Row(found.seq, 6, found.event)) for found in adopted))
    await rows.write(WriteBoundary(chat, 0, 6, 1))
    found = await rows.store.read_bucket(ReadBucket(chat, 0, 0))
    tail = adopted_tail(found.rows, found.boundaries, 0)
    assert [(row.seq, row.epoch, is_erased(row.event)) for row in tail] == [(seq, 6, seq == 2) for seq in range(1, 5)]


async def test_leaves_one_row_of_many_epochs(rows: Rows, chat: str) -> None:
    await rows.write(row(chat, 1, 2), row(chat, 1, 5), row(chat, 1, 7))
    await rows.write(views(chat, 2, epoch=7, erases_seq=1))
    assert await stored(rows, chat) == {(1, 7): True}


async def test_leaves_the_row_of_a_later_epoch_alone(rows: Rows, chat: str) -> None:
    """Its owner adopted the deletion, and erases by it; a paused owner must not touch what it cannot know."""
    await rows.write(row(chat, 1, 2), row(chat, 1, 9))
    await rows.write(views(chat, 2, epoch=7, erases_seq=1))
    assert await stored(rows, chat) == {(1, 7): True, (1, 9): False}
    await rows.write(row(chat, 1, 8))
    assert await stored(rows, chat) == {(1, 7): True, (1, 8): False, (1, 9): False}
    await rows.write(views(chat, 2, epoch=9, erases_seq=1))
    assert await stored(rows, chat) == {(1, 9): True}


async def test_by_an_earlier_epoch_that_lands_late_changes_nothing(rows: Rows, chat: str) -> None:
    await rows.write(row(chat, 1, 2))
    await rows.write(views(chat, 2, epoch=5, erases_seq=1))
    await rows.write(views(chat, 2, epoch=3, erases_seq=1))
    await rows.write(row(chat, 1, 4), row(chat, 1, 6, "adopted before it was erased"))
    assert await stored(rows, chat) == {(1, 5): True, (1, 6): False}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("together", [True, False])
async def test_of_what_a_new_owner_adopts_comes_in_any_order(
    rows: Rows, chat: str, order: tuple[int, ...], together: bool
) -> None:
    await rows.write(*log(chat, range(1, 5), epoch=6))
    steps = [
        views(chat, 2, epoch=6, amends_seq=1),
        views(chat, 3, epoch=6, amends_seq=1),
        views(chat, 4, epoch=6, erases_seq=1),
    ]
    ordered = [steps[place] for place in order]
    for group in [ordered] if together else [[step] for step in ordered]:
        await rows.write(*group)
    assert await stored(rows, chat) == {(1, 6): True, (2, 6): True, (3, 6): True, (4, 6): False}
