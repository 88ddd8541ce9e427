"""People whose devices are at nodes of the test's choice."""

import asyncio
from collections.abc import Awaitable, Callable

from chatgrpc.v1 import session_pb2
from tests.support.callers import Caller
from tests.support.cast import Cast
from tests.support.cluster import ClusterNode, RunningCluster
from tests.support.device import TIMEOUT_S, Device, DisconnectedError, Held

PAUSE_S = 0.05


class People(Cast):
    """A cast that says who is where."""

    def __init__(self, cluster: RunningCluster, suffix: str) -> None:
        super().__init__(cluster, suffix)
        self.cluster = cluster

    @property
    def nodes(self) -> list[ClusterNode]:
        """The three nodes."""
        return self.cluster.nodes

    def device_at(self, node: ClusterNode, name: str, device_id: str = "phone", held: Held | None = None) -> Device:
        """A device that connects to this node, as often as it does."""
        return self.device(name, device_id, held, address=node.address)

    async def online_at(self, node: ClusterNode, name: str, device_id: str = "phone", held: Held | None = None) -> Device:
        """One that is connected and has all that its user may see."""
        device = self.device_at(node, name, device_id, held)
        await device.connect()
        await device.synced()
        return device

    def caller_at(self, node: ClusterNode, name: str) -> Caller:
        """The user as a caller of this node's unary services; to be used as a context manager."""
        return Caller(node.address, self.user(name), self.token(name, device_id="caller"))

    async def group_owned_by(self, node: ClusterNode, owner: str, *others: str) -> str:
        """A group whose shard is in the hands of this node."""
        while True:
            chat_id = await self.group(owner, *others)
            if await self.cluster.owner_of(chat_id) is node:
                return chat_id


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = TIMEOUT_S) -> None:
    """Asks until it is so.

    Raises:
        TimeoutError: it has not become so.
    """
    async with asyncio.timeout(timeout_s):
        while not await holds():
            await asyncio.sleep(PAUSE_S)


def code_of(ended: DisconnectedError) -> str:
    """The name of the disconnect code, without its prefix."""
    assert ended.disconnect is not None, ended.status
    return session_pb2.DisconnectCode.Name(ended.disconnect.code).removeprefix("DISCONNECT_CODE_")
