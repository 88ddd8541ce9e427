"""What any cluster must do, on every one: in memory, and in a real etcd."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from chatgrpc.adapters.etcd import EtcdCluster, EtcdSettings, client
from chatgrpc.adapters.memory import MemoryCluster, MemoryCoordinator
from chatgrpc.ports.cluster import Cluster, ClusterUnavailableError, ClusterView
from chatgrpc.ports.lease_clock import lease_clock_s
from tests.contract.cluster_nodes import Node, assert_views_are_in_order, eventually
from tests.support.link import Link
from tests.support.services.etcd import EtcdCluster as EtcdServers


class World(Protocol):
    """A new cluster, and what tests do to it."""

    ttl_s: int

    async def node(self) -> Node:
        """A node that has not joined."""
        ...

    async def separate(self, node: Node) -> None:
        """Cuts a node off from the coordinator."""
        ...

    async def reunite(self, node: Node) -> None:
        """Mends it."""
        ...


class MemoryWorld:
    """On the usual clock, driven by a task."""

    ttl_s = 1

    def __init__(self) -> None:
        self._coordinator = MemoryCoordinator(lease_clock_s, self.ttl_s, self.ttl_s / 10)
        self._clusters: list[MemoryCluster] = []
        self._driver = asyncio.create_task(self._drive())

    async def node(self) -> Node:
        self._clusters.append(MemoryCluster(self._coordinator))
        return Node(self._clusters[-1])

    async def separate(self, node: Node) -> None:
        self._cluster(node).reachable = False

    async def reunite(self, node: Node) -> None:
        self._cluster(node).reachable = True
        self._cluster(node).hear()

    async def close(self) -> None:
        self._driver.cancel()
        await asyncio.gather(self._driver, return_exceptions=True)

    def _cluster(self, node: Node) -> MemoryCluster:
        return next(cluster for cluster in self._clusters if cluster is node.cluster)

    async def _drive(self) -> None:
        while True:
            self._coordinator.expire()
            for cluster in self._clusters:
                cluster.keep_alive()
            await asyncio.sleep(0.02)


class EtcdWorld:
    """In a real etcd, each node over a link of its own."""

    ttl_s = 3

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._prefix = f"test-{uuid.uuid4().hex}/"
        self._clusters: list[EtcdCluster] = []
        self._links: dict[int, Link] = {}

    async def node(self) -> Node:
        link = Link(self._server_port)
        await link.start()
        cluster = EtcdCluster(EtcdSettings([link.address], self._prefix, self.ttl_s))
        self._clusters.append(cluster)
        self._links[id(cluster)] = link
        return Node(cluster)

    async def separate(self, node: Node) -> None:
        self._links[id(node.cluster)].cut()

    async def reunite(self, node: Node) -> None:
        self._links[id(node.cluster)].mend()

    async def close(self) -> None:
        for link in self._links.values():
            link.mend()
        await asyncio.gather(*(cluster.close() for cluster in self._clusters))
        for link in self._links.values():
            await link.stop()


@pytest.fixture(autouse=True)
def _short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without etcd one need not wait for as long as an election may take."""
    monkeypatch.setattr(client, "CALL_TIMEOUT_S", 2.0)


