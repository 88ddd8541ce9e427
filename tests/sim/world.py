"""Virtual time, chance, the trace, and what everybody has seen of the log."""

import heapq
import random
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]


class BrokenError(Exception):
    """A guarantee does not hold."""


class World:
    """Everything that happens in one run happens here, in one order that the seed decides."""

    def __init__(self, seed: int, traced: bool) -> None:
        self.rng = random.Random(seed)
        self.now_ms = 0
        self.trace: list[str] = []
        self.traced = traced
        self.calm = False
        """The faults are over: what is under way arrives, and everything must come to rest."""
        self.steps = 0
        self._queue: list[tuple[int, int, Action]] = []
        self._numbers = count()
        self._contents: dict[tuple[str, int], tuple[bytes, str]] = {}

    def after(self, delay_ms: int, action: Action) -> None:
        """Does it later."""
        heapq.heappush(self._queue, (self.now_ms + delay_ms, next(self._numbers), action))

    def run(self, until_ms: int) -> None:
        """Lets time pass."""
        while self._queue and self._queue[0][0] <= until_ms:
            self.now_ms, _, action = heapq.heappop(self._queue)
            self.steps += 1
            action()
        self.now_ms = until_ms

    def chance(self, probability: float) -> bool:
        """Whether it happens; nothing bad happens any more once the world is calm."""
        return not self.calm and self.rng.random() < probability

    def note(self, who: str, what: str) -> None:
        """A line of the trace."""
        if self.traced:
            self.trace.append(f"{self.now_ms:>7} {who:<10} {what}")

    def witness(self, who: str, chat_id: str, seq: int, event: bytes) -> None:
        """Somebody took this for the event at this seq; for ever it is the only one (G2)."""
        known, by = self._contents.setdefault((chat_id, seq), (event, who))
        if known != event:
            raise BrokenError(f"{chat_id} seq {seq}: {who} has other content than {by} had")
