"""The contract of `ports.row_store.RowStore`: rows, boundaries, marks, views. Erasing has a file of its own."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence

import pytest

from chatgrpc.core.row_store import ReadBucket, ReadHead, StoredBucket, StoredHead, StoreWrite, WriteBoundary, WriteMark
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.row_store import Interval
from tests.contract.rows.writes import Rows, log, row, views
from tests.contract.stores.entries import event, view


async def keys_of(rows: Rows, chat_id: str, bucket: int = 0, from_seq: int = 0) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """The keys of a bucket's rows, rising, and its boundaries."""
    found = await rows.store.read_bucket(ReadBucket(chat_id, bucket, from_seq))
    return sorted((row.seq, row.epoch) for row in found.rows), found.boundaries


class TestRows:
    async def test_of_a_chat_that_nobody_wrote_to_are_none(self, rows: Rows, chat: str) -> None:
        assert await rows.store.read_bucket(ReadBucket(chat, 0, 0)) == StoredBucket()
        assert await rows.store.read_head(ReadHead(chat)) == StoredHead()

    async def test_of_every_epoch_are_found_from_a_seq_on(self, rows: Rows, chat: str) -> None:
        await rows.write(row(chat, 1, 1), row(chat, 2, 1), row(chat, 2, 7), row(chat, 3, 7), row(chat, 9, 3))
        assert await keys_of(rows, chat, from_seq=2) == ([(2, 1), (2, 7), (3, 7), (9, 3)], {})
        assert await keys_of(rows, chat, from_seq=10) == ([], {})

    async def test_keep_their_bytes(self, rows: Rows, chat: str) -> None:
        write = row(chat, 1, text="schön \0 \N{PILE OF POO}")
        await rows.write(write)
        assert await rows.store.read_bucket(ReadBucket(chat, 0, 1)) == StoredBucket([write.row])

    async def test_of_the_largest_size_and_the_smallest(self, rows: Rows, chat: str) -> None:
        large, small = row(chat, 1, text="x" * 100_000), row(chat, 2, text="")
        await rows.write(large, small)
        found = await rows.store.read_bucket(ReadBucket(chat, 0, 1))
        assert sorted(found.rows, key=lambda row: row.seq) == [large.row, small.row]

    async def test_of_other_buckets_and_chats_stay_apart(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, [9_999, 10_000]), *log(chat + "x", [1]))
        assert await keys_of(rows, chat, 0) == ([(9_999, 1)], {})
        assert await keys_of(rows, chat, 1) == ([(10_000, 1)], {})

    async def test_written_again_are_there_once(self, rows: Rows, chat: str) -> None:
        write = row(chat, 1)
        await rows.write(write)
        await rows.write(write, write, write)
        assert await rows.store.read_bucket(ReadBucket(chat, 0, 0)) == StoredBucket([write.row])

    async def test_more_than_fit_into_a_page_are_all_found(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, range(1, 1_201)))
        assert await keys_of(rows, chat, from_seq=101) == ([(seq, 1) for seq in range(101, 1_201)], {})


class TestBoundaries:
    async def test_are_found_with_and_without_rows(self, rows: Rows, chat: str) -> None:
        await rows.write(WriteBoundary(chat, 0, 5, 17))
        assert await keys_of(rows, chat) == ([], {5: 17})
        await rows.write(row(chat, 20, 5), WriteBoundary(chat, 0, 9, 21))
        assert await keys_of(rows, chat) == ([(20, 5)], {5: 17, 9: 21})
        assert await keys_of(rows, chat, from_seq=21) == ([], {5: 17, 9: 21})

    async def test_belong_to_a_bucket(self, rows: Rows, chat: str) -> None:
        await rows.write(WriteBoundary(chat, 0, 5, 9_990), WriteBoundary(chat, 1, 5, 9_990), WriteBoundary(chat, 1, 6, 10_001))
        assert await keys_of(rows, chat, 0) == ([], {5: 9_990})
        assert await keys_of(rows, chat, 1) == ([], {5: 9_990, 6: 10_001})

    async def test_of_an_earlier_epoch_that_land_late_are_kept_too(self, rows: Rows, chat: str) -> None:
        await rows.write(WriteBoundary(chat, 0, 9, 21))
        await rows.write(WriteBoundary(chat, 0, 5, 17))
        assert await keys_of(rows, chat) == ([], {5: 17, 9: 21})


