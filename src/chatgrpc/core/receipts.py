"""Receipts: how far each user is in each chat, as watermarks that only rise.

The book holds the marks that changed lately. It may begin lower than what the store holds, after a start or an eviction; every
receiver of a mark (store, clients) takes the greater one, so a low mark is harmless and rises with the next acknowledgement.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from chatgrpc.core.limits import Limits
from chatgrpc.v1 import chat_pb2


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a user is in a chat."""

    chat_id: str
    user_id: str
    delivered_seq: int
    read_seq: int
    changed_at_ms: int
    """When either mark rose last, milliseconds since the Unix epoch."""

    def receipt(self) -> chat_pb2.Receipt:
        """The mark as devices see it."""
        return chat_pb2.Receipt(
            chat_id=self.chat_id,
            user_id=self.user_id,
            delivered_seq=max(self.delivered_seq, 0),  # what a store may hold is not what a receipt can say
            read_seq=max(self.read_seq, 0),
        )


@dataclass(frozen=True, slots=True)
class Raised:
    """A mark that rose, and from where."""

    mark: Mark
    delivered_from_seq: int
    read_from_seq: int

    @property
    def from_seq(self) -> int | None:
        """Whoever sent an event above this is told: the lower of what the marks that rose had been; None if neither rose."""
        risen_from = [self.delivered_from_seq] if self.mark.delivered_seq > self.delivered_from_seq else []
        if self.mark.read_seq > self.read_from_seq:
            risen_from.append(self.read_from_seq)
        return min(risen_from, default=None)


class ReceiptBook:
    """Marks in memory, and those among them that are not stored yet."""

    def __init__(self, limits: Limits) -> None:
        self._marks_max = limits.marks_in_memory_max
        self._marks: OrderedDict[tuple[str, str], Mark] = OrderedDict()
        self._unsaved: dict[tuple[str, str], None] = {}
        self._untold: set[tuple[str, str]] = set()
        """Marks that were only read in the store: whether whoever stored them has told of them is not known."""

    def raise_mark(self, chat_id: str, user_id: str, delivered_seq: int, read_seq: int, now_ms: int) -> Raised | None:
        """Raises a user's marks; what was read was delivered. None if neither rose, and both are told."""
        key = (chat_id, user_id)
        mark = before = self._marks.get(key) or Mark(chat_id, user_id, 0, 0, 0)
        told = Mark(chat_id, user_id, 0, 0, 0) if key in self._untold else before
        delivered = max(before.delivered_seq, delivered_seq, read_seq)
        read = max(before.read_seq, read_seq)
        if delivered > before.delivered_seq or read > before.read_seq:
            mark = self._marks[key] = Mark(chat_id, user_id, delivered, read, now_ms)
            self._marks.move_to_end(key)
            self._unsaved[key] = None
        elif told is before:
            return None
        self._untold.discard(key)
        return Raised(mark, told.delivered_seq, told.read_seq)

    def learn(self, stored: Iterable[Mark]) -> None:
        """These are in the store already: raising a mark to what it is there does not change it."""
        for mark in stored:
            key = (mark.chat_id, mark.user_id)
            if key not in self._marks:
                self._marks[key] = mark
                self._untold.add(key)

    def take_unsaved(self) -> list[Mark]:
        """The marks to store; they count as stored from now on. `unsave` takes that back."""
        marks = [self._marks[key] for key in self._unsaved]
        self._unsaved.clear()
        while len(self._marks) > self._marks_max:
            key, _ = self._marks.popitem(last=False)
            self._untold.discard(key)
        return marks

    def unsave(self, marks: list[Mark]) -> None:
        """These could not be stored; they are to be stored again."""
        for mark in self.merge(marks):  # one that was dropped and came back meanwhile may be lower in memory
            key = (mark.chat_id, mark.user_id)
            self._marks[key] = mark
            self._unsaved[key] = None

    def merge(self, stored: list[Mark]) -> list[Mark]:
        """Stored marks, raised by what is in memory."""
        merged = []
        for mark in stored:
            known = self._marks.get((mark.chat_id, mark.user_id), mark)
            merged.append(
                Mark(
                    mark.chat_id,
                    mark.user_id,
                    max(mark.delivered_seq, known.delivered_seq),
                    max(mark.read_seq, known.read_seq),
                    max(mark.changed_at_ms, known.changed_at_ms),
                )
            )
        return merged
