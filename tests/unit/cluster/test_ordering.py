"""Nodes order as one: whoever is asked, and whatever the links lose."""

import asyncio
from collections.abc import Iterator
from typing import cast

import pytest

from chatgrpc.cluster.ordering import ClusterOrdering
from chatgrpc.core.lanes import Forward, Forwarded, HeadBook
from chatgrpc.core.links import (
    Deliver,
    EndStream,
    EndStreamHeard,
    Heads,
    HeadsHeard,
    Load,
    Message,
    RaiseMark,
    ShowReceipt,
    ShowTyping,
)
from chatgrpc.ports.lease_clock import now
from chatgrpc.v1 import chat_pb2, session_pb2
from tests.unit.cluster.small_cluster import (
    GIVE_UP_S,
    SmallCluster,
    SmallNode,
    group_creation,
    seqs,
    small_cluster,
    text,
    until,
)
from tests.unit.edge.crowd import STEPS_PER_SLICE, Clock

# Writes.


async def test_what_a_node_says_to_itself_takes_no_link() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        await cluster.connect("alice", one)
        chat_id = cluster.chat_owned_by(one)
        assert seqs([await one.send(group_creation(chat_id, "alice"))]) == [1]
        assert seqs([await one.send(text(chat_id, "alice", 1, 1))]) == [2]
        assert await one.head_of(chat_id) == 2
        await until(lambda: one.seqs(chat_id) == [1, 2])
        assert cluster.carried == []
        assert two.deliveries == []


async def test_the_owner_is_asked_over_a_link_and_tells_those_whom_it_concerns() -> None:
    async with small_cluster(nodes=3) as cluster:
        one, two, three = cluster.nodes
        await cluster.connect("alice", one, two)
        await cluster.connect("bob", two)
        chat_id = cluster.chat_owned_by(three)
        assert seqs([await one.send(group_creation(chat_id, "alice", "bob"))]) == [1]
        await until(lambda: one.seqs(chat_id) == [1] == two.seqs(chat_id))
        assert [delivery.recipients for delivery in one.deliveries] == [("alice",)]
        assert [delivery.recipients for delivery in two.deliveries] == [("alice", "bob")]
        assert three.deliveries == []
        assert await two.head_of(chat_id) == 1


async def test_many_messages_of_one_tick_keep_their_order() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        await cluster.connect("alice", two)
        chat_id = cluster.chat_owned_by(two)
        await one.send(group_creation(chat_id, "alice", "bob"))
        tickets = [(sender, number) for number in range(1, 151) for sender in ("alice", "bob")]
        for sender, number in tickets:
            one.submit((sender, number), text(chat_id, sender, number, 1), session_id=sender)
        outcomes = [await one.outcome(ticket) for ticket in tickets]
        assert sorted(seqs(outcomes)) == list(range(2, 302))
        for sender in ("alice", "bob"):
            of_sender = seqs([one.outcomes[sender, number] for number in range(1, 151)])
            assert of_sender == sorted(of_sender)
        await until(lambda: two.seqs(chat_id) == list(range(1, 302)))


async def test_what_a_link_lost_is_sent_again_and_committed_once() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        chat_id = cluster.chat_owned_by(two)
        await one.send(group_creation(chat_id, "alice"))
        for number, lost in ((1, (one, two)), (2, (two, one))):
            sent = _carried(cluster, Forward)
            cluster.cut = {(lost[0].node_id, lost[1].node_id)}
            one.submit(number, text(chat_id, "alice", number, 1))
            if lost == (two, one):
                await until(lambda sent=sent: _carried(cluster, Forward) > sent + 1)  # type: ignore[misc]
            else:
                await until(lambda: not one.edge.is_idle)
            cluster.cut = set()
            assert seqs([await one.outcome(number)]) == [number + 1]
        assert await one.head_of(chat_id) == 3


async def test_what_no_owner_answers_is_given_up_after_a_time() -> None:
    async with small_cluster(nodes=2, give_up_ms=50) as cluster:
        one, two = cluster.nodes
        chat_id = cluster.chat_owned_by(two)
        cluster.cut = {(one.node_id, two.node_id)}
        outcome = await one.send(text(chat_id, "alice", 1, 0))
        assert isinstance(outcome, chat_pb2.Error)
        assert outcome.code == chat_pb2.ERROR_CODE_UNAVAILABLE
        assert one.edge.is_idle


