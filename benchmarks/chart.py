"""Draws what `make bench-peers` left in `benchmarks/peers.json` as a chart: `python -m benchmarks.chart`.

A bar for each edge and one for the peer, for each row and shape; on it a whisker from the least to the largest of the repeats,
and behind it the rate, with what share of the peer's it is. It has a background of its own, light or dark as the reader has it.
"""

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from benchmarks.results import Row, figure

_HERE = Path(__file__).resolve().parent
ROWS_FILE = _HERE / "peers.json"
CHART_FILE = _HERE.parent / "docs" / "benchmarks-peers.svg"

_COLOURS = {"grpcio": "#3b82f6", "native": "#16a34a", "peer": "#d97706"}
_STYLE = """
text { font-family: sans-serif; font-size: 12px; fill: #1f2328 }
.heading { font-weight: 600; font-size: 14px }
.faint { fill: #59636e }
.grid { stroke: #d1d9e0 }
.whisker { stroke: #1f2328; stroke-width: 1.5; fill: none }
.background { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .faint { fill: #9198a1 }
  .grid { stroke: #3d444d }
  .whisker { stroke: #f0f6fc }
  .background { fill: #0d1117 }
}
"""

# In pixels.
_WIDTH, _LEFT, _RIGHT, _MARGIN = 900, 200, 150, 16
_BAR, _BAR_GAP, _GROUP_GAP, _LINE = 14, 3, 14, 18
_CAP = 4
_TICKS_MAX = 5


@dataclass(frozen=True, slots=True)
class Bar:
    """A rate, per second, with the least and the largest of its repeats."""

    series: str
    """`grpcio`, `native` or `peer`."""
    rate: float
    least: float
    largest: float
    ratio: float | None
    """Of the peer's rate; None = there is none, or it is the peer's."""

    @property
    def text(self) -> str:
        """What stands behind it."""
        return f"{self.rate:,.0f}" + ("" if self.ratio is None else f", ratio {self.ratio:.2f}")


@dataclass(frozen=True, slots=True)
class Group:
    """The bars of one row in one shape."""

    row: str
    shape: str
    bars: list[Bar] = field(default_factory=list)

    @property
    def height(self) -> int:
        """In pixels, with the gap to the next; two lines of text have place in it."""
        return max(len(self.bars) * (_BAR + _BAR_GAP), 2 * _LINE) + _GROUP_GAP


def groups(rows: Iterable[Row]) -> dict[str, list[Group]]:
    """By what the rates count, the groups in the order of the rows; floors are not drawn."""
    panels: dict[str, dict[tuple[str, str], Group]] = {}
    for row in rows:
        if row["subject"] == "floor":
            continue
        name = (str(row["row"]), str(row["shape"]))
        group = panels.setdefault(str(row["counts"]), {}).setdefault(name, Group(*name))
        # The peer's bar stands last, and once.
        place = next((n for n, bar in enumerate(group.bars) if bar.series == "peer"), len(group.bars))
        group.bars.insert(place, _bar(row, str(row["edge"]), "rate_per_s", figure(row["ratio"]) if "ratio" in row else None))
        if "peer_rate_per_s" in row and place == len(group.bars) - 1:
            group.bars.append(_bar(row, "peer", "peer_rate_per_s", None))
    return {counts: list(named.values()) for counts, named in panels.items()}


def _bar(row: Row, series: str, key: str, ratio: float | None) -> Bar:
    rate = figure(row[key])
    return Bar(series, rate, figure(row.get(f"{key}_min", rate)), figure(row.get(f"{key}_max", rate)), ratio)


def draw(rows: Sequence[Row]) -> ET.Element:
    """The chart as an SVG."""
    panels = groups(rows)
    peer = next((str(row["peer"]) for row in rows if "peer_rate_per_s" in row), None)
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img"})
    ET.SubElement(svg, "title").text = "Messages and deliveries per second" + (f" beside {peer}" if peer else "")
    ET.SubElement(svg, "style").text = _STYLE
    background = ET.SubElement(svg, "rect", {"class": "background"})
    top = _legend(svg, peer, _MARGIN)
    for counts, panel in panels.items():
        top = _panel(svg, f"{counts} per second", panel, top)
    size = {"width": str(_WIDTH), "height": str(top + _MARGIN)}
    svg.attrib |= size | {"viewBox": f"0 0 {_WIDTH} {top + _MARGIN}"}
    background.attrib |= size
    return svg


