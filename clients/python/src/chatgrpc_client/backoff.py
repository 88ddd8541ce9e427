"""How long to wait before the next try."""

import random
from typing import Protocol


class Uniform(Protocol):
    """Source of randomness; `random.Random` fits."""

    def uniform(self, a: float, b: float, /) -> float:
        """Returns a number between a and b."""
        ...


class Backoff:
    """Exponential backoff with full jitter: each wait is uniform between 0 and a bound that doubles up to a cap.

    Full jitter spreads the devices that one failure cut off over the whole interval, so that they do not come back as one
    crowd (M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015).
    """

    def __init__(self, base_s: float, cap_s: float, randomness: Uniform | None = None) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._randomness: Uniform = randomness or random.SystemRandom()
        self._failures = 0

    def next_delay_s(self, at_least_s: float = 0.0) -> float:
        """Counts a failure; returns the wait in seconds, `at_least_s` plus the jitter."""
        bound_s = min(self._cap_s, self._base_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return at_least_s + self._randomness.uniform(0.0, bound_s)

    def reset(self) -> None:
        """Forgets the failures: something succeeded."""
        self._failures = 0
