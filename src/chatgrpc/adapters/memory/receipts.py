"""The delivered and read marks in memory."""

from collections.abc import Sequence

from chatgrpc.adapters.memory.chat_log import MemoryChatLog
from chatgrpc.adapters.memory.shelf import Shelf
from chatgrpc.ports.receipts import SMALL_CHAT_MARKS_MAX, Mark


class MemoryReceiptStore:
    """`ports.receipts.ReceiptStore`."""

    def __init__(self, shelf: Shelf, log: MemoryChatLog) -> None:
        self._shelf = shelf
        self._log = log
        self._marks: dict[str, dict[str, Mark]] = {}
        """Chat id to user id to mark."""

    async def save(self, marks: Sequence[Mark]) -> None:
        """See the port."""
        self._shelf.check_open()
        for mark in marks:
            chat = self._marks.setdefault(mark.chat_id, {})
            old = chat.get(mark.user_id, mark)
            chat[mark.user_id] = Mark(
                chat_id=mark.chat_id,
                user_id=mark.user_id,
                delivered_seq=max(old.delivered_seq, mark.delivered_seq),
                read_seq=max(old.read_seq, mark.read_seq),
                changed_at_ms=max(old.changed_at_ms, mark.changed_at_ms),
            )

    async def of_chat(self, chat_id: str) -> list[Mark]:
        """See the port."""
        self._shelf.check_open()
        return list(self._marks.get(chat_id, {}).values())

    async def of_user_chats(self, user_id: str, since_ms: int) -> list[Mark]:
        """See the port."""
        self._shelf.check_open()
        return [
            mark
            for chat_id in self._log.chats_now(user_id)
            for mark in self._shown(chat_id, user_id)
            if mark.user_id == user_id or mark.changed_at_ms >= since_ms
        ]

    def _shown(self, chat_id: str, user_id: str) -> list[Mark]:
        chat = self._marks.get(chat_id, {})
        if len(chat) <= SMALL_CHAT_MARKS_MAX:
            return list(chat.values())
        return [chat[user_id]] if user_id in chat else []
