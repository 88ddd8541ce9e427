"""Virtual time, chance, the trace, and what everybody has seen of the log."""

import heapq
import random
from collections.abc import Callable
from itertools import count

from chatgrpc.core.events import erased
from tests.sim.plan import OVER_MS

Action = Callable[[], None]


class BrokenError(Exception):
    """A guarantee does not hold."""


class World:
    """Everything that happens in one run happens here, in one order that the seed decides."""

    def __init__(self, seed: str, traced: bool) -> None:
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
        self._erased: dict[tuple[str, int], bytes] = {}
        self._erased_at_ms: dict[tuple[str, int], int] = {}

    def after(self, delay_ms: int, action: Action) -> None:
        """Does it later; what the storm begins is over when it must be."""
        at_ms = self.now_ms + delay_ms
        if at_ms > OVER_MS and not self.calm:
            at_ms = OVER_MS
        heapq.heappush(self._queue, (at_ms, next(self._numbers), action))

    def run(self, until_ms: int) -> None:
        """Lets time pass."""
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] <= until_ms:
            self.now_ms, _, action = pop(queue)
            self.steps += 1
            action()
        self.now_ms = until_ms

    @property
    def under_way_until_ms(self) -> int:
        """When the last of what is under way now comes, or is over."""
        return max((at_ms for at_ms, _, _ in self._queue), default=self.now_ms)

    def between(self, least: int, most: int) -> int:
        """Any of them, both ends included."""
        return least + int(self.rng.random() * (most - least + 1))

    def chance(self, probability: float) -> bool:
        """Whether it happens; nothing bad happens any more once the world is calm."""
        return probability > 0 and not self.calm and self.rng.random() < probability

    def note(self, who: str, what: str) -> None:
        """A line of the trace."""
        if self.traced:
            self.trace.append(f"{self.now_ms:>7} {who:<10} {what}")

    # What is known of the log, and by whom.

    def witness(self, who: str, chat_id: str, seq: int, event: bytes, read_from_ms: int | None = None) -> None:
        """Somebody took this for the event at this seq; for ever it is the only one (G2), but for its erasure.

        `read_from_ms`: it was read from the store, by a read that began then.
        """
        at = (chat_id, seq)
        known, _ = self._contents.setdefault(at, (event, who))
        if event != known and event != self._erased.get(at):
            self._note_erasure(who, at, event)
        if read_from_ms is not None and at in self._erased_at_ms and event != self._erased.get(at):
            if event == erased(event):
                self._erased[at] = event
            elif read_from_ms > self._erased_at_ms[at]:
                raise BrokenError(f"{chat_id} seq {seq}: {who} shows what was deleted at {self._erased_at_ms[at]} ms")

    def witness_erasure(self, chat_id: str, seq: int) -> None:
        """The event's deletion was acknowledged: no read that begins later shows what it said."""
        self._erased_at_ms.setdefault((chat_id, seq), self.now_ms)

    def _note_erasure(self, who: str, at: tuple[str, int], event: bytes) -> None:
        """Two contents: one of them is the other one, erased; or something is wrong."""
        known, by = self._contents[at]
        if erased(known) == event:
            self._erased[at] = event
        elif erased(event) == known:
            self._erased[at] = known
            self._contents[at] = (event, who)
        else:
            raise BrokenError(f"{at[0]} seq {at[1]}: {who} has other content than {by} had")
