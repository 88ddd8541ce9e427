"""Connections to the database file, set up for what they are used for."""

import sqlite3
from pathlib import Path

_BUSY_TIMEOUT_MS = 5_000
"""Another program may look into the file (`sqlite3` on the command line); wait for it rather than fail."""
_WRITER_CACHE_KIB = 32 * 1024
_READER_CACHE_KIB = 8 * 1024
_WAL_KEPT_BYTES = 32 * 1024 * 1024
"""A write-ahead log that grew is cut back to this when it starts over. What stays is written over in place, which the file
system makes durable faster than new blocks."""


def open_writer(path: Path) -> sqlite3.Connection:
    """Opens, or creates, the database for the one thread that writes.

    A commit is in the write-ahead log and flushed to the disk when it returns (synchronous=FULL, "WAL mode is always
    consistent with synchronous=NORMAL, but loses durability": SQLite documentation of the pragma). Erased bytes are
    overwritten, not only released (secure_delete). Checkpoints happen elsewhere, so that no commit has to carry one.
    """
    db = _connect(f"{path.absolute().as_uri()}?mode=rwc")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = ON")
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")
    db.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
    return db


def open_reader(path: Path) -> sqlite3.Connection:
    """Opens the database for reading; each statement sees one state of it, the last one committed."""
    db = _connect(f"{path.absolute().as_uri()}?mode=ro")
    db.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
    return db


def open_checkpointer(path: Path) -> sqlite3.Connection:
    """Opens the database for moving pages out of the write-ahead log."""
    db = _connect(f"{path.absolute().as_uri()}?mode=rw")
    db.execute("PRAGMA synchronous = FULL")
    return db


def _connect(uri: str) -> sqlite3.Connection:
    # Transactions are begun by name; each connection is handed to one thread and used by no other after that.
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256)
    db.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    return db
