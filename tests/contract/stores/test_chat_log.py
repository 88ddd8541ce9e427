"""The contract of `ports.chat_log.ChatLog`."""

import asyncio

import pytest

from chatgrpc.core.events import erased
from chatgrpc.ports.accounts import Profile
from chatgrpc.ports.chat_log import Interval, Membership, StoredChat, StoredEvent
from chatgrpc.ports.cursors import Cursor
from chatgrpc.ports.errors import StaleOwnerError, StoreUnavailableError
from chatgrpc.ports.receipts import Mark
from chatgrpc.ports.store import Store
from tests.contract.stores.entries import BYTES_MAX, entry, event, is_erased, run, view

CHAT = "g.AAAAAAAAAAAAAAAAAAAAAA"
OTHER = "d.BBBBBBBBBBBBBBBBBBBBBB"
BEYOND = 1 << 64
"""Above every seq a device can name."""


async def seqs_of(store: Store, chat_id: str = CHAT) -> list[int]:
    return [stored.seq for stored in await store.log.read_after(chat_id, 0, BEYOND - 1, 10_000, BYTES_MAX)]


async def texts_of(store: Store, chat_id: str = CHAT) -> dict[int, bytes]:
    return {stored.seq: stored.event for stored in await store.log.read_after(chat_id, 0, BEYOND - 1, 10_000, BYTES_MAX)}


class TestAppend:
    async def test_stores_the_bytes_unchanged(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1, "schön \0 \N{PILE OF POO}"), entry(CHAT, 2)])
        assert await store.log.read_after(CHAT, 0, 2, 10, BYTES_MAX) == [
            StoredEvent(1, event(CHAT, 1, "schön \0 \N{PILE OF POO}")),
            StoredEvent(2, event(CHAT, 2, "hello")),
        ]

    async def test_takes_a_group_of_several_chats(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1), entry(OTHER, 1), entry(CHAT, 2), entry(OTHER, 2)])
        assert await seqs_of(store, CHAT) == await seqs_of(store, OTHER) == [1, 2]

    @pytest.mark.parametrize("size", [1, 2, 3, 511, 512, 513, 1500])
    async def test_takes_a_group_of_any_size(self, store: Store, size: int) -> None:
        await store.log.append(run(CHAT, range(1, size + 1)))
        stored = await store.log.read_after(CHAT, 0, BEYOND, 2_000, BYTES_MAX)
        assert [(e.seq, e.event) for e in stored] == [(e.seq, e.event) for e in run(CHAT, range(1, size + 1))]

    async def test_takes_nothing(self, store: Store) -> None:
        await store.log.append([])

    async def test_takes_a_large_event(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1, "x" * 65_536)])
        assert (await store.log.read_after(CHAT, 0, 1, 1, 1))[0].event == event(CHAT, 1, "x" * 65_536)

    async def test_is_seen_by_a_read_that_begins_after_it_returned(self, store: Store) -> None:
        for seq in range(1, 51):
            await store.log.append([entry(CHAT, seq)])
            reads = (store.log.read_before(CHAT, BEYOND, 1, 1, BYTES_MAX) for _ in range(8))
            assert {page[0].seq for page in await asyncio.gather(*reads)} == {seq}

    async def test_of_concurrent_callers_stores_all(self, store: Store) -> None:
        chats = [f"g.{number:022}" for number in range(20)]

        async def write(chat_id: str) -> None:
            for seq in range(1, 11):
                await store.log.append([entry(chat_id, seq)])

        await asyncio.gather(*map(write, chats))
        for chat_id in chats:
            assert await seqs_of(store, chat_id) == list(range(1, 11))


