"""The clocks of the machine; by one of them leases are judged, and everything else that lasts.

`time.monotonic` stands still while the machine sleeps, and a lease does not: an owner that wakes up would take for its own what
others were given meanwhile. Where the system has one, this clock counts the time asleep.
"""

import time
from typing import Final

from chatgrpc.core.clock import Now

_CLOCK_ID: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def lease_clock_s() -> float:
    """Seconds since some moment, never falling; also those for which the machine slept."""
    return time.monotonic() if _CLOCK_ID is None else time.clock_gettime(_CLOCK_ID)


def lease_clock_ms() -> int:
    """The same in whole milliseconds, rounded down."""
    return time.monotonic_ns() // 1_000_000 if _CLOCK_ID is None else time.clock_gettime_ns(_CLOCK_ID) // 1_000_000


def wall_clock_ms() -> int:
    """Milliseconds since the Unix epoch, as the machine has it: it may be wrong, and set right at any moment."""
    return time.time_ns() // 1_000_000


def now() -> Now:
    """This moment, by both clocks."""
    return Now(wall_clock_ms(), lease_clock_ms())
