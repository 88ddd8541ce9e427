"""The ports of the cluster's store: rows as owners write them, the log as readers may see it (design §4, §6, ADR 4)."""

from collections.abc import Callable, Sequence
from typing import Protocol

from chatgrpc.core.entries import StoredEvent
from chatgrpc.core.row_store import ReadBucket, ReadHead, StoredBucket, StoredHead, StoreWrite, WriteMark
from chatgrpc.core.visibility import Interval
from chatgrpc.ports.errors import StoreError

__all__ = ["CommittedLog", "Interval", "RowStore", "StoredEvent", "Written"]

Written = Callable[[Sequence[StoreWrite], StoreError | None], None]
"""Called with writes and what became of them: None = safe; an error = nobody knows, and they may be written again, unless it
is a `CannotBeStoredError`."""


class RowStore(Protocol):
    """What the owner of a chat reads and writes.

    Guarantees:

    - Quorum: what was reported as written is found by every read of either port that begins later, through whichever node.
    - A write may land long after it was given up, or never. Writing the same again is harmless; see `core.row_store`.
    - Of two views of one thing the one with the higher seq stays, whatever order they land in; so it is with marks,
      and with the boundaries of one epoch in a bucket.
    - Erasing reaches every row of the erased seq and of those that amend it, of this epoch and of earlier ones, also rows that
      land later; a row of a later epoch is never touched. What is left of a seq stands under the epoch that erased it.
    """

    async def read_head(self, read: ReadHead) -> StoredHead:
        """Reads a chat's committed mark and the view of its state.

        Raises:
            StoreError: it cannot be read now.
            ChatDamagedError: no chat has this id.
        """
        ...

    async def read_bucket(self, read: ReadBucket) -> StoredBucket:
        """Reads the boundaries of a bucket, and all its rows from a seq on, of every epoch.

        Raises:
            StoreError: it cannot be read now.
        """
        ...

    def write(self, writes: Sequence[StoreWrite], written: Written) -> None:
        """Begins to write; returns at once.

        `written` is called on the event loop, perhaps several times, and names each write exactly once. The store gathers what
        it can into fewer trips; there is no order among the writes. A `WriteViews` is written in its own order: members,
        erasures and amendments first, the chat's view last.
        """
        ...

    async def write_marks(self, marks: Sequence[WriteMark]) -> None:
        """Raises committed marks.

        Raises:
            StoreError: some or all were not raised.
        """
        ...


class CommittedLog(Protocol):
    """What readers see: events up to a seq that an owner stated as committed, and the views.

    Every method raises `StoreError` and nothing else when the store fails, and none blocks the event loop.
    """

    async def read_after(self, chat_id: str, after_seq: int, stated_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """Reads events `after_seq < seq <= stated_seq`, oldest first, from the oldest on, without a hole.

        At most `limit`, and no more once they are together larger than `bytes_max` bytes; at least one if there is one.

        Raises:
            StoreError: it cannot be read, or a row that must be there is not there yet.
        """
        ...

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        """Reads events `down_to_seq <= seq < before_seq`, oldest first, the newest of them; `before_seq - 1` was stated.

        At most `limit`, and no more once they are together larger than `bytes_max` bytes; at least one if there is one.

        Raises:
            StoreError: it cannot be read, or a row that must be there is not there yet.
        """
        ...

    async def chat_view(self, chat_id: str) -> bytes:
        """Reads the serialized `chatgrpc.v1.Chat` after the last acknowledged change, or a later one; empty for no chat."""
        ...

    async def intervals_of_user(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[tuple[str, tuple[Interval, ...]]]:
        """Lists a user's chats, present and past, by rising chat id, those above `after_chat_id` (empty = all).

        With `present_only` those that the user is a member of now; what is past is not sent through then, however much it is.
        """
        ...

    async def intervals(self, user_id: str, chat_id: str) -> tuple[Interval, ...]:
        """Reads when a user was a member of a chat, by rising seq; empty for never."""
        ...

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        """Counts the groups that each of the users is a member of now; 0 for a user nobody knows."""
        ...
