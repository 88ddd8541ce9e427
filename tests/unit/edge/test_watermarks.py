"""Marks and cursors are stored apart: what became of the one says nothing of the other."""

import asyncio
from collections.abc import Sequence

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.core.clock import Now
from chatgrpc.core.limits import Limits
from chatgrpc.core.receipts import Mark, Raised
from chatgrpc.edge.slices import SLICE_S, Slice
from chatgrpc.edge.watermarks import Watermarks
from chatgrpc.ports.cursors import Cursor, CursorStore
from chatgrpc.ports.errors import StoreUnavailableError
from chatgrpc.ports.receipts import ReceiptStore

CHAT = "g.1"


class FailingCursors:
    """A store of cursors that is away."""

    def __init__(self) -> None:
        self.tries = 0
        self.is_away = True
        self.saved: list[Cursor] = []

    async def save(self, cursors: Sequence[Cursor]) -> None:
        self.tries += 1
        if self.is_away:
            raise StoreUnavailableError("away")
        self.saved += cursors

    async def forget(self, user_id: str, device_id: str) -> None:
        if self.is_away:
            raise StoreUnavailableError("away")
        self.saved = [cursor for cursor in self.saved if (cursor.user_id, cursor.device_id) != (user_id, device_id)]

    async def of_device(self, user_id: str, device_id: str) -> dict[str, int]:
        return {}


class SlowReceipts:
    """A store of receipts that takes its time, and notes what it was given."""

    def __init__(self) -> None:
        self._inner = MemoryStore().receipts
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.saved: list[Mark] = []

    async def save(self, marks: Sequence[Mark]) -> None:
        await self.goes_on.wait()
        self.saved += marks
        await self._inner.save(marks)

    async def of_chat(self, chat_id: str) -> list[Mark]:
        return await self._inner.of_chat(chat_id)

    async def of_user_chats(self, user_id: str, since_ms: int) -> list[Mark]:
        return await self._inner.of_user_chats(user_id, since_ms)


class ReceiptsOfOneChat(SlowReceipts):
    """A store in which everybody is in the same chat."""

    async def of_user_chats(self, user_id: str, since_ms: int) -> list[Mark]:
        return [mark for mark in await self.of_chat(CHAT) if mark.user_id == user_id or mark.changed_at_ms >= since_ms]


def watermarks_of(receipts: ReceiptStore, cursors: CursorStore, told: list[Mark] | None = None) -> Watermarks:
    """`told`: marks that were stored, as they are told."""
    stored: list[Mark] = [] if told is None else told
    return Watermarks(receipts, cursors, Limits(), stored.extend, lambda _: None, lambda: Now(1, 1))


async def test_a_mark_that_was_stored_is_not_stored_and_told_again_because_a_cursor_was_not() -> None:
    receipts, cursors = SlowReceipts(), FailingCursors()
    told: list[Mark] = []
    watermarks = watermarks_of(receipts, cursors, told)
    assert watermarks.raise_mark(CHAT, "bob", 10, 0, now=Now(1, 1)) is not None
    watermarks.note_cursor("bob", "phone", CHAT, 10)
    await watermarks.save()
    assert [mark.delivered_seq for mark in told] == [10]
    await watermarks.save()
    assert (len(receipts.saved), cursors.tries) == (1, 2)
    assert len(told) == 1
    cursors.is_away = False
    await watermarks.save()
    assert [cursor.acked_seq for cursor in cursors.saved] == [10], "the cursor was kept until it could be stored"


async def test_a_device_that_says_on_another_node_what_it_holds_changes_no_mark() -> None:
    receipts = ReceiptsOfOneChat()
    one, other = (watermarks_of(receipts, FailingCursors()) for _ in range(2))
    one.raise_mark(CHAT, "bob", 10, 0, now=Now(1_000, 1_000))
    await one.save()
    await other.changed("bob", "", Now(100_000, 100_000))
    assert other.raise_mark(CHAT, "bob", 10, 0, now=Now(100_000, 100_000)) is not None
    await other.save()
    assert [mark.changed_at_ms for mark in receipts.saved] == [1_000]
    assert await other.changed("bob", "90000", Now(100_001, 100_001)) == ([], "100001")


async def test_marks_that_cannot_be_stored_do_not_keep_cursors_from_it() -> None:
    class AwayReceipts(SlowReceipts):
        async def save(self, marks: Sequence[Mark]) -> None:
            raise StoreUnavailableError("away")

    cursors = FailingCursors()
    cursors.is_away = False
    told: list[Mark] = []
    watermarks = watermarks_of(AwayReceipts(), cursors, told)
    watermarks.raise_mark(CHAT, "bob", 10, 0, now=Now(1, 1))
    watermarks.note_cursor("bob", "phone", CHAT, 10)
    await watermarks.save()
    assert [cursor.acked_seq for cursor in cursors.saved] == [10]
    assert told == []


async def test_of_a_revoked_device_no_cursor_stays_stored_or_not() -> None:
    cursors = FailingCursors()
    cursors.is_away = False
    watermarks = watermarks_of(SlowReceipts(), cursors)
    watermarks.note_cursor("bob", "phone", CHAT, 1)
    watermarks.note_cursor("bob", "laptop", CHAT, 2)
    await watermarks.save()
    watermarks.note_cursor("bob", "phone", CHAT, 3)
    await watermarks.forget_device("bob", "phone")
    await watermarks.save()
    assert cursors.saved == [Cursor("bob", "laptop", CHAT, 2)]


