"""How long messages take while the server's wall clock is stepped, and while it is not. `python -m benchmarks.clock_steps`.

Pairs chat one message at a time, from composing it to its arrival on the other's device. Rounds without steps and rounds in
which a clock is stepped every so often take turns, so that what the machine does besides falls on both.
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from tests.support.cast import Cast
from tests.support.device import Device
from tests.support.services import CassandraCluster, EtcdCluster, RedisServer
from tests.support.stepped_clock import build
from tests.support.stepped_servers import Place, one_stepped_server, three_stepped_nodes

STEPS_S = (-5.0, 0.0, -3600.0, 0.0, 120.0, 0.0, 7200.0, 0.0)


async def _chat(sender: Device, receiver: Device, took_s: list[float], until_s: float) -> None:
    """One message after the other, each noted as it arrives."""
    while time.monotonic() < until_s:
        began_s = time.monotonic()
        sent = await sender.send(receiver.user_id, "hello")
        await receiver.until_held(sent.chat_id, sent.seq)
        took_s.append(time.monotonic() - began_s)
        await asyncio.sleep(0.02)


async def _step(place: Place, interval_s: float) -> None:
    for ahead_s in itertools.cycle(STEPS_S):
        for clock in place.clocks:
            await asyncio.sleep(interval_s)
            clock.step(ahead_s)


async def _round(place: Place, pairs: list[tuple[Device, Device]], seconds: float, interval_s: float) -> list[float]:
    """Returns how long each message took."""
    took_s: list[float] = []
    stepping = asyncio.create_task(_step(place, interval_s)) if interval_s else None
    until_s = time.monotonic() + seconds
    await asyncio.gather(*(_chat(sender, receiver, took_s, until_s) for sender, receiver in pairs))
    if stepping is not None:
        stepping.cancel()
        await asyncio.gather(stepping, return_exceptions=True)
        place.step(0.0)
    return took_s


async def _run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with _place(folder, build(folder), options.cluster) as place:
            cast = Cast(place.served, "steps")
            pairs = [(await cast.online(f"left{each}"), await cast.online(f"right{each}")) for each in range(options.pairs)]
            await _round(place, pairs, 3.0, 0.0)  # warms up
            steady_s: list[float] = []
            stepped_s: list[float] = []
            for _ in range(options.rounds):
                steady_s += await _round(place, pairs, options.seconds, 0.0)
                stepped_s += await _round(place, pairs, options.seconds, options.interval)
            ended = sum(len(device.endings) for pair in pairs for device in pair)
            _print("no steps", steady_s)
            _print(f"a step every {options.interval:g} s", stepped_s)
            print(f"streams that ended: {ended}")
            await cast.close()


def _print(what: str, took_s: list[float]) -> None:
    cuts = statistics.quantiles(took_s, n=100)
    print(
        f"{what:24} {len(took_s):6} messages, sent to delivered: "
        f"p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms, max {max(took_s) * 1e3:.1f} ms"
    )


@asynccontextmanager
async def _place(folder: Path, library: Path, cluster: bool) -> AsyncIterator[Place]:
    if not cluster:
        async with one_stepped_server(folder, library) as place:
            yield place
        return
    with _services() as (etcd, redis, cassandra):
        async with three_stepped_nodes(folder, library, etcd, redis, cassandra) as place:
            yield place


@contextmanager
def _services() -> Iterator[tuple[EtcdCluster, RedisServer, CassandraCluster]]:
    with ExitStack() as stack:
        services = EtcdCluster(name="etcd-steps"), RedisServer("redis-steps"), CassandraCluster(name="cassandra-steps")
        for service in services:
            stack.callback(service.close)
            service.start()
        yield services


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clock_steps", description=__doc__)
    parser.add_argument("--cluster", action="store_true", help="three nodes over real services, instead of one process")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, help="of each kind")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--interval", type=float, default=0.25, help="seconds from one step to the next")
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
