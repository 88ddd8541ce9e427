"""G4: replay, then live: the device's stream of each chat is contiguous.

`Device` checks every event: it is the next one, or the test fails.
"""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from chatgrpc.v1 import chat_service_pb2, session_pb2
from tests.support.cast import Cast, Served
from tests.support.chatter import Chatter
from tests.support.checker import check_held
from tests.support.device import Device, DisconnectedError, Held, next_frame
from tests.support.outbox import Outbox
from tests.support.proxy import Cut, Way, cutting_proxy

SESSIONS_CUT = 5
BYTES_UNTIL_CUT_MAX = {Way.TO_CLIENT: 60_000, Way.TO_SERVER: 3_000}
START_AT_HEAD = session_pb2.START_AT_HEAD


@pytest.fixture
async def chatting(cast: Cast) -> AsyncIterator[Chatter]:
    """Alice, who writes to a group of hers and bob's all the time."""
    chat_id = await cast.group("alice", "bob")
    chatter = Chatter(cast.device("alice"), seed=4)
    chatter.targets = [chat_id]
    running = asyncio.create_task(chatter.run())
    yield chatter
    chatter.finish()
    await running


def group_of(chatter: Chatter) -> str:
    """The group that the chatter writes to."""
    return chatter.targets[0]


async def fill(device: Device, chat_id: str, count: int) -> None:
    """Sends numbered texts; returns when all are committed."""
    outbox = Outbox(device, window=200)
    for number in range(count):
        outbox.compose(chat_id, f"{number}")
    await outbox.flush()


async def until_has(device: Device, chat_id: str, count: int) -> None:
    """Waits until the device has so many events of the chat, wherever they begin."""
    await device.until(lambda: len(device.held.events.get(chat_id, ())) >= count)


async def test_a_device_that_comes_and_goes_under_traffic_misses_nothing(cast: Cast, chatting: Chatter) -> None:
    bob = cast.device("bob")
    for _ in range(25):
        await bob.connect()
        await bob.until_held(group_of(chatting), bob.held.cursors.get(group_of(chatting), 0) + 20)
        await bob.close()
    chatting.finish()
    await bob.connect()
    log = await cast.caller("bob").log(group_of(chatting))
    await bob.until_held(group_of(chatting), len(log))
    check_held(bob.held, log)


async def test_a_device_that_keeps_nothing_goes_on_where_it_acknowledged(cast: Cast) -> None:
    """It names no position; the server knows what it has acknowledged, at once and after a restart."""
    alice = await cast.online("alice")
    chat_id = await cast.group("alice", "bob")
    await fill(alice, chat_id, 10)
    bob = cast.device("bob", address=cast.next_address())
    bob.auto_ack = False
    await bob.connect()
    await bob.until_held(chat_id, 11)
    await bob.ack(chat_id, 7)
    await bob.heartbeat()
    await bob.close()

    again = cast.device("bob", held=Held(), address=bob.address)
    await again.connect()
    await again.synced()
    assert (await next_frame(again, "chat_opened")).chat_opened.next_seq == 8
    assert list(again.held.events[chat_id]) == [8, 9, 10, 11]


async def test_a_device_without_positions_under_traffic_gets_every_event_once(cast: Cast, chatting: Chatter) -> None:
    chat_id = group_of(chatting)
    address = cast.next_address()
    seen: list[int] = []
    for _ in range(15):
        bob = cast.device("bob", held=Held(), address=address)
        bob.auto_ack = False
        await bob.connect()
        await until_has(bob, chat_id, 20)
        events = list(bob.held.events[chat_id])
        await bob.ack(chat_id, events[-1])
        await bob.heartbeat()
        await bob.close()
        seen += events
    assert seen == list(range(1, len(seen) + 1))


async def test_a_new_device_that_begins_at_the_head_begins_without_a_hole(cast: Cast, chatting: Chatter) -> None:
    chat_id = group_of(chatting)
    for number in range(8):
        bob = cast.device("bob", f"new{number}")
        await bob.connect(start_at=START_AT_HEAD)
        opened = (await next_frame(bob, "chat_opened")).chat_opened
        assert opened.chat.chat_id == chat_id
        await until_has(bob, chat_id, 20)
        events = list(bob.held.events[chat_id])
        assert events == list(range(opened.next_seq, opened.next_seq + len(events)))
        await bob.close()


async def test_a_device_whose_window_is_full_lags_and_comes_back_to_live(cast: Cast) -> None:
    """What is beyond the window is read from the log once the device acknowledges, and then pushes go on."""
    alice, bob = await cast.online("alice"), cast.device("bob")
    chat_id = await cast.group("alice", "bob")
    bob.auto_ack = False
    await bob.connect()
    await fill(alice, chat_id, 2_500)
    window = 1_000
    await bob.until_held(chat_id, window)
    async with asyncio.timeout(30):  # bob's node may hear of the last events after alice's does
        while (heads := (await bob.heartbeat()).heads)[0].seq < 2_501:
            await asyncio.sleep(0.05)
    assert [(head.chat_id, head.seq) for head in heads] == [(chat_id, 2_501)]
    assert bob.held.cursors[chat_id] == window
    while bob.held.cursors[chat_id] < 2_501:
        held = bob.held.cursors[chat_id]
        await bob.ack(chat_id, held)
        await bob.until_held(chat_id, held + 1)
    bob.auto_ack = True
    await bob.ack(chat_id, 2_501)
    await alice.send(chat_id, "live again")
    await bob.until_held(chat_id, 2_502)
    async with asyncio.timeout(30):  # a heartbeat may go out before the acknowledgement of what is held
        while (await bob.heartbeat()).heads:
            await asyncio.sleep(0.05)