class TestStaleOwner:
    async def test_an_entry_that_exists_is_refused_and_nothing_is_stored(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1, "first", view=view(b"old", alice=(1, 0))), entry(CHAT, 2, "second")])
        with pytest.raises(StaleOwnerError):
            await store.log.append(
                [
                    entry(OTHER, 1, view=view(b"new", alice=(1, 0))),
                    entry(CHAT, 2, "another", erases_seq=1, view=view(b"new", alice=(1, 2))),
                    entry(CHAT, 3),
                ]
            )
        assert await texts_of(store) == {1: event(CHAT, 1, "first"), 2: event(CHAT, 2, "second")}
        assert await store.log.load(OTHER) is None
        assert await store.log.load(CHAT) == StoredChat(b"old", 2, event(CHAT, 2, "second"))
        assert await store.log.memberships("alice", "", 10) == [Membership(CHAT, (Interval(1, 0),), 2)]

    async def test_an_entry_twice_in_one_group_is_refused(self, store: Store) -> None:
        with pytest.raises(StaleOwnerError):
            await store.log.append([entry(CHAT, 1), entry(CHAT, 1, "again")])
        assert await store.log.load(CHAT) is None

    async def test_a_chat_first_named_in_a_refused_group_can_be_written_later(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1)])
        with pytest.raises(StaleOwnerError):
            await store.log.append([entry(OTHER, 1), entry(CHAT, 1)])
        third = "g.CCCCCCCCCCCCCCCCCCCCCC"
        await store.log.append([entry(third, 1, "third")])
        await store.log.append([entry(OTHER, 1, "other")])
        assert await texts_of(store, third) == {1: event(third, 1, "third")}
        assert await texts_of(store, OTHER) == {1: event(OTHER, 1, "other")}

    async def test_others_that_write_at_the_same_time_are_not_refused(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1)])
        chats = [f"g.{number:022}" for number in range(10)]
        writes = [store.log.append([entry(chat_id, 1)]) for chat_id in chats]
        writes.insert(5, store.log.append([entry(CHAT, 1, "again")]))
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None)] * 5 + [StaleOwnerError] + [type(None)] * 5
        for chat_id in chats:
            assert await seqs_of(store, chat_id) == [1]

    async def test_of_two_writers_of_one_seq_exactly_one_wins(self, store: Store) -> None:
        writes = (store.log.append([entry(CHAT, 1, f"writer {number}")]) for number in range(10))
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert sorted(str(type(outcome).__name__) for outcome in outcomes) == ["NoneType"] + ["StaleOwnerError"] * 9
        winner = next(number for number, outcome in enumerate(outcomes) if outcome is None)
        assert await texts_of(store) == {1: event(CHAT, 1, f"writer {winner}")}


class TestErasing:
    async def test_erases_the_content_and_keeps_everything_else(self, store: Store) -> None:
        await store.log.append([*run(CHAT, range(1, 4)), entry(CHAT, 4, "deleted", erases_seq=2)])
        assert await texts_of(store) == {
            1: event(CHAT, 1, "message 1"),
            2: erased(event(CHAT, 2, "message 2")),
            3: event(CHAT, 3, "message 3"),
            4: event(CHAT, 4, "deleted"),
        }

    async def test_erases_all_that_amends_the_message(self, store: Store) -> None:
        await store.log.append(run(CHAT, range(1, 4)))
        await store.log.append([entry(CHAT, 4, "edit of 2", amends_seq=2), entry(CHAT, 5, "edit of 3", amends_seq=3)])
        await store.log.append([entry(CHAT, 6, "edit of 2", amends_seq=2)])
        await store.log.append([entry(CHAT, 7, "delete", erases_seq=2)])
        assert [seq for seq, stored in (await texts_of(store)).items() if is_erased(stored)] == [2, 4, 6]

    async def test_reaches_entries_of_its_own_group(self, store: Store) -> None:
        await store.log.append([*run(CHAT, (1, 2)), entry(CHAT, 3, amends_seq=2), entry(CHAT, 4, erases_seq=2)])
        assert [seq for seq, stored in (await texts_of(store)).items() if is_erased(stored)] == [2, 3]

    async def test_reaches_only_events_below_it(self, store: Store) -> None:
        await store.log.append([*run(CHAT, (1, 2)), entry(CHAT, 3, erases_seq=2), entry(CHAT, 4, amends_seq=2)])
        assert [seq for seq, stored in (await texts_of(store)).items() if is_erased(stored)] == [2]

    async def test_leaves_other_chats_alone(self, store: Store) -> None:
        await store.log.append([*run(CHAT, (1, 2)), *run(OTHER, (1, 2)), entry(OTHER, 3, amends_seq=1)])
        await store.log.append([entry(CHAT, 3, erases_seq=1)])
        assert not any(map(is_erased, (await texts_of(store, OTHER)).values()))

    async def test_passes_over_a_target_that_does_not_exist(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1), entry(CHAT, 2, erases_seq=7), entry(CHAT, 3, erases_seq=3)])
        assert not any(map(is_erased, (await texts_of(store)).values()))

    async def test_twice_is_once(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1), entry(CHAT, 2, erases_seq=1), entry(CHAT, 3, erases_seq=1)])
        assert (await texts_of(store))[1] == erased(event(CHAT, 1, "hello"))


