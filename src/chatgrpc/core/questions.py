"""Questions of an edge to the owners of chats, asked again until they are answered.

A question that is sent twice may be answered twice, and late. Callers want to know what is the case *after* they asked, so an
answer serves only callers who asked before that question was sent.

A caller is known by its callback, and waits once for each chat, however often it asks. It is called with the answer to the
first question that will do, since one that asks again and again would else never hear, and to the last one.
"""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from chatgrpc.core.retransmission import RetransmissionTimers

_Answer = TypeVar("_Answer")
_Wanted = tuple[int, int]
"""The first and the last question that a callback waits for an answer to."""


class Questions(Generic[_Answer]):
    """Questions of one kind, by chat."""

    def __init__(self, again_after_ms: int) -> None:
        """A question that is not answered within `again_after_ms` is asked again, and then ever more rarely."""
        self._number = 0
        self._waiting: dict[str, dict[Callable[[_Answer], None], _Wanted]] = {}  # who waits, and for which questions
        self._timers: RetransmissionTimers[str] = RetransmissionTimers(again_after_ms)

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, chat_id: str, callback: Callable[[_Answer], None], now_ms: int) -> int:
        """Asks; returns the number under which the question is to be sent. A callback that waits already waits for this too."""
        number = self._number + 1
        waiting = self._waiting.setdefault(chat_id, {})
        first, _ = waiting.get(callback, (number, number))
        waiting[callback] = (first, number)
        self._timers.start(chat_id, now_ms)
        return self._next_number()

    def withdraw(self, chat_id: str, callback: Callable[[_Answer], None]) -> None:
        """Whoever asked wants to know it no more; what nobody wants to know is not asked again."""
        waiting = self._waiting.get(chat_id, {})
        waiting.pop(callback, None)
        if not waiting:
            self._waiting.pop(chat_id, None)
            self._timers.stop(chat_id)

    def due(self, now_ms: int) -> Iterator[tuple[str, int]]:
        """Chats to ask of again, each with the number of the new question."""
        for chat_id in self._timers.due(now_ms):
            yield chat_id, self._next_number()

    def again(self, concerns: Callable[[str], bool], now_ms: int) -> list[tuple[str, int]]:
        """Chats have a new owner, or a new link to it: of those that it `concerns` is asked again, under these numbers."""
        asked = []
        for chat_id in [chat_id for chat_id in self._waiting if concerns(chat_id)]:
            self._timers.start(chat_id, now_ms)
            asked.append((chat_id, self._next_number()))
        return asked

    def answered(self, chat_id: str, number: int, answer: _Answer) -> None:
        """An answer came to the question with this number."""
        waiting = self._waiting.pop(chat_id, {})
        later = {
            callback: (first if first > number else last, last) for callback, (first, last) in waiting.items() if last > number
        }
        if later:
            self._waiting[chat_id] = later
        else:
            self._timers.stop(chat_id)
        for callback, (first, _) in waiting.items():
            if first <= number:
                callback(answer)

    def _next_number(self) -> int:
        self._number += 1
        return self._number
