"""Work that grows with the number of sessions, a little at a time.

While a callback of the event loop runs nothing else does: no other stream is read, no call answered. So whatever may concern
thousands of sessions is a pass that goes on step by step, and stops when its slice of time is over; the next tick goes on.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

SLICE_S: Final = 0.005
"""For so long each kind of work goes on at a stretch; a tick has a few kinds, so that it ends within a few of these."""


class Slice:
    """A moment of the loop's time."""

    __slots__ = ("_clock_s", "_length_s", "_until_s")

    def __init__(self, clock_s: Callable[[], float], length_s: float = SLICE_S) -> None:
        """Begins now, by a clock that gives seconds."""
        self._clock_s = clock_s
        self._length_s = length_s
        self._until_s = clock_s() + length_s

    @property
    def is_over(self) -> bool:
        """Other work is to have its turn."""
        return self._clock_s() >= self._until_s

    def anew(self) -> "Slice":
        """One as long that begins now."""
        return Slice(self._clock_s, self._length_s)


class Backlog:
    """Passes over many sessions, one after the other as they came. Each is an iterator whose steps are short."""

    def __init__(self) -> None:
        self._passes: deque[tuple[Iterator[None], int]] = deque()
        self.steps = 0
        """How many steps the passes had that are not done, as far as was said of them."""

    def __bool__(self) -> bool:
        """Something is left to do."""
        return bool(self._passes)

    def add(self, work: Iterator[None], steps: int) -> None:
        """Takes up a pass of about so many steps."""
        self._passes.append((work, steps))
        self.steps += steps

    def go_on(self, slice_: Slice) -> bool:
        """Goes on until the slice is over, and by one step at least; returns whether something is left.

        A step that raises ends its pass.
        """
        while self._passes:
            work, steps = self._passes[0]
            try:
                for _ in work:
                    if slice_.is_over:
                        return True
            except BaseException:
                self._done(steps)
                raise
            self._done(steps)
        return False

    def _done(self, steps: int) -> None:
        self._passes.popleft()
        self.steps -= steps
