"""`make cluster`: three nodes over real etcd, Redis and Cassandra on this machine, for people to chat through, until Ctrl-C.

etcd and Cassandra keep their data in `data/cluster` from one run to the next, both or neither: epochs are revisions of etcd,
and an etcd that began anew would number the next owners of chats lower than those whose rows Cassandra holds.
"""

import argparse
import asyncio
import contextlib
import fcntl
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from chatgrpc.core.ids import SHARD_COUNT
from tests.support.cluster import ClusterNode, RunningCluster, running_cluster
from tests.support.ports import accepts, free_port
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.folder import ServiceError
from tests.support.services.redis import RedisServer

FOLDER = Path("data") / "cluster"
PORTS = (15_551, 15_552, 15_553)
NAME = "chatgrpc"
_LOG_POLL_INTERVAL_S = 0.2


def main() -> int:
    """Runs until it is told to stop; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    parser = argparse.ArgumentParser(prog="scripts/cluster", description="Three nodes, and all they need, until Ctrl-C.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"what it keeps is there ({FOLDER})")
    folder: Path = parser.parse_args().folder
    try:
        with _alone_on(folder):
            asyncio.run(_run(folder))
    except ServiceError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def say(line: str) -> None:
    """Tells the person what is going on."""
    print(f"cluster: {line}", flush=True)


async def _run(folder: Path) -> None:
    with contextlib.ExitStack() as services:
        redis, etcd, cassandra = _start_services(folder, services)
        say(f"starting three nodes, and waiting until they own all {SHARD_COUNT} shards of chats")
        environment = {"CHATGRPC_LOG__FORMAT": "console"}
        async with running_cluster(
            folder, etcd, redis, cassandra, NAME, ports=_free_ports(), environment=environment
        ) as cluster:
            stop = _stop_signal()
            _greet(folder, cluster)
            following = [asyncio.create_task(_follow(number, node, stop)) for number, node in enumerate(cluster.nodes, start=1)]
            await stop.wait()
            say("the nodes drain: devices are sent away, and what is under way is finished")
            await asyncio.gather(*(node.stop() for node in cluster.nodes))
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
    say(f"stopped; what was said is kept in {folder}, and `rm -r {_typed(folder)}` forgets it")


def _start_services(folder: Path, stack: contextlib.ExitStack) -> tuple[RedisServer, EtcdCluster, CassandraCluster]:
    """One of each, which is enough for people; in order of trouble: what is likely to be missing is found out first."""
    cassandra = CassandraCluster(kept_data=folder.absolute() / "cassandra")
    stack.callback(_stop_cassandra, cassandra)
    etcd = EtcdCluster(kept_data=folder.absolute() / "etcd")
    stack.callback(_stop_etcd, etcd)
    redis = RedisServer()
    stack.callback(redis.close)
    say("starting Redis, etcd (one member) and Cassandra (one node, so one copy of everything)")
    redis.start()
    etcd.start()
    cassandra.start()
    return redis, etcd, cassandra


def _stop_cassandra(cassandra: CassandraCluster) -> None:
    say("Cassandra stops")
    for node in cassandra.nodes:
        node.stop()
    cassandra.close()


def _stop_etcd(etcd: EtcdCluster) -> None:
    for member in etcd.members:
        member.stop()
    etcd.close()


def _greet(folder: Path, cluster: RunningCluster) -> None:
    nodes = ", ".join(f"{node.address} (process {node.process.pid})" for node in cluster.nodes)
    command, devices = f"CHATGRPC_DATA_DIR={_typed(folder)} .venv/bin/chatgrpc", _typed(folder / "devices")
    first, second, *_ = cluster.addresses
    print(f"chatgrpc runs as a cluster of {len(cluster.nodes)} nodes: {nodes}.")
    print("Ctrl-C stops it. Next, each in a terminal of its own, in this folder:")
    print(f"  {command} chat --as alice --with bob --server {first} --data-dir {devices}")
    print(f"  {command} chat --as bob --with alice --server {second} --data-dir {devices}")
    print(f"  .venv/bin/chatgrpc cluster status --cluster-etcd {','.join(cluster.etcd.endpoints)}")
    print("`kill -9` one of the nodes and chat on. What they log:", flush=True)


def _typed(path: Path) -> str:
    """A path as it is typed in a shell."""
    return shlex.quote(str(path))


async def _follow(number: int, node: ClusterNode, stop: asyncio.Event) -> None:
    """Shows what a node logs, and tells when it has ended although nobody asked it to."""
    with node.process.log_path.open(errors="replace") as log:
        log.seek(0, os.SEEK_END)
        while node.process.running:
            _show(number, log.readlines())
            await asyncio.sleep(_LOG_POLL_INTERVAL_S)
        _show(number, log.readlines())
    if not stop.is_set():
        say(f"node {number} has ended, and the others take its shards. This starts it again:\n  {shlex.join(node.command)}")


def _show(number: int, lines: Sequence[str]) -> None:
    for line in lines:
        print(f"node {number} | {line.rstrip()}", flush=True)


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _free_ports() -> list[int]:
    taken = [port for port in PORTS if accepts(port)]
    if not taken:
        return list(PORTS)
    say(f"something listens on {', '.join(map(str, taken))} already; the nodes take other ports")
    return [free_port() for _ in PORTS]


@contextlib.contextmanager
def _alone_on(folder: Path) -> Iterator[None]:
    """Lets one cluster run on the folder.

    Raises:
        ServiceError: one runs already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ServiceError(f"a cluster runs on {folder} already; end that one first") from error
        yield


if __name__ == "__main__":
    sys.exit(main())
