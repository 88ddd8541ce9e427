"""While a link between two nodes is cut, the client library finds the node through which its messages go."""

import asyncio
import itertools
from pathlib import Path

import pytest

from chatgrpc.core.ids import direct_chat_id
from chatgrpc_client import Client, ClientConfig
from tests.robustness.cluster.support_faults import Scene
from tests.support.cluster import ClusterNode

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

_GIVE_UP_S = 30.0


@pytest.mark.long
@pytest.mark.parametrize("how", ["silently", "with a reset"])
async def test_messages_go_out_through_another_node_while_the_link_is_cut(scene: Scene, tmp_path: Path, how: str) -> None:
    await scene.cluster.mend()
    here, there = (await scene.nodes_by_id())[:2]
    assert there.link is not None
    alice = f"alice-{how.replace(' ', '-')}"
    bob = await _whose_chat_is_owned_by(there, scene, alice)

    async def token() -> str:
        return scene.cluster.token(alice)

    config = ClientConfig(address=here.address, user_id=alice, data_dir=tmp_path)
    try:
        async with Client(config, token) as client:
            await client.wait_until_live(_GIVE_UP_S)
            first = await (await client.send("before", user_id=bob)).sent
            if how == "silently":
                there.link.silence()
            else:
                there.link.cut()
            outgoing = [await client.send(text, user_id=bob) for text in ("one", "two", "three")]
            async with asyncio.timeout(_GIVE_UP_S):
                sent = [await each.sent for each in outgoing]
            assert [result.seq for result in sent] == [first.seq + 1, first.seq + 2, first.seq + 3]
            assert await scene.cluster.owner_of(first.chat_id) is there, "it is the link that was in the way"
    finally:
        await scene.cluster.mend()


async def _whose_chat_is_owned_by(node: ClusterNode, scene: Scene, user_id: str) -> str:
    """Somebody whose direct chat with the user this node orders."""
    for number in itertools.count():
        other = f"bob{number}"
        if await scene.cluster.owner_of(direct_chat_id(user_id, other)) is node:
            return other
    raise AssertionError
