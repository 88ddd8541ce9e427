"""The nodes of the cluster as devices and people are told of them."""

from importlib.metadata import version

from chatgrpc.cluster.directory import ClusterDirectory, Describer
from chatgrpc.ports.cluster import NodeInfo
from chatgrpc.ports.node_directory import NodeStatus
from tests.unit.cluster.small_cluster import SHARDS, group_creation, shard_of, small_cluster, text, until

HERE = NodeInfo("here", "here:1", "here:2")
THERE = NodeInfo("there", "there:1", "there:2", draining=True)


def test_nodes_are_told_with_what_they_said_last() -> None:
    live = {"here": HERE, "there": THERE}
    directory = ClusterDirectory("here", lambda: live, lambda: 7)
    assert directory.nodes() == [NodeStatus("here", "here:1", False, 7), NodeStatus("there", "there:1", True, 0)]
    directory.note_load("there", 5)
    directory.note_load("there", 4)
    directory.note_load("here", 99)
    assert directory.nodes() == [NodeStatus("here", "here:1", False, 7), NodeStatus("there", "there:1", True, 4)]


def test_a_node_that_has_gone_is_forgotten() -> None:
    live = {"here": HERE, "there": THERE}
    directory = ClusterDirectory("here", lambda: live, lambda: 0)
    directory.note_load("there", 5)
    directory.note_load("stranger", 5)
    del live["there"]
    assert [node.node_id for node in directory.nodes()] == ["here"]
    live["there"] = THERE
    assert directory.nodes()[1].streams == 0


def test_a_node_that_has_not_joined_knows_nobody() -> None:
    assert ClusterDirectory("here", dict, lambda: 0).nodes() == []


async def test_a_node_describes_its_shards_and_what_waits() -> None:
    async with small_cluster(nodes=1) as cluster:
        (node,) = cluster.nodes
        describer = Describer(node.desk, node.runner, node.router, node.book, lambda: True, lambda: 3, lambda: 1.5)
        await node.send(group_creation("g.1", "alice"))
        async with cluster.rows.silent(), cluster.session_map.held("of_users"):
            node.submit("late", text("g.1", "alice", 1, 1))
            await until(lambda: bool(node.runner.writes_under_way))
            described = describer.describe()
        assert (described.version, described.draining, described.streams) == (version("chatgrpc"), True, 3)
        assert [shard.shard for shard in described.shards] == list(range(SHARDS))
        assert {shard.shard: shard.epoch for shard in described.shards} == node.epochs()
        assert {shard.shard: shard.active_chats for shard in described.shards if shard.active_chats} == {shard_of("g.1"): 1}
        assert (described.lag.events_waiting, described.lag.store_writes, described.lag.loop_lag_ms) == (1, 1, 1.5)
        await node.outcome("late")
        await until(lambda: node.router.is_idle)
        idle = describer.describe()
        assert (idle.lag.events_waiting, idle.lag.store_writes, idle.lag.deliveries_waiting) == (0, 0, 0)
        assert idle.uptime_ms >= described.uptime_ms
