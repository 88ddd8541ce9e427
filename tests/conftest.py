"""Options of the whole suite."""

import os

import hypothesis
import pytest

from chatgrpc import compiled

# The sources are tested, whatever was compiled of them; scripts/test-native tests what was.
os.environ.setdefault(compiled.SWITCH, "0")

# A busy machine must not fail a test: no time limits on examples, and none on making them.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

pytest_plugins = ["tests.support.services.fixtures", "tests.support.shared_cluster"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests that can run longer run."""
    parser.addoption("--kills", type=int, default=5, help="how often the server is killed under load (tests/guarantees)")
    parser.addoption("--seeds", type=int, default=6, help="how many seeds a test with random turns runs (tests/guarantees)")
    parser.addoption("--slow", action="store_true", help="also tests of more than fifteen seconds; with -m slow only those")
    parser.addoption("--long", action="store_true", help="attacks of thousands of streams, to their end (tests/robustness)")
    parser.addoption("--fuzz-iterations", type=int, default=300, help="mutated batches that are tried (tests/robustness)")
    parser.addoption("--sim-seeds", type=int, default=40, help="how many seeds of whole clusters are simulated (tests/sim)")
    parser.addoption(
        "--on-cluster", action="store_true", help="hold every guarantee on a cluster of three nodes only (tests/guarantees)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Says of each test that is not run why."""
    runs_slow = config.getoption("--slow") or config.getoption("--long")
    for item in items:
        if item.get_closest_marker("slow") is not None and not runs_slow:
            item.add_marker(pytest.mark.skip(reason="NOT TESTED: it takes longer than 15 s; make test-slow, as CI does"))
        if item.get_closest_marker("long") is not None and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="NOT TESTED: it takes long; pytest --long"))
        embedded_only = item.get_closest_marker("embedded_only")
        if embedded_only is not None and config.getoption("--on-cluster"):
            item.add_marker(pytest.mark.skip(reason=f"NOT TESTED on a cluster: {embedded_only.args[0]}"))
