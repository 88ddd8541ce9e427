"""Peers that a node must not believe in: what they send ends their link, and what they do not read is bounded."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psutil
import pytest
from structlog.testing import capture_logs

from chatgrpc.core.links import AskHead, Load, RaiseMark
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.ports.cluster import NodeInfo
from chatgrpc.relay import RelayOptions
from chatgrpc.relay import link as link_module
from chatgrpc.relay.link import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN, Stream
from chatgrpc.relay.transport import SERVICE, connect, open_link
from tests.robustness.support_relay import LinkedNode, event, linked, until

MIB = 1024 * 1024
Call = Any  # a call of grpc.aio that carries bytes


def batch(*frames: relay_pb2.LinkFrame) -> bytes:
    return relay_pb2.LinkBatch(frames=frames).SerializeToString()


def hello(node_id: str = "bad", to_node_id: str = "node", version: int = PROTOCOL_VERSION_MIN) -> bytes:
    said = relay_pb2.Hello(protocol_version=version, node_id=node_id, to_node_id=to_node_id)
    return batch(relay_pb2.LinkFrame(hello=said))


BEAT = batch(relay_pb2.LinkFrame(beat=relay_pb2.Beat(at_us=1)))

BAD_HELLOS = {
    "bytes that are no batch": b"\xff\xff\xff",
    "nothing": b"",
    "a beat": BEAT,
    "two hellos": hello() + hello(),
    "another version": hello(version=PROTOCOL_VERSION_MAX + 1),
    "to another incarnation": hello(to_node_id="node-before"),
    "from one who has to be dialled": hello(node_id="zed"),
    "from the node itself": hello(node_id="node"),
}

BAD_BATCHES = {
    "bytes that are no batch": b"\xff\xff\xff",
    "a delivery to nobody": batch(relay_pb2.LinkFrame(deliver=relay_pb2.Deliver(audience=9, seq=1))),
    "a write without content": batch(relay_pb2.LinkFrame(forward=relay_pb2.Forward(content=b"\xff"))),
    "more than a batch may be": bytes(9 * MIB),
}


@contextlib.asynccontextmanager
async def bad_peer(node: LinkedNode) -> AsyncIterator[Call]:
    """A stream to the node."""
    channel = connect(node.info.relay_address, None)
    try:
        yield open_link(channel)
    finally:
        await channel.close()


async def linked_as_bad(call: Call) -> None:
    """Says the Hellos as a good peer does."""
    stream = Stream(call)
    await stream.say_hello("bad", "node")
    assert await stream.hear_hello("bad") == "node"
    await stream.say_hello("bad", "node")


@contextlib.asynccontextmanager
async def node_and_neighbour(queue_bytes_max: int = 16 * MIB) -> AsyncIterator[tuple[LinkedNode, LinkedNode]]:
    """The node, which has a good neighbour and expects the bad peer; at the end the neighbour has noticed nothing."""
    async with linked(RelayOptions("node", queue_bytes_max=queue_bytes_max), "neighbour") as (node, neighbour):
        node.see(neighbour.info, NodeInfo("bad", "", "127.0.0.1:1"), NodeInfo("zed", "", "127.0.0.1:1"))
        yield node, neighbour
        assert node.relay.send("neighbour", event(1_000_000))
        await until(lambda: neighbour.seqs_from("node")[-1:] == [1_000_000])
        assert node.changes["neighbour"] == [True] == neighbour.changes["node"]


@pytest.mark.parametrize("said", BAD_HELLOS.values(), ids=BAD_HELLOS.keys())
async def test_a_bad_hello_is_refused(said: bytes) -> None:
    async with node_and_neighbour() as (node, _), bad_peer(node) as call:
        await call.write(said)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert refused.value.details()
        assert "bad" not in node.changes


@pytest.mark.parametrize("brought", BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
async def test_a_bad_batch_ends_the_link_and_what_came_before_counts(brought: bytes) -> None:
    async with node_and_neighbour() as (node, _), bad_peer(node) as call:
        await linked_as_bad(call)
        await call.write(batch(relay_pb2.LinkFrame(load=relay_pb2.Load(streams=5))))
        await call.write(brought)
        await until(lambda: node.changes["bad"] == [True, False])
        assert node.received["bad"] == [Load(5)]


async def test_a_peer_that_says_hello_and_nothing_more_is_not_linked_with() -> None:
    async with node_and_neighbour() as (node, _), bad_peer(node) as call:
        await call.write(hello())
        assert await Stream(call).hear_hello("bad") == "node"
        await asyncio.sleep(0.2)
        assert "bad" not in node.changes


async def test_a_peer_that_falls_silent_is_dropped_though_its_connection_stands() -> None:
    async with node_and_neighbour() as (node, _), bad_peer(node) as call:
        await linked_as_bad(call)
        await until(lambda: node.changes["bad"] == [True])
        await until(lambda: node.changes["bad"] == [True, False])
        while await call.read() is not grpc.aio.EOF:
            pass


async def test_a_second_stream_of_a_peer_takes_the_place_of_the_first() -> None:
    async with node_and_neighbour() as (node, _), bad_peer(node) as first, bad_peer(node) as second:
        await linked_as_bad(first)
        await until(lambda: node.changes["bad"] == [True])
        await linked_as_bad(second)
        await until(lambda: node.changes["bad"] == [True, False, True])
        node.relay.send("bad", Load(7))
        seen = b""
        while b"\x8a\x01\x02\x08\x07" not in seen:  # field 17, Load, of 7 streams
            seen += await second.read()
        with contextlib.suppress(grpc.aio.AioRpcError):  # as soon as it knows that it was ended
            await first.write(batch(relay_pb2.LinkFrame(load=relay_pb2.Load(streams=5))))
            while await first.read() is not grpc.aio.EOF:
                pass
        assert not node.received["bad"], "what came on the first stream after that is not heard"


async def test_beats_without_end_get_no_queue_of_answers() -> None:
    async with node_and_neighbour() as (node, _), bad_peer(node) as call:
        await linked_as_bad(call)
        for _ in range(2000):
            await call.write(BEAT)
        await call.write(batch(relay_pb2.LinkFrame(load=relay_pb2.Load(streams=5))))
        await until(lambda: node.received["bad"] == [Load(5)])
        assert node.status("bad").queued_bytes == 0
        assert node.changes["bad"] == [True]


async def test_what_a_peer_does_not_read_is_bounded_and_dropped_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_FULL_PULSES_MAX", 5)
    async with node_and_neighbour(queue_bytes_max=4 * MIB) as (node, neighbour), bad_peer(node) as call:
        await linked_as_bad(call)
        await until(lambda: node.changes["bad"] == [True])
        before = psutil.Process().memory_info().rss
        beating = asyncio.create_task(beat(call))

        for seq in range(20_000):
            node.relay.send("bad", event(seq, length=10_000))
            if seq % 1000 == 0:
                await asyncio.sleep(0)  # lets the writer try
                assert node.status("bad").queued_bytes <= 4 * MIB + 11_000
        status = node.status("bad")
        assert status.dropped_messages > 18_000, "200 MB were sent, and 4 MiB may wait"
        counted = node.metrics.registry.get_sample_value("chatgrpc_relay_dropped_total", {"kind": "Deliver"})
        assert counted == status.dropped_messages
        node.relay.send("bad", AskHead("chat", 1))
        node.relay.send("bad", RaiseMark("chat", "user", 1, 1, 0, 0))
        assert node.status("bad").dropped_messages == status.dropped_messages + 2
        assert psutil.Process().memory_info().rss - before < 40 * MIB

        for seq in range(1000):
            node.relay.send("neighbour", event(seq))
        await until(lambda: neighbour.seqs_from("node") == list(range(1000)))
        with capture_logs() as lines:
            await until(lambda: node.changes["bad"] == [True, False])
        assert [line["why"] for line in lines if line["event"] == "relay_unlinked"] == ["it read nothing for 2.5 s"]
        beating.cancel()


async def beat(call: Call) -> None:
    """Says that the peer is there, until nobody listens."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while True:
            await call.write(BEAT)
            await asyncio.sleep(0.3)


class BadServer:
    """Answers who dials with bytes of the test's choice."""

    def __init__(self, said: bytes) -> None:
        self.calls = 0
        self._said = said
        self._server = grpc.aio.server()
        handler: Any = grpc.stream_stream_rpc_method_handler(self._serve)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Link": handler}),))

    async def __aenter__(self) -> int:
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def _serve(self, _: object, context: Any) -> None:
        self.calls += 1
        await context.read()
        await context.write(self._said)
        await context.read()


@pytest.mark.parametrize(
    "said",
    [b"\xff\xff\xff", hello(node_id="other", to_node_id="node"), hello(node_id="zed", to_node_id="other")],
    ids=["bytes that are no batch", "another node", "a hello to another"],
)
async def test_who_answers_badly_is_not_linked_with_and_is_tried_again(said: bytes) -> None:
    server = BadServer(said)
    async with node_and_neighbour() as (node, neighbour), server as port:
        node.see(neighbour.info, NodeInfo("zed", "", f"127.0.0.1:{port}"))
        await until(lambda: server.calls >= 3)
        assert "zed" not in node.changes