class TestLoad:
    async def test_of_a_chat_without_events_is_none(self, store: Store) -> None:
        assert await store.log.load(CHAT) is None

    async def test_gives_the_last_state_and_the_head(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1, view=view(b"one")), entry(OTHER, 1, view=view(b"other"))])
        assert await store.log.load(CHAT) == StoredChat(b"one", 1, event(CHAT, 1, "hello"))
        await store.log.append([entry(CHAT, 2, view=view(b"two")), entry(CHAT, 3, view=view(b"three")), entry(CHAT, 4, "last")])
        assert await store.log.load(CHAT) == StoredChat(b"three", 4, event(CHAT, 4, "last"))
        assert await store.log.load(OTHER) == StoredChat(b"other", 1, event(OTHER, 1, "hello"))

    async def test_without_a_view_has_an_empty_state(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1)])
        assert await store.log.load(CHAT) == StoredChat(b"", 1, event(CHAT, 1, "hello"))

    async def test_shows_an_erased_head_erased(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1), entry(CHAT, 2, amends_seq=1)])
        await store.log.append([entry(CHAT, 3, erases_seq=1)])
        assert (await store.log.load(CHAT)) == StoredChat(b"", 3, event(CHAT, 3, "hello"))


class TestReadAfter:
    @pytest.mark.parametrize(
        ("after_seq", "up_to_seq", "limit", "expected"),
        [
            (0, 10, 100, range(1, 11)),
            (0, 10, 3, range(1, 4)),
            (4, 10, 3, range(5, 8)),
            (4, 6, 100, range(5, 7)),
            (4, 4, 100, range(0)),
            (6, 4, 100, range(0)),
            (10, 20, 100, range(0)),
            (8, BEYOND - 1, 100, range(9, 11)),
            (BEYOND - 1, BEYOND - 1, 100, range(0)),
        ],
    )
    async def test_gives_the_oldest_first_from_the_oldest_on(
        self, store: Store, after_seq: int, up_to_seq: int, limit: int, expected: range
    ) -> None:
        await store.log.append([*run(CHAT, range(1, 11)), *run(OTHER, range(1, 31))])
        page = await store.log.read_after(CHAT, after_seq, up_to_seq, limit, BYTES_MAX)
        assert [(e.seq, e.event) for e in page] == [(e.seq, e.event) for e in run(CHAT, expected)]

    async def test_ends_with_the_event_that_makes_it_too_large(self, store: Store) -> None:
        await store.log.append(run(CHAT, range(1, 10)))
        size = len(event(CHAT, 1, "message 1"))
        for bytes_max, expected in ((0, 1), (size - 1, 1), (size, 2), (size + 1, 2), (3 * size - 1, 3), (3 * size, 4)):
            page = await store.log.read_after(CHAT, 2, 9, 100, bytes_max)
            assert [e.seq for e in page] == list(range(3, 3 + expected))

    async def test_of_an_unknown_chat_is_empty(self, store: Store) -> None:
        assert await store.log.read_after(CHAT, 0, 10, 10, BYTES_MAX) == []