async def test_a_revocation_goes_through_though_the_cursors_cannot_be_removed() -> None:
    watermarks = watermarks_of(SlowReceipts(), FailingCursors())
    watermarks.note_cursor("bob", "phone", CHAT, 3)
    await watermarks.forget_device("bob", "phone")


async def test_many_are_stored_part_by_part_and_what_fails_in_the_middle_goes_on_from_there() -> None:
    class FullAfterTwo(SlowReceipts):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []
            self.is_away = True

        async def save(self, marks: Sequence[Mark]) -> None:
            if self.is_away and len(self.sizes) == 2:
                raise StoreUnavailableError("away")
            self.sizes.append(len(marks))
            await super().save(marks)

    receipts, cursors = FullAfterTwo(), FailingCursors()
    cursors.is_away = False
    told: list[Mark] = []
    watermarks = watermarks_of(receipts, cursors, told)
    users = [f"user{number}" for number in range(1_800)]
    for user_id in users:
        watermarks.raise_mark(CHAT, user_id, 10, 0, now=Now(1, 1))
        watermarks.note_cursor(user_id, "phone", CHAT, 10)
    await watermarks.save()
    assert [mark.user_id for mark in told] == users[:1_000]
    assert [cursor.user_id for cursor in cursors.saved] == users
    assert (max(receipts.sizes), cursors.tries) == (500, 4)
    receipts.is_away = False
    await watermarks.save()
    assert sorted(mark.user_id for mark in told) == sorted(users), "each once"
    assert cursors.tries == 4


async def test_a_cursor_that_is_stated_late_lowers_none() -> None:
    cursors = FailingCursors()
    cursors.is_away = False
    watermarks = watermarks_of(SlowReceipts(), cursors)
    watermarks.note_cursor("bob", "phone", CHAT, 101)
    watermarks.note_cursor("bob", "phone", CHAT, 100)
    await watermarks.save()
    assert cursors.saved == [Cursor("bob", "phone", CHAT, 101)]


# What devices acknowledge.


class Acknowledged:
    """Watermarks to which devices acknowledge, and what they say of marks that rose."""

    def __init__(self) -> None:
        self.receipts, self.cursors = SlowReceipts(), FailingCursors()
        self.cursors.is_away = False
        self.raised: list[tuple[str, int]] = []
        self.watermarks = Watermarks(
            self.receipts, self.cursors, Limits(), lambda _: None, self._note, lambda: Now(1, 1), lambda: self.clock_s
        )
        self.clock_s = 0.0

    def _note(self, raised: Raised) -> None:
        self.clock_s += SLICE_S / 3
        self.raised.append((raised.mark.user_id, raised.mark.delivered_seq))


async def test_of_what_a_device_acknowledged_the_last_is_noted_once() -> None:
    said = Acknowledged()
    for seq in (1, 3, 2):
        said.watermarks.acknowledge("bob", "phone", CHAT, seq)
    said.watermarks.acknowledge("bob", "", CHAT, 2)
    assert said.raised == []
    assert not said.watermarks.note_some(Slice(lambda: said.clock_s))
    assert said.raised == [("bob", 3)]
    await said.watermarks.save()
    assert said.cursors.saved == [Cursor("bob", "phone", CHAT, 3)], "no cursor of a device that keeps none"


async def test_who_reads_marks_reads_what_was_acknowledged_before() -> None:
    said = Acknowledged()
    said.watermarks.acknowledge("bob", "phone", CHAT, 3)
    (mark,) = await said.watermarks.of_chat(CHAT, ["bob"])
    assert mark.delivered_seq == 3
    said.watermarks.acknowledge("bob", "phone", CHAT, 4)
    await said.watermarks.save()
    assert [mark.delivered_seq for mark in said.receipts.saved] == [4]
    assert said.raised == [("bob", 3), ("bob", 4)], "who sent is told all the same"


async def test_of_a_revoked_device_no_acknowledgement_comes_back_as_a_cursor() -> None:
    said = Acknowledged()
    said.watermarks.acknowledge("bob", "phone", CHAT, 3)
    await said.watermarks.forget_device("bob", "phone")
    await said.watermarks.save()
    assert said.cursors.saved == []
    assert said.raised == [("bob", 3)], "it was delivered nevertheless"


async def test_nor_one_that_comes_while_others_are_stored() -> None:
    said = Acknowledged()
    said.receipts.goes_on.clear()
    said.watermarks.raise_mark(CHAT, "alice", 1, 0, Now(1, 1))
    saving = asyncio.create_task(said.watermarks.save())
    await asyncio.sleep(0)
    forgetting = asyncio.create_task(said.watermarks.forget_device("bob", "phone"))
    await asyncio.sleep(0)
    said.watermarks.acknowledge("bob", "phone", CHAT, 3)
    said.receipts.goes_on.set()
    await asyncio.gather(saving, forgetting)
    await said.watermarks.save()
    assert said.cursors.saved == []
    assert said.raised == [("bob", 3)]


async def test_many_acknowledgements_are_noted_a_few_at_a_time() -> None:
    said = Acknowledged()
    for number in range(9):
        said.watermarks.acknowledge(f"user{number}", "phone", CHAT, 1)
    assert said.watermarks.note_some(Slice(lambda: said.clock_s))
    assert len(said.raised) == 3
    reading = asyncio.create_task(said.watermarks.of_chat(CHAT, ["user8"]))
    await asyncio.sleep(0)
    assert len(said.raised) == 6
    said.watermarks.acknowledge("user0", "phone", CHAT, 2)
    assert [mark.delivered_seq for mark in await reading] == [1]
    assert len(said.raised) == 9, "and not what came later"
