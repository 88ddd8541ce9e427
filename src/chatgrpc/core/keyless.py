"""Writes without a key: their callers do not repeat them, but the edge does, to the next owner, when one is lost.

What an owner has taken of such a write may have been committed, and others may have written since. So before it goes out for
the first time the owner is asked where the chat ends; an earlier try stands above that or nowhere, and any owner finds it (G3).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from chatgrpc.core.active_chat import Ticket
from chatgrpc.core.refusal import owner_silent
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2

Submit = Callable[[str, Ticket, Write], None]
"""Called with session id, ticket and the write, which has its `seen_seq` now."""


@dataclass(eq=False, slots=True)
class _Held:
    """A write that waits for the head of its chat."""

    session_id: str
    ticket: Ticket
    write: Write
    since_ms: int
    callback: Callable[[int | None], None]


class KeylessWrites:
    """Those of one edge that have not gone out yet. Of one session and one chat they go out in their order."""

    def __init__(self, give_up_after_ms: int, submit: Submit) -> None:
        self._give_up_after_ms = give_up_after_ms
        self._submit = submit
        self._held: OrderedDict[int, _Held] = OrderedDict()  # the longest waiting first
        self._numbers: dict[str, dict[int, None]] = {}  # by session
        self._next_number = 0

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, session_id: str, ticket: Ticket, write: Write, now_ms: int) -> Callable[[int | None], None]:
        """Keeps the write; returns what is to be called with a head that the chat's owner states after this.

        None = the chat is damaged, which the owner says of the write too.
        """
        number = self._next_number = self._next_number + 1

        def stated(head_seq: int | None) -> None:
            held = self._pop(number)
            if held is not None:
                self._submit(session_id, ticket, replace(write, seen_seq=head_seq or 0))

        self._held[number] = _Held(session_id, ticket, write, now_ms, stated)
        self._numbers.setdefault(session_id, {})[number] = None
        return stated

    def give_up(self, now_ms: int) -> list[tuple[Callable[[int | None], None], Ticket, Write, chat_pb2.Error]]:
        """Writes whose owner has not stated a head for too long, each with its question."""
        failed = []
        while self._held:
            number, held = next(iter(self._held.items()))
            if now_ms - held.since_ms < self._give_up_after_ms:
                break
            self._pop(number)
            failed.append((held.callback, held.ticket, held.write, owner_silent()))
        return failed

    def close(self, session_id: str) -> list[tuple[str, Callable[[int | None], None]]]:
        """Nobody waits for the session's writes any more; returns the questions to withdraw, by chat id."""
        closed = [self._pop(number) for number in list(self._numbers.get(session_id, ()))]
        return [(held.write.chat_id, held.callback) for held in closed if held is not None]

    def _pop(self, number: int) -> _Held | None:
        held = self._held.pop(number, None)
        if held is None:
            return None
        numbers = self._numbers[held.session_id]
        del numbers[number]
        if not numbers:
            del self._numbers[held.session_id]
        return held
