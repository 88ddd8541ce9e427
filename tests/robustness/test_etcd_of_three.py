"""Nodes over a real etcd of three members that loses its leader, its quorum, or each member in turn, under load.

At all times: a shard has one owner, each with a greater epoch than the one before, and nobody takes a shard before its owner
has released it or its owner's deadline has passed. The time to recover is printed (`pytest -rP`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import pytest

from chatgrpc.adapters.etcd import EtcdCluster, EtcdSettings
from chatgrpc.ports.cluster import ClusterUnavailableError
from chatgrpc.ports.lease_clock import lease_clock_s
from tests.contract.cluster_nodes import Node, assert_views_are_in_order
from tests.support.services.etcd import EtcdCluster as EtcdServers
from tests.support.services.etcd import EtcdMember

SHARDS = 12
TTL_S = 6
RECOVERY_MAX_S = 60.0


@dataclass
class _Claim:
    node: Node
    epoch: int
    released: bool = False


class Load:
    """Nodes that take shards from each other, and a checker that watches them."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.taken = 0
        self.failed = 0
        self._claims: dict[int, _Claim] = {}
        self._tasks = [asyncio.create_task(self._work(node, turn)) for turn, node in enumerate(nodes)]

    async def recovered(self, fault: str, since_s: float) -> None:
        """Waits until every node does something that succeeds, and prints how long that took since then."""
        async with asyncio.timeout(RECOVERY_MAX_S):
            for node in self.nodes:
                await self._rejoin(node)
                while not await _succeeds(node):
                    await self._rejoin(node)
                    await asyncio.sleep(0.05)
        print(f"{fault}: every node at work again after {time.monotonic() - since_s:.1f} s")

    async def stop(self) -> None:
        """Ends the load; what a checker found is raised."""
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _work(self, node: Node, turn: int) -> None:
        shard = turn
        while True:
            shard = (shard + 1) % SHARDS
            try:
                await self._take_and_release(node, shard)
            except ClusterUnavailableError:
                self.failed += 1
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.005)

    async def _take_and_release(self, node: Node, shard: int) -> None:
        owner = await node.cluster.take(shard)
        if owner is None:
            return
        before = self._claims.get(shard)
        if before is not None and before.epoch != owner.epoch:
            assert owner.epoch > before.epoch
            free = before.released or before.node is node or before.node.cluster.deadline_s <= lease_clock_s()
            assert free, f"shard {shard} was taken from an owner that may still write"
        self._claims[shard] = claim = _Claim(node, owner.epoch)
        self.taken += 1
        await asyncio.sleep(0.002)
        # From here on it is not ours, whatever the call ends in.
        claim.released = True
        await node.cluster.release(shard)

    async def _rejoin(self, node: Node) -> None:
        if node.cluster.deadline_s == 0:
            with suppress(ClusterUnavailableError):
                await node.join()


@pytest.fixture
async def load(own_etcd: EtcdServers) -> AsyncIterator[Load]:
    """Three nodes at work, each of which reaches every member."""
    async with AsyncExitStack() as stack:
        nodes = []
        for turn in range(3):
            endpoints = own_etcd.endpoints[turn:] + own_etcd.endpoints[:turn]
            cluster = EtcdCluster(EtcdSettings(endpoints, lease_ttl_s=TTL_S))
            stack.push_async_callback(cluster.close)
            nodes.append(Node(cluster))
            await nodes[-1].join()
        load = Load(nodes)
        stack.push_async_callback(load.stop)
        await _until(lambda: load.taken > 50)
        yield load
        # It went on to the end, and all hear the same in the end.
        taken = load.taken
        await _until(lambda: load.taken > taken + 50)
        await load.stop()
        (shard,) = [await nodes[0].cluster.take(SHARDS)]
        for node in nodes:
            await node.until(lambda node=node: node.view.owners.get(SHARDS) == shard)  # type: ignore[misc]
            assert_views_are_in_order(node)
            assert set(node.view.nodes) == {each.node_id for each in nodes}
            assert node.view.owners == nodes[0].view.owners


async def test_the_leader_is_killed(load: Load, own_etcd: EtcdServers) -> None:
    leader = await asyncio.to_thread(own_etcd.leader)
    since_s = time.monotonic()
    leader.kill()
    await load.recovered("leader killed", since_s)
    assert [node.losses for node in load.nodes] == [0, 0, 0]
    leader.process.launch()
    await _ready(leader)


@pytest.mark.long
async def test_the_leader_stands_still_for_longer_than_a_lease(load: Load, own_etcd: EtcdServers) -> None:
    leader = await asyncio.to_thread(own_etcd.leader)
    since_s = time.monotonic()
    leader.process.pause()
    await load.recovered("leader stopped", since_s)
    await asyncio.sleep(1.5 * TTL_S)
    assert [node.losses for node in load.nodes] == [0, 0, 0]
    leader.process.resume()
    await _ready(leader)
    await asyncio.sleep(2)


async def test_the_quorum_is_lost_for_less_than_a_lease(load: Load, own_etcd: EtcdServers) -> None:
    since_s = time.monotonic()
    for member in own_etcd.members[:2]:
        member.kill()
    for member in own_etcd.members[:2]:
        member.process.launch()
    for member in own_etcd.members:
        await _ready(member)
    await load.recovered("quorum lost for a moment", since_s)
    assert [node.losses for node in load.nodes] == [0, 0, 0]


@pytest.mark.long
async def test_the_quorum_is_lost_for_longer_than_a_lease(load: Load, own_etcd: EtcdServers) -> None:
    for member in own_etcd.members[:2]:
        member.kill()
    for node in load.nodes:
        await node.until(lambda node=node: node.losses == 1)  # type: ignore[misc]
        assert node.cluster.deadline_s == 0
    # Nobody can do anything now: not even who would join anew.
    taken = load.taken
    with pytest.raises(ClusterUnavailableError):
        await load.nodes[0].join()
    assert load.taken == taken
    since_s = time.monotonic()
    for member in own_etcd.members[:2]:
        member.process.launch()
    for member in own_etcd.members:
        await _ready(member)
    await load.recovered("quorum lost for longer than a lease", since_s)


@pytest.mark.long
async def test_each_member_is_restarted_in_turn(load: Load, own_etcd: EtcdServers) -> None:
    since_s = time.monotonic()
    for member in own_etcd.members:
        await asyncio.to_thread(member.stop)
        await asyncio.sleep(0.5)
        member.process.launch()
        await _ready(member)
    await load.recovered("each member restarted", since_s)
    assert [node.losses for node in load.nodes] == [0, 0, 0]


async def _succeeds(node: Node) -> bool:
    """Whether a write of its own goes through."""
    try:
        await node.cluster.update(node.info)
    except ClusterUnavailableError:
        return False
    return True


async def _ready(member: EtcdMember) -> None:
    await asyncio.to_thread(member.wait)


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(RECOVERY_MAX_S):
        while not holds():
            await asyncio.sleep(0.02)
