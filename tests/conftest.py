"""Options of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests that can run longer run."""
    parser.addoption("--kills", type=int, default=10, help="how often the server is killed under load (tests/guarantees)")
