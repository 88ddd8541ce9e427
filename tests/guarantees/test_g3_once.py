"""G3: the same `client_message_id` from the same sender in the same chat is committed once, and every try gets the same seq."""

import asyncio
import os
import random

import pytest

from chatgrpc.v1 import chat_pb2, chat_service_pb2, message_service_pb2, session_pb2
from tests.support.cast import Cast, Served
from tests.support.checker import check_log, check_outbox
from tests.support.contents import delete
from tests.support.device import Device, DisconnectedError
from tests.support.outbox import Outbox
from tests.support.proxy import Cut, Way, cutting_proxy

SESSIONS_CUT = 5
BYTES_UNTIL_CUT_MAX = 12_000


@pytest.fixture
async def alice(cast: Cast) -> Device:
    return await cast.online("alice")


@pytest.fixture
async def chat_id(cast: Cast, alice: Device) -> str:
    """The chat of alice and bob, whose first message is there."""
    chat_id = (await alice.send(cast.user("bob"), "first")).chat_id
    await alice.until_held(chat_id, 2)
    return chat_id


async def again(device: Device, frame: session_pb2.ClientFrame) -> chat_pb2.SendResult:
    """Sends a message once more, as it was."""
    answer = await device.request(session_pb2.ClientFrame(send=frame.send))
    assert answer.HasField("sent"), answer.error
    return answer.sent


def is_same(first: chat_pb2.SendResult, second: chat_pb2.SendResult) -> bool:
    """Whether the second is the first result, told again."""
    expected = chat_pb2.SendResult()
    expected.CopyFrom(first)
    expected.duplicate = True
    return second == expected


async def test_a_repetition_gets_the_first_result_and_is_stored_once(cast: Cast, alice: Device, chat_id: str) -> None:
    frame = alice.compose(chat_id, "once")
    first = (await alice.request(frame)).sent
    assert not first.duplicate
    assert is_same(first, await again(alice, frame))
    assert is_same(first, await again(alice, frame))
    assert len(await cast.caller("bob").log(chat_id)) == first.seq


async def test_tries_that_are_under_way_together_are_one_message(cast: Cast, alice: Device, chat_id: str) -> None:
    """Two devices of the sender and a unary call, all at once."""
    laptop = await cast.online("alice", "laptop")
    frame = alice.compose(chat_id, "once")
    request = message_service_pb2.SendMessageRequest(chat_id=chat_id, key=frame.send.key, content=frame.send.content)
    calls = [asyncio.create_task(_call(cast, request)) for _ in range(10)]
    posted = [await device.post(session_pb2.ClientFrame(send=frame.send)) for _ in range(10) for device in (alice, laptop)]
    results = [(await answer).sent for answer in posted] + [(await call).sent for call in calls]
    assert {(result.seq, result.message_id, result.sent_at_ms) for result in results} == {
        (3, results[0].message_id, results[0].sent_at_ms)
    }
    assert sum(not result.duplicate for result in results) == 1
    assert len(await cast.caller("bob").log(chat_id)) == 3


async def test_the_first_message_of_a_chat_makes_it_once(cast: Cast, alice: Device) -> None:
    frame = alice.compose(cast.user("carol"), "hello")
    answers = [await alice.post(session_pb2.ClientFrame(send=frame.send)) for _ in range(5)]
    assert {(await answer).sent.seq for answer in answers} == {2}
    log = await cast.caller("carol").log((await answers[0]).sent.chat_id)
    assert [event.content.WhichOneof("body") for event in log] == ["chat_created", "text"]


async def test_a_repetition_is_found_behind_many_other_messages(cast: Cast, alice: Device, chat_id: str) -> None:
    """Further back than the owner keeps in memory: the log is looked through, from `seen_seq` on."""
    frame = alice.compose(chat_id, "once")
    first = (await alice.request(frame)).sent
    outbox = Outbox(alice, window=200)
    for number in range(1500):
        outbox.compose(chat_id, f"{number}")
    await outbox.flush()
    assert is_same(first, await again(alice, frame))


async def test_a_repetition_is_found_after_its_message_was_deleted(alice: Device, chat_id: str) -> None:
    frame = alice.compose(chat_id, "once")
    first = (await alice.request(frame)).sent
    assert (await alice.send_content(chat_id, delete(first.seq))).HasField("sent")
    assert is_same(first, await again(alice, frame))


