"""M9: history on every device, newest page first, older pages on demand, and jumps; any way of reading shows the same log."""

import pytest

from chatgrpc.v1 import chat_pb2, session_pb2
from chatgrpc.v1.message_service_pb2 import (
    LIST_ORDER_NEWEST_FIRST,
    LIST_ORDER_OLDEST_FIRST,
    ListMessagesRequest,
    ListMessagesResponse,
)
from tests.support.cast import Cast
from tests.support.device import Device, next_frame
from tests.support.outbox import Outbox

COUNT = 230
HEAD = COUNT + 1
START_AT_HEAD = session_pb2.START_AT_HEAD


@pytest.fixture
async def chat_id(cast: Cast) -> str:
    """A group of alice and bob with some history."""
    alice = await cast.online("alice")
    chat_id = await cast.group("alice", "bob")
    outbox = Outbox(alice, window=200)
    for number in range(COUNT):
        outbox.compose(chat_id, f"{number}")
    await outbox.flush()
    return chat_id


@pytest.fixture
async def log(cast: Cast, chat_id: str) -> list[chat_pb2.ChatEvent]:
    return await cast.caller("alice").log(chat_id)


async def page_of(device: Device, request: session_pb2.FetchHistory) -> session_pb2.HistoryPage:
    """A page that must be given."""
    answer = await device.history(request)
    assert answer.HasField("history_page"), answer.error
    return answer.history_page


async def test_a_new_device_reads_back_to_the_first_event_and_goes_on_live(
    cast: Cast, chat_id: str, log: list[chat_pb2.ChatEvent]
) -> None:
    fresh = cast.device("bob", "fresh")
    await fresh.connect(start_at=START_AT_HEAD)
    opened = (await next_frame(fresh, "chat_opened")).chat_opened
    assert (opened.next_seq, opened.head_seq, opened.first_visible_seq) == (HEAD + 1, HEAD, 1)
    page = await page_of(fresh, session_pb2.FetchHistory(chat_id=chat_id))
    assert list(page.events) == log[-20:]
    assert not page.more_after
    events = list(page.events)
    while page.more_before:
        page = await page_of(fresh, session_pb2.FetchHistory(chat_id=chat_id, before_seq=events[0].seq, limit=50))
        assert page.more_after
        events = [*page.events, *events]
    assert events == log
    await cast.caller("alice").send(chat_id, "live")
    await fresh.until_held(chat_id, HEAD + 1)
    assert fresh.held.texts(chat_id) == ["live"]


async def test_pages_forward_from_the_first_event(cast: Cast, chat_id: str, log: list[chat_pb2.ChatEvent]) -> None:
    bob = cast.device("bob")
    await bob.connect(start_at=START_AT_HEAD)
    events: list[chat_pb2.ChatEvent] = []
    more = True
    while more:
        page = await page_of(bob, session_pb2.FetchHistory(chat_id=chat_id, after_seq=len(events), limit=33))
        assert page.more_before == bool(events)
        events += page.events
        more = page.more_after
    assert events == log


@pytest.mark.parametrize("seq", [0, 1, 2, 7, 100, HEAD - 3, HEAD, HEAD + 1, 2**40])
async def test_a_jump_lands_around_its_target(cast: Cast, chat_id: str, log: list[chat_pb2.ChatEvent], seq: int) -> None:
    bob = cast.device("bob")
    await bob.connect(start_at=START_AT_HEAD)
    page = await page_of(bob, session_pb2.FetchHistory(chat_id=chat_id, around_seq=seq, limit=10))
    below, above = [event for event in log if event.seq < seq], [event for event in log if event.seq >= seq]
    assert list(page.events) == below[-5:] + above[:5]
    assert page.more_before == (len(below) > 5)
    assert page.more_after == (len(above) > 5)


async def test_a_page_beside_the_ends_is_empty_and_says_what_there_is(cast: Cast, chat_id: str) -> None:
    bob = cast.device("bob")
    await bob.connect(start_at=START_AT_HEAD)
    before = await page_of(bob, session_pb2.FetchHistory(chat_id=chat_id, before_seq=1))
    assert (len(before.events), before.more_before, before.more_after) == (0, False, True)
    after = await page_of(bob, session_pb2.FetchHistory(chat_id=chat_id, after_seq=HEAD))
    assert (len(after.events), after.more_before, after.more_after) == (0, True, False)


@pytest.mark.parametrize("order", [LIST_ORDER_NEWEST_FIRST, LIST_ORDER_OLDEST_FIRST])
async def test_unary_pages_in_either_order_are_the_log(
    cast: Cast, chat_id: str, log: list[chat_pb2.ChatEvent], order: int
) -> None:
    caller = cast.caller("bob")
    events: list[chat_pb2.ChatEvent] = []
    reply = ListMessagesResponse()
    while not events or reply.next_page_token:
        request = ListMessagesRequest(chat_id=chat_id, page_size=37, page_token=reply.next_page_token)
        request.order = order  # type: ignore[assignment]
        reply = await caller.messages.ListMessages(request)
        events += reply.events
    assert events == (log if order == LIST_ORDER_OLDEST_FIRST else log[::-1])


async def test_pages_do_not_shift_while_the_chat_goes_on(cast: Cast, chat_id: str, log: list[chat_pb2.ChatEvent]) -> None:
    """A page token names a place in the log, not a distance from its end."""
    caller = cast.caller("bob")
    seqs: list[int] = []
    reply = ListMessagesResponse()
    while not seqs or reply.next_page_token:
        reply = await caller.messages.ListMessages(
            ListMessagesRequest(chat_id=chat_id, page_size=50, page_token=reply.next_page_token)
        )
        seqs += [event.seq for event in reply.events]
        await cast.caller("alice").send(chat_id, "meanwhile")
    assert seqs == list(range(len(log), 0, -1))
