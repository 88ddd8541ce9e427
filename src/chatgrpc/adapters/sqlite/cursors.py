"""What each device has acknowledged, in SQLite."""

import json
import sqlite3
from collections.abc import Sequence

from chatgrpc.adapters.sqlite.readers import Readers
from chatgrpc.adapters.sqlite.writer import Writer
from chatgrpc.ports.cursors import Cursor

_CURSOR_BYTES = 200

_SAVE = """
    INSERT INTO cursors (user_id, device_id, chat_id, acked_seq)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(:rows) WHERE true
    ON CONFLICT DO UPDATE SET acked_seq = max(acked_seq, excluded.acked_seq)"""

_OF_DEVICE = """
    SELECT json_group_object(chat_id, acked_seq) FROM cursors WHERE user_id = :user_id AND device_id = :device_id"""


class SqliteCursorStore:
    """`ports.cursors.CursorStore`."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def save(self, cursors: Sequence[Cursor]) -> None:
        """See the port."""
        if cursors:
            await self._writer.call(_save, cursors, _CURSOR_BYTES * len(cursors))

    async def forget(self, user_id: str, device_id: str) -> None:
        """See the port."""
        await self._writer.call(_forget, (user_id, device_id))

    async def of_device(self, user_id: str, device_id: str) -> dict[str, int]:
        """See the port."""
        which = {"user_id": user_id, "device_id": device_id}

        def query(db: sqlite3.Connection) -> dict[str, int]:
            found: dict[str, int] = json.loads(db.execute(_OF_DEVICE, which).fetchone()[0])
            return found

        return await self._readers.read(query)


def _forget(db: sqlite3.Connection, calls: Sequence[tuple[str, str]]) -> list[None]:
    db.executemany("DELETE FROM cursors WHERE user_id = ? AND device_id = ?", calls)
    return [None] * len(calls)


def _save(db: sqlite3.Connection, calls: Sequence[Sequence[Cursor]]) -> list[None]:
    rows = [(cursor.user_id, cursor.device_id, cursor.chat_id, cursor.acked_seq) for call in calls for cursor in call]
    db.execute(_SAVE, {"rows": json.dumps(rows)})
    return [None] * len(calls)
