"""What is read of a store is looked at before it is shown."""

from collections.abc import Sequence
from typing import cast

import pytest

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.core.damage import STORED_BYTES_MAX, DamageError, check_membership, stored_chat
from chatgrpc.core.events import event_chunk, history_chunk
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.checked_log import CheckedLog
from chatgrpc.metrics import Metrics
from chatgrpc.ports.chat_log import ChatReader, Entry, Interval, Membership
from chatgrpc.ports.errors import ChatDamagedError
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2

SICK, SOUND = "g." + "A" * 22, "g." + "B" * 22
HEAD = 9

UNSOUND: dict[str, tuple[Interval, ...]] = {
    "joined before the first event": (Interval(0),),
    "joined at a negative seq": (Interval(-5),),
    "joined above the end of the log": (Interval(HEAD + 1),),
    "left above the end of the log": (Interval(1, HEAD + 1),),
    "left before joining": (Interval(3, 2),),
    "left at a negative seq": (Interval(3, -1),),
    "two that are open": (Interval(1), Interval(3)),
    "two that overlap": (Interval(1, 4), Interval(4)),
    "out of order": (Interval(4), Interval(1, 3)),
}
SOUND_ONES = [(Interval(1),), (Interval(HEAD),), (Interval(1, HEAD),), (Interval(1, 3), Interval(4)), (Interval(2, 2),)]


class Stored(CheckedLog):
    """A log whose store says this of one user's memberships."""

    def __init__(self, intervals: tuple[Interval, ...]) -> None:
        self.book = DamageBook(Metrics())
        super().__init__(cast("ChatReader", _Memberships(intervals)), self.book)


class _Memberships:
    def __init__(self, intervals: tuple[Interval, ...]) -> None:
        self._stored = [Membership(SICK, intervals, HEAD), Membership(SOUND, (Interval(1),), HEAD)]

    async def memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[Membership]:
        return self._stored

    async def readable_memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> tuple[list[Membership], list[str]]:
        return self._stored, ["g.C"]

    async def membership(self, user_id: str, chat_id: str) -> Membership | None:
        return next((found for found in self._stored if found.chat_id == chat_id), None)


@pytest.mark.parametrize("intervals", UNSOUND.values(), ids=UNSOUND)
async def test_a_membership_that_cannot_be_right_costs_its_chat(intervals: tuple[Interval, ...]) -> None:
    log = Stored(intervals)
    read, unread = await log.readable_memberships("bob", "", 10)
    assert ([found.chat_id for found in read], unread) == ([SOUND], [SICK, "g.C"])
    listed = await log.memberships("bob", "", 10)
    assert [(found.chat_id, found.intervals) for found in listed] == [(SICK, ()), (SOUND, (Interval(1),))]
    with pytest.raises(ChatDamagedError):
        await log.membership("bob", SICK)
    assert await log.membership("bob", SOUND) is not None
    assert [damage.chat_id for damage in log.book.damaged()] == [SICK]


@pytest.mark.parametrize("interval", [Interval(2**62), Interval(1, 2**62)])
def test_a_seq_that_no_chat_gets_to_is_none_whatever_the_log_is_taken_for(interval: Interval) -> None:
    """A log that others read is taken to reach as far as its memberships say."""
    with pytest.raises(DamageError):
        check_membership(Membership(SICK, (interval,), 2**62))


@pytest.mark.parametrize("intervals", SOUND_ONES)
def test_memberships_as_they_come_to_be_are_sound(intervals: tuple[Interval, ...]) -> None:
    check_membership(Membership(SICK, intervals, HEAD))


def groups(depth: int) -> bytes:
    return b"\x83\x38" * depth + b"\x84\x38" * depth  # field 896


WIDE = b"\x80\x38" + b"\xff" * 9 + b"\x7f"
FINE = b"\x82\x38\x02hi"


def event_with(unknown: bytes, seq: int = 1) -> bytes:
    event = chat_pb2.ChatEvent(chat_id=SICK, seq=seq, sender_user_id="bob")
    event.content.text.text = "hello"
    event.content.MergeFromString(unknown)
    return event.SerializeToString()


async def log_of(events: Sequence[bytes]) -> CheckedLog:
    store = MemoryStore()
    await store.log.append([Entry(SICK, seq, epoch=1, event=event) for seq, event in enumerate(events, 1)])
    return CheckedLog(store.log, DamageBook(Metrics()))


@pytest.mark.parametrize("unknown", [groups(1), groups(96), WIDE])
async def test_what_an_earlier_version_took_and_not_everybody_can_parse_is_shown_without_it(unknown: bytes) -> None:
    log = await log_of([event_with(FINE), event_with(unknown, seq=2)])
    for page in (await log.read_after(SICK, 0, 2, 10, 10_000), await log.read_before(SICK, 3, 1, 10, 10_000)):
        fine, shown = (stored.event for stored in page)
        assert fine == event_with(FINE)
        assert shown == event_with(b"", seq=2)
        in_page = session_pb2.ConnectResponse.FromString(history_chunk(1, session_pb2.HistoryPage(), [fine, shown]))
        assert [event.seq for event in in_page.frames[0].history_page.events] == [1, 2]
        assert session_pb2.ConnectResponse.FromString(event_chunk(shown)).frames[0].event.content.text.text == "hello"


async def test_an_event_that_no_client_could_be_sent_is_none() -> None:
    """gRPC ends the stream of whoever is sent a message that is too large, and so their other chats too."""
    large = chat_pb2.ChatEvent(chat_id=SICK, seq=2, sender_user_id="bob")
    large.content.text.text = "x" * STORED_BYTES_MAX
    log = await log_of([event_with(b""), large.SerializeToString()])
    assert len(await log.read_after(SICK, 0, 1, 10, 10_000)) == 1
    for page in (log.read_after(SICK, 1, 2, 10, 10_000), log.read_before(SICK, 3, 2, 10, 10_000)):
        with pytest.raises(ChatDamagedError):
            await page


def state(**fields: object) -> chat_pb2.Chat:
    chat = chat_pb2.Chat(chat_id=SICK, as_of_seq=4)
    chat.members.add(user_id="bob", joined_seq=4)
    for name, value in fields.items():
        setattr(chat, name, value)
    return chat


def test_a_state_that_says_what_cannot_be_is_none() -> None:
    stored_chat(SICK, state().SerializeToString(), 4)
    later = state()
    later.members.append(content_pb2.Member(user_id="carol", joined_seq=2**64 - 1))  # whom a write would wait for, for ever
    never = state()
    never.members.append(content_pb2.Member(user_id="carol"))
    for chat in (later.SerializeToString(), never.SerializeToString(), state(as_of_seq=0).SerializeToString()):
        with pytest.raises(DamageError):
            stored_chat(SICK, chat, 4)
    with pytest.raises(DamageError, match="group"):
        stored_chat(SICK, state().SerializeToString() + groups(98), 4)
