"""The embedded owner's epoch in SQLite."""

import sqlite3
from collections.abc import Sequence

from chatgrpc.adapters.sqlite.writer import Writer

_NEXT = """
    INSERT INTO epochs (only, epoch) VALUES (1, 1)
    ON CONFLICT DO UPDATE SET epoch = epoch + 1
    RETURNING epoch"""


class SqliteEpochCounter:
    """`ports.epochs.EpochCounter`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def next_epoch(self) -> int:
        """See the port."""
        return await self._writer.call(_next_epochs, None)


def _next_epochs(db: sqlite3.Connection, calls: Sequence[None]) -> list[int]:
    return [db.execute(_NEXT).fetchall()[0][0] for _ in calls]
