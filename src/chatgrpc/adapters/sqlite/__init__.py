"""Ports over one SQLite file, for one process."""

from chatgrpc.adapters.sqlite.errors import SchemaError, StoreInUseError
from chatgrpc.adapters.sqlite.store import SqliteStore

__all__ = ["SchemaError", "SqliteStore", "StoreInUseError"]
