"""How a cluster is: what etcd says of it, and what each of its nodes says of itself."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from chatgrpc.adapters.etcd import read_cluster
from chatgrpc.cluster.access import etcd_settings, known_relay_secret, relay_tls
from chatgrpc.config import Settings
from chatgrpc.core.ids import SHARD_COUNT
from chatgrpc.core.tending import ShardOwner
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.ports.cluster import ClusterUnavailableError, NodeInfo
from chatgrpc.relay import NodeUnreachableError, Tls, describe_node
from chatgrpc.start_error import StartError

ANSWER_TIMEOUT_S: Final = 2.0
"""How long a node is waited for."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node."""

    info: NodeInfo
    """What stands in etcd."""
    shards: int
    """How many it owns by etcd."""
    said: relay_pb2.DescribeResponse | None
    """What it said of itself; None if it did not answer."""
    why_not: str = ""
    """Why it did not."""

    @property
    def state(self) -> str:
        """In one word."""
        if self.said is None:
            return "unreachable"
        return "draining" if self.said.draining or self.info.draining else "live"

    def to_json(self) -> dict[str, Any]:
        """For scripts; what the node did not say is null."""
        return {
            "node_id": self.info.node_id,
            "public_address": self.info.public_address,
            "relay_address": self.info.relay_address,
            "state": self.state,
            "shards": self.shards,
            "why_unreachable": self.why_not or None,
            "said": None if self.said is None else _plain(self.said),
        }


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """All of it."""

    nodes: list[NodeReport]
    """By public address."""
    owners: Mapping[int, ShardOwner]
    """By shard, as etcd says."""

    @property
    def unowned(self) -> list[int]:
        """Shards without an owner: what is written to their chats waits."""
        return [shard for shard in range(SHARD_COUNT) if shard not in self.owners]

    @property
    def unreachable(self) -> list[NodeReport]:
        """Nodes that stand in etcd and do not answer."""
        return [node for node in self.nodes if node.said is None]

    @property
    def healthy(self) -> bool:
        """Whether every shard has an owner and every node answers."""
        return not self.unowned and not self.unreachable

    @property
    def epochs(self) -> tuple[int, int] | None:
        """The lowest and the highest; None without an owner."""
        epochs = [owner.epoch for owner in self.owners.values()]
        return (min(epochs), max(epochs)) if epochs else None

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        lowest, highest = self.epochs or (None, None)
        return {
            "healthy": self.healthy,
            "nodes": [node.to_json() for node in self.nodes],
            "shards": {"total": SHARD_COUNT, "owned": SHARD_COUNT - len(self.unowned), "unowned": self.unowned},
            "epochs": {"lowest": lowest, "highest": highest},
            "owners": [
                {"shard": shard, "node_id": owner.node_id, "epoch": owner.epoch} for shard, owner in sorted(self.owners.items())
            ],
        }


async def report(settings: Settings) -> ClusterReport:
    """Reads etcd once, and asks all nodes at the same time.

    Raises:
        StartError: etcd does not answer, or a certificate cannot be read.
    """
    cluster = settings.cluster
    tls, secret = relay_tls(cluster), known_relay_secret(settings)
    try:
        view = await read_cluster(etcd_settings(cluster))
    except ClusterUnavailableError as error:
        where = ", ".join(cluster.etcd_endpoints)
        raise StartError(f"No answer from {where}, without which nothing is known of the cluster.\n{error}") from error
    owned = Counter(owner.node_id for owner in view.owners.values())
    infos = sorted(view.nodes.values(), key=lambda info: (info.public_address, info.node_id))
    nodes = await asyncio.gather(*(_ask(info, owned[info.node_id], tls, secret) for info in infos))
    return ClusterReport(nodes, view.owners)


async def _ask(info: NodeInfo, shards: int, tls: Tls | None, secret: bytes | None) -> NodeReport:
    try:
        said = await describe_node(info.relay_address, tls, ANSWER_TIMEOUT_S, secret)
    except NodeUnreachableError as error:
        return NodeReport(info, shards, None, str(error))
    if said.node_id != info.node_id:
        return NodeReport(info, shards, None, f"another node, {said.node_id}, answers at {info.relay_address}")
    return NodeReport(info, shards, said)


def _plain(message: Message) -> dict[str, Any]:
    """A message for scripts. Unlike protobuf's own JSON, numbers of 64 bits are numbers, and what is absent is null."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            plain[field.name] = None if field.has_presence and not message.HasField(field.name) else value
        elif field.is_repeated:
            plain[field.name] = [_plain(each) for each in value]
        else:
            plain[field.name] = _plain(value)
    return plain
