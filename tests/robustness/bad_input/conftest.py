"""The scene of the tests of bad input, and the summary of what the attacks did."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.robustness.bad_input.support_scene import MIB, SIGHTINGS, Scene, scene_of


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One server with a healthy pair for all attacks, so that what they leave adds up; its tests run on the session's loop.

    It ends with the last of them: nothing reads what the pair says while tests on other loops run, and the pair is not to take
    time from them.
    """
    async with scene_of(tmp_path_factory.mktemp("scene") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def fuzz_iterations(pytestconfig: pytest.Config) -> int:
    """How many mutated batches are tried."""
    return int(pytestconfig.getoption("--fuzz-iterations"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the pair's latency and the server's memory, attack by attack."""
    if not SIGHTINGS:
        return
    terminalreporter.section("what the attacks did to the healthy pair and the server")
    terminalreporter.write_line(
        f"{'attack':44}{'messages':>9}{'quiet p99':>11}{'p50':>9}{'p99':>9}{'ratio':>7}{'peak':>8}{'stays':>8}{'settled':>9}"
    )
    for seen in SIGHTINGS:
        ratio = seen.p99_s / seen.quiet_p99_s if seen.quiet_p99_s else 0.0
        notes = "  " + ", ".join(f"{name} {value}" for name, value in seen.notes.items()) if seen.notes else ""
        terminalreporter.write_line(
            f"{seen.name:44}{seen.messages:>9}{seen.quiet_p99_s * 1000:>8.1f} ms{seen.p50_s * 1000:>6.1f} ms"
            f"{seen.p99_s * 1000:>6.0f} ms{ratio:>7.1f}{seen.peak_growth_bytes / MIB:>8.1f}{seen.growth_bytes / MIB:>8.1f}"
            f"{seen.settled_after_s:>7.1f} s{notes}"
        )
