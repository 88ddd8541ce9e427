"""`python -m tests.sim`: runs seeds, or replays one with its trace."""

import argparse
import sys
import time

from tests.sim.cluster import Cluster
from tests.sim.world import BrokenError


def run_seed(seed: int, traced: bool = False) -> tuple[Cluster, str]:
    """Runs one seed; returns what broke, empty for nothing."""
    cluster = Cluster(seed, traced=traced)
    try:
        cluster.run()
    except BrokenError as broken:
        return cluster, str(broken)
    return cluster, ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seed", type=int, help="replay this one, with its trace")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many to run")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    options = parser.parse_args()
    if options.seed is not None:
        cluster, broken = run_seed(options.seed, traced=True)
        print("\n".join(cluster.world.trace))
        print(f"seed {options.seed}: {broken or 'all guarantees hold'}")
        return 1 if broken else 0
    failed = 0
    started_s = time.monotonic()
    for seed in range(options.first, options.first + options.seeds):
        _, broken = run_seed(seed)
        if broken:
            failed += 1
            print(f"seed {seed}: {broken}\n    replay it with: make sim SEED={seed}", flush=True)
    print(f"{options.seeds / (time.monotonic() - started_s):.1f} seeds a second")
    print(f"{options.seeds} seeds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
