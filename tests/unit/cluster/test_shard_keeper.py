"""A node takes what should be its own, gives away what should be another's, and holds nothing past its lease."""

import asyncio
from dataclasses import replace

import pytest

from chatgrpc.cluster.shard_keeper import Pace
from tests.unit.cluster.small_cluster import (
    GIVE_UP_S,
    SHARDS,
    SmallCluster,
    SmallNode,
    group_creation,
    seqs,
    shard_of,
    small_cluster,
    text,
    until,
)

ALL = set(range(SHARDS))
FOREVER_S = 1e6


# Nodes come and go.


async def test_a_node_alone_takes_all_shards() -> None:
    async with small_cluster(nodes=1) as cluster:
        (node,) = cluster.nodes
        assert node.shards == ALL
        assert len(set(node.epochs().values())) == SHARDS


async def test_a_node_that_comes_is_given_its_part_and_one_that_leaves_gives_it_back() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        before = {**one.epochs(), **two.epochs()}
        three = cluster.add()
        await cluster.settled()
        assert one.shards | two.shards | three.shards == ALL
        assert three.shards
        assert all(three.epochs()[shard] > before[shard] for shard in three.shards)
        assert all(epoch == before[shard] for node in (one, two) for shard, epoch in node.epochs().items())
        given = three.epochs()
        await three.keeper.give_all_away(GIVE_UP_S)
        assert not three.shards
        cluster.nodes.remove(three)
        await three.stop()
        await cluster.settled()
        after = {**one.epochs(), **two.epochs()}
        assert after.keys() == ALL
        assert all(after[shard] > epoch for shard, epoch in given.items())


async def test_writes_go_on_while_shards_are_handed_over() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        chat_ids = [f"g.{number}" for number in range(2 * SHARDS)]
        for chat_id in chat_ids:
            await one.send(group_creation(chat_id, "alice", "bob"))
        for number in range(1, 4):
            for chat_id in chat_ids:
                one.submit((chat_id, "alice", number), text(chat_id, "alice", number, 1))
                two.submit((chat_id, "bob", number), text(chat_id, "bob", number, 1))
        three = cluster.add()
        for number in range(4, 7):
            for chat_id in chat_ids:
                one.submit((chat_id, "alice", number), text(chat_id, "alice", number, 1))
        await cluster.settled()
        await three.keeper.give_all_away(GIVE_UP_S)
        for chat_id in chat_ids:
            outcomes = [await one.outcome((chat_id, "alice", number)) for number in range(1, 7)]
            outcomes += [await two.outcome((chat_id, "bob", number)) for number in range(1, 4)]
            assert sorted(seqs(outcomes)) == list(range(2, 11))


async def test_a_node_that_has_given_all_away_tells_the_others_that_they_have_missed_nothing() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        await two.keeper.say_drained()
        assert not two.keeper.info.drained, "it holds shards"
        await two.keeper.give_all_away(GIVE_UP_S)
        await two.keeper.say_drained()
        cluster.nodes.remove(two)
        await two.stop()
        await cluster.settled()
        assert one.keeper.drained == {two.node_id}


async def test_a_node_that_was_without_a_lease_once_does_not_say_that_nothing_was_missed() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        two.coordinator.lose_lease()
        await until(lambda: two.times_returned == 1)
        await cluster.settled()
        await two.keeper.give_all_away(GIVE_UP_S)
        await two.keeper.say_drained()
        assert not two.keeper.info.drained
        assert one.keeper.drained == set()


async def test_a_node_that_crashes_is_followed_by_the_others_once_its_lease_has_ended() -> None:
    async with small_cluster(nodes=3) as cluster:
        one, two, three = cluster.nodes
        chat_id = cluster.chat_owned_by(three)
        assert seqs([await one.send(group_creation(chat_id, "alice"))]) == [1]
        three.crash()
        assert seqs([await one.send(text(chat_id, "alice", 1, 1))]) == [2]
        await cluster.settled()
        assert one.shards | two.shards == ALL


