"""When to say again what was not answered: each time twice as late, until something is heard (RFC 6298 §5.5).

At an even pace an owner that answers late, since it has too much to do, would be given the same work again and again, and get
ever later: under three times its load it would do nothing but throw away what it has already.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)

_BACK_OFFS_MAX: Final = 4
"""So often the wait is doubled."""


class RetransmissionTimers(Generic[_Key]):
    """One timer for each thing that waits for an answer."""

    def __init__(self, first_wait_ms: int) -> None:
        """After `first_wait_ms` without an answer a thing is due; at the latest 16 times as long after it was due last."""
        self._waits_ms = [first_wait_ms << back_offs for back_offs in range(_BACK_OFFS_MAX + 1)]
        self._due_at_ms: list[OrderedDict[_Key, int]] = [OrderedDict() for _ in self._waits_ms]
        """By how often their wait was doubled; of each the soonest first."""
        self._back_offs: dict[_Key, int] = {}

    def __len__(self) -> int:
        return len(self._back_offs)

    def __iter__(self) -> Iterator[_Key]:
        return iter(self._back_offs)

    def start(self, key: _Key, now_ms: int) -> None:
        """It was said for the first time, or something was heard: the wait begins, and is the first one."""
        self._set(key, 0, now_ms)

    def stop(self, key: _Key) -> None:
        """Nothing waits any more; nor need anything have waited."""
        back_offs = self._back_offs.pop(key, None)
        if back_offs is not None:
            del self._due_at_ms[back_offs][key]

    def due(self, now_ms: int) -> Iterator[_Key]:
        """What is to be said again now. The next wait of each begins with it."""
        for due_at_ms in self._due_at_ms:
            while due_at_ms:
                key, at_ms = next(iter(due_at_ms.items()))
                if now_ms < at_ms:
                    break
                self._set(key, min(self._back_offs[key] + 1, _BACK_OFFS_MAX), now_ms)
                yield key

    def _set(self, key: _Key, back_offs: int, now_ms: int) -> None:
        before = self._back_offs.get(key)
        if before is not None and before != back_offs:
            del self._due_at_ms[before][key]
        self._back_offs[key] = back_offs
        due_at_ms = self._due_at_ms[back_offs]
        due_at_ms[key] = now_ms + self._waits_ms[back_offs]
        due_at_ms.move_to_end(key)
