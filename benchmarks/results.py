"""Rows of results: medians over repeats, the table for people, the JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

Row = dict[str, object]
"""`row` names it; the other keys are figures, as far as they apply. docs/benchmarks.md explains each."""

LOADGEN_CPU_MAX = 0.85
"""Beyond this share of a core the load generator may be what was measured."""

_COLUMNS: Mapping[str, tuple[str, str]] = {
    "rate_per_s": ("per s", ",.0f"),
    "p50_ms": ("p50 ms", ".1f"),
    "p99_ms": ("p99 ms", ".1f"),
    "answer_p50_ms": ("answer p50", ".1f"),
    "answer_p99_ms": ("answer p99", ".1f"),
    "cpu_s_per_1000": ("CPU s / 1000", ".4f"),
    "kb_per_stream": ("KiB / stream", ".1f"),
    "echo_per_s": ("echo per s", ",.0f"),
    "echo_kb_per_stream": ("echo KiB", ".1f"),
    "ratio": ("ratio", ".2f"),
    "loadgen_cpu": ("loadgen CPU", ".0%"),
}


def median_row(repeats: Sequence[Row]) -> Row:
    """One row from repeats of it: of each figure the median, of everything else the first."""
    first = repeats[0]
    return {key: median(_figure(row[key]) for row in repeats) if _is_figure(value) else value for key, value in first.items()}


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints the table, and a warning for each row in which the load generator was near its limit."""
    table = Table("row", "counts", box=None, header_style="bold", padding=(0, 1))
    columns = [key for key in _COLUMNS if any(key in row for row in rows)]
    for key in columns:
        table.add_column(_COLUMNS[key][0], justify="right")
    table.add_column("echo beside it")
    for row in rows:
        cells = [format(_figure(row[key]), _COLUMNS[key][1]) if key in row else "" for key in columns]
        table.add_row(str(row["row"]), str(row.get("counts", "")), *cells, str(row.get("echo", "")))
    console.print(table)
    for row in rows:
        share = _figure(row.get("loadgen_cpu", 0))
        if share > LOADGEN_CPU_MAX:
            warning = f"{row['row']}: the load generator used {share:.0%} of its core, so it may be what limits this figure"
            console.print(warning, style="yellow")


def write(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows as JSON."""
    path.write_text(json.dumps([{key: _rounded(value) for key, value in row.items()} for row in rows], indent=2) + "\n")


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no figure")
    return value


def _rounded(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value
