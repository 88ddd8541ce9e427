"""The contract of `ports.row_store.CommittedLog`."""

import pytest

from chatgrpc.core.row_store import WriteBoundary
from chatgrpc.ports.errors import ChatDamagedError, StoreError
from chatgrpc.ports.row_store import Interval, StoredEvent
from tests.contract.rows.writes import BYTES_MAX, Rows, log, row, views
from tests.contract.stores.entries import event, view

BEYOND = 1 << 64
"""Above every seq a device can name."""


def seqs(events: list[StoredEvent]) -> list[int]:
    return [stored.seq for stored in events]


class TestReadAfter:
    async def test_reads_up_to_what_was_stated_oldest_first(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, range(1, 10)))
        assert await rows.committed.read_after(chat, 2, 5, 100, BYTES_MAX) == [
            StoredEvent(seq, event(chat, seq, f"message {seq} of 1")) for seq in (3, 4, 5)
        ]

    async def test_reads_at_most_so_many(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, range(1, 301)))
        assert seqs(await rows.committed.read_after(chat, 10, 300, 1, BYTES_MAX)) == [11]
        assert seqs(await rows.committed.read_after(chat, 10, 300, 150, BYTES_MAX)) == list(range(11, 161))
        assert seqs(await rows.committed.read_after(chat, 10, 300, 1_000, BYTES_MAX)) == list(range(11, 301))

    @pytest.mark.parametrize(("after_seq", "stated_seq"), [(5, 5), (9, 5), (BEYOND, 5), (0, 0)])
    async def test_above_what_was_stated_there_is_nothing(self, rows: Rows, chat: str, after_seq: int, stated_seq: int) -> None:
        await rows.write(*log(chat, range(1, 10)))
        assert await rows.committed.read_after(chat, after_seq, stated_seq, 100, BYTES_MAX) == []

    async def test_crosses_buckets(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, range(9_990, 10_045)))
        assert seqs(await rows.committed.read_after(chat, 9_989, 10_044, 50, BYTES_MAX)) == list(range(9_990, 10_040))
        assert seqs(await rows.committed.read_after(chat, 9_999, 10_001, 50, BYTES_MAX)) == [10_000, 10_001]


class TestReadBefore:
    async def test_reads_the_newest_oldest_first(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, range(1, 10)))
        assert await rows.committed.read_before(chat, 8, 3, 3, BYTES_MAX) == [
            StoredEvent(seq, event(chat, seq, f"message {seq} of 1")) for seq in (5, 6, 7)
        ]
        assert seqs(await rows.committed.read_before(chat, 8, 3, 100, BYTES_MAX)) == [3, 4, 5, 6, 7]

    async def test_reads_at_most_so_many(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, range(1, 301)))
        assert seqs(await rows.committed.read_before(chat, 300, 1, 150, BYTES_MAX)) == list(range(150, 300))
        assert seqs(await rows.committed.read_before(chat, 301, 0, 1_000, BYTES_MAX)) == list(range(1, 301))

    @pytest.mark.parametrize(("before_seq", "down_to_seq"), [(3, 3), (3, 9), (1, 1), (0, 0), (9, BEYOND)])
    async def test_of_an_empty_range_is_empty(self, rows: Rows, chat: str, before_seq: int, down_to_seq: int) -> None:
        await rows.write(*log(chat, range(1, 10)))
        assert await rows.committed.read_before(chat, before_seq, down_to_seq, 100, BYTES_MAX) == []

    async def test_crosses_buckets(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, range(9_950, 10_005)))
        assert seqs(await rows.committed.read_before(chat, 10_005, 1, 50, BYTES_MAX)) == list(range(9_955, 10_005))
        assert seqs(await rows.committed.read_before(chat, 10_001, 9_999, 50, BYTES_MAX)) == [9_999, 10_000]


