"""What measures a row once, and what measures many by turns: a server or a cluster under load, an echo, the store alone."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import results, sqlite_append
from benchmarks.loads import Load, Pace, fanout, pairs
from benchmarks.processes import BenchError, Cpus, Loaded, Loadgen, code_that_runs, echo_server, pinned
from benchmarks.results import Row

IDLE_STREAMS = 2_000


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
            "code": code_that_runs(),
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
            "code": code_that_runs(),
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
