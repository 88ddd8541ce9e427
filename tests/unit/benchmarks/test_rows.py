"""How rows of `make bench` and `make bench-peers` come to be, without measuring anything."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from rich.console import Console

from benchmarks import bench, options, peers, results, sqlite_append
from benchmarks.processes import BenchError
from benchmarks.results import Row
from chatgrpc.edge import native_transport


def _console() -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=300), output


def test_edges_are_measured_by_turns() -> None:
    turns: list[str] = []

    def measure(name: str) -> Callable[[], Row]:
        def once() -> Row:
            turns.append(name)
            return {"row": name, "rate_per_s": len(turns)}

        return once

    rows = bench.alternate({name: measure(name) for name in ("grpcio", "native", "peer")}, 3)
    assert turns == ["grpcio", "native", "peer"] * 3
    assert rows["native"] == {"row": "native", "rate_per_s": 5, "rate_per_s_min": 2, "rate_per_s_max": 8}


def test_what_fails_on_one_edge_is_measured_on_the_other() -> None:
    calls = 0

    def fails() -> Row:
        nonlocal calls
        calls += 1
        raise BenchError("a hole")

    rows = bench.alternate({"grpcio": fails, "native": lambda: {"rate_per_s": 1}}, 3)
    assert calls == 1
    assert str(rows["grpcio"]) == "a hole"
    assert rows["native"] == {"rate_per_s": 1, "rate_per_s_min": 1, "rate_per_s_max": 1}


@pytest.mark.parametrize(("installed", "edges"), [(True, ["grpcio", "native"]), (False, ["grpcio"])])
def test_all_edges_are_measured_that_are_installed(monkeypatch: pytest.MonkeyPatch, installed: bool, edges: list[str]) -> None:
    monkeypatch.setattr(native_transport, "is_installed", lambda: installed)
    console, output = _console()
    assert options.chosen_edges(None, console) == edges
    assert len(output.getvalue().splitlines()) == (0 if installed else 1)


def test_an_edge_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_transport, "is_installed", lambda: False)
    console, _ = _console()
    assert options.chosen_edges("grpcio", console) == ["grpcio"]
    for unknown in ("native", "tonic"):
        with pytest.raises(typer.BadParameter):
            options.chosen_edges(unknown, console)


def test_the_ratio_is_to_the_peer_and_the_echos_has_a_name_of_its_own() -> None:
    ours: Row = {"rate_per_s": 50.0, "ratio": 0.1, "ratio_min": 0.09, "ratio_max": 0.2}
    row = peers.beside(ours, {"peer_rate_per_s": 25.0, "peer_rate_per_s_min": 20.0})
    assert row["ratio"] == 2
    assert (row["echo_ratio"], row["echo_ratio_min"], row["echo_ratio_max"]) == (0.1, 0.09, 0.2)
    assert "ratio_min" not in row
    alone = peers.beside(ours, None)
    assert (alone["peer"], "ratio" in alone) == ("not to be had", False)


def test_tables_show_medians_with_least_and_largest() -> None:
    console, output = _console()
    repeats: list[Row] = [
        {"subject": "server", "row": "pairs", "edge": "native", "rate_per_s": rate, "p99_ms": rate / 100}
        for rate in (1000, 3000, 2000)
    ]
    results.show([results.median_row(repeats)], console)
    for shown in ("2,000", "1,000-3,000", "20.0", "10.0-30.0"):
        assert shown in output.getvalue()


@pytest.mark.parametrize(("share", "warnings"), [(0.79, 0), (0.81, 1)])
@pytest.mark.parametrize("whose", ["", "peer_"])
def test_a_generator_that_may_be_the_limit_is_warned_of(whose: str, share: float, warnings: int) -> None:
    console, output = _console()
    results.show_peers([{"row": "fanout", "edge": "native", f"{whose}generator_cpu_share": share}], console)
    assert output.getvalue().count("may be what limits") == warnings


def test_the_stores_floor_is_appends_that_reach_the_disk(tmp_path: Path) -> None:
    row = sqlite_append.floor(tmp_path / "data", 64)
    for key in ("rate_per_s", "p50_ms", "p99_ms", "cpu_s_per_1000"):
        assert results.figure(row[key]) > 0
    assert not list((tmp_path / "data").iterdir())
