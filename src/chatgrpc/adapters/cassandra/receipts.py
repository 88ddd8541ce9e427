"""The delivered and read marks in Cassandra."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from chatgrpc.adapters.cassandra.batches import Batches
from chatgrpc.adapters.cassandra.client import CassandraClient
from chatgrpc.core.ids import is_chat_id
from chatgrpc.ports.receipts import SMALL_CHAT_MARKS_MAX, Mark

_CHATS_PER_READ: Final = 20
_READS_AT_ONCE: Final = 8

_COLUMNS = "chat_id, user_id, delivered_seq, read_seq, changed_at_ms"


class CassandraReceiptStore:
    """`ports.receipts.ReceiptStore`. Each cell's timestamp is its own value, so Cassandra keeps the greater one."""

    def __init__(self, client: CassandraClient, batches: Batches) -> None:
        """Prepares its statements, which blocks."""
        self._client = client
        self._batches = batches
        self._put = [
            client.prepare(
                f"UPDATE {{keyspace}}.receipts USING TIMESTAMP ? SET {column} = ? WHERE chat_id = ? AND user_id = ?"  # noqa: S608
            )
            for column in ("delivered_seq", "read_seq", "changed_at_ms")
        ]
        self._of_chat = client.prepare(f"SELECT {_COLUMNS} FROM {{keyspace}}.receipts WHERE chat_id = ?")  # noqa: S608
        self._of_chats = client.prepare(
            f"SELECT {_COLUMNS} FROM {{keyspace}}.receipts WHERE chat_id IN ? PER PARTITION LIMIT ?"  # noqa: S608
        )
        self._own_of_chats = client.prepare(
            f"SELECT {_COLUMNS} FROM {{keyspace}}.receipts WHERE chat_id IN ? AND user_id = ?"  # noqa: S608
        )
        # The store looks through what is past, and does not send it.
        self._chats_of_user = client.prepare(
            "SELECT chat_id FROM {keyspace}.members WHERE user_id = ? AND left_seq = 0 ALLOW FILTERING"
        )

    async def save(self, marks: Sequence[Mark]) -> None:
        """See the port."""
        await self._batches.write([statement for mark in marks for statement in self._bound(mark)])

    async def of_chat(self, chat_id: str) -> list[Mark]:
        """See the port."""
        return _marks(await self._client.read(self._of_chat.bind((chat_id,))))

    async def of_user_chats(self, user_id: str, since_ms: int) -> list[Mark]:
        """See the port."""
        memberships = await self._client.read(self._chats_of_user.bind((user_id,)))
        # What is no chat's id may be none that the store takes, and would cost the marks of all that are.
        chat_ids = sorted({chat_id for (chat_id,) in memberships if is_chat_id(chat_id)})
        turns = asyncio.Semaphore(_READS_AT_ONCE)

        async def of_chats(some: list[str]) -> list[Mark]:
            async with turns:
                return await self._shown(user_id, some)

        parts = await asyncio.gather(
            *(of_chats(chat_ids[start : start + _CHATS_PER_READ]) for start in range(0, len(chat_ids), _CHATS_PER_READ))
        )
        return [mark for part in parts for mark in part if mark.user_id == user_id or mark.changed_at_ms >= since_ms]

    async def _shown(self, user_id: str, chat_ids: list[str]) -> list[Mark]:
        """The marks of small chats, and of the others the user's own."""
        marks = _marks(await self._client.read(self._of_chats.bind((chat_ids, SMALL_CHAT_MARKS_MAX + 1))))
        counts: dict[str, int] = {}
        for mark in marks:
            counts[mark.chat_id] = counts.get(mark.chat_id, 0) + 1
        large = [chat_id for chat_id, count in counts.items() if count > SMALL_CHAT_MARKS_MAX]
        own = _marks(await self._client.read(self._own_of_chats.bind((large, user_id)))) if large else []
        return [mark for mark in marks if counts[mark.chat_id] <= SMALL_CHAT_MARKS_MAX] + own

    def _bound(self, mark: Mark) -> Iterable[Any]:
        for statement, value in zip(self._put, (mark.delivered_seq, mark.read_seq, mark.changed_at_ms), strict=True):
            yield statement.bind((value, value, mark.chat_id, mark.user_id))


def _marks(rows: Iterable[tuple[Any, ...]]) -> list[Mark]:
    return [
        Mark(chat_id, user_id, delivered_seq or 0, read_seq or 0, changed_at_ms or 0)  # a cell may be late
        for chat_id, user_id, delivered_seq, read_seq, changed_at_ms in rows
    ]