async def test_nobody_waits_for_the_writes_of_a_session_that_closed() -> None:
    async with small_cluster(nodes=1) as cluster:
        (one,) = cluster.nodes
        await one.send(group_creation("g.1", "alice"))
        async with cluster.rows.silent():
            one.submit("late", text("g.1", "alice", 1, 1))
            await until(lambda: bool(one.runner.writes_under_way))
            one.ordering.session_closed("session")
            assert one.edge.is_idle
        await until(lambda: one.runner.writes_under_way == 0)
        assert await one.head_of("g.1") == 2, "it is committed all the same"
        assert "late" not in one.outcomes


# Pushes that a link lost.


async def test_a_lost_last_push_is_found_by_the_next_beat() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        await cluster.connect("alice", one)
        chat_id = cluster.chat_owned_by(two)
        await two.send(group_creation(chat_id, "alice"))
        await until(lambda: one.seqs(chat_id) == [1])
        cluster.cut = {(two.node_id, one.node_id)}
        assert seqs([await two.send(text(chat_id, "alice", 1, 1))]) == [2]
        await until(lambda: two.router.is_idle)
        cluster.cut = set()
        await until(lambda: one.heads == {chat_id: 2})
        assert one.seqs(chat_id) == [1]
        assert one.chats_missed == [chat_id]
        beats = _carried(cluster, Heads)
        await until(lambda: _carried(cluster, HeadsHeard) > 0)
        await two.send(text(chat_id, "alice", 2, 1))
        await until(lambda: one.seqs(chat_id) == [1, 3])
        await until(lambda: _carried(cluster, Heads) > beats)
        await until(lambda: two.desk.beat() == [])
        assert (one.heads, one.chats_missed) == ({chat_id: 2}, [chat_id]), "what came is not missed"


async def test_what_went_by_last_places_is_heard_by_all_before_a_node_may_say_that_it_was() -> None:
    """While the node that leaves could not read the map, a member moved; when it is gone nobody else tells of it."""
    async with small_cluster(nodes=3) as cluster:
        one, two, three = cluster.nodes
        await cluster.connect("alice", one)
        chat_id = cluster.chat_owned_by(two)
        await two.send(group_creation(chat_id, "alice"))
        await until(lambda: one.seqs(chat_id) == [1])
        await cluster.connect("alice", three)
        cluster.session_map.away = True
        await two.send(text(chat_id, "alice", 1, 1))
        await until(lambda: one.seqs(chat_id) == [1, 2])
        async with asyncio.timeout(GIVE_UP_S):
            await two.ordering.until_heard()
        assert three.heads == {chat_id: 2}
        assert two.desk.beat() == []


