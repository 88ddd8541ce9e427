"""`make bench`: measures a server and a cluster on this machine, each figure beside a raw grpc.aio echo of the same minutes.

docs/benchmarks.md explains the rows and how to read them.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import results
from benchmarks.cluster import Services, chat_cluster
from benchmarks.processes import (
    ROOT,
    BenchError,
    Cpus,
    Loaded,
    Loadgen,
    chat_server,
    echo_server,
    forget_settings,
    fsync_times,
)
from benchmarks.results import Row

EDGE = "grpcio"
"""What serves the devices' streams."""
RESULTS_FILE = ROOT / "benchmarks" / "results.json"

PAIRS = 50
GROUPS, GROUP_MEMBERS = 4, 100
BACKLOG = 20_000
IDLE_STREAMS = 2_000
HISTORY_EVENTS, HISTORY_EVENTS_QUICK = 1_000_000, 50_000


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things are measured, in seconds."""

    warmup_s: float
    duration_s: float
    echo_warmup_s: float
    echo_duration_s: float
    replay_devices: int

    @property
    def flags(self) -> list[str]:
        """For the load generator, on the server under test."""
        return ["--warmup", f"{self.warmup_s}s", "--duration", f"{self.duration_s}s"]

    @property
    def echo_flags(self) -> list[str]:
        """For the load generator, on the echo server; twice for each row, before and after it."""
        return ["--warmup", f"{self.echo_warmup_s}s", "--duration", f"{self.echo_duration_s}s"]


THOROUGH = Pace(warmup_s=2, duration_s=8, echo_warmup_s=1, echo_duration_s=4, replay_devices=5)
QUICK = Pace(warmup_s=1, duration_s=3, echo_warmup_s=0.5, echo_duration_s=1.5, replay_devices=2)

ACK_DELAY_MS = 100


@dataclass(frozen=True, slots=True)
class Shape:
    """When senders send and receivers acknowledge."""

    name: str
    flags: tuple[str, ...]
    """As the load generator has it."""


INDEPENDENT = Shape("independent", ("--shape", "independent"))
DELAYED = Shape("independent, delayed acks", ("--shape", "independent", "--ack-delay", f"{ACK_DELAY_MS}ms"))
BATCHED = Shape("batched", ("--shape", "batched"))
SHAPES = {"independent": INDEPENDENT, "delayed": DELAYED, "batched": BATCHED}
"""By what the command line calls them."""

QuickOption = Annotated[bool, typer.Option("--quick", help="Short times: to see that it works, not to compare.")]
ShapesOption = Annotated[
    str | None,
    typer.Option(help=f"When senders send, with commas between them: {', '.join(SHAPES)}.  [default: all]", show_default=False),
]

OPEN_LOOP_SHARES = (0.25, 0.5, 0.75)
"""Of the highest rate; what is offered in the rows that have a rate."""


@dataclass(frozen=True, slots=True)
class Load:
    """A row that has a rate: what the load generator does, and the echo that stands beside it."""

    row: str
    shape: Shape
    counts: str
    mode: str
    flags: tuple[str, ...]
    accounts: int
    echo_streams: int
    echo_window: int
    receivers: int = 1
    """Deliveries that one message makes."""
    offered_per_s: float | None = None
    """Messages that are sent whatever is answered; None = as the window has it."""

    @property
    def all_flags(self) -> tuple[str, ...]:
        """For the load generator, without how long it is to take."""
        rate = () if self.offered_per_s is None else ("--rate", f"{self.offered_per_s:.6g}")
        return (*self.flags, *self.shape.flags, *rate)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a server, or a cluster of one kind."""

    name: str
    start: Callable[[], AbstractContextManager[tuple[Loaded, Path]]]
    """A new one, with nothing in it, and its data folder."""


