"""`make bench`: measures a server and a cluster on this machine, on each edge, beside a raw echo of the same minutes.

docs/benchmarks.md explains the rows and how to read them.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import results, sqlite_append
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
    pinned,
)
from benchmarks.results import Row
from chatgrpc.edge import native_transport

EDGES = ("grpcio", "native")
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

EdgesOption = Annotated[
    str | None,
    typer.Option(
        help=f"What serves the devices' streams, with commas between them: {', '.join(EDGES)}.  [default: all installed]",
        show_default=False,
    ),
]
RepeatOption = Annotated[int, typer.Option(min=1, help="Times that each row is measured; the figures are medians.")]
REPEAT = 5

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
    """What is measured: a server, or a cluster of one kind, on one edge."""

    name: str
    edge: str
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
        """Measures a new server under load, and the echo server of its edge before and after it.

        Raises:
            BenchError: something that the load generator checks is wrong.
        """
        before = self._echo(subject.edge, load.echo_streams, load.echo_window)
        with subject.start() as (server, data_dir):
            seen = self._load(server, data_dir, load)
            services = server.service_pids.keys()
        after = self._echo(subject.edge, load.echo_streams, load.echo_window)
        echo_per_s = (before["rate_per_s"] + after["rate_per_s"]) / 2
        latencies = ("p50_ms", "p99_ms", "answer_p50_ms", "answer_p99_ms")
        return {
            "subject": subject.name,
            "edge": subject.edge,
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
        with echo_server(self._cpus.server, subject.edge) as server:
            echo = self.loadgen.run("echo-idle", server, *streams)
        with subject.start() as (server, data_dir):
            seen = self.loadgen.run("idle", server, *streams, accounts=IDLE_STREAMS, data_dir=data_dir)
        return {
            "subject": subject.name,
            "edge": subject.edge,
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

    def echo(self, edge: str, streams: int, window: int) -> Row:
        """Measures the echo server of this edge by itself: no server on it can make more reads and writes."""
        seen = self._echo(edge, streams, window)
        return {
            "subject": "floor",
            "edge": edge,
            "row": f"echo {streams} window {window}",
            "counts": "echoes",
            "rate_per_s": seen["rate_per_s"],
            "p50_ms": seen["p50_ms"],
            "p99_ms": seen["p99_ms"],
            "cpu_s_per_1000": seen["server_cpu_s"] / seen["count"] * 1000,
            "server_cpu": seen["server_cpu_s"] / seen["seconds"],
            "generator_cpu_share": seen["loadgen_cpu_s"] / seen["seconds"],
        }

    def appends(self, data_dir: Path, events: int) -> Row:
        """Measures the store by itself: commits of so many events each, one after the other, as the server makes them."""
        with pinned(self._cpus.server):
            row = sqlite_append.floor(data_dir, events)
        return {"subject": "floor", "row": f"append {events}", "counts": "events"} | row

    def _echo(self, edge: str, streams: int, window: int) -> dict[str, float]:
        with echo_server(self._cpus.server, edge) as server:
            shape = ("--streams", str(streams), "--window", str(window))
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
    return replace(pairs(8), row=open_loop_row(share), offered_per_s=share * highest_per_s)


def open_loop_row(share: float) -> str:
    """What the row at this share of the highest rate is called."""
    return f"pairs {PAIRS} at {share:.0%}"


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
KINDS = ("floors", *LOADED, "history", *CASSANDRA_NODES)


def loads(kind: str, shapes: Iterable[Shape], pace: Pace) -> list[Load]:
    """The loads of the rows of this kind whose rate is not that of another row."""
    if kind == "replay":
        return [replay(pace.replay_devices)]
    load, windows = {"pairs": (pairs, (1, 8)), "fanout": (fanout, (2, 16))}.get(kind, (pairs, ()))
    return [load(window, shape) for shape in shapes for window in windows]


Measures = Mapping[str, Callable[[], Row]]
"""What measures a row once, by edge; in a comparison also the peer."""


def alternate(measures: Measures, repeat: int) -> dict[str, Row | BenchError]:
    """Measures each as often as is asked, all by turns, so that what the machine does meanwhile hits all alike.

    Returns: of each the row of medians, or what was wrong the first time that something was.
    """
    measured: dict[str, list[Row]] = {name: [] for name in measures}
    failures: dict[str, BenchError] = {}
    for _ in range(repeat):
        for name, measure in measures.items():
            if name in failures:
                continue
            try:
                measured[name].append(measure())
            except BenchError as error:
                failures[name] = error
    return {name: failures.get(name) or results.median_row(rows) for name, rows in measured.items()}


def floors(bench: Bench, data_dir: Path, edges: Sequence[str]) -> dict[str, Measures]:
    """What an edge and the store do when there is no chat, by row. The store has no edge."""
    rows: dict[str, Measures] = {}
    for streams, window in sorted({(load.echo_streams, load.echo_window) for load in (pairs(1), pairs(8), fanout(2))}):
        rows[f"echo {streams} window {window}"] = {edge: partial(bench.echo, edge, streams, window) for edge in edges}
    for events in sqlite_append.GROUPS:
        rows[f"append {events}"] = {"store": partial(bench.appends, data_dir, events)}
    return rows


def history_rows(quick: bool) -> list[Row]:
    """Pages of a long history; measured beside no echo."""
    history = importlib.import_module("benchmarks.history")
    return [{"subject": "server"} | row for row in history.measure(HISTORY_EVENTS_QUICK if quick else HISTORY_EVENTS)]


class Run:
    """Measures one kind of rows after the other, and keeps what was seen and whether anything was wrong."""

    def __init__(
        self,
        bench: Bench,
        pace: Pace,
        repeat: int,
        shapes: Sequence[Shape],
        edges: Sequence[str],
        cpus: Cpus,
        data_dir: Path,
        console: Console,
    ) -> None:
        self.rows: list[Row] = []
        self.failed = False
        self._bench = bench
        self._pace = pace
        self._repeat = repeat
        self._shapes = shapes
        self._edges = edges
        self._cpus = cpus
        self._data_dir = data_dir
        self._console = console

    def floors(self) -> None:
        """Measures what no server can exceed."""
        for name, measures in floors(self._bench, self._data_dir, self._edges).items():
            self._row("floor", name, measures)

    def server(self, kinds: Iterable[str]) -> None:
        """Measures a server by itself."""
        start = partial(chat_server, self._data_dir, self._cpus.server)
        self._measure([Subject("server", edge, partial(start, edge)) for edge in self._edges], kinds)

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
            start = partial(chat_cluster, services, self._data_dir)
            subjects = [Subject(kind, edge, partial(start, edge)) for edge in self._edges]
            with self._console.status(f"warming {kind} up"):
                # Cassandra's code is compiled as it is used.
                self._bench.warm_up(subjects[0], pairs(8, BATCHED))
            self._measure(subjects, LOADED)

    def _measure(self, subjects: Sequence[Subject], kinds: Iterable[str]) -> None:
        """Measures one thing on each of its edges."""
        name = subjects[0].name
        for kind in kinds:
            for load in loads(kind, self._shapes, self._pace):
                self._row(name, load.row, {each.edge: partial(self._bench.load, each, load) for each in subjects})
            if kind == "open":
                highest_per_s = self._highest_per_s(subjects)
                for share in OPEN_LOOP_SHARES:
                    measures = {
                        each.edge: partial(self._bench.load, each, open_loop(share, highest_per_s[each.edge]))
                        for each in subjects
                        if each.edge in highest_per_s
                    }
                    self._row(name, open_loop_row(share), measures)
            if kind == "idle":
                self._row(name, f"idle {IDLE_STREAMS}", {each.edge: partial(self._bench.idle, each) for each in subjects})

    def _highest_per_s(self, subjects: Sequence[Subject]) -> dict[str, float]:
        """By edge the rate of 1:1 messages at the larger window, measured now unless it was before; without what failed."""
        load = pairs(8)
        name = (subjects[0].name, load.row, load.shape.name)

        def measured() -> list[Row]:
            return [row for row in self.rows if (row["subject"], row["row"], row.get("shape")) == name]

        if not measured():
            self._row(name[0], load.row, {each.edge: partial(self._bench.load, each, load) for each in subjects})
        return {str(row["edge"]): results.figure(row["rate_per_s"]) for row in measured()}

    def _row(self, subject: str, name: str, measures: Measures) -> None:
        """Measures a row on each edge as often as is asked, and keeps what was right."""
        with self._console.status(f"measuring {subject}: {name}"):
            measured = alternate(measures, self._repeat)
        for edge, row in measured.items():
            if isinstance(row, BenchError):
                self.failed = True
                self._console.print(f"{subject}: {name}, {edge}: {row}", style="red", markup=False)
            else:
                self.rows.append(row)


def main(
    rows: Annotated[
        str | None,
        typer.Option(help=f"Kinds of rows, with commas between them: {', '.join(KINDS)}.  [default: all]", show_default=False),
    ] = None,
    quick: QuickOption = False,
    shapes: ShapesOption = None,
    edges: EdgesOption = None,
    repeat: RepeatOption = REPEAT,
    data_dir: Annotated[
        Path, typer.Option(help="Folder for the servers' data, on the disk to measure.  [default: data]", show_default=False)
    ] = ROOT / "data",
) -> None:
    """Measure a chatgrpc server and a cluster on this machine, on each edge, beside a raw echo of the same minutes."""
    console = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
    kinds = chosen("rows", rows, KINDS)
    shapes_used = [SHAPES[name] for name in chosen("shapes", shapes, SHAPES)]
    edges_used = chosen_edges(edges, console)
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

    run = Run(bench, pace, repeat, shapes_used, edges_used, cpus, data_dir, console)
    if "floors" in kinds:
        run.floors()
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


def chosen_edges(names: str | None, console: Console) -> list[str]:
    """The edges in a text with commas between them; if there is none all that are installed, and says so if that is not all.

    Raises:
        typer.BadParameter: an edge is not known, or not installed.
    """
    edges = chosen("edges", names, EDGES)
    if "native" in edges and not native_transport.is_installed():
        if names is not None:
            raise typer.BadParameter("the native edge is not installed; `make setup` builds it where there is Rust")
        console.print("the native edge is not installed, so that there are rows of grpcio only", style="yellow")
        edges.remove("native")
    return edges


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