@pytest.fixture(params=["memory", "etcd"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """An empty cluster of each kind."""
    made = MemoryWorld() if request.param == "memory" else EtcdWorld(_port(request))
    yield made
    await made.close()


def _port(request: pytest.FixtureRequest) -> int:
    servers: EtcdServers = request.getfixturevalue("shared_etcd")
    return servers.members[0].port


async def test_who_joins_is_seen_by_all_and_who_leaves_is_not(world: World) -> None:
    one, two = await world.node(), await world.node()
    await one.join()
    assert one.view == ClusterView({one.node_id: one.info}, {})
    await two.join()
    both = {one.node_id: one.info, two.node_id: two.info}
    assert two.view.nodes == both
    await one.until(lambda: one.view.nodes == both)
    await two.cluster.leave()
    await one.until(lambda: list(one.view.nodes) == [one.node_id])
    assert (one.losses, two.losses) == (0, 0)


async def test_what_a_node_says_anew_is_heard(world: World) -> None:
    one, two = await world.node(), await world.node()
    await one.join()
    await two.join()
    await one.drain()
    await two.until(lambda: two.view.nodes[one.node_id].draining)
    assert not two.view.nodes[two.node_id].draining


async def test_a_shard_is_taken_once(world: World) -> None:
    one, two = await world.node(), await world.node()
    await one.join()
    await two.join()
    owner = await one.cluster.take(7)
    assert owner is not None
    assert owner.node_id == one.node_id
    assert await two.cluster.take(7) is None
    assert await one.cluster.take(7) == owner
    await two.until(lambda: two.view.owners == {7: owner})


async def test_epochs_rise_from_owner_to_owner_and_are_unique_among_shards(world: World) -> None:
    nodes = [await world.node(), await world.node()]
    for node in nodes:
        await node.join()
    epochs = []
    for turn in range(6):
        for shard in (0, 1023):
            owner = await nodes[turn % 2].cluster.take(shard)
            assert owner is not None
            epochs.append(owner.epoch)
        for shard in (0, 1023):
            await nodes[turn % 2].cluster.release(shard)
    assert epochs == sorted(set(epochs))
    assert epochs[0] >= 1


async def test_of_many_who_take_a_shard_at_once_one_gets_it(world: World) -> None:
    nodes = [await world.node() for _ in range(6)]
    await asyncio.gather(*(node.join() for node in nodes))
    for shard in range(10):
        owners = await asyncio.gather(*(node.cluster.take(shard) for node in nodes))
        assert len([owner for owner in owners if owner is not None]) == 1
    await asyncio.gather(*(node.until(lambda node=node: len(node.view.owners) == 10) for node in nodes))  # type: ignore[misc]
    assert all(node.view == nodes[0].view for node in nodes)


async def test_a_released_shard_is_anybodys(world: World) -> None:
    one, two = await world.node(), await world.node()
    await one.join()
    await two.join()
    first = await one.cluster.take(7)
    await two.cluster.release(7)
    assert await one.cluster.take(7) == first
    await one.cluster.release(7)
    await one.cluster.release(7)
    await two.until(lambda: not two.view.owners)
    second = await two.cluster.take(7)
    assert first is not None
    assert second is not None
    assert second.epoch > first.epoch


async def test_who_leaves_gives_all_shards_away_at_once(world: World) -> None:
    one, two = await world.node(), await world.node()
    await one.join()
    await two.join()
    for shard in range(20):
        await one.cluster.take(shard)
    await one.cluster.leave()
    for shard in range(20):
        assert await two.cluster.take(shard) is not None
    assert one.cluster.deadline_s == 0
    await one.cluster.leave()


async def test_a_lease_that_the_node_ended_is_given_up_too_by_who_leaves_although_it_was_noticed_before(world: World) -> None:
    one, two = await world.node(), await world.node()
    await one.join()
    await two.join()
    await one.cluster.take(7)
    one.lease.end()
    with pytest.raises(ClusterUnavailableError):
        await one.cluster.take(8)
    await one.until(lambda: one.losses == 1)
    await one.cluster.leave()
    assert await two.cluster.take(7) is not None
    await two.until(lambda: list(two.view.nodes) == [two.node_id])


async def test_a_view_once_told_does_not_change(world: World) -> None:
    one = await world.node()
    await one.join()
    first = one.view
    assert dict(first.owners) == {}
    await one.cluster.take(1)
    await one.until(lambda: 1 in one.view.owners)
    assert dict(first.owners) == {}


async def test_all_hear_the_changes_in_one_order(world: World) -> None:
    nodes = [await world.node() for _ in range(3)]
    for node in nodes:
        await node.join()

    async def take_and_release(node: Node, turns: int) -> None:
        for turn in range(turns):
            if await node.cluster.take(turn % 4) is not None:
                await node.cluster.release(turn % 4)

    await asyncio.gather(*(take_and_release(node, 40) for node in nodes))
    last = await nodes[0].cluster.take(99)
    for node in nodes:
        await node.until(lambda node=node: node.view.owners.get(99) == last)  # type: ignore[misc]
        assert_views_are_in_order(node)
        assert node.view == nodes[0].view


async def test_the_deadline_rises_while_the_coordinator_answers(world: World) -> None:
    one = await world.node()
    assert one.cluster.deadline_s == 0
    before_s = lease_clock_s()
    await one.join()
    first_s = one.cluster.deadline_s
    assert before_s < first_s < lease_clock_s() + world.ttl_s
    await asyncio.sleep(world.ttl_s)
    assert one.losses == 0
    assert first_s < one.cluster.deadline_s < lease_clock_s() + world.ttl_s
    assert one.cluster.deadline_s > lease_clock_s()


async def test_nobody_takes_a_shard_before_its_owners_deadline_has_passed(world: World) -> None:
    one, two = await world.node(), await world.node()
    await one.join()
    await two.join()
    first = await one.cluster.take(7)
    assert first is not None
    await world.separate(one)
    deadline_s = 0.0

    async def taken() -> bool:
        nonlocal deadline_s
        deadline_s = max(deadline_s, one.cluster.deadline_s)
        return await two.cluster.take(7) is not None

    await eventually(taken)
    assert lease_clock_s() > deadline_s > 0
    await one.until(lambda: one.losses == 1)
    assert one.cluster.deadline_s == 0
    second = await two.cluster.take(7)
    assert second is not None
    assert second.epoch > first.epoch
    await two.until(lambda: list(two.view.nodes) == [two.node_id])


async def test_after_the_lease_is_lost_nothing_can_be_done_until_the_node_has_joined_again(world: World) -> None:
    one, two = await world.node(), await world.node()
    await one.join()
    await two.join()
    await one.cluster.take(7)
    await world.separate(one)
    await one.until(lambda: one.losses == 1)
    views = len(one.views)
    for attempt in (one.cluster.take(7), one.cluster.release(7), one.cluster.update(one.info)):
        with pytest.raises(ClusterUnavailableError):
            await attempt
    await one.cluster.leave()
    await world.reunite(one)
    assert await two.cluster.take(8) is not None
    await two.until(lambda: 8 in two.view.owners)
    assert len(one.views) == views
    await one.join()
    assert one.view.nodes[one.node_id] == one.info
    await eventually(lambda: _takes(one.cluster, 7))
    assert one.losses == 1
    # Whatever stood under the old lease is gone, and what stands now stays.
    await asyncio.sleep(1.2 * world.ttl_s)
    assert one.node_id in one.view.nodes
    assert one.view.owners[7].node_id == one.node_id


async def test_a_short_separation_is_no_loss_and_what_was_missed_is_heard(world: World) -> None:
    one, two = await world.node(), await world.node()
    await one.join()
    await two.join()
    mine = await one.cluster.take(7)
    await world.separate(one)
    theirs = await two.cluster.take(8)
    await two.cluster.take(9)
    await two.cluster.release(9)
    await asyncio.sleep(world.ttl_s / 4)
    await world.reunite(one)
    await one.until(lambda: one.view.owners == {7: mine, 8: theirs})
    assert await one.cluster.take(7) == mine
    assert one.losses == 0


async def test_without_the_coordinator_one_cannot_join(world: World) -> None:
    one = await world.node()
    await world.separate(one)
    with pytest.raises(ClusterUnavailableError):
        await one.join()
    assert one.cluster.deadline_s == 0
    assert (one.views, one.losses) == ([], 0)
    await world.reunite(one)
    await one.join()
    assert list(one.view.nodes) == [one.node_id]


async def test_before_it_has_joined_a_node_can_do_nothing(world: World) -> None:
    one = await world.node()
    for attempt in (one.cluster.take(7), one.cluster.release(7), one.cluster.update(one.info)):
        with pytest.raises(ClusterUnavailableError):
            await attempt
    await one.cluster.leave()


async def _takes(cluster: Cluster, shard: int) -> bool:
    return await cluster.take(shard) is not None
