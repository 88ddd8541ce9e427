"""The node among many: wires store, session map, coordinator, links and edge together, and loses nothing when it stops."""

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from typing import Any, NoReturn, cast

import structlog

from chatgrpc import background, compiled
from chatgrpc.adapters.cassandra import CassandraSettings, CassandraStore, KeyspaceOwner, SchemaError
from chatgrpc.adapters.etcd import EtcdCluster
from chatgrpc.adapters.redis import RedisClient, RedisLastSeen, RedisSessionMap, RedisSharedLooks
from chatgrpc.addresses import join_address
from chatgrpc.closing import Closing
from chatgrpc.cluster.access import etcd_settings, relay_secret, relay_tls
from chatgrpc.cluster.audience import ClusterAudience
from chatgrpc.cluster.claim import Claim, cannot_join
from chatgrpc.cluster.directory import ClusterDirectory, Describer
from chatgrpc.cluster.history import ClusterHistory
from chatgrpc.cluster.looks import LookScreens
from chatgrpc.cluster.ordering import ClusterOrdering
from chatgrpc.cluster.presence import PresenceScreens
from chatgrpc.cluster.resync import Resync
from chatgrpc.cluster.router import Router
from chatgrpc.cluster.sessions import Sessions
from chatgrpc.cluster.shard_keeper import ShardKeeper
from chatgrpc.cluster.store_runner import StoreRunner
from chatgrpc.config import Settings
from chatgrpc.core.budget import Budget
from chatgrpc.core.disconnect import Code, Ended
from chatgrpc.core.edge_desk import EdgeDesk, Missed
from chatgrpc.core.ids import shard_of
from chatgrpc.core.lanes import EdgeLanes
from chatgrpc.core.lease import Holds
from chatgrpc.core.limits import Limits
from chatgrpc.core.links import EndStream, EndStreamHeard, Load, Message, ShowReceipt, ShowTyping
from chatgrpc.core.owner_desk import OwnerDesk, Tenure
from chatgrpc.core.rates import Rates
from chatgrpc.core.shard import Shard
from chatgrpc.core.tending import ShardOwner
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.connection import Connections
from chatgrpc.edge.look_up import LookUps
from chatgrpc.edge.node import CLOSE_TIMEOUT_S, Node, Stores, crash, limits_of
from chatgrpc.edge.server import GrpcServer
from chatgrpc.metrics import Metrics
from chatgrpc.ports.cluster import NodeInfo
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.lease_clock import lease_clock_ms
from chatgrpc.ports.session_map import SessionEntry
from chatgrpc.ports.tokens import TokenVerifier
from chatgrpc.relay import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN, Relay, RelayOptions
from chatgrpc.start_error import StartError
from chatgrpc.v1 import session_pb2

_log = structlog.get_logger()

_RESEND_AFTER_MS = 250
_GIVE_UP_AFTER_MS = 10_000
"""Twice the time that others wait for a node that crashed."""
_ASK_AGAIN_AFTER_MS = 250
_STATED_MAX = 200_000
"""Heads that are remembered."""
_JOIN_TIMEOUT_S = 15.0
"""Longer than a claim waits for an answer (`claim.py`), which then says who is late."""
_WATCH_INTERVAL_S = 1.0
_CONFIRMATIONS_TIMEOUT_S = 2.5
"""Two heartbeats of the links: how long a node that leaves waits until others have confirmed its pushes."""
_DRAIN_SPARE_S = 1.0
"""Even with no time at all to drain, devices are told to go, and what they acknowledged is stored."""
_DRAIN_WINDOW_S = 3.0
"""Over this time devices are sent to other nodes, so that they do not all come there at once."""


