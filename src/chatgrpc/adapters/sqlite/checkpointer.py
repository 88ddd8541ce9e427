"""Moving pages from the write-ahead log into the database file, away from the commits."""

import sqlite3
import threading
from collections.abc import Callable

from chatgrpc.adapters.sqlite.writer import Upkeep

_INTERVAL_S = 1.0
_WAL_PAGES_SMALL = 1_000
"""4 MB. A log below this that is copied whole starts over by itself."""
_TRUNCATE_BUSY_TIMEOUT_MS = 50
_WRITER_BUSY_TIMEOUT_MS = 5_000


class Checkpointer:
    """Checkpoints about once a second while there are commits, and not at all while there are none.

    SQLite would do it in the commit that fills the log to 1,000 pages, which then takes many times as long as others. Here most
    pages are copied by a thread and connection of its own, while commits go on. That alone would never end under steady
    writing, since the log can start over only when all of it is copied: so the writer copies the little that came meanwhile,
    between two transactions.

    Erased content (`note_erasure`) is overwritten in its page, but the log may hold older copies of that page: after the
    checkpoint the log is cut to nothing, within about two seconds of the erasure, unless a reader holds an old state of the
    database for longer (only another program does); then it is tried again every second.
    """

    def __init__(self, db: sqlite3.Connection, writer_upkeep: Callable[[Upkeep], None]) -> None:
        """Takes the connection over; `start` begins."""
        self._db = db
        self._writer_upkeep = writer_upkeep
        self._changed = threading.Condition()
        self._dirty = False
        self._erased = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="sqlite-checkpointer", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def note_commit(self) -> None:
        """Something was committed; called from the writer's thread."""
        # Without the lock: no more than a glance in most commits.
        if self._dirty:
            return
        with self._changed:
            self._dirty = True
            self._changed.notify()

    def note_erasure(self) -> None:
        """Content is erased in the transaction under way; called from the writer's thread."""
        self._erased = True

    def close(self) -> None:
        """Ends thread and connection. What is not checkpointed is so when the last connection closes."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._db.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closed)
                self._changed.wait_for(lambda: self._closed, timeout=_INTERVAL_S)
                if self._closed:
                    return
                self._dirty = False
            self._checkpoint()

    def _checkpoint(self) -> None:
        try:
            _, wal_pages, _ = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error:
            # The disk is full, say. The log keeps growing, and nothing is lost; the writer's commits tell the operator.
            self.note_commit()
            return
        if self._erased:
            self._writer_upkeep(self._truncate)
        elif wal_pages > _WAL_PAGES_SMALL:
            self._writer_upkeep(_finish)

    def _truncate(self, db: sqlite3.Connection) -> None:
        """Runs in the writer's thread."""
        self._erased = False
        busy = 1
        try:
            db.execute(f"PRAGMA busy_timeout = {_TRUNCATE_BUSY_TIMEOUT_MS}")
            busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            db.execute(f"PRAGMA busy_timeout = {_WRITER_BUSY_TIMEOUT_MS}")
            if busy:
                self._erased = True
                self.note_commit()


def _finish(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA wal_checkpoint(PASSIVE)")
