"""`scripts/services`: fetches the programs of services, or runs services until it is ended."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from tests.support.services import cassandra, etcd, redis
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.folder import ServiceError, say
from tests.support.services.redis import RedisServer

FETCHERS: dict[str, Callable[[], None]] = {"redis": redis.fetch, "etcd": etcd.fetch, "cassandra": cassandra.fetch}


def main() -> int:
    """Does what the command line says."""
    arguments = _parser().parse_args()
    names = arguments.names or list(FETCHERS)
    try:
        if arguments.verb == "fetch":
            for name in names:
                FETCHERS[name]()
            return 0
        return _run(names, arguments.etcd_members, arguments.cassandra_nodes)
    except ServiceError as error:
        say(str(error))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/services", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetch = verbs.add_parser("fetch", help="have the programs ready in tests/.services/, and start nothing")
    run = verbs.add_parser(
        "run", help="run services on free ports until Ctrl-C; one line `NAME ADDRESSES` for each on standard output"
    )
    run.add_argument("--etcd-members", type=int, default=1, metavar="N", help="how many members etcd has (1)")
    run.add_argument("--cassandra-nodes", type=int, default=1, metavar="N", help="how many nodes Cassandra has (1)")
    for verb in (fetch, run):
        verb.add_argument(
            "names", nargs="*", choices=[*FETCHERS, []], metavar="NAME", help=f"{', '.join(FETCHERS)}; all if none is named"
        )
    return parser


def _run(names: list[str], etcd_members: int, cassandra_nodes: int) -> int:
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    started: list[RedisServer | EtcdCluster | CassandraCluster] = []
    try:
        for name in names:
            service = _make(name, etcd_members, cassandra_nodes)
            started.append(service)
            service.start()
            print(name, _addresses(service), flush=True)
        say("running; Ctrl-C ends them")
        ended.wait()
    finally:
        for service in started:
            service.close()
    return 0


def _make(name: str, etcd_members: int, cassandra_nodes: int) -> RedisServer | EtcdCluster | CassandraCluster:
    if name == "redis":
        return RedisServer()
    return EtcdCluster(etcd_members) if name == "etcd" else CassandraCluster(cassandra_nodes)


def _addresses(service: RedisServer | EtcdCluster | CassandraCluster) -> str:
    if isinstance(service, RedisServer):
        return service.url
    if isinstance(service, EtcdCluster):
        return ",".join(service.endpoints)
    return ",".join(node.address for node in service.nodes)


if __name__ == "__main__":
    sys.exit(main())
