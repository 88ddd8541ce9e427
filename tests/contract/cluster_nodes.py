"""Nodes of a cluster for tests of the port: each notes what it is told."""

import asyncio
import dataclasses
import uuid
from collections.abc import Awaitable, Callable

from chatgrpc.ports.cluster import Cluster, ClusterView, NodeInfo

WAIT_S = 60.0
"""Far above any bound; without one, a test that fails would hang."""


class Node:
    """One node."""

    def __init__(self, cluster: Cluster, node_id: str = "") -> None:
        self.cluster = cluster
        self.info = NodeInfo(node_id or uuid.uuid4().hex, "192.0.2.1:15551", "192.0.2.1:15552")
        self.views: list[ClusterView] = []
        self.losses = 0
        self._heard = asyncio.Event()

    @property
    def node_id(self) -> str:
        """See `NodeInfo`."""
        return self.info.node_id

    @property
    def view(self) -> ClusterView:
        """The last one it was told."""
        return self.views[-1]

    async def join(self) -> None:
        """Joins, noting what it is told."""
        self.lease = await self.cluster.join(self.info, self._on_change, self._on_lost)

    async def drain(self) -> None:
        """Says that it is draining."""
        self.info = dataclasses.replace(self.info, draining=True)
        await self.cluster.update(self.info)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until something that it is told makes this true."""
        async with asyncio.timeout(WAIT_S):
            while not holds():
                self._heard.clear()
                await self._heard.wait()

    def _on_change(self, view: ClusterView) -> None:
        self.views.append(view)
        self._heard.set()

    def _on_lost(self) -> None:
        self.losses += 1
        self._heard.set()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Asks again and again until it is so."""
    async with asyncio.timeout(WAIT_S):
        while not await holds():
            await asyncio.sleep(0.05)


def assert_views_are_in_order(node: Node) -> None:
    """Owners of a shard change by rising epochs only, as far as one can see between views."""
    last: dict[int, int] = {}
    for view in node.views:
        for shard, owner in view.owners.items():
            assert owner.epoch >= last.get(shard, 0)
            last[shard] = owner.epoch
