"""`make bench-peers`: a server, on each edge, beside Centrifugo over Redis, by turns under one load, for anybody to repeat.

Centrifugo is what people pick for fast delivery. It runs as it would for a chat: over a Redis that has each message on the disk
before it answers (append-only file, fsync always), with a bounded history and positions that clients can check. It has no
membership, no receipts and no acknowledgements. On either side server and store share a CPU; the load generator has the other.
docs/benchmarks.md explains rows and shapes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import results
from benchmarks.bench import Bench, Measures, Subject, alternate, floors
from benchmarks.loads import DELAYED, INDEPENDENT, QUICK, SHAPES, THOROUGH, Load, Pace, loads
from benchmarks.options import (
    REPEAT,
    EdgesOption,
    QuickOption,
    RepeatOption,
    ShapesOption,
    chosen,
    chosen_edges,
    describe_machine,
)
from benchmarks.processes import ROOT, BenchError, Cpus, Server, chat_server, forget_settings, pinned
from benchmarks.results import Row
from tests.support.ports import free_port
from tests.support.services import RedisServer, ServiceError

KINDS = ("floors", "pairs", "fanout")
PEER = "Centrifugo over Redis"
CENTRIFUGO = "github.com/centrifugal/centrifugo/v6@v6.9.1"
RESULTS_FILE = ROOT / "benchmarks" / "peers.json"
_BUILD_DIR = ROOT / ".tools" / "peers"
_BUILD_TIMEOUT_S = 1_800
_HISTORY = {"history_size": 1_000, "history_ttl": "600s"}


def install_centrifugo(console: Console) -> Path:
    """Builds the pinned Centrifugo into the checkout's tools, unless it is there; returns the program.

    Raises:
        BenchError: there is no Go, or it cannot be had; the message says why.
    """
    folder = _BUILD_DIR / CENTRIFUGO.rpartition("@")[2]
    program = folder / "centrifugo"
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        raise BenchError("Centrifugo is built with Go, and there is no `go` here: install Go 1.26 or newer")
    console.print(f"building {CENTRIFUGO}, once; it takes some minutes")
    with tempfile.TemporaryDirectory(dir=_made(_BUILD_DIR)) as building:
        command = ("env", f"GOBIN={building}", go, "install", CENTRIFUGO)
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=_BUILD_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            raise BenchError(f"Centrifugo does not build:\n{error.stderr[-2000:]}") from None
        except subprocess.TimeoutExpired:
            raise BenchError(f"Centrifugo was not built in {_BUILD_TIMEOUT_S} s") from None
        _made(folder)
        Path(building, "centrifugo").rename(program)
    return program


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True, slots=True)
class Peer:
    """A Centrifugo that runs over a Redis of its own; see `benchmarks.processes.Loaded`."""

    server: Server
    redis: RedisServer

    @property
    def targets(self) -> Sequence[str]:
        """What devices dial."""
        return self.server.targets

    @property
    def pids(self) -> Sequence[int]:
        """The server's process and that of its store: on our side the store is part of the server."""
        return [*self.server.pids, self.redis.process.pid]

    @property
    def service_pids(self) -> Mapping[str, Sequence[int]]:
        """None besides."""
        return {}

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        return self.server.log_tail()

    def check_alive(self) -> None:
        """Raises:
        BenchError: it has ended by itself.
        """
        self.server.check_alive()


@contextmanager
def peer_server(program: Path, cpu: int | None) -> Iterator[Peer]:
    """Centrifugo over an empty Redis that appends durably, both on the CPU."""
    redis = RedisServer("peer-redis", durable=True)
    port = free_port()
    channel = {"allow_subscribe_for_client": True, "allow_publish_for_subscriber": True, "force_positioning": True, **_HISTORY}
    config = {
        "client": {"insecure": True},
        "channel": {"without_namespace": channel},
        "engine": {"type": "redis", "redis": {"address": redis.url}},
        "http_server": {"address": "127.0.0.1", "port": str(port)},
        "log": {"level": "warn"},
    }
    with tempfile.TemporaryDirectory(prefix="chatgrpc-peer-") as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(config))
        try:
            with pinned(cpu):
                redis.start()
            with Server.start(
                "centrifugo", [str(program), "-c", str(path)], port, Path(folder, "log"), dict(os.environ), cpu
            ) as server:
                yield Peer(server, redis)
        except ServiceError as error:
            raise BenchError(str(error)) from None
        finally:
            redis.close()