SIZES = {
    "equal": [500] * 60,
    "growing": [20 * n for n in range(60)],
    "falling": [20 * n for n in range(60)][::-1],
    "one huge": [10] * 30 + [90_000] + [10] * 29,
}


@pytest.mark.parametrize("bytes_max", [0, 1, 700, 5_000, 91_000])
@pytest.mark.parametrize("sizes", SIZES)
async def test_a_page_ends_with_the_event_that_makes_it_too_large(rows: Rows, chat: str, sizes: str, bytes_max: int) -> None:
    writes = [row(chat, seq, text="x" * size) for seq, size in enumerate(SIZES[sizes], start=1)]
    await rows.write(*writes)
    events = [StoredEvent(write.row.seq, write.row.event) for write in writes]

    def page(of: list[StoredEvent]) -> list[StoredEvent]:
        taken: list[StoredEvent] = []
        for stored in of:
            if sum(len(earlier.event) for earlier in taken) > bytes_max:
                break
            taken.append(stored)
        return taken

    assert await rows.committed.read_after(chat, 5, 60, 1_000, bytes_max) == page(events[5:])
    assert await rows.committed.read_before(chat, 56, 1, 1_000, bytes_max) == page(events[54::-1])[::-1]


class TestEpochs:
    async def test_the_highest_counts_whatever_the_boundaries_say(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, range(1, 7), epoch=2), *log(chat, [3, 4], epoch=5), row(chat, 4, 9))
        await rows.write(WriteBoundary(chat, 0, 9, 2))
        read = await rows.committed.read_after(chat, 0, 6, 100, BYTES_MAX)
        assert [e.event for e in read] == [event(chat, s, f"message {s} of {e}") for s, e in enumerate([2, 2, 5, 9, 2, 2], 1)]
        assert await rows.committed.read_before(chat, 7, 1, 100, BYTES_MAX) == read

    async def test_many_of_them_take_no_room_in_a_page(self, rows: Rows, chat: str) -> None:
        for epoch in range(1, 8):
            await rows.write(*log(chat, range(1, 41), epoch=epoch))
        read = await rows.committed.read_after(chat, 0, 40, 30, BYTES_MAX)
        assert [e.event for e in read] == [event(chat, seq, f"message {seq} of 7") for seq in range(1, 31)]


class TestHoles:
    async def test_a_row_that_must_be_there_and_is_not_is_an_error_until_it_is(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, [1, 2, 4, 5]))
        with pytest.raises(ChatDamagedError, match="seq 3"):
            await rows.committed.read_after(chat, 0, 5, 100, BYTES_MAX)
        with pytest.raises(StoreError):
            await rows.committed.read_before(chat, 6, 2, 100, BYTES_MAX)
        assert seqs(await rows.committed.read_after(chat, 0, 2, 100, BYTES_MAX)) == [1, 2]
        await rows.write(row(chat, 3))
        assert seqs(await rows.committed.read_after(chat, 0, 5, 100, BYTES_MAX)) == [1, 2, 3, 4, 5]

    async def test_a_log_that_ends_before_what_was_stated_has_one(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, [1, 2]))
        with pytest.raises(ChatDamagedError):
            await rows.committed.read_after(chat, 0, 3, 100, BYTES_MAX)

    @pytest.mark.parametrize("seq", [2**31 * 10_000, 2**62, 2**63 - 1, 2**64 - 1])
    async def test_what_no_chat_gets_to_is_missed_whatever_was_stated(self, rows: Rows, chat: str, seq: int) -> None:
        """A node may say anything of a chat's head; there are not as many buckets."""
        await rows.write(*log(chat, [1, 2]))
        for after_seq in (seq - 1, seq - 256):
            with pytest.raises(ChatDamagedError):
                await rows.committed.read_after(chat, after_seq, seq, 100, BYTES_MAX)
        with pytest.raises(ChatDamagedError):
            await rows.committed.read_before(chat, seq + 1, 1, 100, BYTES_MAX)

    async def test_what_no_page_needs_is_not_missed(self, rows: Rows, chat: str) -> None:
        await rows.write(*log(chat, [1, 2, 4, 5]))
        assert seqs(await rows.committed.read_after(chat, 0, 5, 2, BYTES_MAX)) == [1, 2]
        assert seqs(await rows.committed.read_before(chat, 6, 1, 2, BYTES_MAX)) == [4, 5]


