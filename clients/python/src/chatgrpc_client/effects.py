"""What a session hands to its shell: what arrived, what to write, and why and how it ended."""

from dataclasses import dataclass, field
from enum import Enum, auto

from chatgrpc.v1 import chat_pb2, session_pb2

from .outbox import OutboxEntry

Record = session_pb2.ChatOpened | chat_pb2.ChatEvent
"""What a device stores."""


class Next(Enum):
    """What to do after a session ended."""

    RECONNECT = auto()
    """At once."""
    BACK_OFF = auto()
    """After a wait that grows with each failure."""
    STOP = auto()
    """Nothing, until something changes."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a session ended and what to do next."""

    next: Next
    message: str
    """For people."""
    code: session_pb2.DisconnectCode.ValueType = session_pb2.DISCONNECT_CODE_UNSPECIFIED
    wait_s: float = 0.0
    """Do not reconnect sooner."""
    reason: str = ""
    """`Disconnect.reason`: what is wrong with the token, if that is why."""


@dataclass(slots=True)
class Received:
    """What a batch amounts to. The lists keep the order of the wire."""

    welcome: session_pb2.Welcome | None = None
    records: list[Record] = field(default_factory=list)
    """To be stored; then `stored` must be called."""
    receipts: list[chat_pb2.Receipt] = field(default_factory=list)
    sync_token: str | None = None
    """To be stored with the receipts: the device is up to date."""
    signals: list[session_pb2.Presence | session_pb2.Typing] = field(default_factory=list)
    committed: list[tuple[OutboxEntry, chat_pb2.SendResult]] = field(default_factory=list)
    refused: list[tuple[OutboxEntry, chat_pb2.Error]] = field(default_factory=list)
    """Messages that the server will never take."""
    unavailable: list[tuple[OutboxEntry, float]] = field(default_factory=list)
    """Messages that were refused as unavailable, and for how many seconds they have been sent on this stream in vain."""
    delayed: list[tuple[OutboxEntry, chat_pb2.Error]] = field(default_factory=list)
    """Messages that wait because of their user's rate, or because their chat must be mended."""
    seen_seq_too_old: list[OutboxEntry] = field(default_factory=list)
    seen_seq_ahead: list[OutboxEntry] = field(default_factory=list)
    answers: list[tuple[int, session_pb2.ServerFrame]] = field(default_factory=list)
    """Answers to `request`, by its ticket."""
    drain_after_s: float | None = None
    """The server asks to reconnect after so many seconds."""
    ending: Ending | None = None


@dataclass(slots=True)
class Taken:
    """What to write now, in this order: the frames, then the sends with their contents from disk."""

    frames: list[session_pb2.ClientFrame] = field(default_factory=list)
    sends: list[tuple[int, OutboxEntry]] = field(default_factory=list)


def disconnected(frame: session_pb2.Disconnect) -> Ending:
    """The ending that a Disconnect means; the range of its code says what to do next."""
    wait_s = frame.reconnect_after_ms / 1000
    if 300 <= frame.code < 400:
        return Ending(Next.STOP, frame.message, frame.code, reason=frame.reason)
    if 100 <= frame.code < 200:
        return Ending(Next.RECONNECT, frame.message, frame.code, wait_s)
    return Ending(Next.BACK_OFF, frame.message, frame.code, wait_s)
