"""Three nodes over real etcd, Redis and Cassandra under load, and everything that can happen to them.

In each test two dozen devices chat all the time. At its end every message must be acknowledged, stand in its chat's log once
and in its sender's order, and be on every device, the same at each seq; and every node shows the same logs. How long it took
until every chat was at work again is printed as a table at the end of the run.

`make test` runs the short ones; `make robustness` runs all, for as long as faults last in earnest.
"""

import asyncio
import random
from collections.abc import Callable

import pytest

from tests.robustness.cluster.support_faults import LEASE_TTL_S, Scene
from tests.support.link import Link
from tests.support.load import PEOPLE
from tests.support.proxy import Way

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600), pytest.mark.slow]


async def test_a_node_is_killed(scene: Scene) -> None:
    async with scene.fault() as fault:
        node = await scene.cluster.owner_of(fault.load.chat_ids[0])
        fault.begins("kill -9 a node")
        node.kill()
        await fault.recovered()
        fault.begins("  it starts again")
        await node.start()
        await scene.cluster.settled()
        await fault.recovered()


async def test_an_owner_stands_still_for_longer_than_its_lease(scene: Scene) -> None:
    async with scene.fault() as fault:
        node = await scene.cluster.owner_of(fault.load.chat_ids[0])
        old_id = await scene.cluster.id_of(node)
        fault.begins("SIGSTOP an owner for longer than its lease")
        node.pause()
        await fault.recovered()
        # The others have its shards, so its lease is over; but it does not know.
        assert old_id not in (await scene.cluster.view()).nodes
        fault.begins("  SIGCONT")
        node.resume()
        await scene.cluster.settled()
        await fault.recovered()


async def test_the_leader_of_etcd_is_killed(scene: Scene) -> None:
    async with scene.fault() as fault:
        leader = await asyncio.to_thread(scene.cluster.etcd.leader)
        fault.begins("kill -9 the leader of etcd")
        leader.kill()
        await _until_elected(scene)
        await asyncio.sleep(LEASE_TTL_S)
        await fault.recovered()
        fault.check_none_failed()


@pytest.mark.long
async def test_the_quorum_of_etcd_is_lost(scene: Scene) -> None:
    async with scene.fault() as fault:
        members = scene.cluster.etcd.members[:2]
        fault.begins("two of three members of etcd down for 20 s", is_outage=True)
        for member in members:
            member.kill()
        await asyncio.sleep(LEASE_TTL_S + 3)
        acknowledged = fault.load.acknowledged
        await asyncio.sleep(12)
        # All leases are over: nobody may order anything, and who waits is told.
        assert fault.load.acknowledged == acknowledged
        assert fault.load.failed > 0
        fault.begins("  both start again")
        for member in members:
            member.process.launch()
        await fault.recovered()


async def test_redis_loses_its_data(scene: Scene) -> None:
    async with scene.fault() as fault:
        fault.begins("Redis FLUSHALL")
        scene.cluster.redis.flush()
        await fault.recovered()
        await _until_refilled(scene)
        fault.begins("Redis killed and started again")
        scene.cluster.redis.kill()
        await asyncio.to_thread(scene.cluster.redis.start)
        await fault.recovered()
        await _until_refilled(scene)
        fault.check_none_failed()


@pytest.mark.long
async def test_redis_is_down(scene: Scene) -> None:
    async with scene.fault() as fault:
        fault.begins("Redis down for a minute")
        scene.cluster.redis.stop()
        await fault.recovered()
        await asyncio.sleep(60)
        fault.begins("  it starts again")
        await asyncio.to_thread(scene.cluster.redis.start)
        await fault.recovered()
        await _until_refilled(scene)
        fault.check_none_failed()


async def test_one_node_of_cassandra_is_killed(scene: Scene) -> None:
    async with scene.fault() as fault:
        replica = scene.cluster.cassandra.nodes[1]
        fault.begins("kill -9 one of three nodes of Cassandra")
        replica.kill()
        await fault.recovered()
        fault.begins("  it starts again")
        await asyncio.to_thread(replica.start)
        await fault.recovered()


