"""`python -m tests.sim`: runs seeds, replays one with its trace, or looks for the smallest run in which it still fails."""

import argparse
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.sim.cluster import Cluster
from tests.sim.mistakes import MISTAKES, TOO_RARE
from tests.sim.parts import Parts
from tests.sim.plan import Plan, plan_of
from tests.sim.shrink import Shrinker, broken_by, describe
from tests.sim.world import BrokenError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seed", type=int, help="replay this one, with its trace")
    parser.add_argument("--shrink", action="store_true", help="with --seed: look for less that fails too, and trace that")
    parser.add_argument("--mistake", choices=MISTAKES | TOO_RARE, help="plant this mistake")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many to run")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time; default: one a core")
    parser.add_argument("--found-by", action="store_true", help="say which seed finds each planted mistake first")
    options = parser.parse_args()
    if options.found_by:
        return _find_mistakes(options.first, options.seeds, options.jobs)
    if options.seed is None:
        return _run(options.first, options.seeds, options.mistake, options.jobs)
    plan, parts = plan_of(options.seed), _parts(options.mistake)
    return _shrink(plan, parts) if options.shrink else _replay(plan, parts)


def _run(first: int, seeds: int, mistake: str | None, jobs: int) -> int:
    failed: list[int] = []
    started_s = told_s = time.monotonic()
    done = 0
    with _processes(jobs) as pool:
        runs = pool.map(partial(_broken_by, mistake), range(first, first + seeds), chunksize=10)
        try:
            for done, (seed, broken) in enumerate(zip(range(first, first + seeds), runs, strict=True), 1):
                if broken:
                    failed.append(seed)
                    print(f"seed {seed}: {broken}\n    replay it with: make sim SEED={seed}", flush=True)
                if time.monotonic() - told_s > 60:
                    told_s = time.monotonic()
                    print(f"{done} of {seeds} seeds, {len(failed)} failed", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print(f"ended after {done} of {seeds} seeds, {len(failed)} failed")
            return 130
    rate = seeds / (time.monotonic() - started_s)
    if failed:
        _shrink(plan_of(failed[0]), _parts(mistake))
    print(f"{rate:.1f} seeds a second, {jobs} at a time")
    print(f"{seeds} seeds, {len(failed)} failed")
    return 1 if failed else 0


def _processes(jobs: int) -> ProcessPoolExecutor:
    gc.freeze()  # what was imported is not looked at again, in any of them
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), _start_job)


def _start_job() -> None:
    gc.disable()  # a run leaves circles behind, and makes few
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the process that started this one


def _broken_by(mistake: str | None, seed: int) -> str:
    broken = broken_by(plan_of(seed), _parts(mistake))
    gc.collect()
    return broken


def _parts(mistake: str | None) -> Parts | None:
    return (MISTAKES | TOO_RARE)[mistake] if mistake else None


def _find_mistakes(first: int, seeds: int, jobs: int) -> int:
    """Prints the table for `test_sim.py`, which is another one after each change of what chance does."""
    hidden = dict.fromkeys(MISTAKES)
    with _processes(jobs) as pool:
        for start in range(first, first + seeds, jobs):
            some = range(start, min(start + jobs, first + seeds))
            for seed, found in zip(some, pool.map(partial(_found_by, tuple(hidden)), some), strict=True):
                for mistake in found:
                    if mistake in hidden:
                        print(f'    "{mistake}": {seed},', flush=True)
                        del hidden[mistake]
    print(f"{len(hidden)} are found by none of {seeds} seeds: {', '.join(hidden)}")
    return 1 if hidden else 0


def _found_by(mistakes: Sequence[str], seed: int) -> list[str]:
    plan = plan_of(seed)
    return [mistake for mistake in mistakes if broken_by(plan, MISTAKES[mistake]) and not broken_by(plan)]


def _replay(plan: Plan, parts: Parts | None) -> int:
    cluster = Cluster(plan.seed, parts, traced=True, plan=plan)
    broken = ""
    try:
        cluster.run()
    except BrokenError as error:
        broken = str(error)
    print("\n".join(cluster.world.trace))
    print(f"seed {plan.seed}: {broken or 'all guarantees hold'}")
    return 1 if broken else 0


def _shrink(plan: Plan, parts: Parts | None) -> int:
    if not broken_by(plan, parts):
        print(f"seed {plan.seed}: all guarantees hold; there is nothing to shrink")
        return 0
    shrinker = Shrinker(plan, parts)
    smallest = shrinker.shrink()
    print(f"the smallest of {shrinker.runs} runs that still fails, {len(smallest.acts)} acts of {len(plan.acts)}:")
    print(describe(smallest))
    return _replay(smallest, parts)


if __name__ == "__main__":
    sys.exit(main())
