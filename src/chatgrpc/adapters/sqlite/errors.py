"""What SQLite says, in the ports' words."""

import sqlite3
from typing import TypeAlias

from chatgrpc.ports.errors import OutcomeUnknownError, StoreError, StoreUnavailableError

_NOTHING_STORED_AT_COMMIT = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CONSTRAINT}
)
"""At COMMIT these come before the record that ends the transaction is whole in the write-ahead log; others may come after it,
from making it durable, and then recovery after a crash may still find it."""

_PRIMARY_CODE = 0xFF

ENGINE_ERRORS = (sqlite3.Error, MemoryError)
"""What SQLite raises: of memory that it did not get Python makes its own error."""
EngineError: TypeAlias = sqlite3.Error | MemoryError


class StoreInUseError(StoreUnavailableError):
    """Another process has this store open."""


class SchemaError(StoreError):
    """The file is not a chatgrpc database, or was written by a newer chatgrpc than this one."""


def is_of_the_file(error: Exception) -> bool:
    """Whether an error before COMMIT is none of a single call's: disk full, I/O error, lock, no memory, no database at all.

    A file that is corrupt is not counted: it may be so in one chat's pages, and well in all others.
    """
    if isinstance(error, sqlite3.OperationalError | MemoryError):
        return True
    return isinstance(error, sqlite3.Error) and _primary_code(error) == sqlite3.SQLITE_NOTADB


def unavailable(error: EngineError) -> StoreUnavailableError:
    """An error before or outside of COMMIT: nothing was stored. SQLite's messages name tables, not values."""
    return StoreUnavailableError(_described(error))


def refused(error: EngineError) -> StoreError:
    """What SQLite says of one call, and not of the file as a whole: nothing of that call was stored."""
    return StoreError(_described(error))


def failed_commit(error: EngineError) -> StoreError:
    """An error of COMMIT itself."""
    kind = StoreUnavailableError if _primary_code(error) in _NOTHING_STORED_AT_COMMIT else OutcomeUnknownError
    return kind(_described(error))


def _primary_code(error: EngineError) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & _PRIMARY_CODE


def _described(error: EngineError) -> str:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"SQLite: {error} ({name})"
