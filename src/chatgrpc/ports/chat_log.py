"""The port of the ordered history: each chat's log, and the views of it that are written with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Interval:
    """The seqs at which a user was a member: from the event that let them in to the one that took them out."""

    joined_seq: int
    left_seq: int = 0
    """Seq of the event that took them out, the last one they may see; 0 = they are a member."""


@dataclass(frozen=True, slots=True)
class MemberView:
    """One interval of one user in a chat, as the log says after the event it is stored with."""

    user_id: str
    interval: Interval


@dataclass(frozen=True, slots=True)
class ChatView:
    """A chat's state after an event that changed it, and the intervals that the event opened or closed."""

    chat: bytes
    """Serialized `chatgrpc.v1.Chat`; its `as_of_seq` is the event's seq."""
    members: tuple[MemberView, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One event to append."""

    chat_id: str
    seq: int
    epoch: int
    event: bytes
    """Serialized `chatgrpc.v1.ChatEvent`."""
    amends_seq: int = 0
    """Seq of the message whose content this event's content replaces (an edit); erased together with it. 0 = none."""
    erases_seq: int = 0
    """Seq of the message whose stored content, and that of all that amend it, this event erases; 0 = none."""
    view: ChatView | None = None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event read back."""

    seq: int
    event: bytes
    """Serialized `chatgrpc.v1.ChatEvent`; with `ErasedContent` if it was erased."""


@dataclass(frozen=True, slots=True)
class StoredChat:
    """What an owner needs to go on with a chat."""

    chat: bytes
    """Serialized `chatgrpc.v1.Chat` after the last event that changed it."""
    head_seq: int
    """Seq of the last committed event."""


@dataclass(frozen=True, slots=True)
class Membership:
    """One chat of one user, present or past."""

    chat_id: str
    intervals: tuple[Interval, ...]
    """By rising seq; at least one. A user who left and came back has several."""
    head_seq: int
    """Seq of the chat's last committed event."""


class ChatLog(Protocol):
    """Keeps every chat's events in order, for ever.

    Guarantees:

    - `append` is atomic and durable (G1): when it returns, all its entries, their views and erasures are stored and survive the
      loss of the process and of the machine's power; when it raises `StoreUnavailableError`, none is.
    - Reads see every append that returned before the read began, and nothing of one that did not succeed.
    - Every method raises `StoreError` and nothing else when the engine fails, and none blocks the event loop.
    - A page costs the same wherever in the log it lies.
    """

    async def append(self, entries: Sequence[Entry]) -> None:
        """Appends a group of entries, of any chats; entries of one chat stand in order of seq.

        Entry (chat_id, seq) must not exist. Erasing replaces the content of the stored event by `ErasedContent`, keeping
        everything else; a target that does not exist is passed over.

        Raises:
            StoreUnavailableError: nothing was stored.
            OutcomeUnknownError: all or nothing was stored.
        """
        ...

    async def load(self, chat_id: str) -> StoredChat | None:
        """Reads a chat's state and head; None if it has no event."""
        ...

    async def read_after(self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """Reads events `after_seq < seq <= up_to_seq`, oldest first, from the oldest on.

        At most `limit`, and no more once `bytes_max` bytes are passed; at least one if there is one.
        """
        ...

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        """Reads events `down_to_seq <= seq < before_seq`, oldest first, the newest of them.

        At most `limit`, and no more once `bytes_max` bytes are passed; at least one if there is one.
        """
        ...

    async def memberships(self, user_id: str, after_chat_id: str, limit: int) -> list[Membership]:
        """Lists a user's chats, present and past, by rising chat id, those above `after_chat_id` (empty = all)."""
        ...

    async def membership(self, user_id: str, chat_id: str) -> Membership | None:
        """Reads one chat of a user, present or past."""
        ...

    async def count_chats(self, user_ids: Sequence[str]) -> dict[str, int]:
        """Counts the chats that each of the users is a member of now."""
        ...
