"""Pauses between tries that fail: short at first, then longer and longer."""


class Backoff:
    """Gives `first_s`, then each time twice as much as before, up to `max_s`, until `reset`."""

    def __init__(self, first_s: float, max_s: float) -> None:
        self._first_s = self._next_s = first_s
        self._max_s = max_s

    def next_s(self) -> float:
        """How long to pause before the next try, in seconds."""
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._max_s)
        return pause_s

    def reset(self) -> None:
        """A try has worked: begins anew with `first_s`."""
        self._next_s = self._first_s
