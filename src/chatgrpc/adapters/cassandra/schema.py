"""The schema of the keyspace, and how it is made or brought up to date, also when several nodes start at once.

Cassandra does not order changes of the schema: two nodes that create one table at once give it two identities. So one at a time
makes changes, the holder of a lock row, which a conditional write takes and which ends by itself. The lock's own table is given
its identity by us, so that creating it twice is creating the same.
"""

import contextlib
import re
import time
import uuid
from collections.abc import Sequence
from importlib import resources
from typing import Final, NamedTuple

from chatgrpc.adapters.cassandra.client import CassandraClient
from chatgrpc.adapters.cassandra.errors import SchemaError
from chatgrpc.ports.errors import StoreUnavailableError

LOCK_TTL_S: Final = 90
"""How long others wait for a node that died while it changed the schema. It is renewed before each statement, and outlasts the
longest, which is tried again for `PATIENCE_S` and may take `DDL_TIMEOUT_S` even then."""
_WAIT_MAX_S: Final = 3 * LOCK_TTL_S
_LOCK_VERSION: Final = 0
"""The row of the table that is no version but the lock."""

_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.cql")
_COMMENT = re.compile(r"--.*")
_IDENTITIES = uuid.UUID("e2b1c6f2-6f0d-4d0c-9a62-5f6f3c8f4b0e")

_CREATE_KEYSPACE = """
    CREATE KEYSPACE IF NOT EXISTS {keyspace}
    WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': {replication_factor}}"""
_CREATE_TABLE = """
    CREATE TABLE IF NOT EXISTS {keyspace}.schema_migrations (
        version    int PRIMARY KEY,   -- 0 is the lock
        name       text,
        applied_at timestamp,
        holder     text
    ) WITH id = '{id}'"""
_TAKE_LOCK = "INSERT INTO {keyspace}.schema_migrations (version, holder) VALUES (%s, %s) IF NOT EXISTS USING TTL %s"
_RENEW_LOCK = "UPDATE {keyspace}.schema_migrations USING TTL %s SET holder = %s WHERE version = %s IF holder = %s"
_FREE_LOCK = "DELETE FROM {keyspace}.schema_migrations WHERE version = %s IF holder = %s"
_RECORD = "INSERT INTO {keyspace}.schema_migrations (version, name, applied_at) VALUES (%s, %s, toTimestamp(now()))"
_KEYSPACE_EXISTS = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = %s"
_TABLES = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s"
_VERSIONS = "SELECT version FROM {keyspace}.schema_migrations"


class Migration(NamedTuple):
    """One step from a version to the next."""

    version: int
    """The version after it: 1, 2, 3, …"""
    name: str
    statements: tuple[str, ...]
    """CQL with `{keyspace}`; each harmless when it runs again."""


def packaged_migrations() -> list[Migration]:
    """The steps that come with this version of the program, in order."""
    folder = resources.files("chatgrpc.adapters.cassandra") / "migrations"
    found = [
        Migration(int(match[1]), match[2], _statements(file.read_text(encoding="utf-8")))
        for file in folder.iterdir()
        if (match := _FILE_NAME.fullmatch(file.name))
    ]
    found.sort()
    assert [step.version for step in found] == list(range(1, len(found) + 1)), "migrations are numbered without a gap"
    return found


def migrate(client: CassandraClient, replication_factor: int, migrations: Sequence[Migration]) -> None:
    """Makes the keyspace, or brings it to the last version; blocks. Any number of nodes may do so at once.

    Args:
        client: connected.
        replication_factor: of a keyspace that is made.
        migrations: all steps, in order.

    Raises:
        SchemaError: the keyspace belongs to another program, or to a newer version of this one.
        StoreUnavailableError: it could not be done now; what was done of it is no harm.
    """
    _Migrator(client, migrations).run(replication_factor)


class _Migrator:
    """One node that brings the schema to the last version."""

    def __init__(self, client: CassandraClient, migrations: Sequence[Migration]) -> None:
        self._client = client
        self._migrations = migrations
        self._holder = str(uuid.uuid4())

    def run(self, replication_factor: int) -> None:
        if self._is_current():
            return
        self._create_keyspace(replication_factor)
        give_up_at = time.monotonic() + _WAIT_MAX_S
        while not self._take_lock():
            if self._is_current():
                return
            if time.monotonic() > give_up_at:
                raise StoreUnavailableError(f"Cassandra: another node changes the schema since {_WAIT_MAX_S} s")
            self._client.wait()
        try:
            for step in self._migrations[self._version() :]:
                for statement in step.statements:
                    self._renew_lock()
                    self._client.execute(statement)
                self._client.execute(_RECORD, (step.version, step.name))
        finally:
            with contextlib.suppress(StoreUnavailableError):  # it ends by itself, and whoever waits sees that the work is done
                self._client.execute(_FREE_LOCK, (_LOCK_VERSION, self._holder), once=True)

    def _is_current(self) -> bool:
        keyspace, last_version = self._client.keyspace, len(self._migrations)
        if not self._client.execute(_KEYSPACE_EXISTS, (keyspace,)):
            return False
        tables = [name for (name,) in self._client.execute(_TABLES, (keyspace,))]
        if "schema_migrations" not in tables:
            if tables:
                raise SchemaError(f"the keyspace {keyspace} belongs to another program: it has tables that are not ours")
            return False
        version = self._version()
        if version > last_version:
            raise SchemaError(
                f"the keyspace {keyspace} has schema version {version}, and this chatgrpc knows versions up to "
                f"{last_version}: start the newer chatgrpc that wrote it"
            )
        return version == last_version

    def _version(self) -> int:
        return max((version for (version,) in self._client.execute(_VERSIONS)), default=0)

    def _create_keyspace(self, replication_factor: int) -> None:
        self._client.execute(_CREATE_KEYSPACE.replace("{replication_factor}", str(replication_factor)))
        identity = uuid.uuid5(_IDENTITIES, f"{self._client.keyspace}.schema_migrations")
        self._client.execute(_CREATE_TABLE.replace("{id}", str(identity)))

    def _take_lock(self) -> bool:
        taken = self._client.execute(_TAKE_LOCK, (_LOCK_VERSION, self._holder, LOCK_TTL_S))[0]
        # An answer may get lost and the driver ask again: then it is ours, and was there already.
        return bool(taken[0]) or self._holder in taken

    def _renew_lock(self) -> None:
        if not self._client.execute(_RENEW_LOCK, (LOCK_TTL_S, self._holder, _LOCK_VERSION, self._holder))[0][0]:
            raise StoreUnavailableError("Cassandra: another node took over the change of the schema")


def _statements(text: str) -> tuple[str, ...]:
    parts = (part.strip() for part in _COMMENT.sub("", text).split(";"))
    return tuple(part for part in parts if part)