class TestReadBefore:
    @pytest.mark.parametrize(
        ("before_seq", "down_to_seq", "limit", "expected"),
        [
            (11, 1, 100, range(1, 11)),
            (11, 1, 3, range(8, 11)),
            (7, 1, 3, range(4, 7)),
            (7, 5, 100, range(5, 7)),
            (7, 7, 100, range(0)),
            (5, 7, 100, range(0)),
            (1, 1, 100, range(0)),
            (BEYOND, 1, 2, range(9, 11)),
            (BEYOND, BEYOND - 1, 2, range(0)),
            (20, 0, 2, range(9, 11)),
        ],
    )
    async def test_gives_the_newest_oldest_first(
        self, store: Store, before_seq: int, down_to_seq: int, limit: int, expected: range
    ) -> None:
        await store.log.append([*run(CHAT, range(1, 11)), *run(OTHER, range(1, 31))])
        page = await store.log.read_before(CHAT, before_seq, down_to_seq, limit, BYTES_MAX)
        assert [(e.seq, e.event) for e in page] == [(e.seq, e.event) for e in run(CHAT, expected)]

    async def test_ends_with_the_event_that_makes_it_too_large(self, store: Store) -> None:
        await store.log.append(run(CHAT, range(1, 10)))
        size = len(event(CHAT, 1, "message 1"))
        for bytes_max, expected in ((0, 1), (size - 1, 1), (size, 2), (size + 1, 2), (3 * size - 1, 3), (3 * size, 4)):
            page = await store.log.read_before(CHAT, 8, 1, 100, bytes_max)
            assert [e.seq for e in page] == list(range(8 - expected, 8))

    async def test_of_an_unknown_chat_is_empty(self, store: Store) -> None:
        assert await store.log.read_before(CHAT, 10, 1, 10, BYTES_MAX) == []


class TestMemberships:
    async def test_lists_present_and_past_by_rising_chat_id(self, store: Store) -> None:
        chats = [f"g.{number:022}" for number in range(5)]
        for chat_id in reversed(chats):
            await store.log.append([entry(chat_id, 1, view=view(b"", alice=(1, 0), bob=(1, 0)))])
        await store.log.append([entry(chats[1], 2, view=view(b"", alice=(1, 2))), entry(chats[1], 3)])
        expected = [Membership(chat_id, (Interval(1, 0),), 1) for chat_id in chats]
        expected[1] = Membership(chats[1], (Interval(1, 2),), 3)
        assert await store.log.memberships("alice", "", 10) == expected
        assert await store.log.memberships("alice", "", 2) == expected[:2]
        assert await store.log.memberships("alice", chats[1], 2) == expected[2:4]
        assert await store.log.memberships("alice", chats[4], 10) == []
        assert await store.log.memberships("mallory", "", 10) == []

    async def test_lists_only_present_ones_where_asked_to_with_all_that_they_were(self, store: Store) -> None:
        chats = [f"g.{number:022}" for number in range(6)]
        for chat_id in chats:
            await store.log.append([entry(chat_id, 1, view=view(b"", alice=(1, 0), bob=(1, 0)))])
        for chat_id in (chats[0], chats[2], chats[3]):
            await store.log.append([entry(chat_id, 2, view=view(b"", alice=(1, 2)))])
        await store.log.append([entry(chats[3], 3, view=view(b"", alice=(3, 0)))])
        expected = [
            Membership(chats[1], (Interval(1, 0),), 1),
            Membership(chats[3], (Interval(1, 2), Interval(3, 0)), 3),
            Membership(chats[4], (Interval(1, 0),), 1),
            Membership(chats[5], (Interval(1, 0),), 1),
        ]
        assert await store.log.memberships("alice", "", 10, present_only=True) == expected
        assert await store.log.readable_memberships("alice", "", 2, present_only=True) == (expected[:2], [])
        assert await store.log.memberships("alice", chats[3], 1, present_only=True) == expected[2:3]
        assert await store.log.memberships("mallory", "", 10, present_only=True) == []
        past = [await store.log.past_membership("alice", chat_id) for chat_id in (*chats, CHAT)]
        over = {chat_id: Membership(chat_id, (Interval(1, 2),), 2) for chat_id in (chats[0], chats[2])}
        assert past == [over.get(chat_id) for chat_id in (*chats, CHAT)]

    async def test_who_came_back_has_several_intervals_and_counts_once_towards_the_limit(self, store: Store) -> None:
        await store.log.append(
            [
                entry(CHAT, 1, view=view(b"", alice=(1, 0), bob=(1, 0))),
                entry(CHAT, 2, view=view(b"", bob=(1, 2))),
                entry(CHAT, 3, view=view(b"", bob=(3, 0))),
                entry(CHAT, 12, view=view(b"", bob=(3, 12))),
                entry(CHAT, 20, view=view(b"", bob=(20, 0))),
                entry(OTHER, 1, view=view(b"", bob=(1, 0))),
            ]
        )
        in_chat = Membership(CHAT, (Interval(1, 2), Interval(3, 12), Interval(20, 0)), 20)
        assert await store.log.memberships("bob", "", 2) == [Membership(OTHER, (Interval(1, 0),), 1), in_chat]
        assert await store.log.membership("bob", CHAT) == in_chat
        assert await store.log.past_membership("bob", CHAT) is None

    async def test_one_is_what_the_list_says(self, store: Store) -> None:
        await store.log.append([entry(CHAT, 1, view=view(b"", alice=(1, 0))), entry(CHAT, 2)])
        assert await store.log.membership("alice", CHAT) == Membership(CHAT, (Interval(1, 0),), 2)
        assert await store.log.membership("alice", OTHER) is None
        assert await store.log.membership("bob", CHAT) is None
        assert [await store.log.has_been_member(user, CHAT) for user in ("alice", "bob", "zoe")] == [True, False, False]

    async def test_count_counts_groups_that_users_are_members_of_now(self, store: Store) -> None:
        another = "g.DDDDDDDDDDDDDDDDDDDDDD"
        await store.log.append(
            [
                entry(CHAT, 1, view=view(b"", alice=(1, 0), bob=(1, 0))),
                entry(another, 1, view=view(b"", alice=(1, 0), carol=(1, 0))),
                entry(another, 2, view=view(b"", carol=(1, 2))),
                entry(OTHER, 1, view=view(b"", alice=(1, 0), carol=(1, 0))),
                entry("s.EEEEEEEEEEEEEEEEEEEEEE", 1, view=view(b"", alice=(1, 0))),
                entry(CHAT, 2, view=view(b"", bob=(1, 2))),
                entry(CHAT, 3, view=view(b"", bob=(3, 0))),
            ]
        )
        expected = {"alice": 2, "bob": 1, "carol": 0, "mallory": 0}
        assert await store.log.count_groups(["alice", "bob", "carol", "mallory"]) == expected
        assert await store.log.count_groups([]) == {}