async def test_a_member_let_in_under_traffic_begins_with_the_event_that_let_them_in(cast: Cast, chatting: Chatter) -> None:
    chat_id, caller = group_of(chatting), cast.caller("alice")
    carol, dave = await cast.online("carol"), cast.device("dave")
    for name in ("carol", "dave"):
        request = chat_service_pb2.AddMembersRequest(chat_id=chat_id, user_ids=[cast.user(name)])
        joined = (await caller.chats.AddMembers(request)).committed
        device = carol if name == "carol" else dave
        if name == "dave":  # not connected when it happened
            await device.connect()
        await until_has(device, chat_id, 50)
        assert next(iter(device.held.events[chat_id])) == joined.seq


async def test_a_member_who_is_removed_and_comes_back_sees_their_times_only(cast: Cast) -> None:
    """Live, and away during the change: the stream jumps over what they may not see, and says so."""
    alice, live, away = await cast.online("alice"), await cast.online("bob"), cast.device("bob", "away")
    chat_id = await cast.group("alice", "bob")
    await away.connect()
    for _ in range(3):
        await fill(alice, chat_id, 5)
        head = alice.held.cursors[chat_id]
        for device in (live, away):
            await device.until_held(chat_id, head)
        await away.close()
        removal = chat_service_pb2.RemoveMemberRequest(chat_id=chat_id, user_id=cast.user("bob"))
        left = (await cast.caller("alice").chats.RemoveMember(removal)).committed.seq
        await fill(alice, chat_id, 5)
        addition = chat_service_pb2.AddMembersRequest(chat_id=chat_id, user_ids=[cast.user("bob")])
        back = (await cast.caller("alice").chats.AddMembers(addition)).committed.seq
        await away.connect()
        for device in (live, away):
            await device.until_held(chat_id, back)
            events = device.held.events[chat_id]
            assert left in events
            assert not events.keys() & set(range(left + 1, back))
            opened = [frame.chat_opened for frame in device.taken() if frame.HasField("chat_opened")]
            assert (opened[-1].next_seq, opened[-1].first_visible_seq) == (back, 1)
    assert live.held.events == away.held.events


async def test_a_removed_member_who_acknowledged_the_end_is_not_sent_it_again(cast: Cast) -> None:
    chat_id = await cast.group("alice", "bob")
    bob = cast.device("bob", address=cast.next_address())
    await bob.connect()
    removal = chat_service_pb2.RemoveMemberRequest(chat_id=chat_id, user_id=cast.user("bob"))
    left = (await cast.caller("alice").chats.RemoveMember(removal)).committed.seq
    await bob.until_held(chat_id, left)
    await bob.heartbeat()
    again = cast.device("bob", held=Held(), address=bob.address)
    await again.connect()
    await again.synced()
    assert chat_id not in again.held.events
    assert not [frame for frame in again.taken() if frame.HasField("chat_opened")]


async def test_a_device_that_holds_more_than_the_log_is_told_where_the_log_ends(cast: Cast) -> None:
    """The server's data was set back: without a word the device would wait for events that never come."""
    chat_id = await cast.group("alice", "bob")
    bob = cast.device("bob")
    bob.held.cursors[chat_id] = 1_000
    await bob.connect()
    assert (await next_frame(bob, "chat_opened")).chat_opened.next_seq == 2
    await cast.caller("alice").send(chat_id, "goes on")
    await bob.until_held(chat_id, 2)


async def test_a_heartbeat_names_the_heads_that_a_device_is_behind(impatient_cast: Cast) -> None:
    """How a device finds out that the last push was lost: within one heartbeat, without asking."""
    bob = impatient_cast.device("bob")
    bob.auto_ack = False
    await bob.connect()
    chat_id = await impatient_cast.group("alice", "bob")
    await bob.until_held(chat_id, 1)
    bob.heartbeats.clear()
    await bob.until(lambda: bool(bob.heartbeats))
    assert [(head.chat_id, head.seq) for head in bob.heartbeats[-1].heads] == [(chat_id, 1)]


async def test_a_receiver_whose_sessions_are_cut_ends_with_exactly_the_log(
    cast: Cast, server: Served, chatting: Chatter, seed: int
) -> None:
    """Five sessions in a row, each cut at a random byte of either way, under traffic."""
    rng = random.Random(seed)
    cuts = [_random_cut(rng) for _ in range(SESSIONS_CUT)]
    async with cutting_proxy(server.addresses, cuts) as proxy:
        bob = cast.device("bob", address=proxy.address)
        while proxy.connections < SESSIONS_CUT or not bob.is_open:
            try:
                await bob.connect()
                if proxy.connections <= SESSIONS_CUT:
                    await _until_cut(bob, group_of(chatting))
            except DisconnectedError:
                continue
        chatting.finish()
        log = await cast.caller("bob").log(group_of(chatting))
        await bob.until_held(group_of(chatting), len(log))
    check_held(bob.held, log)


async def _until_cut(device: Device, chat_id: str) -> None:
    """Waits until its stream ends, however slowly the bytes come after which it does; but they must come."""
    while True:
        held_seq = device.held.cursors.get(chat_id, 0)
        try:
            await device.until_ended()
        except TimeoutError:
            assert device.held.cursors.get(chat_id, 0) > held_seq, "nothing came, and the stream stands"
        else:
            return


def _random_cut(rng: random.Random) -> Cut:
    way = rng.choice([Way.TO_CLIENT, Way.TO_CLIENT, Way.TO_SERVER])
    return Cut(way, rng.randint(0, BYTES_UNTIL_CUT_MAX[way]), rng.random() < 0.5)
