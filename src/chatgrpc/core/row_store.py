"""What the owner of a chat asks of the store of rows.

Requests are values: the shell runs each at QUORUM, and on an error or a timeout runs *the same one again*, as often as it
takes, until it succeeds or the owner's lease is over. They are safe to repeat: a row's key names the epoch, and the bytes of
one (seq, epoch) never change; a view and a mark say the same each time. So does a boundary, until its owner activates the chat
once more and reads another mark: either of the two will do, since what lies between them stands under its epoch.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from chatgrpc.core.entries import Entry
from chatgrpc.core.epochs import Row


@dataclass(frozen=True, slots=True)
class ReadHead:
    """Read the chat's committed mark and the view of its state."""

    chat_id: str


@dataclass(frozen=True, slots=True)
class StoredHead:
    """What `ReadHead` found; zero and empty for a chat that nobody wrote to."""

    mark_seq: int = 0
    """A seq at or below which everything is committed."""
    chat: bytes = b""
    """Serialized Chat after the last change that was acknowledged, or a later one."""


@dataclass(frozen=True, slots=True)
class ReadBucket:
    """Read a bucket's boundaries, and its rows from a seq on."""

    chat_id: str
    bucket: int
    from_seq: int


@dataclass(frozen=True, slots=True)
class StoredBucket:
    """What `ReadBucket` found."""

    rows: list[Row] = field(default_factory=list)
    boundaries: dict[int, int] = field(default_factory=dict)
    """Epoch to the first seq that it rules."""


@dataclass(frozen=True, slots=True)
class WriteRow:
    """Write a row; a row with its key may exist already, with the same bytes."""

    chat_id: str
    bucket: int
    row: Row


@dataclass(frozen=True, slots=True)
class WriteBoundary:
    """Write an epoch's boundary into a bucket."""

    chat_id: str
    bucket: int
    epoch: int
    first_seq: int


@dataclass(frozen=True, slots=True)
class WriteViews:
    """Write what follows from a committed event: views of the chat and of memberships, erasures, what amends what.

    Each carries the event's seq as its version, and an older one never replaces a newer one. The chat's own view is written
    last: where it stands, those of the members stand too. Only events that are committed, with all below them, get here; so
    whatever view the store holds, the log agrees with it.
    """

    entry: Entry


@dataclass(frozen=True, slots=True)
class WriteMark:
    """Write the committed mark. It may fail or come late: a low mark only makes the next owner take over more."""

    chat_id: str
    seq: int


StoreWrite: TypeAlias = WriteRow | WriteBoundary | WriteViews
StoreRead: TypeAlias = ReadHead | ReadBucket
