"""Connections to the database file, set up for what they are used for."""

import sqlite3
from pathlib import Path

BUSY_TIMEOUT_MS = 5_000
"""Another program may look into the file (`sqlite3` on the command line); wait for it rather than fail."""
_WRITER_CACHE_KIB = 32 * 1024
_READER_CACHE_KIB = 8 * 1024
_CHECKPOINT_PAGES = 1_000
"""A commit that fills the write-ahead log to 4 MB also copies it into the file. A thread of its own that did so once a second
made fewer and larger copies, which held up commits for longer (measured: p99.9 15 ms instead of 5): it is one disk."""
_WAL_KEPT_BYTES = 32 * 1024 * 1024
"""A write-ahead log that grew, because a reader held an old state, is cut back to this when it starts over."""


def open_writer(path: Path) -> sqlite3.Connection:
    """Opens, or creates, the database for the one thread that writes.

    A commit is in the write-ahead log and flushed to the disk when it returns (synchronous=FULL, "WAL mode is always
    consistent with synchronous=NORMAL, but loses durability": SQLite documentation of the pragma). Erased bytes are
    overwritten, not only released (secure_delete).
    """
    db = _connect(f"{path.absolute().as_uri()}?mode=rwc")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = ON")
    db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")
    db.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
    return db


def open_reader(path: Path) -> sqlite3.Connection:
    """Opens the database for reading; each statement sees one state of it, the last one committed."""
    db = _connect(f"{path.absolute().as_uri()}?mode=ro")
    db.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
    return db


def _connect(uri: str) -> sqlite3.Connection:
    # Transactions are begun by name; each connection is handed to one thread and used by no other after that.
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256)
    db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    db.text_factory = _text
    return db


def _text(stored: bytes) -> str:
    """A text that is damaged is shown as one, and does not make unreadable what stands beside it."""
    return stored.decode(errors="replace")
