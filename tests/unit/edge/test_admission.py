"""What a device that comes has read of its user's chats, however many of them are over."""

import pytest

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.core.entries import ChatView, Entry, Membership, MemberView
from chatgrpc.core.membership_pages import NAMED_CHATS_MAX
from chatgrpc.core.visibility import Interval, is_member
from chatgrpc.edge.admission import readable_memberships

PER_READ = 50
PAST_MAX = 100
PRESENT = [f"g.{number:022}" for number in range(0, 2_000, 40)]
PAST = [f"g.{number:022}" for number in range(2_000) if number % 40]


class CountingLog:
    """A log that counts what it is asked for."""

    def __init__(self, store: MemoryStore) -> None:
        self._log = store.log
        self.listed = 0
        self.looked_up: list[str] = []

    async def readable_memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> tuple[list[Membership], list[str]]:
        page, unknown = await self._log.readable_memberships(user_id, after_chat_id, limit, present_only=present_only)
        self.listed += len(page)
        return page, unknown

    async def past_membership(self, user_id: str, chat_id: str) -> Membership | None:
        self.looked_up.append(chat_id)
        return await self._log.past_membership(user_id, chat_id)


@pytest.fixture
async def log() -> CountingLog:
    store = MemoryStore()
    entries = [_entry(chat_id, 1, Interval(1)) for chat_id in PRESENT + PAST]
    entries += [_entry(chat_id, 2, Interval(1, 2)) for chat_id in PAST]
    await store.log.append(entries)
    return CountingLog(store)


async def test_all_that_last_are_read_and_of_those_that_are_over_a_bounded_number(log: CountingLog) -> None:
    memberships, unknown = await readable_memberships(log, "alice", frozenset(), PER_READ, PAST_MAX)
    assert unknown == []
    assert [each.chat_id for each in memberships if is_member(each.intervals)] == PRESENT
    past = [each.chat_id for each in memberships if not is_member(each.intervals)]
    assert past == PAST[: len(past)]
    assert PAST_MAX < len(past) <= PAST_MAX + PER_READ
    assert log.listed == len(memberships), "nothing is read that is not needed"
    assert log.looked_up == []


async def test_of_what_the_device_holds_more_is_read(log: CountingLog) -> None:
    held = frozenset([*PRESENT, *PAST[-3:], "g.DDDDDDDDDDDDDDDDDDDDDD"])
    memberships, _ = await readable_memberships(log, "alice", held, PER_READ, PAST_MAX)
    assert {each.chat_id for each in memberships} >= held - {"g.DDDDDDDDDDDDDDDDDDDDDD"}


async def test_but_not_of_all_that_it_says_it_holds(log: CountingLog) -> None:
    await readable_memberships(log, "alice", frozenset(PAST), PER_READ, PAST_MAX)
    assert len(log.looked_up) == NAMED_CHATS_MAX


async def test_who_has_left_few_has_all_of_them_read(log: CountingLog) -> None:
    memberships, _ = await readable_memberships(log, "alice", frozenset(), PER_READ, len(PAST))
    assert [each.chat_id for each in memberships] == sorted(PRESENT + PAST)


def _entry(chat_id: str, seq: int, interval: Interval) -> Entry:
    return Entry(chat_id, seq, 1, b"", view=ChatView(b"", (MemberView("alice", interval),)))
