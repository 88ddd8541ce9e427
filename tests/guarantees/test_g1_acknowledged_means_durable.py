"""G1: a SendResult with a seq means that the event is in the log, and no crash of the process takes it out again.

`--kills N` says how often the server is killed under load; 5 by default.
"""

import asyncio
import math
import random
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chatgrpc.v1 import chat_service_pb2, device_service_pb2, session_pb2
from tests.support.cast import Cast
from tests.support.conversation import Conversation
from tests.support.device import DisconnectedError
from tests.support.server import ServerProcess, running_server

pytestmark = pytest.mark.embedded_only("it kills the one process on its data folder; tests/robustness/cluster kills nodes")

PAIRS = 3
UPTIME_MAX_S = 0.8


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A server of this test's own, to be killed."""
    async with running_server(tmp_path / "data") as server:
        yield server


@pytest.fixture
async def people(mortal: ServerProcess) -> AsyncIterator[Cast]:
    """People on the server that is killed."""
    cast = Cast(mortal, "g1")
    yield cast
    await cast.close()


async def test_a_message_is_there_after_a_kill_right_behind_its_acknowledgement(mortal: ServerProcess, people: Cast) -> None:
    alice = people.device("alice")
    sent = []
    for number in range(2):
        await alice.connect()
        sent.append(await alice.send(people.user("bob"), f"{number}"))
        mortal.kill()
        await mortal.start()
    log = await people.caller("bob").log(sent[0].chat_id)
    assert [(event.seq, event.content.text.text) for event in log[1:]] == [(n + 2, f"{n}") for n in range(2)]
    assert [event.message_id for event in log[1:]] == [result.message_id for result in sent]


async def test_what_a_unary_call_answered_is_there_after_a_kill(mortal: ServerProcess, people: Cast) -> None:
    alice, bob = people.caller("alice"), people.caller("bob")
    await (await people.online("bob", "lost")).close()
    chat_id = await people.group("alice", "bob", title="Before")
    sent = await alice.send(chat_id, "hello")
    renamed = await alice.chats.UpdateGroup(chat_service_pb2.UpdateGroupRequest(chat_id=chat_id, title="After"))
    revoked = await bob.devices.RevokeDevice(device_service_pb2.RevokeDeviceRequest(device_id="lost"))
    assert revoked.HasField("device")
    mortal.kill()
    await mortal.start()

    summary = await bob.summary(chat_id)
    assert (summary.chat.title, summary.head_seq) == ("After", renamed.committed.seq)
    assert (await bob.log(chat_id))[sent.seq - 1].message_id == sent.message_id
    with pytest.raises(DisconnectedError) as refused:
        await people.device("bob", "lost").connect()
    assert refused.value.disconnect is not None
    assert refused.value.disconnect.code == session_pb2.DISCONNECT_CODE_DEVICE_REVOKED


async def test_nothing_is_delivered_that_a_crash_takes_back(mortal: ServerProcess, people: Cast) -> None:
    """An event on a device is in the log: otherwise another event could later stand at its seq."""
    alice, bob = await people.online("alice"), await people.online("bob")
    chat_id = (await alice.send(bob.user_id, "first")).chat_id
    for _ in range(2):
        for number in range(50):
            await alice.post(alice.compose(chat_id, f"{number}"))
        await bob.until_held(chat_id, bob.held.cursors.get(chat_id, 0) + 1)
        mortal.kill()
        await bob.until_ended()
        await mortal.start()
        log = await people.caller("bob").log(chat_id)
        assert list(bob.held.events[chat_id].values()) == log[: len(bob.held.events[chat_id])]
        await alice.connect()
        await bob.connect()


@pytest.mark.timeout(3600)
async def test_kill_9_under_load(mortal: ServerProcess, people: Cast, pytestconfig: pytest.Config) -> None:
    """After kills at random moments every acknowledged message is there once, in order, and every stream is contiguous."""
    kills: int = pytestconfig.getoption("--kills")
    seed = random.randrange(2**32)
    print(f"seed {seed}, {kills} kills")
    rng = random.Random(seed)
    conversation = Conversation(people, PAIRS, seed)
    killed_at_s, restarted_at_s = [], []
    async with asyncio.timeout(120 + 20 * kills), conversation.going_on():
        for _ in range(kills):
            await asyncio.sleep(rng.uniform(0, UPTIME_MAX_S))
            killed_at_s.append(time.monotonic())
            mortal.kill()
            await mortal.start()
            restarted_at_s.append(time.monotonic())
    await conversation.check()
    _report(killed_at_s, restarted_at_s, conversation)


def _report(killed_at_s: list[float], restarted_at_s: list[float], conversation: Conversation) -> None:
    acknowledged_at_s = sorted(at_s for chatter in conversation.chatters.values() for at_s in chatter.acknowledged_at_s)
    recovered_s = []
    for at_s, next_at_s, up_at_s in zip(killed_at_s, [*killed_at_s[1:], math.inf], restarted_at_s, strict=True):
        first_s = next((acknowledged for acknowledged in acknowledged_at_s if acknowledged > up_at_s), math.inf)
        if first_s < next_at_s:
            recovered_s.append(first_s - at_s)
    print(
        f"{len(killed_at_s)} kills, {conversation.acknowledged} acknowledged, "
        f"{conversation.duplicates} of them by a try after the one whose answer was lost; "
        f"from the kill to the next acknowledgement p50 {statistics.median(recovered_s):.2f} s, max {max(recovered_s):.2f} s "
        f"({len(killed_at_s) - len(recovered_s)} servers were killed before their first)"
    )