class ClusterNode:
    """All parts of one node."""

    def __init__(
        self,
        settings: Settings,
        store: CassandraStore,
        redis: RedisClient,
        verifier: TokenVerifier,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self.node_id = secrets.token_hex(8)
        self._settings = settings
        self._store = store
        self._random = random.Random(secrets.randbits(256))  # noqa: S311  message ids must be unique, not secret
        self._metrics = metrics
        self._limits = limits
        self._budget = Budget(limits)
        self._loop_lag_ms = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._rates = Rates(limits)
        self._desk = OwnerDesk(limits, shard_of)
        self._edge_desk = EdgeDesk(
            self.node_id, EdgeLanes(_RESEND_AFTER_MS, _GIVE_UP_AFTER_MS), shard_of, _ASK_AGAIN_AFTER_MS, _STATED_MAX, limits
        )
        session_map = RedisSessionMap(redis)
        book = self._book = DamageBook(metrics)
        look_ups = LookUps(store.committed, store.receipts, limits.groups_by_others_max)
        self._runner = StoreRunner(self._desk, store.rows, store.committed, look_ups, self._wake_up, crash)
        self._router = Router(self._desk, session_map, self._live_node_ids, self._wake_up, crash)
        self._ordering = ClusterOrdering(
            self.node_id, self._edge_desk, self._desk, self._runner, self._router, book, self._send, self._wake_up
        )
        self._sessions = Sessions(self.node_id, session_map, self._moved_here, self._sessions_rebuilt)
        self._last_seen = RedisLastSeen(redis)
        self._shared_looks = RedisSharedLooks(redis)
        log = ClusterHistory(self._edge_desk, store.committed, lease_clock_ms, self._wake_up)
        stores = Stores(log, store.receipts, store.cursors, store.profiles, store.devices)
        connections = Connections()
        self._presence = PresenceScreens(
            connections.show, self._edge_desk, self._sessions, self._last_seen, self._live_node_ids, lease_clock_ms
        )
        self._looks = LookScreens(connections.show, self._shared_looks, self._presence.is_watched)
        self._audience = ClusterAudience(
            connections,
            self._edge_desk,
            self._sessions,
            self._presence,
            self._looks,
            store.devices,
            self._live_node_ids,
            self._ordering.say,
            lease_clock_ms,
        )
        self.node = Node(settings, stores, self._ordering, connections, self._audience, verifier, book, metrics, limits)
        edge = self.node.edge
        self._resync = Resync(
            connections,
            self._edge_desk,
            store.committed,
            log.heads_in_time,
            shard_of,
            edge.touch,
            self._presence.doubt,
            self._end_revoked,
            lease_clock_ms,
        )
        self.directory = ClusterDirectory(self.node_id, self._nodes, self._streams)
        describer = Describer(
            self._desk, self._runner, self._router, book, self._is_draining, self._streams, lambda: self._loop_lag_ms
        )
        tls = relay_tls(settings.cluster)
        options = RelayOptions(
            self.node_id,
            settings.cluster.relay_host,
            settings.cluster.relay_port,
            ca_pem=None if tls is None else tls.ca_pem,
            cert_pem=None if tls is None else tls.cert_pem,
            key_pem=None if tls is None else tls.key_pem,
            secret=relay_secret(settings),
            accepts_unproven=settings.cluster.relay_accepts_unproven,
        )
        self._relay = Relay(
            options, self._ordering.receive, self._link_changed, describer.describe, metrics, self._ordering.caught_up
        )
        self._cluster = EtcdCluster(etcd_settings(settings.cluster))
        self._claim = Claim(self.node_id, settings.cluster, store.use, self._cluster)
        self._keeper: ShardKeeper | None = None
        self._relay_port = 0
        self._known_nodes: Mapping[str, NodeInfo] = {}
        self._ordering.tell(self)

    # Life.

    async def start_links(self) -> None:
        """Listens for other nodes, so that it is known where they dial.

        Raises:
            StartError: it cannot.
        """
        try:
            self._relay_port = await self._relay.start()
        except StartError as error:
            raise StartError(f"Links with other nodes (--cluster-relay-host, --cluster-relay-port): {error}") from error

    async def join(self, public_port: int) -> None:
        """Joins the cluster, and begins to serve devices and chats.

        Raises:
            StartError: etcd or Cassandra does not answer, or they do not belong together.
        """
        cluster, server = self._settings.cluster, self._settings.server
        info = NodeInfo(
            node_id=self.node_id,
            public_address=cluster.advertise or join_address(server.host, public_port),
            relay_address=cluster.relay_advertise or join_address(cluster.relay_host, self._relay_port),
            protocol_version_min=PROTOCOL_VERSION_MIN,
            protocol_version_max=PROTOCOL_VERSION_MAX,
        )
        keeper = self._keeper = ShardKeeper(
            self._cluster,
            info,
            self._claim.make,
            self._desk,
            self._runner,
            self._new_shard,
            self._ordering.finish,
            self._seen,
            self._resync.returned,
            self._book,
            crash,
        )
        await self._claim.make()  # a node that starts ends if it must not join
        self.node.edge.start()
        self._start(keeper.run())
        # What these look at again and again they would look at again after a crash, too: it would mend nothing.
        for name, work in (
            ("sessions", self._sessions.run),
            ("audience", self._audience.run),
            ("presence", self._presence.run),
            ("looks", self._looks.run),
            ("resync", self._resync.run),
            ("watch", self._keep_watch),
            ("keyspace", lambda: self._claim.keep(lambda: self.is_joined, keeper.let_go)),
        ):
            self._start(background.again(work, name))
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                await keeper.has_joined.wait()
        except TimeoutError:
            error = keeper.join_error
            raise error if isinstance(error, StartError) else StartError(cannot_join(cluster, error)) from None

    async def drain(self, server: GrpcServer, timeout_s: float) -> None:
        """Gives shards away, sends devices to other nodes, finishes what is under way, leaves (design §5)."""
        server.set_serving(False)
        if self._keeper is not None:
            await self._keeper.give_all_away(timeout_s / 2)
        await self.node.edge.drain(int(min(_DRAIN_WINDOW_S, timeout_s / 4) * 1000))
        await self._wait_for_confirmations()
        # Even if each step before took all of its time, devices are still told to go.
        await self.node.edge.stop(timeout_s / 16)
        await server.stop(min(CLOSE_TIMEOUT_S, timeout_s))
        await self._presence.save_last_seen()
        await self._sessions.leave()
        _log.info("drained", node_id=self.node_id)

    async def _wait_for_confirmations(self) -> None:
        """Nobody but this node can say that a push of its was lost; a node that has gone away, or hangs, is not waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONFIRMATIONS_TIMEOUT_S):
                await self._ordering.until_heard()
                if self._keeper is not None:
                    await self._keeper.say_drained()

    def close_by(self, closing: Closing) -> None:
        """Has all parts closed at the end: first the work, then the lease, so that others need not wait for its end."""
        closing.add("connections to etcd", self._cluster.close)
        closing.add("links with other nodes", self._relay.stop)
        closing.add("reads of the session map", self._router.stop)
        closing.add("work of shards", self._runner.stop)
        closing.add("lease", self._leave)
        closing.add("work of the node", self._end_tasks)

    async def _leave(self) -> None:
        if self._keeper is not None:
            await self._keeper.leave()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def is_joined(self) -> bool:
        """Whether the node holds a lease: without it, it orders no chats, and others do not count it."""
        return self._keeper is not None and self._keeper.is_joined

    # What the parts ask and tell.

    def show(self, notice: ShowReceipt | ShowTyping) -> Iterator[None]:
        """See `cluster.ordering.Listener`."""
        return self._audience.show(notice)

    def end_stream(self, sender_id: str, message: EndStream) -> None:
        """See `cluster.ordering.Listener`."""
        work = self._end_stream(sender_id, message)
        self._start(work, lambda defect: self._book.defect("message", defect, kind="EndStream", peer=sender_id))

    def end_stream_heard(self, node_id: str, message: EndStreamHeard) -> None:
        """See `cluster.ordering.Listener`."""
        self._audience.end_stream_heard(node_id, message)

    def note_load(self, node_id: str, streams: int) -> None:
        """See `cluster.ordering.Listener`."""
        self.directory.note_load(node_id, streams)

    def missed(self, missed: Mapping[str, Missed]) -> None:
        """See `cluster.ordering.Listener`."""
        for chat_id in missed:
            self._presence.members_changed(chat_id)
        self._resync.missed(missed)

    def shard_failed(self, tenure: Tenure, defect: Exception) -> None:
        """See `cluster.ordering.Listener`."""
        assert self._keeper is not None, "only a node that has joined has shards"
        self._keeper.shard_failed(tenure, defect)

    async def _end_stream(self, sender_id: str, message: EndStream) -> None:
        if await self._has_ended(sender_id, message):
            self._ordering.say(sender_id, EndStreamHeard(message.user_id, message.device_id, message.code))

    async def _has_ended(self, sender_id: str, message: EndStream) -> bool:
        """Whether all is done that can be; else it cannot be read what a revocation took away, or who has come back."""
        if message.code not in session_pb2.DisconnectCode.values() or not message.code:
            return True  # a later version's, or none at all
        try:
            if not await self._audience.is_to_end(message, sender_id):
                return True
        except StoreError:
            return False
        self.node.edge.end_device(message.user_id, message.device_id, Ended(cast("Code", message.code)))
        if message.code == session_pb2.DISCONNECT_CODE_DEVICE_REVOKED:
            return await self.node.heed_revocation(message.user_id)
        return True

    async def _end_revoked(self, user_id: str) -> None:
        await self.node.end_revoked(user_id)

    def _wake_up(self) -> None:
        self.node.edge.wake_up()

    def _send(self, node_id: str, message: Message) -> bool:
        return self._relay.send(node_id, message)

    def _new_shard(self, epoch: int, lease: Holds) -> Shard:
        return Shard(epoch, lease, self._limits, self._random, budget=self._budget, rates=self._rates)

    def _seen(self, owners: Mapping[int, ShardOwner], nodes: Mapping[str, NodeInfo]) -> None:
        self._known_nodes = nodes
        self._resync.see(owners, nodes, self._keeper.drained if self._keeper is not None else ())
        self._relay.see(nodes)
        self._ordering.see(owners, frozenset(nodes))

    def _moved_here(self, before: SessionEntry) -> None:
        self._audience.moved_here(before)

    def _sessions_rebuilt(self) -> None:
        self._resync.suspect_all()

    def _link_changed(self, node_id: str, up: bool) -> None:
        if up:
            self._resync.linked(node_id)
            self._ordering.linked(node_id)
        self._wake_up()

    def _live_node_ids(self) -> frozenset[str]:
        return frozenset(self._nodes())

    def _nodes(self) -> Mapping[str, NodeInfo]:
        return self._known_nodes

    def _streams(self) -> int:
        return len(self.node.edge.connections)

    def _is_draining(self) -> bool:
        return self._keeper is not None and self._keeper.info.draining

    async def _keep_watch(self) -> NoReturn:
        """Tells the other nodes how busy this one is, and operators how it is."""
        loop = asyncio.get_running_loop()
        committed = store_failures = 0
        while True:
            due_s = loop.time() + _WATCH_INTERVAL_S
            await asyncio.sleep(_WATCH_INTERVAL_S)
            self._loop_lag_ms = max(0.0, loop.time() - due_s) * 1000
            for node_id in self._relay.linked():
                self._ordering.say(node_id, Load(self._streams()))
            self._metrics.events_committed.inc(self._desk.events_committed - committed)
            committed = self._desk.events_committed
            self._metrics.cluster_joined.set(self.is_joined)
            self._metrics.shards_held.set(len(self._desk.tenures))
            self._metrics.session_map_lost.set(self._router.is_blind)
            self._metrics.store_writes_waiting.set(self._runner.writes_under_way)
            self._metrics.store_reads_waiting.set(self._runner.reads_retried)
            self._metrics.store_failures.inc(self._runner.trouble.failures - store_failures)
            store_failures = self._runner.trouble.failures

    def _start(self, work: Coroutine[Any, Any, None], told: background.Told = crash) -> None:
        task = background.start(work, told)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.asynccontextmanager
async def serving_clustered(
    settings: Settings, verifier: TokenVerifier, metrics: Metrics, closing: Closing
) -> AsyncIterator[int]:
    """A node that serves for the length of the block; gives the port. Leaving the block drains it.

    What it opens is added to `closing`, also if it cannot start.

    Raises:
        StartError: it cannot start, and the message says what to do.
    """
    store = await _open_store(settings)
    closing.add("Cassandra", store.close)
    redis = RedisClient(settings.cluster.redis, settings.cluster.name)
    closing.add("Redis", redis.close)
    parts = ClusterNode(settings, store, redis, verifier, metrics, limits_of(settings))
    parts.close_by(closing)
    await parts.start_links()
    server = parts.node.server(parts.directory, reuse_port=settings.server.reuse_port)
    port = await server.start()
    following: asyncio.Task[None] | None = None
    try:
        await parts.join(port)
        server.set_serving(True)
        following = background.start(_follow(parts, server), crash)
        _log.info("serving", port=port, edge=parts.node.edge_in_use, compiled=compiled.runs(), node_id=parts.node_id)
        yield port
    finally:
        if following is not None:
            following.cancel()
        timeout_s = settings.server.drain_timeout_s
        await closing.finish("drain", parts.drain(server, timeout_s), timeout_s + _DRAIN_SPARE_S)


async def _follow(parts: ClusterNode, server: GrpcServer) -> None:
    """Tells load balancers to send no devices to a node that has lost its lease, as long as it has none."""
    serving = True
    while True:
        await asyncio.sleep(_WATCH_INTERVAL_S)
        if parts.is_joined != serving:
            serving = parts.is_joined
            server.set_serving(serving)


async def _open_store(settings: Settings) -> CassandraStore:
    cluster = settings.cluster
    try:
        return await CassandraStore.open(
            CassandraSettings(
                hosts=cluster.cassandra_hosts,
                keyspace=cluster.keyspace,
                replication_factor=cluster.replication_factor,
                username=cluster.cassandra_username or "",
                password=cluster.cassandra_password.get_secret_value() if cluster.cassandra_password else "",
                ca_file=cluster.cassandra_ca_file,
            ),
            KeyspaceOwner(cluster.name),
        )
    except (StoreError, SchemaError) as error:
        raise StartError(f"Cassandra ({cluster.cassandra}): {error}") from error