async def test_whether_all_was_heard_is_asked_without_working_heartbeats_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked every 50 ms by a node that is in a hurry, and there may be a head of every chat."""
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        heads = dict.fromkeys((f"g.{number}" for number in range(10_000)), 1)
        two.desk.doubt(heads, [one.node_id])
        monkeypatch.setattr(two.ordering, "pass_time", lambda _: None)
        monkeypatch.setattr(HeadBook, "beat", lambda _: pytest.fail("the heartbeat is worked out"))
        asking = asyncio.create_task(two.ordering.until_heard())
        await two.ticks()
        assert not asking.done()
        two.ordering.receive(one.node_id, [HeadsHeard(heads)])
        async with asyncio.timeout(GIVE_UP_S):
            await asking


async def test_a_lost_push_is_found_by_the_next_push_too() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        await cluster.connect("alice", one)
        chat_id = cluster.chat_owned_by(two)
        await two.send(group_creation(chat_id, "alice"))
        await until(lambda: one.seqs(chat_id) == [1])
        cluster.cut = {(two.node_id, one.node_id)}
        await two.send(text(chat_id, "alice", 1, 1))
        await until(lambda: two.router.is_idle)
        two.submit("next", text(chat_id, "alice", 2, 1))
        cluster.cut = set()
        await two.outcome("next")
        await until(lambda: one.heads == {chat_id: 2})


# The end.


async def test_settle_returns_at_once_where_nothing_is_on_its_way() -> None:
    async with small_cluster(nodes=1) as cluster:
        (one,) = cluster.nodes
        async with asyncio.timeout(GIVE_UP_S):
            await one.ordering.settle()


async def test_settle_waits_for_the_outcome_and_for_what_members_are_to_be_told() -> None:
    async with small_cluster(nodes=1) as cluster:
        (one,) = cluster.nodes
        await cluster.connect("alice", one)
        await one.send(group_creation("g.1", "alice"))
        await until(lambda: one.seqs("g.1") == [1])
        async with cluster.session_map.held("of_users"), cluster.rows.silent():
            one.submit("write", text("g.1", "alice", 1, 1))
            await until(lambda: bool(one.runner.writes_under_way))
            settling = asyncio.create_task(one.ordering.settle())
            await one.ticks()
            assert not settling.done()
        async with cluster.session_map.held("of_users"):
            await cluster.session_map.until_held("of_users")
            assert seqs([await one.outcome("write")]) == [2]
            await one.ticks()
            assert not settling.done()
            assert one.seqs("g.1") == [1]
        await settling
        assert one.seqs("g.1") == [1, 2]


async def test_settle_waits_for_a_write_that_the_store_does_not_take() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        chat_id = cluster.chat_owned_by(two)
        await one.send(group_creation(chat_id, "alice"))
        cluster.rows.away = True
        tries = len(cluster.rows.tries)
        one.submit("write", text(chat_id, "alice", 1, 1))
        await until(lambda: len(cluster.rows.tries) > tries)
        settling = [asyncio.create_task(node.ordering.settle()) for node in (one, two)]
        await until(lambda: len(cluster.rows.tries) > tries + 1)
        assert not any(task.done() for task in settling)
        cluster.rows.away = False
        await asyncio.gather(*settling)
        assert seqs([await one.outcome("write")]) == [2]


async def test_a_shard_that_is_idle_is_finished_in_the_next_tick_and_takes_nothing_more() -> None:
    async with small_cluster(nodes=1) as cluster:
        (one,) = cluster.nodes
        for tenure in list(one.desk.tenures.values()):
            await one.ordering.finish(tenure)
        one.submit("write", group_creation("g.1", "alice"))
        await one.ticks()
        assert cluster.rows.tries == []
        one.edge.close("session")


async def test_a_shard_that_is_lost_is_finished() -> None:
    async with small_cluster(nodes=1) as cluster:
        (one,) = cluster.nodes
        await one.send(group_creation("g.1", "alice"))
        async with cluster.rows.silent():
            one.submit("write", text("g.1", "alice", 1, 1))
            await until(lambda: bool(one.runner.writes_under_way))
            tenure = next(tenure for tenure in one.desk.tenures.values() if not tenure.shard.is_idle)
            finishing = asyncio.create_task(one.ordering.finish(tenure))
            await one.ticks()
            assert not finishing.done()
            one.desk.drop(tenure)
            await finishing
        one.edge.close("session")


# What is no write.


async def test_a_raised_mark_goes_to_the_owner_and_to_the_senders_from_there() -> None:
    async with small_cluster(nodes=3) as cluster:
        one, two, three = cluster.nodes
        await cluster.connect("alice", two)
        await cluster.connect("bob", three)
        chat_id = cluster.chat_owned_by(one)
        await two.send(group_creation(chat_id, "alice", "bob"))
        await two.send(text(chat_id, "alice", 1, 1))
        three.edge.tell(chat_id, RaiseMark(chat_id, "bob", 2, 2, 0, 0))
        await until(lambda: bool(two.shown and three.shown))
        assert two.shown == [ShowReceipt(chat_id, "bob", 2, 2, ("alice",))]
        assert three.shown == [ShowReceipt(chat_id, "bob", 2, 2, ("bob",))]
        assert one.shown == []


async def test_nodes_tell_each_other_and_themselves() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        end = EndStream("alice", "phone", session_pb2.DISCONNECT_CODE_REPLACED)
        one.ordering.say(two.node_id, end)
        one.ordering.say(one.node_id, end)
        one.ordering.say("gone", end)
        one.ordering.say(two.node_id, Load(7))
        await until(lambda: bool(one.ended and two.ended and two.loads))
        assert one.ended == two.ended == [end]
        assert two.loads == {one.node_id: 7}


async def test_what_is_to_be_ended_is_confirmed_by_whoever_has_ended_it() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        one.ordering.say(two.node_id, EndStream("alice", "phone", session_pb2.DISCONNECT_CODE_DEVICE_REVOKED))
        await until(lambda: bool(two.ended))
        two.ordering.say(one.node_id, Load(1))
        await until(lambda: bool(one.loads))
        assert one.confirmed == []
        two.ordering.say(one.node_id, EndStreamHeard("alice", "phone", session_pb2.DISCONNECT_CODE_DEVICE_REVOKED))
        await until(lambda: one.confirmed == [two.node_id])


async def test_a_message_that_nobody_knows_is_passed_over() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, _ = cluster.nodes
        end = EndStream("alice", "phone", session_pb2.DISCONNECT_CODE_REPLACED)
        one.ordering.receive("node-9", [cast("Message", object()), end])
        await until(lambda: one.ended == [end])


async def test_an_outcome_that_nobody_waits_for_and_a_push_of_a_stranger_do_no_harm() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        chat_id = cluster.chat_owned_by(one)
        await two.send(group_creation(chat_id, "alice"))
        answer, *_again = [message for _, _, message in cluster.carried if isinstance(message, Forwarded)]
        two.ordering.receive(one.node_id, [answer])
        one.ordering.receive("node-9", [HeadsHeard({chat_id: 9}), Deliver(chat_id, 1, b"", ("zoe",), "", False)])
        await until(lambda: len(one.deliveries) == 1)
        assert seqs([await two.send(text(chat_id, "alice", 1, 1))]) == [2]


def _carried(cluster: SmallCluster, kind: type[Message]) -> int:
    return sum(isinstance(message, kind) for _, _, message in cluster.carried)


async def test_while_a_node_is_behind_its_links_read_no_more() -> None:
    async with small_cluster(nodes=2) as cluster:
        ordering = cluster.nodes[0].ordering
        await ordering.caught_up()
        for _ in range(64):
            ordering.receive("other", [Load(1)])
        waiting = ordering.caught_up()
        assert waiting.send(None) is not None  # step by step, since the node's own ticks work the inbox off
        ordering.pump(now())
        with pytest.raises(StopIteration):
            waiting.send(None)


def in_steps(node: SmallNode) -> tuple[ClusterOrdering, list[None]]:
    """One more ordering of the node, by a clock that ends a slice after a few steps, and how often it has woken up."""
    woken: list[None] = []
    ordering = ClusterOrdering(
        node.node_id, node.edge, node.desk, node.runner, node.router, node.book,
        lambda node_id, message: True, lambda: woken.append(None), clock_s=Clock(),
    )  # fmt: skip
    ordering.tell(node)
    return ordering, woken


async def test_what_links_bring_is_taken_a_few_messages_at_a_time_and_in_its_order() -> None:
    async with small_cluster(nodes=1) as cluster:
        (one,) = cluster.nodes
        ordering, woken = in_steps(one)
        heard: list[str] = []
        one.note_load = lambda node_id, streams: heard.append(f"{node_id} {streams}")  # type: ignore[method-assign]
        for node_id in ("b", "c"):
            ordering.receive(node_id, [Load(number) for number in range(3 * STEPS_PER_SLICE)])
        pumps = 0
        while woken:
            woken.clear()
            pumps += 1
            ordering.pump(now())
            assert len(heard) <= pumps * (STEPS_PER_SLICE + 1)
        assert heard == [f"{node_id} {number}" for node_id in ("b", "c") for number in range(3 * STEPS_PER_SLICE)]


async def test_what_is_to_be_shown_is_shown_to_a_few_at_a_time_and_what_waits_is_bounded() -> None:
    async with small_cluster(nodes=1) as cluster:
        (one,) = cluster.nodes
        ordering, woken = in_steps(one)
        seen: list[tuple[str, str]] = []

        def show(notice: ShowReceipt | ShowTyping) -> Iterator[None]:
            for user_id in notice.to_user_ids:
                seen.append((notice.chat_id, user_id))
                yield

        one.show = show  # type: ignore[method-assign]
        users = tuple(f"u{number}" for number in range(STEPS_PER_SLICE // 2))
        few = [ShowTyping(f"g.{number}", "alice", 1, users) for number in range(12)]
        ordering.receive("b", [*few])
        pumps = 0
        while woken:
            woken.clear()
            pumps += 1
            ordering.pump(now())
            assert len(seen) <= pumps * (STEPS_PER_SLICE + 1)
        assert seen == [(notice.chat_id, user_id) for notice in few for user_id in users]


async def test_of_what_is_to_be_shown_typing_is_dropped_first_and_a_notice_that_fails_takes_no_other_along() -> None:
    async with small_cluster(nodes=1) as cluster:
        (one,) = cluster.nodes
        ordering = ClusterOrdering(
            one.node_id, one.edge, one.desk, one.runner, one.router, one.book,
            lambda node_id, message: True, lambda: None, clock_s=lambda: 0.0,
        )  # fmt: skip
        ordering.tell(one)
        seen: list[str] = []

        def show(notice: ShowReceipt | ShowTyping) -> Iterator[None]:
            seen.append(notice.chat_id)
            yield
            if notice.chat_id == "broken":
                raise RuntimeError("a mistake")

        one.show = show  # type: ignore[method-assign]
        many = ("bob",) * 10_000
        typing = [ShowTyping(chat_id, "alice", 1, many) for chat_id in ("broken", "dropped")]
        receipts = [ShowReceipt(chat_id, "alice", 1, 1, many) for chat_id in ("receipt", "dropped too")]
        ordering.receive("b", [*typing, *receipts])
        ordering.pump(now())
        assert seen == ["broken", "receipt"]
        ordering.receive("b", [ShowTyping("afterwards", "alice", 1, ("bob",))])
        ordering.pump(now())
        assert seen == ["broken", "receipt", "afterwards"]
