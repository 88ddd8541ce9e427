"""What both benchmarks can be told on the command line, and what they say of the machine."""

import os
import platform
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.loads import SHAPES
from benchmarks.processes import Cpus, code_that_runs, fsync_times
from chatgrpc.edge import native_transport

EDGES = ("grpcio", "native")
"""What serves the devices' streams."""

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
    how = {"compiled": "runs compiled", "sources": "runs its sources; `make compiled` makes what is faster, given a C compiler"}
    console.print(f"chatgrpc {how[code_that_runs()]}, on Python {platform.python_version()} of {sys.base_prefix}")
    disk = fsync_times(data_dir)
    console.print(f"appending 4 KiB durably in {data_dir} takes {disk.median_ms:.2f} ms, at worst {disk.worst_ms:.2f} ms")
    console.print(f"load average of the last minute: {os.getloadavg()[0]:.1f}")
