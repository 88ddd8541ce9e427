"""A message for many members costs a link one copy, however many of them are on the node behind it."""

import asyncio

import pytest

from chatgrpc.relay import describe_node
from tests.cluster.support_people import People
from tests.support.checker import check_held
from tests.support.cluster import ClusterNode
from tests.support.device import TIMEOUT_S

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

MEMBERS = 100
MESSAGES = 50


@pytest.mark.slow
async def test_a_group_of_a_hundred_on_three_nodes_costs_a_message_one_payload_a_node(people: People) -> None:
    names = [f"member{number}" for number in range(MEMBERS)]
    chat_id = await people.group(*names)
    devices = [await people.online_at(people.nodes[number % 3], name) for number, name in enumerate(names)]
    owner = await people.cluster.owner_of(chat_id)
    sender = next(device for device in devices if device.address != owner.address)
    for device in devices:
        await device.until_held(chat_id, 1)
    before = await sent_from(people, owner)
    for number in range(MESSAGES):
        sent = await sender.send(chat_id, f"{number}")
    await asyncio.gather(*(device.until_held(chat_id, sent.seq) for device in devices))
    after = await sent_from(people, owner)

    log = await people.caller(names[0]).log(chat_id)
    for device in devices:
        check_held(device.held, log)
    for peer_id, count in after.items():
        said = count - before[peer_id]
        # Besides the deliveries: answers to the sender's node, and a few heartbeats a second.
        assert MESSAGES <= said < MESSAGES * MEMBERS / 3 / 4
    print({peer_id: after[peer_id] - before[peer_id] for peer_id in after})


async def sent_from(people: People, node: ClusterNode) -> dict[str, int]:
    """How many messages a node has sent over each of its links, by the other node's id."""
    view = await people.cluster.view()
    info = next(info for info in view.nodes.values() if info.public_address == node.address)
    said = await describe_node(info.relay_address, None, TIMEOUT_S)
    return {link.node_id: link.sent_messages for link in said.links if link.node_id in view.nodes}
