"""A node that stops in order, and comes back: nobody who writes notices more than a moment (design §5, drain)."""

import asyncio

import pytest

from chatgrpc.v1 import session_pb2
from chatgrpc.v1.node_service_pb2 import ListNodesRequest, Node
from chatgrpc.v1.node_service_pb2_grpc import NodeServiceStub
from tests.cluster.support_people import People, until
from tests.support.checker import check_held, check_log, check_outbox
from tests.support.cluster import ClusterNode
from tests.support.device import DisconnectedError
from tests.support.outbox import Outbox
from tests.support.server import channel

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

PAIRS = 4
GIVEN_UP_AFTER_S = 9.5
"""A send without an outcome is answered by UNAVAILABLE after ten seconds, and on a machine that is busy with other things a
hand-over may take as long. What is answered so before that was not waited for."""


class Talk:
    """Somebody at one node who writes all the time to chats whose owner stops, and somebody at another node who listens."""

    def __init__(self, outbox: Outbox, chat_ids: list[str]) -> None:
        self.outbox = outbox
        self._chat_ids = chat_ids
        self._finished = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def goes_on(self) -> None:
        """Waits until what is composed from now on is acknowledged."""
        wanted = len(self.outbox.composed) + 20

        async def done() -> bool:
            if self._task.done():
                self._task.result()
            return len(self.outbox.acknowledged) >= wanted

        await until(done)

    async def finish(self) -> None:
        """Writes nothing new; returns when all is acknowledged."""
        self._finished.set()
        await self._task

    async def _run(self) -> None:
        number = 0
        while not self._finished.is_set():
            for chat_id in self._chat_ids:
                number += 1
                self.outbox.compose(chat_id, f"{number}")
            await self.outbox.flush()


@pytest.mark.slow
async def test_no_send_fails_while_the_shard_of_its_chat_moves_away_and_back(people: People) -> None:
    here, there, stops = people.nodes
    chat_ids = [await people.group_owned_by(stops, f"alice{number}", f"bob{number}") for number in range(PAIRS)]
    talks, listeners = [], []
    for number, chat_id in enumerate(chat_ids):
        speaker = await people.online_at(here, f"alice{number}")
        listeners.append(await people.online_at(there, f"bob{number}"))
        talks.append(Talk(Outbox(speaker), [chat_id]))
    await asyncio.gather(*(talk.goes_on() for talk in talks))
    assert await stops.stop() == 0
    await asyncio.gather(*(talk.goes_on() for talk in talks))
    assert {await people.cluster.owner_of(chat_id) for chat_id in chat_ids} <= {here, there}
    await stops.start()
    await people.cluster.settled()
    await asyncio.gather(*(talk.goes_on() for talk in talks))
    await asyncio.gather(*(talk.finish() for talk in talks))

    for number, (talk, listener, chat_id) in enumerate(zip(talks, listeners, chat_ids, strict=True)):
        log = await people.caller(f"bob{number}").log(chat_id)
        check_log(log)
        check_outbox(talk.outbox, [log])
        assert all(failed.after_s > GIVEN_UP_AFTER_S for failed in talk.outbox.failed.values())
        await listener.until_held(chat_id, len(log))
        check_held(listener.held, log)


async def test_devices_of_a_node_that_stops_are_sent_away_and_lose_nothing(people: People) -> None:
    here, stops, _ = people.nodes
    alice = await people.online_at(stops, "alice")
    bob = await people.online_at(here, "bob")
    sent = await alice.send(bob.user_id, "before")
    stopping = asyncio.create_task(stops.stop())
    drains: list[session_pb2.Drain] = []

    async def told() -> bool:
        drains.extend(frame.drain for frame in alice.taken() if frame.HasField("drain"))
        return bool(drains)

    await until(told)
    other = await people.online_at(here, "alice", held=alice.held)
    again = await other.send(bob.user_id, "during")
    assert await stopping == 0
    with pytest.raises(DisconnectedError):
        await people.device_at(stops, "carol").connect()
    await bob.until_held(sent.chat_id, again.seq)
    await other.until_held(sent.chat_id, again.seq)
    assert bob.held.texts(sent.chat_id) == other.held.texts(sent.chat_id) == ["before", "during"]
    await stops.start()
    await people.cluster.settled()


async def test_every_node_lists_all_nodes_with_their_streams(people: People) -> None:
    devices = [await people.online_at(node, f"alice{number}") for number, node in enumerate((*people.nodes, people.nodes[0]))]

    async def told_right() -> bool:
        told = [await nodes_by(node) for node in people.nodes]
        streams = [{listed.address: listed.streams for listed in nodes} for nodes in told]
        assert not any(listed.draining for nodes in told for listed in nodes)
        return streams == [dict(zip(people.cluster.addresses, (2, 1, 1), strict=True))] * 3

    await until(told_right)
    for device in devices:
        await device.heartbeat()


async def nodes_by(node: ClusterNode) -> list[Node]:
    """The nodes as one of them lists them."""
    async with channel(node.address) as open_channel:
        return list((await NodeServiceStub(open_channel).ListNodes(ListNodesRequest())).nodes)
