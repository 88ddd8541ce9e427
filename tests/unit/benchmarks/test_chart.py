"""`python -m benchmarks.chart`: the chart of `make bench-peers`."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

from benchmarks import chart
from benchmarks.results import Row

_SVG = "{http://www.w3.org/2000/svg}"


def _row(edge: str, rate: float, *, row: str = "pairs 50 window 1", shape: str = "independent", **more: object) -> Row:
    return {"subject": "server", "edge": edge, "row": row, "shape": shape, "counts": "messages", "rate_per_s": rate} | more


def _beside_a_peer(edge: str, rate: float) -> Row:
    peer: Row = {"peer": "A & B", "peer_rate_per_s": 1000.0, "peer_rate_per_s_min": 900.0, "peer_rate_per_s_max": 1100.0}
    return _row(edge, rate, ratio=rate / 1000) | peer


def _drawn(rows: list[Row], tmp_path: Path) -> ET.Element:
    """What the command makes of the rows."""
    source, target = tmp_path / "peers.json", tmp_path / "chart.svg"
    source.write_text(json.dumps(rows))
    chart.main(["--rows", str(source), "--to", str(target)])
    return ET.parse(target).getroot()


def _bars(svg: ET.Element, series: str) -> list[ET.Element]:
    """The bars of a series, without the colour in the legend, which comes first."""
    return [rect for rect in svg.iter(f"{_SVG}rect") if rect.get("fill") == chart._COLOURS[series]][1:]


def _texts(svg: ET.Element) -> list[str | None]:
    return [text.text for text in svg.iter(f"{_SVG}text")]


def test_each_edge_and_the_peer_have_a_bar_as_long_as_their_rate(tmp_path: Path) -> None:
    svg = _drawn([_beside_a_peer("grpcio", 500.0), _beside_a_peer("native", 2000.0)], tmp_path)
    (grpcio,), (native,), (peer,) = (_bars(svg, series) for series in ("grpcio", "native", "peer"))
    lengths = [float(bar.get("width", "")) for bar in (grpcio, peer, native)]
    assert [length / lengths[0] for length in lengths] == [1, 2, 4]
    tops = [float(bar.get("y", "")) for bar in (grpcio, native, peer)]
    assert tops == sorted(tops)
    assert {"500, ratio 0.50", "2,000, ratio 2.00", "1,000", "pairs 50 window 1", "independent", "A & B"} <= set(_texts(svg))


def test_whiskers_go_from_the_least_to_the_largest_of_the_repeats(tmp_path: Path) -> None:
    svg = _drawn([_row("native", 800.0, rate_per_s_min=500.0, rate_per_s_max=1000.0), _row("grpcio", 100.0)], tmp_path)
    (whisker,) = (path.get("d", "") for path in svg.iter(f"{_SVG}path") if path.get("class") == "whisker")
    (bar,) = _bars(svg, "native")
    left, width = float(bar.get("x", "")), float(bar.get("width", ""))
    line = re.match(r"M([\d.]+) [\d.]+H([\d.]+)M", whisker)
    assert line is not None
    begin, end = (float(part) for part in line.groups())
    assert abs(begin - (left + width * 500 / 800)) < 0.2
    assert abs(end - (left + width * 1000 / 800)) < 0.2


def test_messages_and_deliveries_have_a_scale_each(tmp_path: Path) -> None:
    rows = [_row("native", 1000.0), _row("native", 200_000.0, row="fanout 4x100 window 2") | {"counts": "deliveries"}]
    svg = _drawn(rows, tmp_path)
    assert len({bar.get("width") for bar in _bars(svg, "native")}) == 1
    assert {"messages per second", "deliveries per second"} <= set(_texts(svg))


def test_rows_without_a_peer_and_floors_are_no_peers_bars(tmp_path: Path) -> None:
    floor: Row = {"subject": "floor", "row": "append 1", "counts": "events", "rate_per_s": 1.0}
    svg = _drawn([floor, _row("grpcio", 1000.0, peer="not to be had")], tmp_path)
    assert len(_bars(svg, "grpcio")) == 1
    assert not _bars(svg, "peer")
    assert "append 1" not in _texts(svg)


def test_it_is_readable_in_light_and_in_dark(tmp_path: Path) -> None:
    svg = _drawn([_row("grpcio", 1000.0)], tmp_path)
    style = svg.findtext(f"{_SVG}style") or ""
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    for part in ("text {", ".faint {", ".grid {", ".whisker {", ".background {"):
        assert part in light
        assert part in dark
    background = next(svg.iter(f"{_SVG}rect"))
    assert (background.get("class"), background.get("width")) == ("background", svg.get("width"))
