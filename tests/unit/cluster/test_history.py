"""Readers see the log up to heads that were stated before the read, and memberships that hold up to a head that was."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest

from chatgrpc.cluster.history import ClusterHistory
from chatgrpc.core.entries import ChatView, Entry, Membership, MemberView
from chatgrpc.core.links import AskHead
from chatgrpc.core.row_store import WriteViews
from chatgrpc.core.visibility import Interval
from chatgrpc.core.write import Write
from chatgrpc.ports.errors import StoreUnavailableError
from chatgrpc.ports.lease_clock import lease_clock_ms
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.cluster.small_cluster import (
    GIVE_UP_S,
    SmallCluster,
    SmallNode,
    group_creation,
    seqs,
    shard_of,
    small_cluster,
    text,
    until,
)

ALL = 1_000
SOON_S = 0.05


def log_of(node: SmallNode, cluster: SmallCluster, head_timeout_s: float = GIVE_UP_S) -> ClusterHistory:
    return ClusterHistory(node.edge, cluster.rows, lease_clock_ms, node.wake_up, head_timeout_s=head_timeout_s)


# One chat.


async def test_a_chat_is_read_with_its_head_from_another_node() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        log = log_of(one, cluster)
        chat_id = cluster.chat_owned_by(two)
        assert await log.load(chat_id) is None
        assert await log.membership("alice", chat_id) is None
        assert await log.heads([chat_id, chat_id]) == [0, 0]
        await two.send(group_creation(chat_id, "alice", "bob"))
        await two.send(text(chat_id, "alice", 1, 1))
        stored = await log.load(chat_id)
        assert stored is not None
        assert (stored.head_seq, chat_pb2.Chat.FromString(stored.chat).title) == (2, "g")
        assert await log.membership("alice", chat_id) == Membership(chat_id, (Interval(1),), 2)
        assert await log.membership("carol", chat_id) is None
        assert [event.seq for event in await log.read_after(chat_id, 0, 2, 10, 10**6)] == [1, 2]
        assert [event.seq for event in await log.read_before(chat_id, 3, 2, 10, 10**6)] == [2]
        assert await log.count_groups(["alice", "carol"]) == {"alice": 1, "carol": 0}


async def test_of_a_chat_that_is_none_of_the_users_business_no_owner_is_asked() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        log = log_of(one, cluster)
        chat_id = cluster.chat_owned_by(two)
        await two.send(group_creation(chat_id, "alice", "bob"))
        assert await log.membership("eve", chat_id) is None
        assert not await log.has_been_member("eve", chat_id)
        assert [message for _, _, message in cluster.carried if isinstance(message, AskHead)] == []
        assert await log.has_been_member("alice", chat_id)


async def test_an_empty_page_is_read_without_the_store() -> None:
    async with small_cluster(nodes=1) as cluster:
        log = log_of(cluster.nodes[0], cluster)
        cluster.rows.away = True
        assert await log.read_after("g.1", 5, 5, 10, 10**6) == []
        assert await log.read_before("g.1", 5, 5, 10, 10**6) == []


async def test_who_left_is_told_of_the_interval_and_of_a_head_that_covers_it() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        log = log_of(one, cluster)
        chat_id = cluster.chat_owned_by(two)
        await one.send(group_creation(chat_id, "alice", "bob"))
        await one.send(_removal(chat_id, "bob"))
        await one.send(text(chat_id, "alice", 1, 2))
        assert await log.membership("bob", chat_id) == Membership(chat_id, (Interval(1, 2),), 3)
        assert await log.memberships("bob", "", ALL) == [Membership(chat_id, (Interval(1, 2),), 2)], "no owner is asked"


@pytest.mark.parametrize("all_of_them", [True, False])
async def test_a_membership_is_read_after_the_head_that_it_is_said_to_hold_up_to(all_of_them: bool) -> None:
    async with small_cluster(nodes=1) as cluster:
        (node,) = cluster.nodes
        log = log_of(node, cluster)
        await node.send(group_creation("g.1", "alice", "bob"))

        async def membership_of_bob() -> Membership | None:
            if not all_of_them:
                return await log.membership("bob", "g.1")
            (found,) = await log.memberships("bob", "", ALL)
            return found

        async def take_bob_out() -> None:
            assert seqs([await node.send(_removal("g.1", "bob"))]) == [2]

        # Between its first read and the owner's answer.
        ask_head = node.edge.ask_head
        asked: list[tuple[str, Callable[[int | None], None], int]] = []
        node.edge.ask_head = lambda *question: asked.append(question)  # type: ignore[method-assign]
        reading = asyncio.create_task(membership_of_bob())
        await until(lambda: bool(asked))
        await take_bob_out()
        for question in asked:
            ask_head(*question)
        node.wake_up()
        assert await reading == Membership("g.1", (Interval(1, 2),), 2)


async def test_a_head_that_does_not_come_fails_in_time_and_is_asked_no_more() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        there, away = cluster.chat_owned_by(one), cluster.chat_owned_by(two)
        cluster.cut = {(one.node_id, two.node_id)}
        with pytest.raises(StoreUnavailableError):
            await log_of(one, cluster, SOON_S).heads([there, away])
        assert one.edge.questions_waiting == 0
        cluster.cut = set()
        assert await log_of(one, cluster).heads([there, away]) == [0, 0]


async def test_who_is_called_off_asks_no_more_and_a_late_answer_does_no_harm() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        chat_id = cluster.chat_owned_by(two)
        cluster.cut = {(two.node_id, one.node_id)}
        reading = asyncio.create_task(log_of(one, cluster).heads([chat_id]))
        patient = asyncio.create_task(log_of(one, cluster).heads([chat_id]))
        await until(lambda: bool(cluster.carried))
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert one.edge.questions_waiting == 1
        cluster.cut = set()
        assert await patient == [0]
        assert one.edge.questions_waiting == 0


async def test_a_head_outlasts_the_crash_of_the_owner() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        chat_id = cluster.chat_owned_by(two)
        await one.send(group_creation(chat_id, "alice"))
        cluster.cut = {(one.node_id, two.node_id)}
        reading = asyncio.create_task(log_of(one, cluster).heads([chat_id]))
        await until(lambda: one.edge.questions_waiting == 1)
        two.crash()
        assert await reading == [1]
        assert shard_of(chat_id) in one.shards


# A user's chats.


async def test_a_users_chats_come_in_pages_by_rising_id() -> None:
    async with small_cluster(nodes=2) as cluster:
        one, _ = cluster.nodes
        chat_ids = [f"g.{number}" for number in range(7)]
        for chat_id in chat_ids:
            await one.send(group_creation(chat_id, "alice"))
        log = log_of(one, cluster)
        everything = [Membership(chat_id, (Interval(1),), 1) for chat_id in chat_ids]
        assert await log.memberships("alice", "", ALL) == everything
        assert await log.memberships("alice", "", 3) == everything[:3]
        assert await log.memberships("alice", "g.2", 3) == everything[3:6]
        assert await log.memberships("alice", "g.5", 3) == everything[6:]
        assert await log.memberships("alice", "g.6", 3) == []
        assert await log.memberships("zoe", "", ALL) == []


async def test_a_silent_owner_hides_its_chat_and_no_other() -> None:
    async with small_cluster(nodes=1) as cluster:
        (node,) = cluster.nodes
        await node.send(group_creation("g.1", "alice", "bob"))
        await node.send(group_creation("g.2", "alice"))
        log = log_of(node, cluster)

        async def all_but_one(chat_ids: Iterable[str], timeout_s: float | None = None) -> dict[str, int | None]:
            return {chat_id: 1 for chat_id in chat_ids if chat_id != "g.1"}

        log.heads_in_time = all_but_one  # type: ignore[method-assign]
        assert await log.memberships("alice", "", ALL) == [Membership("g.1", (), 0), Membership("g.2", (Interval(1),), 1)]
        with pytest.raises(StoreUnavailableError):
            await log.memberships("bob", "", ALL)


async def test_who_reads_page_by_page_comes_past_chats_whose_owner_is_silent() -> None:
    async with small_cluster(nodes=1) as cluster:
        (node,) = cluster.nodes
        for number in range(1, 7):
            await node.send(group_creation(f"g.{number}", "alice"))
        log = log_of(node, cluster)

        async def of_one(chat_ids: Iterable[str], timeout_s: float | None = None) -> dict[str, int | None]:
            return {chat_id: 1 for chat_id in chat_ids if chat_id == "g.4"}

        log.heads_in_time = of_one  # type: ignore[method-assign]
        pages = [await log.memberships("alice", after, 2, present_only=True) for after in ("", "g.2", "g.4")]
        known = Membership("g.4", (Interval(1),), 1)
        assert pages == [
            [Membership("g.1", (), 0), Membership("g.2", (), 0)],
            [Membership("g.3", (), 0), known],
            [Membership("g.5", (), 0), Membership("g.6", (), 0)],
        ]


async def test_chats_that_come_between_the_two_reads_push_none_off_the_page() -> None:
    async with small_cluster(nodes=1) as cluster:
        (node,) = cluster.nodes
        for chat_id in ("g.2", "g.4", "g.6"):
            await node.send(group_creation(chat_id, "alice"))
        log = log_of(node, cluster)

        async def let_in() -> None:
            for chat_id in ("g.1", "g.3", "g.5"):
                await node.send(group_creation(chat_id, "alice"))
            await node.send(text("g.4", "alice", 1, 1))

        _between_reads(log, let_in)
        assert await log.memberships("alice", "", 2) == [
            Membership("g.2", (Interval(1),), 1),
            Membership("g.4", (Interval(1),), 2),
        ]


async def test_of_those_that_last_one_that_ends_between_the_two_reads_is_not_lost() -> None:
    async with small_cluster(nodes=1) as cluster:
        (node,) = cluster.nodes
        for chat_id in ("g.2", "g.4", "g.6"):
            await node.send(group_creation(chat_id, "alice", "bob"))
        await node.send(_removal("g.2", "bob"))
        log = log_of(node, cluster)
        _between_reads(log, lambda: _sent(node, _removal("g.6", "bob")))
        assert await log.memberships("bob", "", ALL, present_only=True) == [
            Membership("g.4", (Interval(1),), 1),
            Membership("g.6", (Interval(1, 2),), 2),
        ]
        assert await log.past_membership("bob", "g.2") == Membership("g.2", (Interval(1, 2),), 2)
        assert await log.past_membership("bob", "g.4") is None


async def test_a_membership_that_is_not_there_at_the_second_read_is_left_out_and_the_page_stays_full() -> None:
    """It stood on one replica only: of an event that no owner has committed, nor perhaps ever will."""
    async with small_cluster(nodes=1) as cluster:
        (node,) = cluster.nodes
        for chat_id in ("g.2", "g.4", "g.6"):
            await node.send(group_creation(chat_id, "alice"))
        for chat_id in ("g.1", "g.3"):
            view = ChatView(b"", (MemberView("alice", Interval(1)),))
            cluster.rows.write([WriteViews(Entry(chat_id, 1, 1, b"", view=view))], lambda writes, error: None)
        log = log_of(node, cluster)

        async def lose() -> None:
            for chat_id in ("g.1", "g.3"):
                cluster.rows._members.pop(("alice", chat_id), None)

        _between_reads(log, lose)
        assert await log.memberships("alice", "", 3) == [
            Membership(chat_id, (Interval(1),), 1) for chat_id in ("g.2", "g.4", "g.6")
        ]


async def _sent(node: SmallNode, write: Write) -> None:
    await node.send(write)


def _between_reads(log: ClusterHistory, work: Callable[[], Awaitable[None]]) -> None:
    """Does something before heads are asked for, the first time: after the first read, and before the second."""
    ask = log.heads_in_time
    pending = [work]

    async def heads(chat_ids: Iterable[str], timeout_s: float | None = None) -> dict[str, int | None]:
        if pending:
            await pending.pop()()
        return await ask(chat_ids, timeout_s)

    log.heads_in_time = heads  # type: ignore[method-assign]


def _removal(chat_id: str, user_id: str) -> Write:
    removed = content_pb2.MemberRemovedContent(user_id=user_id)
    return Write(chat_id, "alice", content_pb2.Content(member_removed=removed), b"removal-" + bytes(8), 1)
