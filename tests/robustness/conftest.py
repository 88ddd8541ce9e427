"""What all attacks and faults are asked with."""

import pytest


@pytest.fixture(scope="session")
def long(pytestconfig: pytest.Config) -> bool:
    """Whether the attacks go on to their end, however long that takes."""
    return bool(pytestconfig.getoption("--long"))
