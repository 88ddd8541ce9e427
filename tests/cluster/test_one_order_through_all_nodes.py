"""G1 to G4 where a chat is written to through all nodes at once, and its members are on all of them."""

import asyncio
import os

import pytest

from chatgrpc.v1 import session_pb2
from chatgrpc.v1.message_service_pb2 import SendMessageRequest
from tests.cluster.support_people import People
from tests.support.checker import check_held, check_log, check_outbox
from tests.support.outbox import Outbox

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

SENDERS = 9
MESSAGES = 60


async def test_a_chat_used_through_all_nodes_by_many_has_one_order(people: People) -> None:
    names = [f"person{number}" for number in range(SENDERS)]
    chats = [await people.group_owned_by(node, *names) for node in people.nodes]
    devices = [await people.online_at(people.nodes[number % 3], name) for number, name in enumerate(names)]
    outboxes = [Outbox(device) for device in devices]
    for number in range(MESSAGES):
        for outbox in outboxes:
            outbox.compose(chats[number % 3], f"{number}")
    await asyncio.gather(*(outbox.flush() for outbox in outboxes))

    logs = []
    for chat_id in chats:
        told = []
        for node in people.nodes:
            async with people.caller_at(node, names[0]) as caller:
                told.append(await caller.log(chat_id))
        assert told[0] == told[1] == told[2]
        check_log(told[0])
        assert len(told[0]) == 1 + SENDERS * MESSAGES / 3
        logs.append(told[0])
    for outbox in outboxes:
        assert not outbox.failed
        check_outbox(outbox, logs)
        for log in logs:
            await outbox.device.until_held(log[0].chat_id, len(log))
            check_held(outbox.device.held, log)


async def test_tries_of_one_message_through_all_nodes_at_once_are_one_message(people: People) -> None:
    chat_id = await people.group("alice", "bob")
    phones = [await people.online_at(node, "alice", f"device-{number}") for number, node in enumerate(people.nodes)]
    for phone in phones:
        await phone.until_held(chat_id, 1)
    for round_ in range(10):
        frame = phones[0].compose(chat_id, f"{round_}", os.urandom(16))
        request = SendMessageRequest(chat_id=chat_id, key=frame.send.key, content=frame.send.content)
        calls = [people.caller("alice").messages.SendMessage(request) for _ in people.nodes]
        posted = [await phone.post(session_pb2.ClientFrame(send=frame.send)) for phone in phones for _ in range(2)]
        answers = [answer.sent for answer in await asyncio.gather(*posted)]
        answers += [reply.sent for reply in await asyncio.gather(*calls)]
        assert {answer.seq for answer in answers} == {round_ + 2}
        assert sum(not answer.duplicate for answer in answers) == 1
        for phone in phones:
            await phone.until_held(chat_id, round_ + 2)
    assert len(await people.caller("bob").log(chat_id)) == 11


async def test_who_reads_through_one_node_what_was_answered_by_another_finds_it(people: People) -> None:
    """An answer is a promise of the whole cluster: every node shows the message from then on, in pages, heads and streams."""
    chat_id = await people.group("alice", "bob")
    alice, bob = await people.online_at(people.nodes[0], "alice"), people.device("bob")
    callers = [people.caller_at(node, "bob") for node in people.nodes]
    for number in range(20):
        sent = await alice.send(chat_id, f"{number}")
        summaries = await asyncio.gather(*(caller.summary(chat_id) for caller in callers))
        assert [summary.head_seq for summary in summaries] == [sent.seq] * 3
        logs = await asyncio.gather(*(caller.log(chat_id) for caller in callers))
        assert [log[-1].message_id for log in logs] == [sent.message_id] * 3
        await bob.connect()
        await bob.synced()
        assert bob.held.cursors[chat_id] == sent.seq
    for caller in callers:
        await caller.__aexit__()
