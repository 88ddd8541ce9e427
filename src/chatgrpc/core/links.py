"""What nodes say to each other: plain values, which a link carries in any number, and may lose, repeat and reorder.

Writes on their way to an owner and their outcomes are `lanes.Forward` and `lanes.Forwarded`. Nothing here rests on a message
getting through: a write is sent again until it is answered, a lost push is found by the next heartbeat, and the rest (receipts,
typing) may be lost.
"""

from dataclasses import dataclass
from typing import TypeAlias

from chatgrpc.core.lanes import Forward, Forwarded


@dataclass(slots=True)
class Deliver:
    """A committed event for users of the node it is sent to: one copy a node, however many they are. Not to be changed."""

    chat_id: str
    seq: int
    chunk: bytes
    """The event as a pushed frame, spliced into each stream as it is."""
    user_ids: tuple[str, ...]
    """Members at this seq who have a device on that node."""
    left_user_id: str
    """For whom of them it is the last event of the chat; empty for nobody."""
    changes_members: bool
    """Someone came in or left by it."""
    after_seq: int = 0
    """The last event of the chat that the sender delivered to that node and has no confirmation for; 0 = none. A node that does
    not have it has missed it, though perhaps none of its users gets both."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The heartbeat of a link, from an owner: committed heads of chats whose last push to this edge is not confirmed."""

    heads: dict[str, int]
    """Chat id to seq."""


@dataclass(frozen=True, slots=True)
class HeadsHeard:
    """The edge's answer to `Heads`."""

    heads: dict[str, int]


@dataclass(frozen=True, slots=True)
class AskHead:
    """An edge asks the owner up to where a chat is committed."""

    chat_id: str
    number: int
    """Rises with each question of the node, so that an answer to an earlier one is told from one to this."""


@dataclass(frozen=True, slots=True)
class HeadIs:
    """The owner's answer to `AskHead`."""

    chat_id: str
    number: int
    """Of the question."""
    seq: int
    damaged: bool = False
    """The owner cannot tell, nor will it soon: what is stored of the chat cannot be right."""


@dataclass(frozen=True, slots=True)
class AskMembers:
    """An edge asks the owner who is in a chat."""

    chat_id: str
    number: int


@dataclass(frozen=True, slots=True)
class MembersAre:
    """The owner's answer to `AskMembers`; nobody for a chat that does not exist, or is too large to show who is there."""

    chat_id: str
    number: int
    user_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RaiseMark:
    """An edge tells the owner that a member's marks rose, and from where; the owner knows whom that concerns."""

    chat_id: str
    user_id: str
    delivered_seq: int
    read_seq: int
    delivered_from_seq: int
    read_from_seq: int


@dataclass(frozen=True, slots=True)
class ShowReceipt:
    """An owner tells a node how far a member is, for these users of it."""

    chat_id: str
    user_id: str
    delivered_seq: int
    read_seq: int
    to_user_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TellTyping:
    """An edge tells the owner that a member is typing; `kind` is a `chatgrpc.v1.TypingKind`."""

    chat_id: str
    user_id: str
    kind: int


@dataclass(frozen=True, slots=True)
class ShowTyping:
    """An owner tells a node that a member is typing, for these users of it."""

    chat_id: str
    user_id: str
    kind: int
    to_user_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EndStream:
    """A node asks another to end a device's stream; `code` is a `chatgrpc.v1.DisconnectCode`."""

    user_id: str
    device_id: str
    code: int
    connection_number: int = 0
    """Of the stream that takes its place, if the device says it."""


@dataclass(frozen=True, slots=True)
class EndStreamHeard:
    """A node confirms an `EndStream`: the device has no such stream there any more."""

    user_id: str
    device_id: str
    code: int


@dataclass(frozen=True, slots=True)
class Load:
    """A node tells how busy it is."""

    streams: int


Message: TypeAlias = (
    Forward
    | Forwarded
    | Deliver
    | Heads
    | HeadsHeard
    | AskHead
    | HeadIs
    | AskMembers
    | MembersAre
    | RaiseMark
    | ShowReceipt
    | TellTyping
    | ShowTyping
    | EndStream
    | EndStreamHeard
    | Load
)

CONTROL = (RaiseMark, ShowReceipt, TellTyping, ShowTyping, AskMembers, MembersAre, Load)
"""What a link that is behind drops before anything else."""
