"""`chatgrpc cluster status`: shows how a cluster is, once or again and again."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chatgrpc.cli.cluster_report import ClusterReport, NodeReport, report
from chatgrpc.config import Settings
from chatgrpc.core.ids import SHARD_COUNT
from chatgrpc.start_error import StartError

REDRAW_INTERVAL_S: Final = 1.0
_PIPE_WIDTH: Final = 240
"""Into a file or a pipe lines are written whole, whatever the terminal's width."""
_COLUMNS: Final = (
    "NODE",
    "ADDRESS",
    "STATE",
    "STREAMS",
    "SHARDS",
    "LINKS",
    "QUEUED",
    "APPENDS",
    "UPTIME",
    "LOOP LAG",
    "VERSION",
)
_WORDS: Final = 3
"""The first columns, which hold words; the others hold figures."""
_COLUMNS_MIN: Final = 8
_GAP: Final = 2
_DAMAGED_CHATS_SHOWN_MAX: Final = 20
_COLORS: Final = {"live": "green", "draining": "yellow", "unreachable": "red"}


def show(settings: Settings, shards: bool, as_json: bool, watch: bool) -> int:
    """Shows it once, or with `watch` until Ctrl-C; returns the exit status: 1 if it is not healthy.

    Raises:
        StartError: etcd does not answer, or a certificate cannot be read.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_watch(settings, console, shards, as_json))
        return 0
    found = asyncio.run(report(settings))
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        console.print(shown(found, shards, console.width))
    return 0 if found.healthy else 1


async def _watch(settings: Settings, console: Console, shards: bool, as_json: bool) -> None:
    if as_json:
        while True:
            print(json.dumps((await report(settings)).to_json()), flush=True)
            await asyncio.sleep(REDRAW_INTERVAL_S)
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            try:
                view = shown(await report(settings), shards, console.width)
            except StartError as error:
                # An outage is what one may be watching.
                view = Text(str(error), style="red")
            live.update(view, refresh=True)
            await asyncio.sleep(REDRAW_INTERVAL_S)


def shown(found: ClusterReport, shards: bool, width: int) -> RenderableType:
    """The report for people, at most `width` cells wide if it can be; with `shards`, every shard too."""
    parts: list[RenderableType] = [_nodes(found, width), *_summary(found)]
    if shards:
        parts.append(_shards(found))
    return Group(*parts)


def _nodes(found: ClusterReport, width: int) -> Table:
    """Without the last columns, where they would take the others' place."""
    rows = [[Text(name, style="bold") for name in _COLUMNS], *(_cells(node, len(found.nodes) - 1) for node in found.nodes)]
    widths = [max(row[column].cell_len for row in rows) for column in range(len(_COLUMNS))]
    count = len(_COLUMNS)
    while count > _COLUMNS_MIN and sum(widths[:count]) + _GAP * (count - 1) > width:
        count -= 1
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=False)
    for column in range(count):
        table.add_column(justify="left" if column < _WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row[:count])
    return table


def _cells(node: NodeReport, others: int) -> list[Text]:
    info, said = node.info, node.said
    state = Text(node.state, style=_COLORS[node.state])
    words = [Text(_short(info.node_id)), Text(info.public_address), state]
    if said is None:
        return [*words, Text("-"), Text(str(node.shards)), *(Text("-") for _ in _COLUMNS[_WORDS + 2 :])]
    figures = (
        str(said.streams),
        str(node.shards),
        f"{sum(link.connected for link in said.links)}/{others}",
        str(sum(link.queued_messages for link in said.links)),
        str(said.lag.events_waiting),
        duration(said.uptime_ms // 1000),
        f"{said.lag.loop_lag_ms:.1f} ms",
        said.version,
    )
    return [*words, *(Text(figure) for figure in figures)]


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
    for node in found.nodes:
        who = _short(node.info.node_id)
        if node.said is None:
            yield Text(f"{who} does not answer at {node.info.relay_address}: {node.why_not}", style="red")
            continue
        if len(node.said.shards) != node.shards:
            # So it is for a moment after a shard was taken or given away.
            yield Text(f"{who} owns {node.shards} shards and has {len(node.said.shards)} in hand", style="yellow")
    yield from _damaged_chats(found)


def _damaged_chats(found: ClusterReport) -> Iterator[Text]:
    """What an operator must look at. A chat may be named by its owner and by nodes that read it for its members."""
    said = [node.said for node in found.nodes if node.said is not None]
    chats = {chat.chat_id: chat.why for each in said for chat in each.damaged_chats}
    count = max([len(chats), *(each.damaged_chat_count for each in said)])
    if not count:
        return
    yield Text(f"{count} chat{' is' if count == 1 else 's are'} damaged and refused; see docs/operations.md:", style="red")
    for chat_id, why in list(chats.items())[:_DAMAGED_CHATS_SHOWN_MAX]:
        yield Text(f"  {chat_id}: {why}", style="red")
    if not chats:
        yield Text(
            "  their logs name them, and so do nodes to who has cluster.relay_secret or its file in data_dir", style="red"
        )
    elif count > _DAMAGED_CHATS_SHOWN_MAX:
        yield Text(f"  and {count - _DAMAGED_CHATS_SHOWN_MAX} more", style="red")


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
            table.add_row(str(shard), str(owner.epoch), "-" if count is None else str(count), _short(owner.node_id))
    return table


def _short(node_id: str) -> str:
    """Enough of a node's random id to tell it from all others."""
    return node_id[:8]


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
