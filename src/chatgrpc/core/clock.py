"""The two clocks of a machine, and which of them is for what.

The wall clock says what people and tokens see. It may be stepped at any moment, by any amount, in either direction; so nothing
waits by it, nothing is paced by it, and nothing is put in order by it alone. All that is for the other clock, which only rises.
"""

from dataclasses import dataclass

_REMEMBERED_MS = 24 * 3600 * 1000
"""How long a step of the wall clock is remembered; longer than any step that somebody mends by hand, and one day is cheap."""


@dataclass(frozen=True, slots=True)
class Now:
    """A moment, by both clocks."""

    wall_ms: int
    """Milliseconds since the Unix epoch; for stamps, tokens and what people ask for."""
    monotonic_ms: int
    """For waiting and for leases; never set back."""


class SyncClock:
    """Stamps by which a device finds what changed since it was here last, whatever became of the wall clock meanwhile.

    Both follow the wall clock, and differ only while a step of it is remembered: then changes are stamped as late as the clock
    said it was since, and a moment at which a device was told everything as early. So no change is stamped below a moment that
    came before it; what a device was told already it may be told again.
    """

    def __init__(self) -> None:
        self._low_ms = self._high_ms = 0  # of what the wall clock was ahead of the other one, since the last turn
        self._older_low_ms = self._older_high_ms = 0  # the same before it
        self._turn_at_ms: int | None = None

    def change_ms(self, now: Now) -> int:
        """What a change that is made now is stamped with."""
        self._look(now)
        return now.monotonic_ms + max(self._high_ms, self._older_high_ms)

    def told_ms(self, now: Now) -> int:
        """What stands for now, when a device is told all that changed before."""
        self._look(now)
        return now.monotonic_ms + min(self._low_ms, self._older_low_ms)

    def _look(self, now: Now) -> None:
        ahead_ms = now.wall_ms - now.monotonic_ms
        if self._turn_at_ms is None:
            self._low_ms = self._high_ms = self._older_low_ms = self._older_high_ms = ahead_ms
            self._turn_at_ms = now.monotonic_ms + _REMEMBERED_MS
        if now.monotonic_ms >= self._turn_at_ms:
            self._older_low_ms, self._older_high_ms = self._low_ms, self._high_ms
            self._low_ms = self._high_ms = ahead_ms
            self._turn_at_ms = now.monotonic_ms + _REMEMBERED_MS
        self._low_ms = min(self._low_ms, ahead_ms)
        self._high_ms = max(self._high_ms, ahead_ms)
