"""`chatgrpc cluster status`: shows how a cluster is, once or again and again."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chatgrpc.cli.cluster_report import ClusterReport, NodeReport, report
from chatgrpc.config import ClusterSettings, LoadedSettings, StartError
from chatgrpc.core.ids import SHARD_COUNT

REDRAW_INTERVAL_S: Final = 1.0
_PIPE_WIDTH: Final = 240
"""Into a file or a pipe lines are written whole, whatever the terminal's width."""
_ID_LENGTH: Final = 12
"""So much of a node's id tells it from all others."""
_COLORS: Final = {"live": "green", "draining": "yellow", "unreachable": "red"}


def status(
    loaded: LoadedSettings,
    shards: Annotated[bool, typer.Option("--shards", help="List every shard with its owner and epoch.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object, for scripts.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second, until Ctrl-C.")] = False,
) -> None:
    """Show the nodes of a cluster, who owns its shards, their links and what waits.

    Exits with 0 if every shard has an owner and every node answers, with 1 if not, and with 2 if etcd does not answer.
    """
    cluster = loaded.settings.cluster
    if not cluster.enabled:
        raise StartError("cluster.etcd is missing: which etcd knows the cluster? Name it by --cluster-etcd HOST:PORT")
    console = Console(highlight=False, soft_wrap=as_json)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_watch(cluster, console, shards, as_json))
        return
    found = asyncio.run(report(cluster))
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        console.print(shown(found, shards))
    sys.exit(0 if found.healthy else 1)


async def _watch(cluster: ClusterSettings, console: Console, shards: bool, as_json: bool) -> None:
    if as_json:
        while True:
            typer.echo(json.dumps((await report(cluster)).to_json()))
            await asyncio.sleep(REDRAW_INTERVAL_S)
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            try:
                view = shown(await report(cluster), shards)
            except StartError as error:
                # An outage is what one may be watching.
                view = Text(str(error), style="red")
            live.update(view, refresh=True)
            await asyncio.sleep(REDRAW_INTERVAL_S)


def shown(found: ClusterReport, shards: bool) -> RenderableType:
    """The report for people; with `shards`, every shard too."""
    parts: list[RenderableType] = [_nodes(found), *_summary(found)]
    if shards:
        parts.append(_shards(found))
    return Group(*parts)


def _nodes(found: ClusterReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("NODE", "ADDRESS", "STATE"):
        table.add_column(name, no_wrap=True)
    for name in ("STREAMS", "SHARDS", "LINKS", "QUEUED", "APPENDS", "LOOP", "UPTIME", "VERSION"):
        table.add_column(name, justify="right", no_wrap=True)
    for node in found.nodes:
        info = node.info
        state = Text(node.state, style=_COLORS[node.state])
        table.add_row(info.node_id[:_ID_LENGTH], info.public_address, state, *_figures(node, len(found.nodes) - 1))
    return table


def _figures(node: NodeReport, others: int) -> tuple[str, ...]:
    said = node.said
    if said is None:
        return ("-", str(node.shards), *("-" for _ in range(6)))
    up = [link for link in said.links if link.connected]
    # A node that took a shard a moment ago, or gives one away, differs from etcd for a moment.
    shards = str(node.shards) if node.shards == len(said.shards) else f"{node.shards} ({len(said.shards)} in hand)"
    return (
        str(said.streams),
        shards,
        f"{len(up)}/{others}",
        str(sum(link.queued_messages for link in said.links)),
        str(said.lag.events_waiting),
        f"{said.lag.loop_lag_ms:.1f} ms",
        duration(said.uptime_ms // 1000),
        said.version,
    )


def _summary(found: ClusterReport) -> Iterator[Text]:
    nodes = len(found.nodes)
    streams = sum(node.said.streams for node in found.nodes if node.said is not None)
    owned = SHARD_COUNT - len(found.unowned)
    line = f"{nodes} node{'' if nodes == 1 else 's'}, {streams} streams, {owned} of {SHARD_COUNT} shards owned"
    if found.epochs is not None:
        line += ", epochs {} to {}".format(*found.epochs)
    yield Text()
    yield Text(line, style="green" if found.healthy else "")
    if found.unowned:
        shards = "1 shard has" if len(found.unowned) == 1 else f"{len(found.unowned)} shards have"
        yield Text(f"{shards} no owner: {ranges(found.unowned)}", style="red")
    for node in found.unreachable:
        yield Text(
            f"{node.info.node_id[:_ID_LENGTH]} does not answer at {node.info.relay_address}: {node.why_not}", style="red"
        )


def _shards(found: ClusterReport) -> Table:
    chats = {
        (node.info.node_id, shard.shard): shard.active_chats
        for node in found.nodes
        if node.said is not None
        for shard in node.said.shards
    }
    table = Table(box=None, pad_edge=False, header_style="bold", title="", title_justify="left")
    for name in ("SHARD", "EPOCH", "CHATS"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("OWNER", no_wrap=True)
    for shard in range(SHARD_COUNT):
        owner = found.owners.get(shard)
        if owner is None:
            table.add_row(str(shard), "-", "-", Text("nobody", style="red"))
        else:
            count = chats.get((owner.node_id, shard))
            table.add_row(str(shard), str(owner.epoch), "-" if count is None else str(count), owner.node_id[:_ID_LENGTH])
    return table


def ranges(numbers: list[int]) -> str:
    """Rising numbers with their runs drawn together: `1, 4-7, 9`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def duration(seconds: int) -> str:
    """Seconds as the two largest units of them: `3d 4h`, `12m 7s`, `9s`."""
    days, hours, minutes, rest = seconds // 86_400, seconds // 3_600 % 24, seconds // 60 % 60, seconds % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2])
