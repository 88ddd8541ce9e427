"""What the sequencer is asked to commit."""

from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import Message

from chatgrpc.v1 import content_pb2

_Part = TypeVar("_Part", bound=Message)


@dataclass(slots=True)
class Write:
    """One event that a user wants in a chat's log: a message, or a change of the chat.

    Not to be changed, but for its last four fields, which the session, the edge and the owner set as they get it. It is not
    frozen because one is made for every message, and a frozen one takes five times as long; so it is with the other records on
    a message's way.
    """

    chat_id: str
    sender_user_id: str
    content: content_pb2.Content
    """What the sender sends. For a change of the chat the arm that describes it (`members_added`, `role_changed`, …); the
    sequencer checks whether the sender may, and completes it."""
    client_message_id: bytes
    """16 bytes; (sender, client_message_id) is committed once (G3)."""
    seen_seq: int | None
    """`WriteKey.seen_seq`. None for an id that the server made itself: nobody repeats it but an edge, which asks for the head
    before it sends the write to an owner; so an owner that takes None was given it once. Edges that speak version 1 on links do
    not ask: what they repeat to the next owner may be committed twice."""
    sender_device_id: str = ""
    peer_user_id: str = ""
    """The other user, where the write may create the direct chat with them; empty otherwise."""
    join_token: str = ""
    """`JoinLink.token`, with content `join_requested`."""
    answers_request: bool = False
    """With content `members_added`: only if the user waits to be let in. The owner judges it, after earlier tries were looked
    for, so that a repetition gets its first result whatever has happened since."""
    stream_id: str = field(default="", compare=False)
    """The stream that it came on; empty for a call of its own. What comes on one keeps its order within the chat (M7)."""
    unknown_checked: bool = field(default=False, compare=False)
    """An edge has found `check_unknown_fields` to hold of the content."""
    size_bytes: int = field(default=0, compare=False)
    """Of the content, as its stream counts it."""
    arrival: int = field(default=0, compare=False)
    """Its number among all that the chat's owner got, which gives it; rises with each try."""


def copied(part: _Part) -> _Part:
    """A content, or another part of a message, that stands by itself: else it keeps all of that in memory while it waits."""
    copy = type(part)()
    copy.CopyFrom(part)
    return copy
