"""The door of a shard: who is not known to be a member is asked about before anything of the chat is looked at.

What a stranger's write costs, and when it is refused, must not depend on the chat: neither on how long it is, nor on whether
there is one, since anybody can compute the id of two people's chat (ADR 10). So the one thing that is read is the list of the
sender's own memberships; whoever does not find the chat there is refused.

A former member is let in, as an earlier try of the write may stand in the log (G3); no further up than where they left.

So that the list is enough to tell who may have an event in the log, nobody's write gets a seq before the event that let them in
is committed: a list would not know of it, were the owner lost, and they would be told that they are no member while what they
wrote comes to count.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from chatgrpc.core.active_chat import Ticket
from chatgrpc.core.ids import direct_chat_id, self_chat_id
from chatgrpc.core.visibility import Interval, is_member
from chatgrpc.core.write import Write


@dataclass(frozen=True, slots=True)
class ReadIntervals:
    """Read when a user was a member of a chat."""

    user_id: str
    chat_id: str


class Door:
    """Writes whose senders are asked about; those of one sender to one chat keep their order."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self._waiting: dict[ReadIntervals, list[tuple[Ticket, Write]]] = {}
        self._reads: list[ReadIntervals] = []
        self._covered: dict[ReadIntervals, int] = {}  # how many of those that wait had come when the read was begun

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self, user_id: str, chat_id: str) -> int:
        """How many writes of the user to the chat wait here; later ones wait behind them."""
        return len(self._waiting.get(ReadIntervals(user_id, chat_id), ()))

    def hold(self, ticket: Ticket, write: Write) -> None:
        """The write waits until it is known whether its sender may come in."""
        read = ReadIntervals(write.sender_user_id, write.chat_id)
        if read not in self._waiting:
            self._waiting[read] = []
            self._reads.append(read)
        self._waiting[read].append((ticket, write))
        self.held_bytes += write.content.ByteSize()

    def held(self) -> Iterator[Write]:
        """All writes that wait here."""
        for waiting in self._waiting.values():
            for _, write in waiting:
                yield write

    def take_reads(self) -> list[ReadIntervals]:
        """Reads to run."""
        reads, self._reads = self._reads, []
        self._covered |= {read: len(self._waiting[read]) for read in reads}
        return reads

    def release(self, read: ReadIntervals) -> list[tuple[Ticket, Write]]:
        """What has waited for this read, oldest first."""
        return self._release(read, len(self._waiting.get(read, ())))

    def turn_away(self, read: ReadIntervals) -> list[tuple[Ticket, Write]]:
        """What had come before this read was begun, which found nothing; for what came since another one is wanted: its sender
        may have been let in meanwhile."""
        return self._release(read, self._covered.get(read, 0))

    def _release(self, read: ReadIntervals, count: int) -> list[tuple[Ticket, Write]]:
        waiting = self._waiting.pop(read, [])
        self._covered.pop(read, None)
        released, rest = waiting[:count], waiting[count:]
        if rest:
            self._waiting[read] = rest
            self._reads.append(read)
        self.held_bytes -= sum(write.content.ByteSize() for _, write in released)
        return released


def left_seq_of(intervals: tuple[Interval, ...]) -> int:
    """Up to where events of a former member may stand; 0 if they are a member."""
    return 0 if is_member(intervals) else max(interval.left_seq for interval in intervals)


def says_who_may(write: Write) -> bool:
    """Whether the write itself says that its sender may look at the chat: it may make it, or brings a link, which lets in."""
    return may_open(write) or write.content.HasField("join_requested")


def may_open(write: Write) -> bool:
    """Whether the write may make the chat: its id is made of the sender's, so it is theirs or none."""
    return write.content.HasField("chat_created") or is_their_own(write)


def is_their_own(write: Write) -> bool:
    """Whether it goes to the sender's self chat, or direct chat with the user they named: theirs, even before it exists."""
    if write.peer_user_id:
        return write.chat_id == direct_chat_id(write.sender_user_id, write.peer_user_id)
    return write.chat_id == self_chat_id(write.sender_user_id)