class Bench:
    """Runs rows on this machine."""

    def __init__(self, pace: Pace, cpus: Cpus) -> None:
        self._pace = pace
        self._cpus = cpus
        self.loadgen = Loadgen(cpus.loadgen)

    def warm_up(self, subject: Subject, load: Load) -> None:
        """Puts a load on it that is not measured."""
        with subject.start() as (server, data_dir):
            self._load(server, data_dir, load)

    def load(self, subject: Subject, load: Load) -> Row:
        """Measures a new server under load, and the echo server before and after it.

        Raises:
            BenchError: something that the load generator checks is wrong.
        """
        before = self._echo(load)
        with subject.start() as (server, data_dir):
            seen = self._load(server, data_dir, load)
            services = server.service_pids.keys()
        after = self._echo(load)
        echo_per_s = (before["rate_per_s"] + after["rate_per_s"]) / 2
        latencies = ("p50_ms", "p99_ms", "answer_p50_ms", "answer_p99_ms")
        return {
            "subject": subject.name,
            "edge": EDGE,
            "row": load.row,
            "shape": load.shape.name,
            "counts": load.counts,
            **({} if load.offered_per_s is None else {"offered_per_s": load.offered_per_s}),
            "rate_per_s": seen["rate_per_s"],
            **({"messages_per_s": seen["rate_per_s"] / load.receivers} if load.receivers > 1 else {}),
            **{key: seen[key] for key in latencies if key in seen},
            "cpu_s_per_1000": seen["server_cpu_s"] / seen["count"] * 1000,
            **{f"{name}_cpu_s_per_1000": seen[f"{name}_cpu_s"] / seen["count"] * 1000 for name in services},
            "echo": f"{load.echo_streams} streams, window {load.echo_window}",
            "echo_per_s": echo_per_s,
            "echo_cpu_s_per_1000": (before["server_cpu_s"] + after["server_cpu_s"]) / (before["count"] + after["count"]) * 1000,
            "echo_change": after["rate_per_s"] / before["rate_per_s"] - 1,
            "ratio": seen["rate_per_s"] / echo_per_s,
            "server_cpu": seen["server_cpu_s"] / seen["seconds"],
            **({"services_cpu": sum(seen[f"{name}_cpu_s"] for name in services) / seen["seconds"]} if services else {}),
            "generator_cpu_share": seen["loadgen_cpu_s"] / seen["seconds"],
        }

    def idle(self, subject: Subject) -> Row:
        """Measures what a silent stream costs a new server in memory, and a new echo server."""
        streams = ("--streams", str(IDLE_STREAMS))
        with echo_server(self._cpus.server) as server:
            echo = self.loadgen.run("echo-idle", server, *streams)
        with subject.start() as (server, data_dir):
            seen = self.loadgen.run("idle", server, *streams, accounts=IDLE_STREAMS, data_dir=data_dir)
        return {
            "subject": subject.name,
            "edge": EDGE,
            "row": f"idle {IDLE_STREAMS}",
            "counts": "streams",
            "kb_per_stream": seen["kb_per_stream"],
            "echo": f"{IDLE_STREAMS} streams, silent",
            "echo_kb_per_stream": echo["kb_per_stream"],
            "ratio": seen["kb_per_stream"] / echo["kb_per_stream"],
        }

    def _load(self, server: Loaded, data_dir: Path, load: Load) -> dict[str, float]:
        return self.loadgen.run(
            load.mode, server, *load.all_flags, *self._pace.flags, accounts=load.accounts, data_dir=data_dir
        )

    def _echo(self, load: Load) -> dict[str, float]:
        with echo_server(self._cpus.server) as server:
            shape = ("--streams", str(load.echo_streams), "--window", str(load.echo_window))
            return self.loadgen.run("echo", server, *shape, *self._pace.echo_flags)


def pairs(window: int, shape: Shape = INDEPENDENT) -> Load:
    """1:1, durable, acknowledged and delivered."""
    return Load(
        row=f"pairs {PAIRS} window {window}",
        shape=shape,
        counts="messages",
        mode="pairs",
        flags=("--streams", str(2 * PAIRS), "--window", str(window)),
        accounts=2 * PAIRS,
        echo_streams=PAIRS,
        echo_window=window,
    )


def open_loop(share: float, highest_per_s: float) -> Load:
    """1:1 at a share of the highest rate, at random times; latencies count from when a message was to be sent."""
    return replace(pairs(8), row=f"pairs {PAIRS} at {share:.0%}", offered_per_s=share * highest_per_s)


