"""What SQLite says, in the ports' words."""

import sqlite3

from chatgrpc.ports.errors import OutcomeUnknownError, StoreError, StoreUnavailableError

_NOTHING_STORED_AT_COMMIT = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CONSTRAINT}
)
"""At COMMIT these come before the record that ends the transaction is whole in the write-ahead log; others may come after it,
from making it durable, and then recovery after a crash may still find it."""

_PRIMARY_CODE = 0xFF


class StoreInUseError(StoreUnavailableError):
    """Another process has this store open."""


class SchemaError(StoreError):
    """The file is not a chatgrpc database, or was written by a newer chatgrpc than this one."""


def unavailable(error: sqlite3.Error) -> StoreUnavailableError:
    """An error before or outside of COMMIT: nothing was stored. SQLite's messages name tables, not values."""
    return StoreUnavailableError(_described(error))


def refused(error: sqlite3.Error) -> StoreError:
    """What SQLite says of one call, and not of the file as a whole: nothing of that call was stored."""
    return StoreError(_described(error))


def failed_commit(error: sqlite3.Error) -> StoreError:
    """An error of COMMIT itself."""
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE
    kind = StoreUnavailableError if code in _NOTHING_STORED_AT_COMMIT else OutcomeUnknownError
    return kind(_described(error))


def _described(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"SQLite: {error} ({name})"