# Answers of the coordinator that come late, or not at all.


async def test_takes_that_fail_are_tried_again() -> None:
    cluster = SmallCluster()
    node = cluster.add()
    node.coordinator.failing.add("take")
    try:
        await until(lambda: len(node.coordinator.takes) > 2 * SHARDS)
        assert node.shards == set()
        node.coordinator.failing.clear()
        await cluster.settled()
    finally:
        await node.stop()
    assert node.defects == []


async def test_a_shard_that_was_taken_though_the_take_failed_is_tended() -> None:
    cluster = SmallCluster()
    node = cluster.add()
    node.coordinator.forgetful.add("take")
    try:
        await until(lambda: len(cluster.coordinator.owners) == SHARDS)
        assert node.shards == set()
        node.coordinator.forgetful.clear()
        await cluster.settled()
        assert node.epochs() == {shard: owner.epoch for shard, (owner, _) in cluster.coordinator.owners.items()}
    finally:
        await node.stop()


async def test_a_take_that_is_answered_after_the_lease_was_lost_gives_nothing() -> None:
    cluster = SmallCluster()
    node = cluster.add()
    try:
        async with node.coordinator.held("take"):
            await node.coordinator.until_held("take", SHARDS)
            node.coordinator.failing.add("join")
            node.coordinator.lose_lease()
        await until(lambda: not node.coordinator.waiting("take"))
        assert node.shards == set(), "a lease that is over gives no shard, also before there is another one"
        node.coordinator.failing.clear()
        await cluster.settled()
        assert await node.head_of("g.1") == 0
    finally:
        await node.stop()
    assert node.defects == []


async def test_a_take_that_is_answered_under_the_next_lease_gives_nothing_by_the_first() -> None:
    cluster = SmallCluster()
    node = cluster.add()
    try:
        async with node.coordinator.held("take"):
            await node.coordinator.until_held("take", SHARDS)
            node.coordinator.lose_lease()
            await until(lambda: node.coordinator.joins == 2)
        await cluster.settled()
        assert node.epochs() == {shard: owner.epoch for shard, (owner, _) in cluster.coordinator.owners.items()}
        assert await node.head_of("g.1") == 0
    finally:
        await node.stop()


@pytest.mark.parametrize("trouble", ["failing", "forgetful"])
async def test_a_release_that_fails_is_tried_again(trouble: str) -> None:
    async with small_cluster(nodes=1) as cluster:
        (one,) = cluster.nodes
        getattr(one.coordinator, trouble).add("release")
        two = cluster.add()
        await until(lambda: len(one.coordinator.releases) > SHARDS)
        getattr(one.coordinator, trouble).clear()
        await cluster.settled()
        assert two.shards


async def test_a_node_that_cannot_join_tries_again_and_knows_why() -> None:
    cluster = SmallCluster()
    node = SmallNode(cluster, "node", Pace(retry_s=0.001), 1_000)
    cluster.nodes.append(node)
    node.coordinator.failing.add("join")
    node.start()
    try:
        await until(lambda: node.coordinator.joins > 3)
        assert not node.keeper.has_joined.is_set()
        assert str(node.keeper.join_error) == "the coordinator does not answer"
        node.coordinator.failing.clear()
        async with asyncio.timeout(GIVE_UP_S):
            await node.keeper.has_joined.wait()
        assert node.seen_nodes.keys() == {"node"}, "it has seen the cluster by then"
        assert node.times_returned == 0
    finally:
        await node.stop()


# The lease.


async def test_a_lost_lease_costs_all_shards_which_are_taken_again_under_greater_epochs() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        chat_id = cluster.chat_owned_by(one)
        assert seqs([await two.send(group_creation(chat_id, "alice"))]) == [1]
        before = one.epochs()
        one.coordinator.failing.add("join")
        one.coordinator.lose_lease()
        await until(lambda: not one.shards)
        await until(lambda: two.shards == ALL)
        assert seqs([await two.send(text(chat_id, "alice", 1, 1))]) == [2]
        assert one.times_returned == 0
        one.coordinator.failing.clear()
        await cluster.settled()
        assert one.times_returned == 1
        assert one.epochs().keys() == before.keys()
        assert all(one.epochs()[shard] > epoch for shard, epoch in before.items())
        assert seqs([await two.send(text(chat_id, "alice", 2, 1))]) == [3]


