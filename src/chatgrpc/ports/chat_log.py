"""The port of the ordered history: each chat's log, and the views of it that are written with it."""

from collections.abc import Sequence
from typing import Protocol

from chatgrpc.core.entries import ChatView, Entry, Membership, MemberView, StoredChat, StoredEvent
from chatgrpc.core.visibility import Interval

__all__ = ["ChatLog", "ChatReader", "ChatView", "Entry", "Interval", "MemberView", "Membership", "StoredChat", "StoredEvent"]


class ChatReader(Protocol):
    """Reads every chat's committed events in order, and the views of them.

    Guarantees:

    - Reads see every event that was acknowledged before the read began, and nothing that is not committed.
    - Every method raises `StoreError` and nothing else when the engine fails, and none blocks the event loop.
    - A page costs the same wherever in the log it lies.
    """

    async def load(self, chat_id: str) -> StoredChat | None:
        """Reads a chat's state and head; None if it has no event.

        The state is empty if no event was stored with a view.
        """
        ...

    async def read_after(self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """Reads events `after_seq < seq <= up_to_seq`, oldest first, from the oldest on.

        At most `limit`, and no more once they are together larger than `bytes_max` bytes; at least one if there is one.
        """
        ...

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        """Reads events `down_to_seq <= seq < before_seq`, oldest first, the newest of them.

        At most `limit`, and no more once they are together larger than `bytes_max` bytes; at least one if there is one.
        """
        ...

    async def memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[Membership]:
        """Lists a user's chats, present and past, by rising chat id, those above `after_chat_id` (empty = all).

        With `present_only` those that the user is a member of now; what is past is not sent through then, however much it is.
        A chat that cannot be read has no interval, and so shows nothing. From the first on (empty `after_chat_id`) this fails
        if no chat can be read for want of an answer: who has chats must not seem to have none.
        """
        ...

    async def readable_memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> tuple[list[Membership], list[str]]:
        """The same for a device that comes: what can be read at once, and the ids of chats that are to be read later.

        Both together are the chats above `after_chat_id`; fewer than `limit` if there are no more.
        """
        ...

    async def membership(self, user_id: str, chat_id: str) -> Membership | None:
        """Reads one chat of a user, present or past.

        For who never was a member it costs the same whether or not there is such a chat; so does `has_been_member`.
        """
        ...

    async def past_membership(self, user_id: str, chat_id: str) -> Membership | None:
        """Reads one chat that the user was a member of, for a device that comes; None if they are one, or never were."""
        ...

    async def has_been_member(self, user_id: str, chat_id: str) -> bool:
        """Reads whether the user is a member, or was one."""
        ...

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        """Counts the groups that each of the users is a member of now; 0 for a user nobody knows."""
        ...


class ChatLog(ChatReader, Protocol):
    """Keeps every chat's events in order, for ever, for one owner of all chats.

    `append` is atomic and durable (G1): when it returns, all its entries, their views and erasures are stored and survive the
    loss of the process and of the machine's power; when it raises anything but `OutcomeUnknownError`, none is.
    """

    async def append(self, entries: Sequence[Entry]) -> None:
        """Appends a group of entries, of any chats; entries of one chat stand in order of seq.

        Entry (chat_id, seq) must not exist. Erasing replaces the content of the stored event by `ErasedContent`, keeping
        everything else; it reaches only events below the erasing one, and a target that does not exist is passed over.

        Raises:
            StoreUnavailableError: nothing was stored.
            StaleOwnerError: nothing was stored, since one of the entries exists.
            OutcomeUnknownError: all or nothing was stored.
            Exception: nothing was stored, since one of the entries cannot be; those of other chats may be.
        """
        ...
