"""The delivered and read marks in SQLite."""

import json
import sqlite3
from collections.abc import Sequence

from chatgrpc.adapters.sqlite.readers import Readers
from chatgrpc.adapters.sqlite.writer import Writer
from chatgrpc.ports.receipts import SMALL_CHAT_MARKS_MAX, Mark

_MARK_BYTES = 200

# One statement whatever the number of marks; ids and numbers pass through JSON unharmed.
_SAVE = """
    INSERT INTO receipts (chat_id, user_id, delivered_seq, read_seq, changed_at_ms)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(:rows) WHERE true
    ON CONFLICT DO UPDATE SET
        delivered_seq = max(delivered_seq, excluded.delivered_seq),
        read_seq = max(read_seq, excluded.read_seq),
        changed_at_ms = max(changed_at_ms, excluded.changed_at_ms)"""

_OF_CHAT = "SELECT chat_id, user_id, delivered_seq, read_seq, changed_at_ms FROM receipts WHERE chat_id = :chat_id"

_OF_USER_CHATS = """
    WITH mine AS (
        SELECT DISTINCT chat_id FROM members WHERE user_id = :user_id AND left_seq = 0
    ), shown AS MATERIALIZED (
        SELECT chat_id, (SELECT count(*) FROM (
            SELECT 1 FROM receipts WHERE receipts.chat_id = mine.chat_id LIMIT :small_chat_marks_max + 1
        )) <= :small_chat_marks_max AS small
        FROM mine
    )
    SELECT chat_id, user_id, delivered_seq, read_seq, changed_at_ms
    FROM shown JOIN receipts USING (chat_id)
    WHERE user_id = :user_id OR small AND changed_at_ms >= :since_ms"""


class SqliteReceiptStore:
    """`ports.receipts.ReceiptStore`."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def save(self, marks: Sequence[Mark]) -> None:
        """See the port."""
        if marks:
            await self._writer.call(_save, marks, _MARK_BYTES * len(marks))

    async def of_chat(self, chat_id: str) -> list[Mark]:
        """See the port."""
        return await self._read(_OF_CHAT, {"chat_id": chat_id})

    async def of_user_chats(self, user_id: str, since_ms: int) -> list[Mark]:
        """See the port."""
        return await self._read(
            _OF_USER_CHATS, {"user_id": user_id, "since_ms": since_ms, "small_chat_marks_max": SMALL_CHAT_MARKS_MAX}
        )

    async def _read(self, statement: str, which: dict[str, str | int]) -> list[Mark]:
        return await self._readers.read(lambda db: [Mark(*row) for row in db.execute(statement, which).fetchall()])


def _save(db: sqlite3.Connection, calls: Sequence[Sequence[Mark]]) -> list[None]:
    rows = [
        (mark.chat_id, mark.user_id, mark.delivered_seq, mark.read_seq, mark.changed_at_ms) for call in calls for mark in call
    ]
    db.execute(_SAVE, {"rows": json.dumps(rows)})
    return [None] * len(calls)