def fanout(window: int, shape: Shape = INDEPENDENT) -> Load:
    """Groups with one sender each."""
    members = GROUPS * GROUP_MEMBERS
    return Load(
        row=f"fanout {GROUPS}x{GROUP_MEMBERS} window {window}",
        shape=shape,
        counts="deliveries",
        mode="fanout",
        flags=("--groups", str(GROUPS), "--streams", str(members), "--window", str(window)),
        accounts=members,
        echo_streams=100,
        echo_window=8,
        receivers=GROUP_MEMBERS - 1,
    )


def replay(devices: int) -> Load:
    """A device that comes back to a backlog."""
    return Load(
        row=f"replay {BACKLOG}",
        # How the backlog was written, which is not measured.
        shape=BATCHED,
        counts="events",
        mode="replay",
        flags=("--messages", str(BACKLOG), "--devices", str(devices)),
        accounts=2,
        echo_streams=50,
        echo_window=8,
    )


LOADED = ("pairs", "fanout", "open", "replay", "idle")
"""Kinds of rows of a server, and of every cluster."""
CASSANDRA_NODES = {"cluster": 1, "cluster-rf3": 3}
"""Kinds of clusters, each with as many copies of its data as it has nodes of Cassandra."""
KINDS = (*LOADED, "history", *CASSANDRA_NODES)


def loads(kind: str, shapes: Iterable[Shape], pace: Pace) -> list[Load]:
    """The loads of the rows of this kind whose rate is not that of another row."""
    if kind == "replay":
        return [replay(pace.replay_devices)]
    load, windows = {"pairs": (pairs, (1, 8)), "fanout": (fanout, (2, 16))}.get(kind, (pairs, ()))
    return [load(window, shape) for shape in shapes for window in windows]


def history_rows(quick: bool) -> list[Row]:
    """Pages of a long history; measured beside no echo."""
    history = importlib.import_module("benchmarks.history")
    return [{"subject": "server"} | row for row in history.measure(HISTORY_EVENTS_QUICK if quick else HISTORY_EVENTS)]


class Run:
    """Measures one kind of rows after the other, and keeps what was seen and whether anything was wrong."""

    def __init__(
        self, bench: Bench, pace: Pace, repeat: int, shapes: Sequence[Shape], cpus: Cpus, data_dir: Path, console: Console
    ) -> None:
        self.rows: list[Row] = []
        self.failed = False
        self._bench = bench
        self._pace = pace
        self._repeat = repeat
        self._shapes = shapes
        self._cpus = cpus
        self._data_dir = data_dir
        self._console = console

    def server(self, kinds: Iterable[str]) -> None:
        """Measures a server by itself."""
        self._measure(Subject("server", partial(chat_server, self._data_dir, self._cpus.server)), kinds)

    def history(self, quick: bool) -> None:
        """Measures pages of a long history."""
        with self._console.status("measuring history"):
            self.rows += history_rows(quick)

    def cluster(self, kind: str) -> None:
        """Measures a cluster of three nodes on services of its own.

        Raises:
            BenchError: the services cannot be started.
        """
        with ExitStack() as stack:
            services = Services(CASSANDRA_NODES[kind], self._cpus)
            services.start(stack)
            subject = Subject(kind, partial(chat_cluster, services, self._data_dir))
            with self._console.status(f"warming {kind} up"):
                # Cassandra's code is compiled as it is used.
                self._bench.warm_up(subject, pairs(8, BATCHED))
            self._measure(subject, LOADED)

    def _measure(self, subject: Subject, kinds: Iterable[str]) -> None:
        for kind in kinds:
            for load in loads(kind, self._shapes, self._pace):
                self._row(subject, load.row, partial(self._bench.load, subject, load))
            if kind == "open" and (highest_per_s := self._highest_per_s(subject)) is not None:
                for share in OPEN_LOOP_SHARES:
                    load = open_loop(share, highest_per_s)
                    self._row(subject, load.row, partial(self._bench.load, subject, load))
            if kind == "idle":
                self._row(subject, f"idle {IDLE_STREAMS}", partial(self._bench.idle, subject))

    def _highest_per_s(self, subject: Subject) -> float | None:
        """The rate of 1:1 messages at the larger window, measured now unless it was before; None if that failed."""
        load = pairs(8)
        name = (subject.name, load.row, load.shape.name)
        measured = [row for row in self.rows if (row["subject"], row["row"], row.get("shape")) == name]
        row = measured[0] if measured else self._row(subject, load.row, partial(self._bench.load, subject, load))
        return None if row is None else results.figure(row["rate_per_s"])

    def _row(self, subject: Subject, name: str, measure: Callable[[], Row]) -> Row | None:
        """Measures a row as often as is asked and keeps it; None if something was wrong."""
        try:
            with self._console.status(f"measuring {subject.name}: {name}"):
                row = results.median_row([measure() for _ in range(self._repeat)])
        except BenchError as error:
            self.failed = True
            self._console.print(f"{subject.name}: {name}: {error}", style="red", markup=False)
            return None
        self.rows.append(row)
        return row