async def test_a_node_that_lost_its_lease_takes_nothing_until_it_may_join_again() -> None:
    """Meanwhile others may have become owners of the same chats, by another coordinator."""
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        joins, refusals = one.coordinator.joins, one.refusals
        one.refusal = "the keyspace is used by another etcd"
        one.coordinator.lose_lease()
        await until(lambda: one.refusals > refusals + 2)
        assert str(one.keeper.join_error) == one.refusal
        assert not one.keeper.is_joined
        assert one.shards == set()
        assert one.coordinator.joins == joins, "the others give it nothing meanwhile"
        await until(lambda: two.shards == ALL)
        one.refusal = ""
        await cluster.settled()
        assert one.shards | two.shards == ALL
        assert one.times_returned == 1


async def test_a_node_that_must_not_have_its_shards_any_more_lets_go_of_them_at_once() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        assert one.shards
        one.refusal = "the keyspace is used by another etcd"
        one.keeper.let_go()
        assert one.shards == set()
        assert not one.keeper.is_joined
        await until(lambda: two.shards == ALL)  # its lease was given up: nobody waits for its end
        one.refusal = ""
        await until(lambda: one.times_returned == 1)
        await cluster.settled()


async def test_shards_that_were_being_given_away_when_the_lease_was_lost_are_tended_again() -> None:
    async with small_cluster(nodes=1) as cluster:
        (one,) = cluster.nodes
        async with one.coordinator.held("release"):
            two = cluster.add()
            await one.coordinator.until_held("release")
            one.coordinator.lose_lease()
            await until(lambda: one.times_returned == 1)
        await cluster.settled()
        assert one.shards | two.shards == ALL
        assert len(one.shards) + len(two.shards) == SHARDS


# Draining.


async def test_draining_gives_all_away_and_takes_nothing_more() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        await one.keeper.give_all_away(GIVE_UP_S)
        assert not one.shards
        await cluster.settled()
        assert two.shards == ALL
        assert cluster.coordinator.nodes[one.node_id][0].draining


async def test_draining_ends_when_all_is_released_and_not_before() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        async with one.coordinator.held("release"):
            draining = asyncio.create_task(one.keeper.give_all_away(GIVE_UP_S))
            await one.coordinator.until_held("release", 2)
            await until(lambda: not one.shards)
            assert not draining.done()
        await draining
        assert not {owner.node_id for owner, _ in cluster.coordinator.owners.values()} - {two.node_id}


async def test_a_take_under_way_when_draining_begins_is_given_away_too() -> None:
    cluster = SmallCluster()
    one = cluster.add()
    try:
        async with one.coordinator.held("take"):
            await one.coordinator.until_held("take", SHARDS)
            two = cluster.add()
            await until(two.keeper.has_joined.is_set)
            draining = asyncio.create_task(one.keeper.give_all_away(GIVE_UP_S))
            await until(lambda: cluster.coordinator.nodes[one.node_id][0].draining)
        await draining
        assert not one.shards
        await cluster.settled()
        assert two.shards == ALL
    finally:
        for node in cluster.nodes:
            await node.stop()


async def test_without_heirs_shards_are_kept_to_the_end() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        await one.keeper.give_all_away(GIVE_UP_S)
        await cluster.settled()
        await two.keeper.give_all_away(GIVE_UP_S)
        assert two.shards == ALL
        chat_id = cluster.chat_owned_by(two)
        assert seqs([await one.send(group_creation(chat_id, "alice"))]) == [1]
        await two.keeper.leave()
        assert not two.shards
        assert not cluster.coordinator.owners


