"""The schema's version, and how an older file is brought to it."""

import re
import sqlite3
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from chatgrpc.adapters.sqlite.errors import SchemaError

APPLICATION_ID = 0x63_67_70_63
"""Marks a file as ours (`PRAGMA application_id`, SQLite file format, offset 68): "cgpc"."""

_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")


class Migration(NamedTuple):
    """One step from a version to the next."""

    version: int
    """The version after it: 1, 2, 3, …"""
    name: str
    sql: str


def packaged_migrations() -> list[Migration]:
    """The steps that come with this version of the program, in order."""
    folder = resources.files("chatgrpc.adapters.sqlite") / "migrations"
    found = [
        Migration(int(match[1]), match[2], file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if (match := _FILE_NAME.fullmatch(file.name))
    ]
    found.sort()
    assert [step.version for step in found] == list(range(1, len(found) + 1)), "migrations are numbered without a gap"
    return found


def migrate(db: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Brings the database to the last version. Each step is a transaction of its own that also records it.

    The version is `PRAGMA user_version`, which is part of the transaction like any row.

    Raises:
        SchemaError: the file belongs to another program, or to a newer version of this one.
        sqlite3.Error: a step failed; the database is as it was before the step.
    """
    version = schema_version(db)
    ours = _pragma(db, "application_id") == APPLICATION_ID
    if not ours and (version or db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]):
        raise SchemaError("the file is a database of another program")
    if version > len(migrations):
        raise SchemaError(
            f"the database has schema version {version}, and this chatgrpc knows versions up to {len(migrations)}: "
            "start the newer chatgrpc that wrote it"
        )
    for step in migrations[version:]:
        try:
            db.executescript(
                f"BEGIN IMMEDIATE;\n{step.sql}\n"
                f"PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {step.version};\nCOMMIT;"
            )
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def schema_version(db: sqlite3.Connection) -> int:
    """The version of the schema in the file; 0 = nothing is there yet."""
    return _pragma(db, "user_version")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    value = db.execute(f"PRAGMA {name}").fetchone()[0]
    assert isinstance(value, int)
    return value