def _legend(svg: ET.Element, peer: str | None, top: int) -> int:
    """Draws what the colours mean, and returns where the next thing begins."""
    names = {"grpcio": "chatgrpc, grpcio edge", "native": "chatgrpc, native edge"} | ({"peer": peer} if peer else {})
    for place, (series, name) in enumerate(names.items()):
        x = _LEFT + place * 190
        _rect(svg, x, top, _BAR, _BAR, _COLOURS[series])
        _text(svg, x + _BAR + 6, top + 11, name)
    note = "Medians, with the least and the largest of the repeats." + (f" Ratio: to {peer}." if peer else "")
    _text(svg, _LEFT, top + 11 + _LINE + 4, note, "faint")
    return top + 2 * _LINE + 16


def _panel(svg: ET.Element, heading: str, panel: Sequence[Group], top: int) -> int:
    """Draws groups on one scale, and returns where the next thing begins."""
    largest = max(bar.largest for group in panel for bar in group.bars)
    step = _step(largest)
    scale = (_WIDTH - _LEFT - _RIGHT) / largest
    _text(svg, _MARGIN, top + 14, heading, "heading")
    top += _LINE + 14
    bottom = top + sum(group.height for group in panel)
    for tick in range(int(largest / step) + 1):
        x = _LEFT + tick * step * scale
        ET.SubElement(svg, "path", {"class": "grid", "d": f"M{x:.1f} {top - 4}V{bottom - _GROUP_GAP}"})
        _text(svg, x, top - 8, f"{tick * step:,.0f}", "faint", "middle")
    for group in panel:
        _text(svg, _MARGIN, top + 12, group.row)
        _text(svg, _MARGIN, top + 12 + _LINE, group.shape, "faint")
        for place, bar in enumerate(group.bars):
            _draw_bar(svg, bar, top + place * (_BAR + _BAR_GAP), scale)
        top += group.height
    return bottom + 8


def _draw_bar(svg: ET.Element, bar: Bar, top: int, scale: float) -> None:
    _rect(svg, _LEFT, top, bar.rate * scale, _BAR, _COLOURS[bar.series])
    middle, end = top + _BAR // 2, _LEFT + max(bar.rate, bar.largest) * scale
    if bar.least < bar.largest:
        left, right = _LEFT + bar.least * scale, _LEFT + bar.largest * scale
        caps = "".join(f"M{x:.1f} {middle - _CAP}v{2 * _CAP}" for x in (left, right))
        ET.SubElement(svg, "path", {"class": "whisker", "d": f"M{left:.1f} {middle}H{right:.1f}{caps}"})
    _text(svg, end + 8, top + 11, bar.text)


def _step(largest: float) -> float:
    """Between two lines of the grid: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(largest / _TICKS_MAX))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * _TICKS_MAX >= largest)


def _rect(svg: ET.Element, x: float, y: float, width: float, height: float, colour: str) -> None:
    box = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    ET.SubElement(svg, "rect", box | {"fill": colour})


def _text(svg: ET.Element, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    ET.SubElement(svg, "text", place | ({"class": style} if style else {})).text = text


def write(rows: Sequence[Row], path: Path) -> None:
    """Draws the rows into a file."""
    svg = draw(rows)
    ET.indent(svg)
    path.write_text(ET.tostring(svg, encoding="unicode") + "\n")


def main(words: Sequence[str] | None = None) -> None:
    """Draws the rows of the last comparison, as the words of the command line have it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS_FILE, help="what `make bench-peers` wrote")
    parser.add_argument("--to", type=Path, default=CHART_FILE, help="the chart")
    arguments = parser.parse_args(words)
    write(json.loads(arguments.rows.read_text()), arguments.to)
    print(f"drawn to {arguments.to}")


if __name__ == "__main__":
    main()