async def test_a_repetition_is_found_after_its_sender_left(cast: Cast, alice: Device) -> None:
    """The answer to the first try may have been lost before they were removed."""
    chat_id = await cast.group("bob", "alice")
    await alice.until_held(chat_id, 1)
    frame = alice.compose(chat_id, "once")
    first = (await alice.request(frame)).sent
    await cast.caller("bob").chats.RemoveMember(chat_service_pb2.RemoveMemberRequest(chat_id=chat_id, user_id=alice.user_id))
    assert is_same(first, await again(alice, frame))


async def test_the_same_id_of_another_sender_or_in_another_chat_is_another_message(
    cast: Cast, alice: Device, chat_id: str
) -> None:
    bob = await cast.online("bob")
    message_id = os.urandom(16)
    first = (await alice.request(alice.compose(chat_id, "alice's", message_id))).sent
    second = (await bob.request(bob.compose(chat_id, "bob's", message_id))).sent
    third = (await alice.request(alice.compose(cast.user("carol"), "to carol", message_id))).sent
    assert second.seq == first.seq + 1
    assert third.chat_id != chat_id
    assert not any(result.duplicate for result in (first, second, third))


async def test_a_seen_seq_beyond_the_log_or_too_far_behind_is_refused(cast: Cast, alice: Device, chat_id: str) -> None:
    """Neither can be answered exactly: one names events that are not there, the other asks to look at too many."""
    frame = alice.compose(chat_id, "ahead")
    frame.send.key.seen_seq = 1000
    assert (await alice.request(frame)).error.code == chat_pb2.ERROR_CODE_SEEN_SEQ_AHEAD
    outbox = Outbox(alice, window=205)
    for number in range(4100):
        outbox.compose(chat_id, f"{number}")
        if number % 205 == 204:
            await outbox.flush()
    frame = alice.compose(chat_id, "behind")
    frame.send.key.seen_seq = 2
    assert (await alice.request(frame)).error.code == chat_pb2.ERROR_CODE_SEEN_SEQ_TOO_OLD
    assert (await cast.caller("alice").summary(chat_id)).head_seq == 4102


async def test_changes_of_a_chat_are_exact_too(cast: Cast) -> None:
    alice, key = cast.caller("alice"), chat_pb2.WriteKey(client_message_id=os.urandom(16))
    request = chat_service_pb2.CreateGroupRequest(title="Once", member_user_ids=[cast.user("bob")], key=key)
    created = [(await alice.chats.CreateGroup(request)).chat.chat_id for _ in range(3)]
    assert len(set(created)) == 1
    key = chat_pb2.WriteKey(client_message_id=os.urandom(16), seen_seq=1)
    rename = chat_service_pb2.UpdateGroupRequest(chat_id=created[0], title="Twice", key=key)
    assert [(await alice.chats.UpdateGroup(rename)).committed.seq for _ in range(3)] == [2, 2, 2]
    assert await alice.seqs(created[0]) == [1, 2]


async def test_a_sender_whose_sessions_are_cut_sends_everything_once_in_order(cast: Cast, server: Served, seed: int) -> None:
    """Five sessions in a row, each cut at a random byte of either way; what is not acknowledged is sent again (M7)."""
    rng = random.Random(seed)
    cuts = [_random_cut(rng) for _ in range(SESSIONS_CUT)]
    chat_id = await cast.group("alice", "bob")
    async with cutting_proxy(server.addresses, cuts) as proxy:
        alice = cast.device("alice", address=proxy.address)
        outbox = Outbox(alice, window=rng.randint(1, 40))
        alice.held.cursors[chat_id] = 1
        composed = 0
        while proxy.connections <= SESSIONS_CUT or len(outbox):
            for _ in range(rng.randint(1, 30)):
                composed += 1
                outbox.compose(chat_id, f"{composed}")
            try:
                await alice.connect()
                while proxy.connections <= SESSIONS_CUT:
                    await outbox.flush()
                    composed += 1
                    outbox.compose(chat_id, f"{composed}")
                await outbox.flush()
            except DisconnectedError:
                continue
    log = await cast.caller("bob").log(chat_id)
    check_log(log)
    check_outbox(outbox, [log])
    assert [event.content.text.text for event in log[1:]] == [f"{number + 1}" for number in range(composed)]


def _random_cut(rng: random.Random) -> Cut:
    return Cut(rng.choice(list(Way)), rng.randint(0, BYTES_UNTIL_CUT_MAX), rng.random() < 0.5)


async def _call(cast: Cast, request: message_service_pb2.SendMessageRequest) -> message_service_pb2.SendMessageResponse:
    return await cast.caller("alice").messages.SendMessage(request)
