"""G2: per chat, seq is 1, 2, 3, … without a gap, and every device of every member receives events in that order."""

import asyncio
import random

from chatgrpc.v1 import chat_service_pb2
from tests.support.cast import Cast
from tests.support.checker import check_held, check_log, check_outbox
from tests.support.outbox import Outbox


async def test_many_senders_at_once_make_one_order_for_everyone(cast: Cast) -> None:
    names = ["alice", "bob", "carol", "dave"]
    devices = [await cast.online(name, device_id) for name in names for device_id in ("phone", "laptop")]
    chat_id = await cast.group(*names)
    outboxes = [Outbox(device) for device in devices]
    for outbox in outboxes:
        await outbox.device.until_held(chat_id, 1)
        for number in range(100):
            outbox.compose(chat_id, f"{number}")
    await asyncio.gather(*(outbox.flush() for outbox in outboxes))

    log = await cast.caller("alice").log(chat_id)
    assert len(log) == 1 + 100 * len(outboxes)
    check_log(log)
    for outbox in outboxes:
        await outbox.device.until_held(chat_id, len(log))
        check_held(outbox.device.held, log)
        check_outbox(outbox, [log])


async def test_streams_and_unary_calls_write_into_the_same_order(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = (await alice.send(bob.user_id, "first")).chat_id
    by_stream = [await alice.post(alice.compose(chat_id, f"stream {number}")) for number in range(50)]
    by_call = [asyncio.create_task(cast.caller("bob").send(chat_id, f"call {number}")) for number in range(50)]
    results = [(await answer).sent for answer in by_stream] + [await call for call in by_call]

    log = await cast.caller("bob").log(chat_id)
    check_log(log)
    assert sorted(result.seq for result in results) == list(range(3, 103))
    for result in results:
        assert log[result.seq - 1].message_id == result.message_id
    for device in (alice, bob):
        await device.until_held(chat_id, len(log))
        check_held(device.held, log)


async def test_answers_to_one_device_come_in_the_order_of_the_log(cast: Cast) -> None:
    alice = await cast.online("alice")
    chat_id = await cast.group("alice", "bob")
    order: list[int] = []
    answers = [await alice.post(alice.compose(chat_id, f"{number}")) for number in range(200)]
    for answer in answers:
        answer.add_done_callback(lambda done: order.append(done.result().sent.seq))
    await asyncio.gather(*answers)
    assert order == list(range(2, 202))


async def test_every_kind_of_event_takes_its_place_in_the_one_order(cast: Cast) -> None:
    """Changes of the chat and messages count in one sequence; there is no second log."""
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = await cast.group("alice", "bob")
    rng = random.Random(2)
    caller = cast.caller("alice")
    for number in range(30):
        if rng.random() < 0.5:
            await bob.send(chat_id, f"{number}")
        else:
            await caller.chats.UpdateGroup(chat_service_pb2.UpdateGroupRequest(chat_id=chat_id, title=f"{number}"))
    log = await caller.log(chat_id)
    check_log(log)
    assert {event.content.WhichOneof("body") for event in log} == {"chat_created", "text", "chat_info_changed"}
    for device in (alice, bob):
        await device.until_held(chat_id, len(log))
        check_held(device.held, log)