class TestChats:
    async def test_the_view_of_a_chat_that_nobody_made_is_empty(self, rows: Rows, chat: str) -> None:
        assert await rows.committed.chat_view(chat) == b""
        await rows.write(row(chat, 1))
        assert await rows.committed.chat_view(chat) == b""

    async def test_a_users_chats_are_listed_page_by_page(self, rows: Rows, chat: str, user: str) -> None:
        chats = sorted(f"{chat}{n}" for n in range(150))
        for chat_id in chats:
            await rows.write(
                views(chat_id, 1, view(b"", **{user: (1, 0)})),
                views(chat_id, 4, view(b"", **{user: (1, 4)})),
                views(chat_id, 6, view(b"", **{user: (6, 0), "other": (6, 0)})),
            )
        intervals = (Interval(1, 4), Interval(6, 0))
        everything = [(chat_id, intervals) for chat_id in chats]
        assert await rows.committed.intervals_of_user(user, "", 1_000) == everything
        assert await rows.committed.intervals_of_user(user, "", 99) == everything[:99]
        assert await rows.committed.intervals_of_user(user, chats[98], 1) == everything[99:100]
        assert await rows.committed.intervals_of_user(user, chats[100], 150) == everything[101:]
        assert await rows.committed.intervals_of_user(user, chats[-1], 10) == []

    async def test_those_of_now_are_listed_with_all_that_they_were(self, rows: Rows, chat: str, user: str) -> None:
        chats = sorted(f"{chat}{n}" for n in range(230))
        for number, chat_id in enumerate(chats):
            await rows.write(views(chat_id, 1, view(b"", **{user: (1, 0)})))
            if number % 2:
                await rows.write(views(chat_id, 4, view(b"", **{user: (1, 4)})))
            if number % 4 == 1:
                await rows.write(views(chat_id, 6, view(b"", **{user: (6, 0)})))
        once, again = (Interval(1, 0),), (Interval(1, 4), Interval(6, 0))
        expected = [(chat_id, again if number % 2 else once) for number, chat_id in enumerate(chats) if number % 4 != 3]
        of_user = rows.committed.intervals_of_user
        assert await of_user(user, "", 1_000, present_only=True) == expected
        assert await of_user(user, "", 101, present_only=True) == expected[:101]
        assert await of_user(user, expected[1][0], 2, present_only=True) == expected[2:4]
        assert await of_user(user, chats[-1], 10, present_only=True) == []

    async def test_of_a_stranger_are_none(self, rows: Rows, chat: str, user: str) -> None:
        assert await rows.committed.intervals_of_user(user, "", 10) == []
        assert await rows.committed.intervals(user, chat) == ()
        assert await rows.committed.count_groups([user]) == {user: 0}
        assert await rows.committed.count_groups([]) == {}

    async def test_those_that_a_user_is_in_now_are_counted(self, rows: Rows, chat: str, user: str) -> None:
        other = f"{user}x"
        for number in range(5):
            await rows.write(views(f"{chat}{number}", 1, view(b"", **{user: (1, 0), other: (1, 0)})))
        await rows.write(views(f"{chat}1", 2, view(b"", **{user: (1, 2)})))
        await rows.write(views(f"{chat}2", 2, view(b"", **{user: (1, 2)})))
        await rows.write(views(f"{chat}2", 3, view(b"", **{user: (3, 0)})))
        assert await rows.committed.count_groups([user, other, f"{user}y"]) == {user: 4, other: 5, f"{user}y": 0}