@pytest.mark.long
async def test_two_nodes_of_cassandra_are_killed(scene: Scene) -> None:
    async with scene.fault() as fault:
        replicas = scene.cluster.cassandra.nodes[1:]
        fault.begins("two of three nodes of Cassandra down for 20 s", is_outage=True)
        for replica in replicas:
            replica.kill()
        await asyncio.sleep(5)
        acknowledged = fault.load.acknowledged
        await asyncio.sleep(15)
        # Nothing can be committed now, so nothing may be acknowledged, and who waits is told.
        assert fault.load.acknowledged == acknowledged
        assert fault.load.failed > 0
        for replica in replicas:
            replica.process.launch()
        for replica in replicas:
            await asyncio.to_thread(replica.wait)
        fault.begins("  both answer again")
        await fault.recovered()


async def test_a_link_between_two_nodes_passes_one_way_only(scene: Scene) -> None:
    await _link_fails(scene, "one way", lambda link: link.silence(Way.TO_SERVER))


@pytest.mark.long
async def test_a_link_between_two_nodes_passes_the_other_way_only(scene: Scene) -> None:
    await _link_fails(scene, "the other way", lambda link: link.silence(Way.TO_CLIENT))


@pytest.mark.long
async def test_a_link_between_two_nodes_passes_nothing(scene: Scene) -> None:
    await _link_fails(scene, "both ways, silently", Link.silence)


@pytest.mark.long
async def test_a_link_between_two_nodes_is_refused(scene: Scene) -> None:
    await _link_fails(scene, "both ways, with a reset", Link.cut)


async def test_every_node_is_restarted_in_turn(scene: Scene) -> None:
    async with scene.fault() as fault:
        for number, node in enumerate(scene.cluster.nodes, start=1):
            fault.begins(f"rolling restart, node {number} of 3")
            assert await node.stop() == 0
            await node.start()
            await scene.cluster.settled()
            await fault.recovered()
        fault.check_none_failed()


@pytest.mark.long
async def test_a_node_comes_and_one_goes(scene: Scene) -> None:
    async with scene.fault() as fault:
        fault.begins("a fourth node comes")
        await scene.cluster.add()
        await scene.cluster.settled()
        await fault.recovered()
        fault.begins("the first node goes for good")
        assert await scene.cluster.remove(scene.cluster.nodes[0]) == 0
        await scene.cluster.settled()
        await fault.recovered()
        fault.check_none_failed()


@pytest.mark.long
async def test_all_nodes_are_killed_at_once(scene: Scene) -> None:
    async with scene.fault() as fault:
        fault.begins("kill -9 all nodes at once, and start them")
        for node in scene.cluster.nodes:
            node.kill()
        await asyncio.gather(*(node.start() for node in scene.cluster.nodes))
        await fault.recovered()


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_nodes_are_killed_at_random_moments(scene: Scene, pytestconfig: pytest.Config) -> None:
    kills: int = pytestconfig.getoption("--kills")
    seed = random.randrange(2**32)
    print(f"seed {seed}, {kills} kills")
    rng = random.Random(seed)
    async with scene.fault() as fault:
        fault.begins(f"kill -9 nodes, {kills} times at random moments")
        for _ in range(kills):
            node = rng.choice(scene.cluster.nodes)
            node.kill()
            # Before its lease is over, or after; the next one dies before this one has its shards again, or after.
            await asyncio.sleep(rng.uniform(0, 2 * LEASE_TTL_S))
            await node.start()
            await asyncio.sleep(rng.uniform(0, LEASE_TTL_S))
        await fault.recovered()


async def _link_fails(scene: Scene, how: str, fail: Callable[[Link], None]) -> None:
    """Cuts the one link between two nodes: the node in the middle, by id, is dialed by the first one alone."""
    async with scene.fault() as fault:
        link = (await scene.nodes_by_id())[1].link
        assert link is not None
        assert link.connections > 0
        lasts_s = 20 if scene.long else 8
        fault.begins(f"the link between two nodes cut {how} for {lasts_s} s", is_outage=True)
        fail(link)
        await asyncio.sleep(lasts_s)
        fault.begins("  it is whole again")
        link.mend()
        await fault.recovered()


async def _until_elected(scene: Scene) -> None:
    """Waits until another member of etcd leads."""

    def one_leads() -> bool:
        return any(member.process.running and member.is_leader() for member in scene.cluster.etcd.members)

    async with asyncio.timeout(30):
        while not await asyncio.to_thread(one_leads):
            await asyncio.sleep(0.1)


async def _until_refilled(scene: Scene) -> None:
    """Waits until the nodes have written back where the devices are: every user has an entry, and every node its canary."""
    async with asyncio.timeout(30):
        while await asyncio.to_thread(scene.cluster.redis.size) < PEOPLE + len(scene.cluster.nodes):
            await asyncio.sleep(0.1)
