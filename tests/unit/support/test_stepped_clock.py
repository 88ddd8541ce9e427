"""The shim by which tests step a running process's wall clock: that clock moves, and no other one does."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.stepped_clock import NoCompilerError, SteppedClock, build, preloaded

_READS = """
import datetime, sys, threading, time
for _ in sys.stdin:
    threading.Event().wait(0.01)
    print(time.time(), time.time_ns() / 1e9, datetime.datetime.now().timestamp(), time.clock_gettime(time.CLOCK_REALTIME),
          time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.perf_counter(), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: preloading is done so on Linux only")
def test_the_wall_clock_moves_and_the_others_do_not(tmp_path: Path) -> None:
    try:
        library = build(tmp_path)
    except NoCompilerError as error:
        pytest.skip(f"NOT TESTED: {error}")
    environment = os.environ | preloaded(library, tmp_path / "offset")
    with subprocess.Popen(
        [sys.executable, "-c", _READS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def read() -> tuple[list[float], list[float]]:
            """What its wall clocks say, and its other clocks."""
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            clocks = [float(clock) for clock in process.stdout.readline().split()]
            return clocks[:4], clocks[4:]

        read()
        clock = SteppedClock(tmp_path / "offset")
        for ahead_s in (0.0, -5.0, -3600.0, 120.0, 7200.5, 0.0):
            clock.step(ahead_s)
            began = time.time(), (time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.perf_counter())
            wall, others = read()
            ended = time.time(), (time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.perf_counter())
            for clock_s in wall:
                assert began[0] - 0.001 <= clock_s - ahead_s <= ended[0] + 0.001
            for earlier_s, clock_s, later_s in zip(began[1], others, ended[1], strict=True):
                assert earlier_s <= clock_s <= later_s
        process.stdin.close()
        assert process.wait() == 0
