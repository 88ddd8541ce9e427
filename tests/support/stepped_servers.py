"""Servers whose wall clocks are stepped while they run: one process, or the nodes of a cluster."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.cast import Served
from tests.support.cluster import running_cluster
from tests.support.server import ServerProcess
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer
from tests.support.stepped_clock import SteppedClock, preloaded

TOKEN_TTL_S = 24 * 3600
"""Longer than any step, so that no token is rightly refused while the clock is ahead."""


@dataclass
class LongTokens:
    """Where people can go, with tokens that outlast the steps."""

    served: Served

    @property
    def addresses(self) -> Sequence[str]:
        """What devices dial, any of them."""
        return self.served.addresses

    def token(self, user_id: str, ttl_s: int = TOKEN_TTL_S, device_id: str | None = None) -> str:
        """A token that is accepted at every address, for no less than that."""
        return self.served.token(user_id, max(ttl_s, TOKEN_TTL_S), device_id)


@dataclass
class Place:
    """Servers, and the clock of each."""

    served: LongTokens
    clocks: Sequence[SteppedClock]
    restart: Callable[[], Awaitable[None]]
    """Ends every server in order, and starts it again."""

    def step(self, ahead_s: float) -> None:
        """All clocks go wrong by the same."""
        for clock in self.clocks:
            clock.step(ahead_s)


@contextlib.asynccontextmanager
async def one_stepped_server(folder: Path, library: Path) -> AsyncIterator[Place]:
    """One process, that runs for the length of the block and logs no traceback."""
    server = ServerProcess(folder / "data", preloaded(library, folder / "clock"))

    async def restart() -> None:
        assert server.terminate() == 0
        await server.start()

    try:
        await server.start()
        yield Place(LongTokens(server), [SteppedClock(folder / "clock")], restart)
        _check_log(server.log_path)
    finally:
        server.close()


@contextlib.asynccontextmanager
async def three_stepped_nodes(
    folder: Path, library: Path, etcd: EtcdCluster, redis: RedisServer, cassandra: CassandraCluster
) -> AsyncIterator[Place]:
    """Three nodes, each with a clock of its own; their services have the right time. None of them logs a traceback."""
    environment = {
        **preloaded(library, Path("clock")),  # in the folder of each node
        "CHATGRPC_CLUSTER__LEASE_TTL_S": "20",  # none is to die because the machine is busy
        "CHATGRPC_LOG__FORMAT": "json",
    }
    async with running_cluster(folder / "data", etcd, redis, cassandra, "clocks", environment=environment) as running:

        async def restart() -> None:
            for node in running.nodes:
                assert await node.stop() == 0
                await node.start()
                await running.settled()

        yield Place(LongTokens(running), [SteppedClock(node.process.folder / "clock") for node in running.nodes], restart)
        for node in running.nodes:
            _check_log(node.process.log_path)


def _check_log(path: Path) -> None:
    log = path.read_text()
    assert "Traceback" not in log, log
