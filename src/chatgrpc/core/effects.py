"""What a session wants done: the effects that it returns and its shell runs."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

from chatgrpc.core.disconnect import Ended
from chatgrpc.core.entries import Membership
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, session_pb2


@dataclass(frozen=True, slots=True)
class Admit:
    """Verify the token, register the device, read the user's chats; then call `admitted` or `end`."""

    token: str
    device_id: str
    device_name: str
    sync_token: str
    ephemeral: bool = False
    """See `Hello.ephemeral`."""
    held: Set[str] = frozenset()
    """Chats of which the device says what it holds."""
    at_head: bool = False
    """All others begin with their next event."""


@dataclass(frozen=True, slots=True)
class VerifyToken:
    """Verify a newer token; then call `token_verified`."""

    request_id: int
    token: str


@dataclass(slots=True)
class Submit:
    """Hand the write to the chat's owner; then call `answered`. Not to be changed; see `Write`."""

    request_id: int
    write: Write


@dataclass(frozen=True, slots=True)
class FetchPage:
    """Read a page of history as this user may see it; then call `page_read`."""

    request_id: int
    request: session_pb2.FetchHistory


@dataclass(slots=True)
class Marked:
    """The device has events up to `delivered_seq`, and its user has read up to `read_seq`; 0 = no news.

    Not to be changed; see `Write`.
    """

    chat_id: str
    delivered_seq: int
    read_seq: int


@dataclass(frozen=True, slots=True)
class ShowTyping:
    """Tell the other members."""

    chat_id: str
    kind: session_pb2.TypingKind.ValueType


@dataclass(frozen=True, slots=True)
class Watch:
    """The session watches the presence of the members of these chats, and of no others."""

    chat_ids: tuple[str, ...]
    peer_user_ids: tuple[str, ...] = ()
    """Users whose direct chat is on the screen too, whether it is made or not: who does the same sees that this one does."""


@dataclass(frozen=True, slots=True)
class End:
    """Flush the output, which ends with a Disconnect, and end the stream."""

    ended: Ended


Effect: TypeAlias = Admit | VerifyToken | Submit | FetchPage | Marked | ShowTyping | Watch | End
NOTHING: Sequence[Effect] = ()


@dataclass(frozen=True, slots=True)
class Admission:
    """What `Admit` found."""

    user_id: str
    token_expires_at_ms: int
    memberships: list[Membership]
    acked: Mapping[str, int]
    """The device's acknowledged seqs by chat."""
    receipts: Iterable[chat_pb2.Receipt]
    """Marks that changed since the Hello's sync_token."""
    sync_token: str
    unknown: Sequence[str] = ()
    """Chats of the user of which nothing could be read in time."""
