"""Seeds without a failure, replays without a difference, and planted mistakes that do not stay hidden."""

import pytest

from tests.sim.cluster import Cluster
from tests.sim.mistakes import MISTAKES
from tests.sim.world import BrokenError


@pytest.mark.timeout(0)
def test_all_guarantees_hold_whatever_happens(pytestconfig: pytest.Config) -> None:
    """G1 to G6, on as many seeds as `--sim-seeds` says."""
    for seed in range(pytestconfig.getoption("--sim-seeds")):
        try:
            Cluster(seed).run()
        except BrokenError as broken:
            pytest.fail(f"seed {seed}: {broken}\nreplay it with: make sim SEED={seed}")


def test_a_seed_replays_bit_for_bit() -> None:
    first, second = Cluster(7, traced=True), Cluster(7, traced=True)
    first.run()
    second.run()
    assert first.world.trace == second.world.trace
    assert first.world.steps == second.world.steps
    assert len(first.world.trace) > 100


SEEDS_TO_FIND = 1_000
"""A mistake that this many seeds do not find counts as hidden."""

FOUND_BY = {
    "no boundary written": 114,
    "deadline taken after the keepalive's answer": 42,
    "deadline ignored": 0,
    "acknowledgement before commit": 23,
    "acknowledgement out of order": 12,
    "seq from a stale tail": 0,
    "dedupe window too small": 0,
    "go-back-N without order": 0,
    "re-sent newest first": 0,
    "replay handing over to live with a gap": 0,
    "gap of a lost push not repaired": 0,
    "lost last push not missed": 49,
    "gap repaired by a stale membership": 2,
    "voided row served": 1,
    "a row above the stated committed seq shown to a reader": 1,
    "adopted tail not written again": 1,
    "adopted under the old epoch": 309,
    "boundary before the adopted rows": 0,
    "boundary in the first bucket only": 54,
    "a retry that changes the row": 0,
}
"""The first seed, counted from 0, that finds each."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(mistake: str) -> None:
    """By the seed that is known to find it, so that the test is short; if it does no longer, by those from 0 on.

    What finds it must find nothing in a right cluster.
    """
    for seed in [FOUND_BY[mistake], *range(SEEDS_TO_FIND)]:
        try:
            Cluster(seed, MISTAKES[mistake]).run()
        except BrokenError:
            Cluster(seed).run()
            return
    pytest.fail(f"{SEEDS_TO_FIND} seeds do not find it")
