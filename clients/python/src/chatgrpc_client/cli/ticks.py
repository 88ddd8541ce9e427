"""How far a reader's messages have come: sent, delivered, read. No I/O."""

from collections.abc import Iterable
from dataclasses import dataclass

from chatgrpc.v1 import chat_pb2


@dataclass(frozen=True, slots=True)
class Tick:
    """The newest own message that has come so far."""

    seq: int
    state: str
    """`sent`, `delivered` or `read`; in a group followed by how many, while it is not all."""

    @property
    def text(self) -> str:
        """As it is shown."""
        return f"{'✓' if self.state == 'sent' else '✓✓'} {self.state} #{self.seq}"


class Ticks:
    """The marks of a chat's other members, and the own messages that they cover."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._own_seqs: list[int] = []
        self._others: set[str] = set()
        self._delivered: dict[str, int] = {}
        self._read: dict[str, int] = {}

    def members(self, user_ids: Iterable[str]) -> None:
        """Who is in the chat."""
        self._others = set(user_ids) - {self._me}

    def receipt(self, receipt: chat_pb2.Receipt) -> None:
        """Someone's marks."""
        user_id = receipt.user_id
        self._read[user_id] = max(receipt.read_seq, self._read.get(user_id, 0))
        self._delivered[user_id] = max(receipt.delivered_seq, receipt.read_seq, self._delivered.get(user_id, 0))

    def own(self, seq: int) -> None:
        """An own message is in the log."""
        if seq not in self._own_seqs[-100:]:
            self._own_seqs.append(seq)
            self._own_seqs.sort()

    def now(self) -> list[Tick]:
        """The newest own message of each state, oldest first; states that a newer message has reached too are left out."""
        ticks: list[Tick] = []
        for seq in reversed(self._own_seqs):
            state = self._state(seq)
            if not ticks or _rank(state) > _rank(ticks[-1].state):
                ticks.append(Tick(seq, state))
            if state == "read":
                break
        return ticks[::-1]

    def of(self, seq: int) -> Tick:
        """How far one message has come."""
        return Tick(seq, self._state(seq))

    def read_seq(self, user_id: str) -> int:
        """How far someone has read."""
        return self._read.get(user_id, 0)

    def _state(self, seq: int) -> str:
        for name, marks in (("read", self._read), ("delivered", self._delivered)):
            reached = sum(marks.get(user_id, 0) >= seq for user_id in self._others)
            if reached:
                return name if reached == len(self._others) else f"{name} {reached}/{len(self._others)}"
        return "sent"


def _rank(state: str) -> int:
    return ("sent", "delivered", "read").index(state.split(" ", maxsplit=1)[0])