class TestReports:
    async def test_of_many_writes_at_once_name_each_once(self, rows: Rows, chat: str) -> None:
        writes: list[StoreWrite] = [row(f"{chat}{n % 301}", n, 1 + n % 3, "x" * (n % 700)) for n in range(1, 3_001)]
        writes += [WriteBoundary(f"{chat}{n}", 0, 1, 1) for n in range(300)]
        writes += [views(f"{chat}{n}", 1, view(b"state")) for n in range(50)]
        await rows.write(*writes)
        for number in (0, 150, 300):
            expected = [write.row for write in writes[:3_000] if write.chat_id == f"{chat}{number}"]  # type: ignore[union-attr]
            found = await rows.store.read_bucket(ReadBucket(f"{chat}{number}", 0, 0))
            assert sorted(found.rows, key=lambda row: row.seq) == expected

    async def test_go_to_whom_asked(self, rows: Rows, chat: str) -> None:
        loop = asyncio.get_running_loop()
        reported: list[list[StoreWrite]] = [[] for _ in range(40)]
        asked = [[row(chat, seq), row(f"{chat}{seq}", seq), row(f"{chat}{seq}", seq + 1)] for seq in range(40)]
        done = loop.create_future()

        def ask(number: int) -> None:
            def written(part: Sequence[StoreWrite], error: StoreError | None) -> None:
                assert error is None
                reported[number].extend(part)
                if sum(map(len, reported)) == 120 and not done.done():
                    done.set_result(None)

            rows.store.write(asked[number], written)

        for number in range(40):
            ask(number)
        await asyncio.wait_for(done, 30)
        assert [Counter(map(id, part)) for part in reported] == [Counter(map(id, part)) for part in asked]

    async def test_of_nothing_are_none(self, rows: Rows) -> None:
        await rows.store.write_marks([])
        rows.store.write([], lambda writes, error: None)


class TestMarks:
    @pytest.mark.parametrize("order", list(itertools.permutations([3, 300, 20])))
    async def test_never_fall(self, rows: Rows, chat: str, order: tuple[int, ...]) -> None:
        for seq in order:
            await rows.store.write_marks([WriteMark(chat, seq)])
        assert await rows.store.read_head(ReadHead(chat)) == StoredHead(300)

    async def test_of_many_chats_are_written_at_once(self, rows: Rows, chat: str) -> None:
        await rows.store.write_marks([WriteMark(f"{chat}{n}", n) for n in range(1, 101)])
        assert (await rows.store.read_head(ReadHead(f"{chat}77"))).mark_seq == 77

    async def test_and_views_leave_each_other_alone(self, rows: Rows, chat: str) -> None:
        await rows.store.write_marks([WriteMark(chat, 90)])
        await rows.write(views(chat, 5, view(b"five")))
        assert await rows.store.read_head(ReadHead(chat)) == StoredHead(90, b"five")
        await rows.store.write_marks([WriteMark(chat, 91)])
        await rows.write(views(chat, 100, view(b"hundred")))
        assert await rows.store.read_head(ReadHead(chat)) == StoredHead(91, b"hundred")


class TestViews:
    @pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
    async def test_the_later_one_stays_whatever_order_they_land_in(
        self, rows: Rows, chat: str, user: str, order: tuple[int, ...]
    ) -> None:
        steps = {
            1: views(chat, 1, view(b"one", **{user: (1, 0)})),
            2: views(chat, 2, view(b"two", **{user: (1, 2)})),
            3: views(chat, 3, view(b"three", **{user: (3, 0)}), epoch=4),
        }
        for number in order:
            await rows.write(steps[number])
        assert await rows.committed.chat_view(chat) == b"three"
        assert await rows.committed.intervals(user, chat) == (Interval(1, 2), Interval(3, 0))

    async def test_written_again_stay(self, rows: Rows, chat: str, user: str) -> None:
        write = views(chat, 4, view(b"four", **{user: (4, 0)}))
        await rows.write(write)
        await rows.write(write, write)
        assert await rows.store.read_head(ReadHead(chat)) == StoredHead(0, b"four")
        assert await rows.committed.intervals(user, chat) == (Interval(4, 0),)

    async def test_of_many_members_are_all_stored(self, rows: Rows, chat: str, user: str) -> None:
        members = {f"{user}{n}": (1, 0) for n in range(256)}
        await rows.write(views(chat, 1, view(bytes(20_000), **members)))
        for number in (0, 100, 255):
            assert await rows.committed.intervals(f"{user}{number}", chat) == (Interval(1, 0),)
        assert await rows.committed.chat_view(chat) == bytes(20_000)

    async def test_of_an_event_that_changes_nothing_change_nothing(self, rows: Rows, chat: str) -> None:
        await rows.write(views(chat, 1, view(b"one")))
        await rows.write(views(chat, 2))
        assert await rows.store.read_head(ReadHead(chat)) == StoredHead(0, b"one")


async def test_rows_are_seen_by_whoever_reads_once_they_are_reported(rows: Rows, chat: str) -> None:
    for seq in range(1, 31):
        await rows.write(row(chat, seq))
        pages = await asyncio.gather(*(rows.committed.read_before(chat, seq + 1, 1, 1, 1) for _ in range(4)))
        assert [[(stored.seq, stored.event) for stored in page] for page in pages] == [
            [(seq, event(chat, seq, f"message {seq} of 1"))]
        ] * 4