def main(
    rows: Annotated[
        str | None,
        typer.Option(help=f"Kinds of rows, with commas between them: {', '.join(KINDS)}.  [default: all]", show_default=False),
    ] = None,
    quick: QuickOption = False,
    shapes: ShapesOption = None,
    repeat: Annotated[int, typer.Option(min=1, help="Times that each row is measured; the figures are medians.")] = 5,
    data_dir: Annotated[
        Path, typer.Option(help="Folder for the servers' data, on the disk to measure.  [default: data]", show_default=False)
    ] = ROOT / "data",
) -> None:
    """Measure a chatgrpc server and a cluster on this machine, each figure beside a raw grpc.aio echo of the same minutes."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    kinds = chosen("rows", rows, KINDS)
    shapes_used = [SHAPES[name] for name in chosen("shapes", shapes, SHAPES)]
    if sys.platform != "linux":
        raise typer.BadParameter("the benchmarks read /proc and pin processes to CPUs; they run on Linux only")
    forget_settings()
    pace = QUICK if quick else THOROUGH
    cpus = Cpus.choose()
    try:
        bench = Bench(pace, cpus)
    except BenchError as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    describe_machine(cpus, data_dir, console)

    run = Run(bench, pace, repeat, shapes_used, cpus, data_dir, console)
    run.server(kinds)
    if "history" in kinds and importlib.util.find_spec("benchmarks.history"):
        run.history(quick)
    for kind in kinds:
        if kind in CASSANDRA_NODES:
            try:
                run.cluster(kind)
            except BenchError as error:
                # Whoever asked for nothing in particular gets what can be had.
                run.failed |= rows is not None
                console.print(f"the rows of {kind} are left out: {error}", style="red", markup=False)
    results.show(run.rows, console)
    results.write(run.rows, RESULTS_FILE)
    console.print(f"written to {RESULTS_FILE.relative_to(ROOT)}")
    if run.failed:
        raise typer.Exit(1)


def chosen(what: str, names: str | None, known: Collection[str]) -> list[str]:
    """The names in a text with commas between them; all that are known if there is none.

    Raises:
        typer.BadParameter: a name is not known.
    """
    if names is None:
        return list(known)
    if unknown := set(names.split(",")) - set(known):
        raise typer.BadParameter(f"no such {what}: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return names.split(",")


def describe_machine(cpus: Cpus, data_dir: Path, console: Console) -> None:
    """Says what the figures depend on besides the code."""
    if cpus.server is None:
        console.print("only one CPU: the server and the load generator share it, so every figure is too low", style="yellow")
    else:
        console.print(
            f"server (of a cluster: all nodes) on CPU {cpus.server}, load generator (and services) on CPU {cpus.loadgen}"
        )
    disk = fsync_times(data_dir)
    console.print(f"appending 4 KiB durably in {data_dir} takes {disk.median_ms:.2f} ms, at worst {disk.worst_ms:.2f} ms")
    console.print(f"load average of the last minute: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    typer.run(main)
