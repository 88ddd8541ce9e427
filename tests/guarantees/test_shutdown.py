"""SIGTERM: devices are told to go, what is under way is finished, nothing that was acknowledged is lost (design §5, drain)."""

import asyncio
import random
from pathlib import Path

import pytest

from chatgrpc.v1 import session_pb2
from tests.support.cast import Cast
from tests.support.conversation import Conversation
from tests.support.device import DisconnectedError, next_frame
from tests.support.server import running_server

pytestmark = pytest.mark.embedded_only("it stops the one process and starts it again; tests/cluster drains nodes")

SHUTTING_DOWN = session_pb2.DISCONNECT_CODE_SHUTTING_DOWN
STOPS = 3
DRAIN_WINDOW_MS = 1_000


async def test_sigterm_under_load_loses_nothing(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    async with running_server(tmp_path / "data") as server:
        cast = Cast(server, "stop")
        conversation = Conversation(cast, pairs=2, seed=seed)
        async with asyncio.timeout(240), conversation.going_on():
            for _ in range(STOPS):
                acknowledged = conversation.acknowledged
                while conversation.acknowledged < acknowledged + 200:
                    await asyncio.sleep(0.01)
                assert await asyncio.to_thread(server.terminate) == 0
                await server.start()
        await conversation.check()
        assert conversation.duplicates == 0, "what was committed was answered before the streams ended"
        for name, chatter in conversation.chatters.items():
            drains = [frame for frame in chatter.device.taken() if frame.HasField("drain")]
            assert len(drains) == STOPS, name
            assert all(frame.drain.reconnect_after_ms <= DRAIN_WINDOW_MS for frame in drains)
            said = [ending.disconnect.code for ending in chatter.device.endings if ending.disconnect is not None]
            assert len(said) >= STOPS
            assert set(said) == {SHUTTING_DOWN}
        await cast.close()


async def test_a_quiet_device_is_told_twice_and_resumes(tmp_path: Path) -> None:
    """First that it should go, then, if it stays, that the stream ends; both say when to come again."""
    async with running_server(tmp_path / "data") as server:
        cast = Cast(server, "stop")
        alice, bob = await cast.online("alice"), await cast.online("bob")
        sent = await alice.send(bob.user_id, "before")
        await bob.until_held(sent.chat_id, sent.seq)
        stopping = asyncio.create_task(asyncio.to_thread(server.terminate))
        for device in (alice, bob):
            assert (await next_frame(device, "drain")).drain.reconnect_after_ms <= DRAIN_WINDOW_MS
            ended = await device.until_ended()
            assert ended.disconnect is not None
            assert ended.disconnect.code == SHUTTING_DOWN
        assert await stopping == 0
        with pytest.raises(DisconnectedError):
            await alice.connect()
        await server.start()
        for device in (alice, bob):
            await device.connect()
        after = await alice.send(sent.chat_id, "after")
        assert after.seq == sent.seq + 1
        await bob.until_held(sent.chat_id, after.seq)
        assert bob.held.texts(sent.chat_id) == ["before", "after"]
        await cast.close()
