"""The port of the delivered and read marks."""

from collections.abc import Sequence
from typing import Protocol

from chatgrpc.core.receipts import Mark

__all__ = ["SMALL_CHAT_MARKS_MAX", "Mark", "ReceiptStore"]

SMALL_CHAT_MARKS_MAX = 32
"""Of a chat with more marks than this each user reads only their own (M12)."""


class ReceiptStore(Protocol):
    """Keeps marks as watermarks: a stored mark never falls, whatever order saves arrive in.

    Written lazily, in batches; a crash may lose the last second. That is safe: a mark that is too low rises again with the
    device's next acknowledgement or Hello.
    """

    async def save(self, marks: Sequence[Mark]) -> None:
        """Raises stored marks to these, each of the two numbers by itself; `changed_at_ms` to the greater one."""
        ...

    async def of_chat(self, chat_id: str) -> list[Mark]:
        """Reads the marks of one chat."""
        ...

    async def of_user_chats(self, user_id: str, since_ms: int) -> list[Mark]:
        """Reads all members' marks, changed at or after `since_ms`, of the chats that the user is a member of now.

        Of chats with more than `SMALL_CHAT_MARKS_MAX` marks only the user's own; and their own whenever they changed.
        """
        ...