class PeerBench:
    """Measures both under the same loads, by turns."""

    def __init__(self, pace: Pace, cpus: Cpus, data_dir: Path, edges: Sequence[str], centrifugo: Path | None) -> None:
        """With no program only ours is measured.

        Raises:
            BenchError: the load generator cannot be built.
        """
        self._pace = pace
        self._cpus = cpus
        self._data_dir = data_dir
        self._centrifugo = centrifugo
        self._bench = Bench(pace, cpus)
        start = partial(chat_server, data_dir, cpus.server)
        self._ours = [Subject("server", edge, partial(start, edge)) for edge in edges]

    def floors(self) -> dict[str, Measures]:
        """What measures what no server on our edges and our store can exceed; see `benchmarks.bench.floors`."""
        return floors(self._bench, self._data_dir, [subject.edge for subject in self._ours])

    def measures(self, load: Load) -> Measures:
        """What measures this load once: on each of our edges, and the peer."""
        ours: dict[str, Callable[[], Row]] = {subject.edge: partial(self._bench.load, subject, load) for subject in self._ours}
        return ours if self._centrifugo is None else ours | {PEER: partial(self._peer, load, self._centrifugo)}

    def _peer(self, load: Load, program: Path) -> Row:
        # It has no acknowledgements that could wait.
        shape = INDEPENDENT if load.shape is DELAYED else load.shape
        flags = ("--peer", "centrifugo", *replace(load, shape=shape).all_flags, *self._pace.flags)
        with peer_server(program, self._cpus.server) as server, tempfile.TemporaryDirectory(prefix="chatgrpc-peer-") as folder:
            seen = self._bench.loadgen.run(load.mode, server, *flags, accounts=load.accounts, data_dir=Path(folder))
        return {
            "peer_rate_per_s": seen["rate_per_s"],
            "peer_p50_ms": seen["p50_ms"],
            "peer_p99_ms": seen["p99_ms"],
            "peer_cpu_s_per_1000": seen["server_cpu_s"] / seen["count"] * 1000,
            "peer_server_cpu": seen["server_cpu_s"] / seen["seconds"],
            "peer_generator_cpu_share": seen["loadgen_cpu_s"] / seen["seconds"],
        }


def beside(ours: Row, peer: Row | None) -> Row:
    """A row of ours with the peer's figures; without them where there are none."""
    row = {("echo_ratio" + key.removeprefix("ratio") if key.startswith("ratio") else key): value for key, value in ours.items()}
    if peer is None:
        return row | {"peer": "not to be had"}
    return row | {"peer": PEER} | peer | {"ratio": results.figure(row["rate_per_s"]) / results.figure(peer["peer_rate_per_s"])}


def main(
    rows: Annotated[
        str | None,
        typer.Option(help=f"Kinds of rows, with commas between them: {', '.join(KINDS)}.  [default: all]", show_default=False),
    ] = None,
    shapes: ShapesOption = None,
    edges: EdgesOption = None,
    quick: QuickOption = False,
    repeat: RepeatOption = REPEAT,
    data_dir: Annotated[
        Path, typer.Option(help="Folder for the server's data, on the disk to measure.  [default: data]", show_default=False)
    ] = ROOT / "data",
) -> None:
    """Measure the server, on each edge, beside Centrifugo over Redis, under the same load in the same run."""
    console = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
    kinds = chosen("rows", rows, KINDS)
    shapes_used = [SHAPES[name] for name in chosen("shapes", shapes, SHAPES)]
    edges_used = chosen_edges(edges, console)
    forget_settings()
    pace = QUICK if quick else THOROUGH
    cpus = Cpus.choose()
    centrifugo = None
    try:
        centrifugo = install_centrifugo(console)
    except BenchError as error:
        console.print(f"the rows have no peer: {error}", style="red", markup=False)
    bench = PeerBench(pace, cpus, data_dir, edges_used, centrifugo)
    describe_machine(cpus, data_dir, console)
    measured: list[Row] = []
    failed = centrifugo is None

    def measure(name: str, measures: Measures) -> dict[str, Row]:
        """Measures as often as is asked, by turns; says what was wrong, and returns what was right."""
        nonlocal failed
        with console.status(f"measuring {name}"):
            seen = alternate(measures, repeat)
        right: dict[str, Row] = {}
        for who, row in seen.items():
            if isinstance(row, BenchError):
                failed = True
                console.print(f"{name}, {who}: {row}", style="red", markup=False)
            else:
                right[who] = row
        return right

    if "floors" in kinds:
        for name, measures in bench.floors().items():
            measured += measure(name, measures).values()
    for load in (load for kind in kinds for load in loads(kind, shapes_used, pace)):
        seen = measure(f"{load.row}, {load.shape.name}", bench.measures(load))
        peer = seen.pop(PEER, None)
        measured += [beside(ours, peer) for ours in seen.values()]
    results.show_peers(measured, console)
    results.write(measured, RESULTS_FILE)
    console.print(f"written to {RESULTS_FILE.relative_to(ROOT)}; python -m benchmarks.chart draws it")
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
