"""Rows of results: medians over repeats, the table for people, the JSON for programs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

Row = dict[str, object]
"""`subject` and `row` name it; the other keys are figures, as far as they apply. docs/benchmarks.md explains each."""

GENERATOR_CPU_SHARE_MAX = 0.8
"""Beyond this share of their core the load generator, and the services of a cluster, may be what was measured."""

ECHO_CHANGE_MAX = 0.25
"""If the echo after a row is so much faster or slower than the one before it, something else used the machine meanwhile."""

_Columns = Mapping[str, tuple[str, str]]
"""By key of a row: the heading, and how the figure, and the least and the largest of its repeats, are formatted."""

_FIGURES: _Columns = {
    "offered_per_s": ("offered per s", ",.0f"),
    "rate_per_s": ("per s", ",.0f"),
    "messages_per_s": ("messages per s", ",.0f"),
    "kb_per_stream": ("KiB / stream", ".1f"),
    "echo_per_s": ("echo per s", ",.0f"),
    "echo_kb_per_stream": ("echo KiB", ".1f"),
    "ratio": ("ratio", ".2f"),
}
_COSTS: _Columns = {
    "p50_ms": ("p50 ms", ".1f"),
    "p99_ms": ("p99 ms", ".1f"),
    "answer_p50_ms": ("answer p50", ".1f"),
    "answer_p99_ms": ("answer p99", ".1f"),
    "cpu_s_per_1000": ("CPU s / 1000", ".4f"),
    "echo_cpu_s_per_1000": ("echo's", ".4f"),
    "server_cpu": ("server CPU", ".0%"),
    "services_cpu": ("services CPU", ".0%"),
    "generator_cpu_share": ("generator CPU", ".0%"),
}
_SERVICES: _Columns = {
    "cassandra_cpu_s_per_1000": ("Cassandra's CPU s / 1000", ".4f"),
    "redis_cpu_s_per_1000": ("Redis'", ".4f"),
    "etcd_cpu_s_per_1000": ("etcd's", ".4f"),
}
_PEERS: _Columns = {
    "rate_per_s": ("per s", ",.0f"),
    "peer_rate_per_s": ("peer's", ",.0f"),
    "ratio": ("ratio", ".2f"),
    "echo_per_s": ("echo per s", ",.0f"),
    "echo_ratio": ("of echo", ".2f"),
}
_PEERS_COSTS: _Columns = {
    "p50_ms": ("p50 ms", ".1f"),
    "peer_p50_ms": ("peer's", ".1f"),
    "p99_ms": ("p99 ms", ".1f"),
    "peer_p99_ms": ("peer's", ".1f"),
    "cpu_s_per_1000": ("CPU s / 1000", ".4f"),
    "peer_cpu_s_per_1000": ("peer's", ".4f"),
    "generator_cpu_share": ("generator CPU", ".0%"),
    "peer_generator_cpu_share": ("peer's", ".0%"),
}

_WITHOUT_RANGE = (
    "offered_per_s",
    "echo_change",
    "server_cpu",
    "services_cpu",
    "generator_cpu_share",
    "peer_server_cpu",
    "peer_generator_cpu_share",
)
"""Figures of which the least and the largest of the repeats say nothing."""


def median_row(repeats: Sequence[Row]) -> Row:
    """One row from repeats of it: of each figure the median and, as `_min` and `_max`, the extremes; of all else the first."""
    row: Row = {}
    for key, value in repeats[0].items():
        figures = [figure(each[key]) for each in repeats] if _is_figure(value) else []
        row[key] = median(figures) if figures else value
        if len(figures) > 1 and key not in _WITHOUT_RANGE:
            row |= {f"{key}_min": min(figures), f"{key}_max": max(figures)}
    return row


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints the tables, and warnings for rows that may not say what they seem to say."""
    console.print(_table(rows, "counts", _FIGURES, "echo"))
    for columns in (_COSTS, _SERVICES):
        if having := [row for row in rows if columns.keys() & row.keys()]:
            console.print(_table(having, "", columns, ""))
    _show_warnings(rows, console)


def show_peers(rows: Sequence[Row], console: Console) -> None:
    """Prints the table of a server beside a peer, and the warnings."""
    console.print(_table(rows, "", _PEERS, "peer"))
    console.print(_table(rows, "", _PEERS_COSTS, ""))
    _show_warnings(rows, console)


def _show_warnings(rows: Sequence[Row], console: Console) -> None:
    for row in rows:
        name = ", ".join(str(row[key]) for key in _NAMES if key in row)
        for warning in _warnings(row):
            console.print(f"{name}: {warning}", style="yellow")


_NAMES = ("subject", "row", "shape", "edge")
"""What tells rows apart."""


def _table(rows: Sequence[Row], before: str, columns: _Columns, behind: str) -> Table:
    """A table of the columns that any of the rows has, with one column of text before and one behind them, if named."""
    table = Table(box=None, header_style="bold", padding=(0, 1))
    used = [key for key in columns if any(key in row for row in rows)]
    texts = [key for key in (*_NAMES, before) if key]
    for heading in texts:
        table.add_column(heading)
    for key in used:
        table.add_column(columns[key][0], justify="right")
    if behind:
        table.add_column(behind)
    for row in rows:
        cells = [str(row.get(key, "")) for key in texts]
        cells += [_cell(row, key, columns[key][1]) for key in used]
        table.add_row(*cells, *([str(row.get(behind, ""))] if behind else []))
    return table


def _cell(row: Row, key: str, form: str) -> str:
    """A figure and, if it was measured several times, the least and the largest on a line below."""
    shown = [format(figure(row[name]), form) for name in (key, f"{key}_min", f"{key}_max") if name in row]
    return f"{shown[0]}\n{shown[1]}-{shown[2]}" if len(shown) == 3 else "".join(shown)


def _warnings(row: Row) -> Iterator[str]:
    services = figure(row.get("services_cpu", 0))
    share = figure(row.get("generator_cpu_share", 0)) + services
    if share > GENERATOR_CPU_SHARE_MAX:
        who = "the load generator and the services" if services else "the load generator"
        yield f"{who} used {share:.0%} of their core, and may be what limits this figure: compare by CPU seconds"
    peer_share = figure(row.get("peer_generator_cpu_share", 0))
    if peer_share > GENERATOR_CPU_SHARE_MAX:
        yield f"the load generator used {peer_share:.0%} of its core beside the peer, and may be what limits the peer's figure"
    change = figure(row.get("echo_change", 0))
    if abs(change) > ECHO_CHANGE_MAX:
        yield f"the echo changed by {change:+.0%} meanwhile: compare by CPU seconds, or measure again on a quiet machine"


def write(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows as JSON."""
    path.write_text(json.dumps([{key: _rounded(value) for key, value in row.items()} for row in rows], indent=2) + "\n")


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def figure(value: object) -> float:
    """A figure of a row as what it is.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no figure")
    return value


def _rounded(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value
