"""The contract of `ports.receipts.ReceiptStore`."""

import itertools

import pytest

from chatgrpc.ports.receipts import SMALL_CHAT_MARKS_MAX, Mark
from tests.contract.stores.engines import Engine
from tests.contract.stores.entries import entry, view

CHAT = "g.AAAAAAAAAAAAAAAAAAAAAA"
OTHER = "d.BBBBBBBBBBBBBBBBBBBBBB"


def by_place(marks: list[Mark]) -> list[Mark]:
    return sorted(marks, key=lambda mark: (mark.chat_id, mark.user_id))


async def join(engine: Engine, chat_id: str, *user_ids: str) -> None:
    members = dict.fromkeys(user_ids, (1, 0))
    await engine.commit(entry(chat_id, 1, view=view(b"", **members)))


async def test_nothing_saved_nothing_read(engine: Engine) -> None:
    await engine.receipts.save([])
    assert await engine.receipts.of_chat(CHAT) == []


async def test_reads_the_marks_of_one_chat(engine: Engine) -> None:
    mine, other = Mark(CHAT, "alice", 5, 3, 100), Mark(CHAT, "bob", 7, 7, 200)
    await engine.receipts.save([mine, other, Mark(OTHER, "alice", 9, 9, 300)])
    assert by_place(await engine.receipts.of_chat(CHAT)) == [mine, other]


@pytest.mark.parametrize("order", list(itertools.permutations([(5, 1, 30), (2, 4, 10), (3, 3, 20)])))
@pytest.mark.parametrize("together", [True, False])
async def test_marks_never_fall_whatever_order_saves_arrive_in(
    engine: Engine, order: tuple[tuple[int, int, int], ...], together: bool
) -> None:
    marks = [Mark(CHAT, "alice", *numbers) for numbers in order]
    for batch in [marks] if together else [[mark] for mark in marks]:
        await engine.receipts.save(batch)
    assert await engine.receipts.of_chat(CHAT) == [Mark(CHAT, "alice", 5, 4, 30)]


class TestOfUserChats:
    async def test_reads_all_members_marks_of_the_users_chats(self, engine: Engine) -> None:
        await join(engine, CHAT, "alice", "bob")
        await join(engine, OTHER, "bob", "carol")
        marks = [Mark(CHAT, "alice", 1, 1, 100), Mark(CHAT, "bob", 1, 0, 200), Mark(OTHER, "carol", 1, 1, 300)]
        await engine.receipts.save(marks)
        assert by_place(await engine.receipts.of_user_chats("alice", 0)) == marks[:2]
        assert by_place(await engine.receipts.of_user_chats("bob", 0)) == by_place(marks)
        assert await engine.receipts.of_user_chats("mallory", 0) == []

    async def test_reads_those_changed_at_or_after_a_time(self, engine: Engine) -> None:
        await join(engine, CHAT, "alice", "bob", "carol")
        marks = [Mark(CHAT, "alice", 1, 1, 100), Mark(CHAT, "bob", 1, 1, 200), Mark(CHAT, "carol", 1, 1, 300)]
        await engine.receipts.save(marks)
        assert by_place(await engine.receipts.of_user_chats("bob", 200)) == marks[1:]
        assert await engine.receipts.of_user_chats("carol", 301) == marks[2:], "their own, whenever they changed"
        assert by_place(await engine.receipts.of_user_chats("alice", 300)) == [marks[0], marks[2]]

    async def test_skips_chats_that_the_user_left_and_not_those_they_came_back_to(self, engine: Engine) -> None:
        await join(engine, CHAT, "alice", "bob")
        mark = Mark(CHAT, "bob", 1, 1, 100)
        await engine.receipts.save([mark])
        await engine.commit(entry(CHAT, 2, view=view(b"", alice=(1, 2))))
        assert await engine.receipts.of_user_chats("alice", 0) == []
        await engine.commit(entry(CHAT, 3, view=view(b"", alice=(3, 0))))
        assert await engine.receipts.of_user_chats("alice", 0) == [mark]

    async def test_of_larger_chats_reads_only_the_users_own(self, engine: Engine) -> None:
        user_ids = [f"user{number}" for number in range(SMALL_CHAT_MARKS_MAX + 1)]
        await join(engine, CHAT, *user_ids)
        marks = [Mark(CHAT, user_id, 1, 1, 100 + number) for number, user_id in enumerate(user_ids)]
        await engine.receipts.save(marks[:-1])
        assert by_place(await engine.receipts.of_user_chats("user0", 0)) == by_place(marks[:-1])
        await engine.receipts.save(marks[-1:])
        assert await engine.receipts.of_user_chats("user0", 0) == [marks[0]]
        # All marks count, those unchanged since included.
        assert await engine.receipts.of_user_chats(user_ids[-1], marks[-1].changed_at_ms) == [marks[-1]]
        assert await engine.receipts.of_user_chats("user0", marks[1].changed_at_ms) == [marks[0]]
