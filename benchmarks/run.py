"""`make bench`: measures a server and a cluster on this machine, on each edge, beside a raw echo of the same minutes.

docs/benchmarks.md explains the rows and how to read them.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import results
from benchmarks.bench import IDLE_STREAMS, Bench, Measures, Subject, alternate, floors
from benchmarks.cluster import Services, chat_cluster
from benchmarks.loads import (
    BATCHED,
    LOADED,
    OPEN_LOOP_SHARES,
    QUICK,
    SHAPES,
    THOROUGH,
    Pace,
    Shape,
    loads,
    open_loop,
    open_loop_row,
    pairs,
)
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
from benchmarks.processes import ROOT, BenchError, Cpus, chat_server, forget_settings
from benchmarks.results import Row

RESULTS_FILE = ROOT / "benchmarks" / "results.json"
HISTORY_EVENTS, HISTORY_EVENTS_QUICK = 1_000_000, 50_000
CASSANDRA_NODES = {"cluster": 1, "cluster-rf3": 3}
"""Kinds of clusters, each with as many copies of its data as it has nodes of Cassandra."""
KINDS = ("floors", *LOADED, "history", *CASSANDRA_NODES)


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


if __name__ == "__main__":
    typer.run(main)