async def test_after_close_every_call_says_unavailable(store: Store) -> None:
    await store.log.append([entry(CHAT, 1)])
    await store.close()
    for call in (
        store.log.append([entry(CHAT, 2)]),
        store.log.load(CHAT),
        store.log.read_after(CHAT, 0, 1, 1, 1),
        store.log.read_before(CHAT, 2, 1, 1, 1),
        store.log.memberships("alice", "", 1),
        store.log.membership("alice", CHAT),
        store.log.count_groups(["alice"]),
        store.receipts.save([Mark(CHAT, "alice", 1, 1, 1)]),
        store.receipts.of_chat(CHAT),
        store.cursors.save([Cursor("alice", "phone", CHAT, 1)]),
        store.cursors.of_device("alice", "phone"),
        store.profiles.get("alice"),
        store.profiles.put(Profile("alice")),
        store.devices.list("alice"),
        store.devices.connect("alice", "phone", "", 1, 1),
        store.devices.rename("alice", "phone", ""),
        store.devices.revoke("alice", "phone", 1),
    ):
        with pytest.raises(StoreUnavailableError):
            await call


async def test_close_finishes_what_was_asked_before(store: Store) -> None:
    writes = [asyncio.ensure_future(store.log.append([entry(CHAT, seq)])) for seq in range(1, 101)]
    reads = [asyncio.ensure_future(store.log.load(CHAT)) for _ in range(100)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes, *reads)
    await store.close()


async def test_a_call_while_closing_is_done_or_refused(store: Store) -> None:
    async def write_until_refused(chat_id: str) -> int:
        for seq in range(1, 10_000):
            try:
                await store.log.append([entry(chat_id, seq)])
                await store.log.load(chat_id)
            except StoreUnavailableError:
                return seq
            await asyncio.sleep(0)
        return 0

    writers = [asyncio.ensure_future(write_until_refused(f"g.{number:022}")) for number in range(10)]
    await store.log.append([entry(CHAT, 1)])
    await store.close()
    assert all(await asyncio.gather(*writers))