async def test_draining_is_announced_until_it_is_heard_and_nothing_is_given_away_before() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        shards = one.shards
        one.coordinator.failing.add("update")
        draining = asyncio.create_task(one.keeper.give_all_away(GIVE_UP_S))
        await until(lambda: one.coordinator.updates > 3)
        assert one.shards == shards, "the other one would not take them yet"
        one.coordinator.failing.clear()
        await draining
        await cluster.settled()
        assert two.shards == ALL


@pytest.mark.parametrize("name", ["update", "release"])
async def test_draining_ends_in_time_when_the_coordinator_says_nothing(name: str) -> None:
    async with small_cluster(nodes=2) as cluster:
        one, _ = cluster.nodes
        async with one.coordinator.held(name), asyncio.timeout(GIVE_UP_S):
            await one.keeper.give_all_away(0.05)


async def test_a_node_that_has_no_lease_has_nothing_to_give_away() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        one.coordinator.failing.add("join")
        one.coordinator.lose_lease()
        await until(lambda: not one.shards)
        await one.keeper.give_all_away(FOREVER_S)
        one.coordinator.failing.clear()
        await until(lambda: one.node_id in cluster.coordinator.nodes)
        assert cluster.coordinator.nodes[one.node_id][0].draining
        await cluster.settled()
        assert two.shards == ALL


async def test_a_shard_whose_appends_do_not_end_is_given_away_after_a_time_and_they_end_elsewhere() -> None:
    pace = Pace(tend_interval_s=0.001, look_again_s=0.02, retry_s=0.005, finish_timeout_s=0.05)
    async with small_cluster(nodes=2, pace=pace) as cluster:
        one, two = cluster.nodes
        chat_id = cluster.chat_owned_by(one)
        await two.send(group_creation(chat_id, "alice"))
        async with cluster.rows.silent():
            two.submit("late", text(chat_id, "alice", 1, 1))
            await until(lambda: bool(one.runner.writes_under_way))
            await one.keeper.give_all_away(GIVE_UP_S)
            assert not one.shards
            await cluster.settled()
            assert "late" not in two.outcomes
        assert seqs([await two.outcome("late")]) == [2]
        assert seqs([await two.send(text(chat_id, "alice", 1, 1))]) == [2], "it is there once"
        assert await two.head_of(chat_id) == 2


async def test_what_a_shard_has_accepted_is_done_before_it_is_given_away() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        chat_id = cluster.chat_owned_by(one)
        await two.send(group_creation(chat_id, "alice"))
        async with cluster.rows.silent():
            two.submit("late", text(chat_id, "alice", 1, 1))
            await until(lambda: bool(one.runner.writes_under_way))
            draining = asyncio.create_task(one.keeper.give_all_away(GIVE_UP_S))
            await until(lambda: one.shards == {shard_of(chat_id)})
            assert not draining.done()
        assert seqs([await two.outcome("late")]) == [2]
        await draining
        await cluster.settled()
        tries = len(cluster.rows.tries)
        assert await one.head_of(chat_id) == 2
        assert len(cluster.rows.tries) == tries, "the next owner has nothing to adopt"


# Others.


async def test_what_a_node_says_of_itself_is_put_right() -> None:
    async with small_cluster(nodes=1) as cluster:
        (node,) = cluster.nodes
        stale = replace(node.keeper.info, public_address="elsewhere:1")
        await node.coordinator.update(stale)
        await until(lambda: cluster.coordinator.nodes[node.node_id][0] == node.keeper.info)


async def test_a_defect_is_told() -> None:
    async with small_cluster(nodes=1) as cluster:
        (node,) = cluster.nodes

        async def fail(shard: int) -> None:
            raise KeyError(shard)

        node.coordinator.release = fail  # type: ignore[method-assign]
        cluster.add()
        await until(lambda: bool(node.defects))
        assert isinstance(node.defects[0], KeyError)
        node.desk.drop_all()
        await until(lambda: not node.keeper._leaving)
        node.defects.clear()
