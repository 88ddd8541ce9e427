"""Getting erased content out of the write-ahead log."""

import asyncio
import sqlite3

from chatgrpc.adapters.sqlite.connections import BUSY_TIMEOUT_MS
from chatgrpc.adapters.sqlite.writer import Writer

_DELAY_S = 1.0
_TRUNCATE_BUSY_TIMEOUT_MS = 50


class Scrubber:
    """Cuts the write-ahead log to nothing a second after content was erased.

    Erasing overwrites the content in its page, but the log may hold older copies of the page, which stay, also after a
    checkpoint, until something is written over them. One cut serves all erasures of that second. It fails while a reader holds
    an older state of the database, which only another program does for long; then it is tried again every second.
    """

    def __init__(self, writer: Writer, loop: asyncio.AbstractEventLoop) -> None:
        self._writer = writer
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def note_erasure(self) -> None:
        """Content is erased in the transaction under way; called from the writer's thread."""
        self._loop.call_soon_threadsafe(self._schedule)

    def close(self) -> None:
        """Stops; closing the database does away with the log anyway."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(_DELAY_S, self._cut)

    def _cut(self) -> None:
        self._timer = None
        self._writer.upkeep(self._truncate)

    def _truncate(self, db: sqlite3.Connection) -> None:
        busy = 1
        try:
            db.execute(f"PRAGMA busy_timeout = {_TRUNCATE_BUSY_TIMEOUT_MS}")
            busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            if busy:
                self.note_erasure()
