"""A real cluster: nodes in processes of their own over real etcd, Redis and Cassandra, to be ended, paused, added, cut off."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from chatgrpc.adapters.etcd import EtcdSettings
from chatgrpc.adapters.etcd.client import EtcdClient, EtcdError
from chatgrpc.adapters.etcd.view import KeySpace, LiveView
from chatgrpc.adapters.jwt import DevIssuer
from chatgrpc.core.ids import SHARD_COUNT, shard_of
from chatgrpc.ports.cluster import ClusterView
from tests.support.link import Link
from tests.support.ports import accepts, free_port
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.folder import ServiceError
from tests.support.services.process import ServiceProcess
from tests.support.services.redis import RedisServer

NODE_START_TIMEOUT_S = 120.0
"""The first one makes the schema, table by table, and three Cassandras on a machine that is busy agree on each for seconds."""
SETTLE_TIMEOUT_S = 60.0
_STOP_SUSPICIOUS_S = 20.0
_CHATGRPC = str(Path(sys.executable).parent / "chatgrpc")
_PY_SPY = str(Path(sys.executable).parent / "py-spy")


class ClusterNode:
    """One `chatgrpc serve`; its addresses stay the same across restarts, its node id does not."""

    def __init__(
        self,
        name: str,
        flags: Sequence[str],
        environment: Mapping[str, str],
        port: int,
        proxied: bool,
        program: Sequence[str] = (_CHATGRPC,),
    ) -> None:
        """Starts nothing.

        Args:
            name: for people, and unique within this process.
            flags: what all nodes of the cluster are told.
            environment: settings besides.
            port: where devices dial it.
            proxied: other nodes reach it through `link` only, which must have been started before the node is.
            program: what is started.
        """
        self.name = name
        self.port = port
        self._program = program
        relay_port = free_port()
        self.link = Link(relay_port) if proxied else None
        """What other nodes dial. Of two nodes the one with the smaller id dials the other, once."""
        self._flags = (*flags, "--port", str(port), "--cluster-relay-port", str(relay_port))
        self.process = ServiceProcess(name, lambda data: self.command, environment)

    @property
    def address(self) -> str:
        """What devices dial."""
        return f"127.0.0.1:{self.port}"

    @property
    def command(self) -> Sequence[str]:
        """The command line that starts it."""
        advertised = ("--cluster-relay-advertise", self.link.address) if self.link is not None else ()
        return (*self._program, "serve", *self._flags, *advertised)

    async def start(self) -> None:
        """Starts it; returns when it accepts devices.

        Raises:
            ServiceError: it did not start; with the end of its log.
        """
        self.process.launch()
        await asyncio.to_thread(self.process.wait_until, lambda: accepts(self.port), NODE_START_TIMEOUT_S)

    def kill(self) -> None:
        """Ends it as a crash does (SIGKILL)."""
        self.process.kill()

    def pause(self) -> None:
        """Lets it stand still (SIGSTOP)."""
        self.process.pause()

    def resume(self) -> None:
        """Lets it go on (SIGCONT)."""
        self.process.resume()

    async def stop(self) -> int:
        """Ends it in order (SIGTERM): it drains; returns its exit status. If it takes long, its log says what it hung on."""
        pid = self.process.pid
        stopping = asyncio.create_task(asyncio.to_thread(self.process.stop))
        await asyncio.wait({stopping}, timeout=_STOP_SUSPICIOUS_S)
        if not stopping.done():
            with self.process.log_path.open("ab") as log:
                await asyncio.create_subprocess_exec(_PY_SPY, "dump", "--pid", str(pid), stdout=log, stderr=log)
        return await stopping


class RunningCluster:
    """Nodes, and the services that they share."""

    def __init__(
        self,
        data_dir: Path,
        etcd: EtcdCluster,
        redis: RedisServer,
        cassandra: CassandraCluster,
        name: str,
        environment: Mapping[str, str],
        proxied: bool,
    ) -> None:
        """Starts nothing; see `running_cluster`."""
        self.data_dir = data_dir.absolute()
        self.etcd = etcd
        self.redis = redis
        self.cassandra = cassandra
        self.name = name
        self.nodes: list[ClusterNode] = []
        self.removed: list[ClusterNode] = []
        """Those that went for good."""
        self._proxied = proxied
        self._environment = environment
        # Made before any node starts, so that all find the same key.
        self._issuer = DevIssuer.open(self.data_dir)
        self._keys = KeySpace(f"{name}/")
        self._names = 0

    @property
    def addresses(self) -> list[str]:
        """What devices dial: every node, whether it runs or not."""
        return [node.address for node in self.nodes]

    def token(self, user_id: str, ttl_s: int = 3600, device_id: str | None = None) -> str:
        """A development token that every node accepts."""
        return self._issuer.mint(user_id, ttl_s, time.time_ns() // 1_000_000, device_id)

    async def add(self, port: int = 0) -> ClusterNode:
        """Starts one more node, on any free port if none is given; returns when it accepts devices."""
        node = await self.prepare(port)
        await node.start()
        return node

    async def prepare(
        self,
        port: int = 0,
        *,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = (_CHATGRPC,),
    ) -> ClusterNode:
        """One more node, that is not started yet; the flags, the environment and the program are its own."""
        self._names += 1
        name = f"{self.name}-node-{self._names}"
        flags, environment = (*self._flags(), *flags), {**self._environment, **(environment or {})}
        node = ClusterNode(name, flags, environment, port or free_port(), self._proxied, program)
        if node.link is not None:
            await node.link.start()
        self.nodes.append(node)
        return node

    async def remove(self, node: ClusterNode) -> int:
        """Ends a node in order, for good; returns its exit status. Its log stays until the cluster ends."""
        status = await node.stop()
        self.nodes.remove(node)
        self.removed.append(node)
        return status

    async def view(self) -> ClusterView:
        """Who is there and who owns what, as etcd says now.

        Raises:
            EtcdError: it does not say.
        """
        prefix = self._keys.prefix
        # One that stays would keep grpc.aio busy on the loop it was made on, which need not be the loop of every test.
        client = EtcdClient(EtcdSettings(self.etcd.endpoints, prefix=prefix.decode()))
        try:
            read = await client.range(prefix, prefix[:-1] + bytes([prefix[-1] + 1]))
        finally:
            await client.close()
        view = LiveView(self._keys)
        view.reset(read.kvs)
        return view.snapshot()

    async def id_of(self, node: ClusterNode) -> str:
        """The node id of a node that has joined."""
        return next(info.node_id for info in (await self.view()).nodes.values() if info.public_address == node.address)

    async def owner_of(self, chat_id: str) -> ClusterNode:
        """The node that owns a chat's shard."""
        view = await self.view()
        info = view.nodes[view.owners[shard_of(chat_id)].node_id]
        return next(node for node in self.nodes if node.address == info.public_address)

    async def settled(self, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Waits until exactly the nodes that run have joined, and own all shards, each about its part.

        Raises:
            AssertionError: it is not so, with what is.
        """
        give_up_at_s = time.monotonic() + timeout_s
        while (lacking := await self._lacking()) is not None:
            assert time.monotonic() < give_up_at_s, f"the cluster has not settled within {timeout_s:g} s: {lacking}"
            await asyncio.sleep(0.1)

    async def mend(self) -> None:
        """Undoes every fault: all services and nodes run again, and all links are whole."""
        for member in self.etcd.members:
            _wake(member.process)
        for member in self.etcd.members:
            await asyncio.to_thread(member.wait)
        _wake(self.redis.process)
        for replica in self.cassandra.nodes:
            _wake(replica.process)
        for replica in self.cassandra.nodes:
            await asyncio.to_thread(replica.wait)
        for node in self.nodes:
            if node.link is not None:
                node.link.mend()
            if node.process.running:
                node.resume()
            else:
                await node.start()
        await self.settled()

    async def close(self) -> None:
        """Ends the nodes as a crash does; the services are whoever's they were."""
        nodes = (*self.nodes, *self.removed)
        for node in nodes:
            node.process.close()  # before any link ends: nobody dials any more then
        for node in nodes:
            if node.link is not None:
                await node.link.stop()

    async def _lacking(self) -> str | None:
        """What is not as it should be; None if all is."""
        try:
            view = await self.view()
        except EtcdError as error:
            return str(error)
        running = {node.address for node in self.nodes if node.process.running}
        joined = {info.public_address for info in view.nodes.values() if not info.draining}
        if joined != running or len(view.nodes) != len(running):
            return f"{sorted(running)} run, and {sorted(view.nodes.values(), key=str)} have joined"
        owned = dict.fromkeys(view.nodes, 0)
        for owner in view.owners.values():
            if owner.node_id in owned:
                owned[owner.node_id] += 1
        if sum(owned.values()) < SHARD_COUNT or min(owned.values()) < SHARD_COUNT / len(owned) / 2:
            return f"of {SHARD_COUNT} shards are owned: {owned}"
        return None

    def _flags(self) -> Sequence[str]:
        return (
            *("--data-dir", str(self.data_dir), "--metrics-port", "0"),
            *("--cluster-etcd", ",".join(self.etcd.endpoints)),
            *("--cluster-redis", self.redis.url),
            *("--cluster-cassandra", ",".join(node.address for node in self.cassandra.nodes)),
            *("--cluster-replication-factor", str(min(3, len(self.cassandra.nodes)))),
            *("--cluster-name", self.name, "--cluster-keyspace", self.name.replace("-", "_")),
        )


@contextlib.asynccontextmanager
async def running_cluster(
    data_dir: Path,
    etcd: EtcdCluster,
    redis: RedisServer,
    cassandra: CassandraCluster,
    name: str,
    nodes: int = 3,
    ports: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    proxied: bool = False,
) -> AsyncIterator[RunningCluster]:
    """A cluster that runs for the length of the block, on services that run already. When it begins, all shards are owned.

    Args:
        data_dir: of all nodes; it holds the key of development tokens.
        etcd, redis, cassandra: what it runs on.
        name: tells it apart from other clusters on the same services; letters, digits and `-`.
        nodes: how many.
        ports: where devices dial them; any free ones if none are named.
        environment: settings of all nodes besides.
        proxied: nodes reach each other through links that tests can cut.

    Raises:
        ServiceError: a node did not start; with the end of its log.
    """
    cluster = RunningCluster(data_dir, etcd, redis, cassandra, name, environment or {}, proxied)
    try:
        prepared = [await cluster.prepare(port) for port in ports or [0] * nodes]
        await asyncio.gather(*(node.start() for node in prepared))
        try:
            await cluster.settled()
        except AssertionError as error:
            raise ServiceError(str(error)) from error
        for node in prepared:  # `settled` asks those that run: one that ended meanwhile is told of here
            node.process.wait_until(lambda: True, 0)
        yield cluster
    finally:
        await cluster.close()


def _wake(process: ServiceProcess) -> None:
    if process.running:
        process.resume()
    else:
        process.launch()
