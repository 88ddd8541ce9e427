"""The nodes of the cluster, for devices that choose one, and for people who look at one."""

import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

from chatgrpc.cluster.router import Router
from chatgrpc.cluster.store_runner import StoreRunner
from chatgrpc.core.owner_desk import OwnerDesk
from chatgrpc.damage_book import DamageBook
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.ports.cluster import NodeInfo
from chatgrpc.ports.node_directory import NodeStatus

_DAMAGED_CHATS_MAX = 100
"""In one answer."""
_STREAMS_MAX = 2**31 - 1
"""What a device is told of; a node that says more is not right, and must not make the list unreadable."""


class ClusterDirectory:
    """`ports.node_directory.NodeDirectory` over the coordinator's nodes, and how busy they said they are."""

    def __init__(self, node_id: str, nodes: Callable[[], Mapping[str, NodeInfo]], streams: Callable[[], int]) -> None:
        """
        Args:
            node_id: of this node.
            nodes: the live nodes, as last heard.
            streams: counts this node's live streams.
        """
        self._node_id = node_id
        self._nodes = nodes
        self._streams = streams
        self._streams_of: dict[str, int] = {}

    def note_load(self, node_id: str, streams: int) -> None:
        """Another node says how busy it is."""
        self._streams_of[node_id] = min(streams, _STREAMS_MAX)

    def nodes(self) -> list[NodeStatus]:
        """See the port. Workers that share a port are nodes of one address, chosen as often as there are workers."""
        live = self._nodes()
        self._streams_of = {node_id: streams for node_id, streams in self._streams_of.items() if node_id in live}
        self._streams_of[self._node_id] = self._streams()
        return [
            NodeStatus(node_id, info.public_address, info.draining, self._streams_of.get(node_id, 0))
            for node_id, info in live.items()
        ]


class Describer:
    """Says how this node is (`RelayService.Describe`)."""

    def __init__(
        self,
        desk: OwnerDesk,
        runner: StoreRunner,
        router: Router,
        book: DamageBook,
        is_draining: Callable[[], bool],
        streams: Callable[[], int],
        loop_lag_ms: Callable[[], float],
    ) -> None:
        self._desk = desk
        self._runner = runner
        self._router = router
        self._book = book
        self._is_draining = is_draining
        self._streams = streams
        self._loop_lag_ms = loop_lag_ms
        self._version = version("chatgrpc")
        self._started_s = time.monotonic()

    def describe(self) -> relay_pb2.DescribeResponse:
        """All but what the relay knows itself: the node's id and its links."""
        tenures = sorted(self._desk.tenures.items())
        damaged = {damage.chat_id: damage for damage in self._book.damaged()}
        damaged |= {damage.chat_id: damage for _, tenure in tenures for damage in tenure.shard.damaged()}
        return relay_pb2.DescribeResponse(
            version=self._version,
            uptime_ms=int((time.monotonic() - self._started_s) * 1000),
            draining=self._is_draining(),
            streams=self._streams(),
            shards=[
                relay_pb2.HeldShard(shard=number, epoch=tenure.shard.epoch, active_chats=tenure.shard.chats_active)
                for number, tenure in tenures
            ],
            lag=relay_pb2.Lag(
                events_waiting=sum(tenure.shard.appends_waiting for _, tenure in tenures),
                deliveries_waiting=self._router.deliveries_waiting,
                store_writes=self._runner.writes_under_way,
                loop_lag_ms=self._loop_lag_ms(),
            ),
            damaged_chats=[
                relay_pb2.DamagedChat(chat_id=damage.chat_id, why=damage.why)
                for damage in list(damaged.values())[-_DAMAGED_CHATS_MAX:]
            ],
            damaged_chat_count=len(damaged),
        )
