"""Nodes that are nothing but their links."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from chatgrpc.core.links import Deliver, Message
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.metrics import Metrics
from chatgrpc.ports.cluster import NodeInfo
from chatgrpc.relay import LinkStatus, Relay, RelayOptions

TIMEOUT_S = 20.0


class LinkedNode:
    """A relay that remembers what it was told."""

    def __init__(self, options: RelayOptions) -> None:
        self.node_id = options.node_id
        self.received: dict[str, list[Message]] = defaultdict(list)
        """By sender."""
        self.changes: dict[str, list[bool]] = defaultdict(list)
        """By the other node: up, down, up, …"""
        self.on_receive: Callable[[str, list[Message]], None] = self._remember
        self.metrics = Metrics()
        self.relay = Relay(options, self._receive, self._note_change, self._describe, self.metrics)
        self.port = 0

    async def start(self) -> None:
        """Listens."""
        self.port = await self.relay.start()

    @property
    def info(self) -> NodeInfo:
        """As the cluster knows it."""
        return self.info_at(f"127.0.0.1:{self.port}")

    def info_at(self, relay_address: str) -> NodeInfo:
        """As one who is dialled there."""
        return NodeInfo(self.node_id, "", relay_address)

    def see(self, *nodes: NodeInfo) -> None:
        """Makes these the cluster."""
        self.relay.see({node.node_id: node for node in nodes})

    def status(self, node_id: str) -> LinkStatus:
        """The link with a node."""
        return next(status for status in self.relay.status() if status.node_id == node_id)

    def seqs_from(self, node_id: str) -> list[int]:
        """Of the deliveries that came from a node."""
        return [message.seq for message in self.received[node_id] if isinstance(message, Deliver)]

    def _receive(self, node_id: str, messages: list[Message]) -> None:
        self.on_receive(node_id, messages)

    def _remember(self, node_id: str, messages: list[Message]) -> None:
        assert self.changes[node_id][-1], "a node is heard while its link is up"
        self.received[node_id] += messages

    def _note_change(self, node_id: str, up: bool) -> None:
        assert up != (self.changes[node_id] or [False])[-1], "only changes are told"
        assert (node_id in self.relay.linked()) == up
        self.changes[node_id].append(up)

    def _describe(self) -> relay_pb2.DescribeResponse:
        described = relay_pb2.DescribeResponse(version="1.2.3", damaged_chat_count=1)
        described.shards.add(shard=7, epoch=9)
        described.damaged_chats.add(chat_id="g.sick")
        return described


def event(seq: int, chat_id: str = "chat", length: int = 100) -> Deliver:
    """An event for two users."""
    return Deliver(chat_id, seq, b"x" * length, ("ann", "ben"), "", False)


async def until(holds: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Waits; fails if it takes longer than anything here may."""
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def started(*options: RelayOptions | str) -> AsyncIterator[list[LinkedNode]]:
    """Nodes that listen, and know of nobody yet."""
    nodes = [LinkedNode(each if isinstance(each, RelayOptions) else RelayOptions(each)) for each in options]
    try:
        for node in nodes:
            await node.start()
        yield nodes
    finally:
        await asyncio.gather(*(node.relay.stop() for node in nodes))


@asynccontextmanager
async def linked(*options: RelayOptions | str) -> AsyncIterator[list[LinkedNode]]:
    """Nodes of which each is linked with all others."""
    async with started(*options) as nodes:
        for node in nodes:
            node.see(*(other.info for other in nodes))
        await until(lambda: all(len(node.relay.linked()) == len(nodes) - 1 for node in nodes))
        yield nodes
