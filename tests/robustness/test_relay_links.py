"""Links between nodes on real gRPC: what they carry, and what they make of cuts, silence, restarts and stops."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from chatgrpc.core.links import Heads, Load, Message
from chatgrpc.ports.cluster import NodeInfo
from chatgrpc.relay import NodeUnreachableError, RelayOptions, describe_node
from chatgrpc.relay import relay as relay_module
from chatgrpc.relay.link import HEADS_MAX
from chatgrpc.start_error import StartError
from tests.robustness.support_relay import LinkedNode, event, linked, started, until
from tests.support.link import Link, link_to
from tests.support.proxy import Way


async def test_three_nodes_are_linked_in_pairs_and_carry_in_order_both_ways() -> None:
    async with linked("a", "b", "c") as nodes:
        for seq in range(1, 501):
            for node in nodes:
                for other in nodes:
                    if node is not other:
                        assert node.relay.send(other.node_id, event(seq))
        pairs = [(node, other) for node in nodes for other in nodes if node is not other]
        await until(lambda: all(len(node.received[other.node_id]) == 500 for node, other in pairs))
        assert all(node.seqs_from(other.node_id) == list(range(1, 501)) for node, other in pairs)
        assert all(node.changes[other.node_id] == [True] for node, other in pairs)
        a_status = nodes[0].status("b")
        assert (a_status.sent_messages, a_status.received_messages, a_status.queued_messages) == (500, 500, 0)
        await until(lambda: all(node.status(other.node_id).rtt_ms is not None for node, other in pairs))


async def test_nothing_is_sent_to_a_node_without_a_link() -> None:
    async with linked("a", "b") as (a, _):
        assert not a.relay.send("c", Load(1))
        assert not a.relay.send("a", Load(1))


async def test_very_many_heads_come_in_several_messages() -> None:
    async with linked("a", "b") as (a, b):
        heads = {f"chat-{number}": number for number in range(2 * HEADS_MAX + 1)}
        a.relay.send("b", Heads(heads))
        await until(lambda: len(b.received["a"]) == 3)
        heard: dict[str, int] = {}
        for message in b.received["a"]:
            assert isinstance(message, Heads)
            heard |= message.heads
        assert heard == heads


async def test_a_cut_link_comes_back_and_both_sides_are_told() -> None:
    async with started("a", "b") as (a, b), link_to(b.port) as link:
        see_through(a, b, link)
        await until(lambda: a.changes["b"] == [True] == b.changes["a"])
        link.cut()
        await until(lambda: a.changes["b"] == [True, False] == b.changes["a"])
        assert not a.relay.send("b", event(1))
        link.mend()
        await until(lambda: a.changes["b"] == [True, False, True] == b.changes["a"])
        assert a.relay.send("b", event(2))
        assert b.relay.send("a", event(3))
        await until(lambda: a.seqs_from("b") == [3] and b.seqs_from("a") == [2])


async def test_a_link_that_falls_silent_either_way_ends_on_both_sides_and_comes_back() -> None:
    async def fall_silent(ways: Sequence[Way]) -> None:
        async with started("a", "b") as (a, b), link_to(b.port) as link:
            see_through(a, b, link)
            await until(lambda: a.changes["b"] == [True] == b.changes["a"])
            link.silence(*ways)
            await until(lambda: not a.relay.linked() and not b.relay.linked())
            await asyncio.sleep(0.5)  # time for more than one try to get as far as it can
            assert a.changes["b"] == [True, False] == b.changes["a"], "a link that is heard one way only is none"
            link.mend()
            await until(lambda: bool(a.relay.linked()) and bool(b.relay.linked()))
            a.relay.send("b", event(1))
            b.relay.send("a", event(2))
            await until(lambda: b.seqs_from("a") == [1] and a.seqs_from("b") == [2])

    await asyncio.gather(*(fall_silent(ways) for ways in ([], [Way.TO_SERVER], [Way.TO_CLIENT])))


async def test_only_the_node_that_is_meant_is_linked_with() -> None:
    async with started("a", "new-b") as (a, b):
        a.see(b.info, NodeInfo("old-b", "", b.info.relay_address))
        b.see(a.info)
        await until(lambda: a.changes["new-b"] == [True])
        await asyncio.sleep(0.5)  # time for more than one try to reach the earlier incarnation
        assert a.relay.linked() == {"new-b"}
        assert "old-b" not in a.changes


async def test_a_node_that_is_ahead_is_waited_for() -> None:
    async with started("a", "b") as (a, b):
        a.see(b.info)
        await asyncio.sleep(0.3)
        assert not a.relay.linked(), "b does not know yet that there is an a"
        b.see(a.info)
        await until(lambda: a.changes["b"] == [True] == b.changes["a"])


async def test_a_node_that_never_gets_into_the_view_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "_EXPECT_TIMEOUT_S", 0.2)
    async with started("a", "b") as (a, b):
        with capture_logs() as lines:
            a.see(b.info)
            await until(lambda: any("not in the cluster" in line.get("why", "") for line in lines))
        assert not a.changes
        assert not b.changes


async def test_a_node_that_left_the_view_is_dropped_by_both_and_not_dialled_again() -> None:
    async with linked("a", "b", "c") as (a, b, c):
        a.see(a.info, c.info)
        b.see(b.info, c.info)
        assert a.relay.linked() == {"c"}
        assert [status.node_id for status in a.relay.status()] == ["c"]
        await until(lambda: a.changes["b"] == [True, False] == b.changes["a"])
        await asyncio.sleep(0.3)
        assert c.relay.linked() == {"a", "b"}
        assert a.relay.linked() == b.relay.linked() == {"c"}
        a.see(a.info, b.info, c.info)
        b.see(a.info, b.info, c.info)
        await until(lambda: a.changes["b"] == [True, False, True] == b.changes["a"])


async def test_addresses_that_do_not_answer_hold_nobody_up() -> None:
    with contextlib.ExitStack() as sockets:
        silent = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
        taken = [sockets.enter_context(socket.socket()) for _ in range(5)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in silent + taken]
        async with started("a", "b") as (a, b):
            dead = [NodeInfo(f"dead-{number}", "", address) for number, address in enumerate(addresses)]
            a.see(*dead, b.info)
            b.see(a.info)
            await until(lambda: a.relay.linked() == {"b"}, timeout_s=4)
            for seq in range(100):
                a.relay.send("b", event(seq))
            await until(lambda: len(b.received["a"]) == 100, timeout_s=4)
            assert a.changes["b"] == [True]


async def test_a_receiver_that_fails_ends_that_link_and_no_other() -> None:
    async with linked("a", "b", "c") as (a, b, c):

        def fail(_: str, __: list[Message]) -> None:
            b.on_receive = lambda _, __: None
            raise ArithmeticError

        b.on_receive = fail
        a.relay.send("b", event(1))
        await until(lambda: a.changes["b"] == [True, False, True] == b.changes["a"])
        assert c.changes["a"] == c.changes["b"] == [True]


@pytest.mark.parametrize("stopping", ["a", "b"], ids=["who dialled", "who accepted"])
async def test_a_stop_sends_what_waits(stopping: str) -> None:
    async with linked("a", "b") as (a, b):
        node, other = (a, b) if stopping == "a" else (b, a)
        for seq in range(5000):
            node.relay.send(other.node_id, event(seq, length=1000))
        await node.relay.stop()
        await until(lambda: other.changes[node.node_id] == [True, False])
        assert other.seqs_from(node.node_id) == list(range(5000))
        assert node.changes[other.node_id] == [True, False]
        assert not node.relay.send(other.node_id, event(1))


async def test_a_stop_does_not_wait_for_a_peer_that_is_silent() -> None:
    async with started("a", "b") as (a, b), link_to(b.port) as link:
        see_through(a, b, link)
        await until(lambda: bool(a.relay.linked() and b.relay.linked()))
        link.silence()
        for node, other in ((a, b), (b, a)):
            while not node.status(other.node_id).dropped_messages:
                node.relay.send(other.node_id, event(1, length=100_000))
        async with asyncio.timeout(5):  # one second is for what waits
            await asyncio.gather(a.relay.stop(), b.relay.stop())
        assert a.changes["b"] == [True, False] == b.changes["a"]


async def test_a_node_describes_itself_to_an_operator() -> None:
    async with linked("a", "b") as (a, b):
        a.see(a.info, b.info, NodeInfo("c", "", "127.0.0.1:1"))
        b.relay.send("a", event(1))
        await until(lambda: len(a.received["b"]) == 1)
        described = await describe_node(a.info.relay_address, None, timeout_s=5)
        assert (described.node_id, described.version, described.shards[0].epoch) == ("a", "1.2.3", 9)
        assert [(link.node_id, link.connected, link.received_messages) for link in described.links] == [
            ("b", True, 1),
            ("c", False, 0),
        ]


async def test_a_node_that_is_not_there_is_not_described() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(NodeUnreachableError):
            await describe_node(f"127.0.0.1:{taken.getsockname()[1]}", None, timeout_s=5)


async def test_a_port_that_is_taken_is_said_so() -> None:
    async with started("a") as (a,):
        with pytest.raises(StartError, match=f"port {a.port} is in use"):
            await LinkedNode(RelayOptions("b", port=a.port)).start()


def see_through(a: LinkedNode, b: LinkedNode, link: Link) -> None:
    """Lets two nodes see each other, and a dial b through a link."""
    a.see(b.info_at(link.address))
    b.see(a.info)
