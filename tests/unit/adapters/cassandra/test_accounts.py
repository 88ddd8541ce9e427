"""What a revocation writes: a row that is deleted is a tombstone for days, which every read of the user's devices passes."""

from typing import Any, NamedTuple, cast

import pytest

from chatgrpc.adapters.cassandra.accounts import CassandraDeviceStore
from chatgrpc.adapters.cassandra.client import CassandraClient
from chatgrpc.ports.accounts import REVOKED_KEPT_MAX


class Bound(NamedTuple):
    """A statement with its values."""

    query: str
    values: tuple[Any, ...]


class Prepared(NamedTuple):
    """A statement."""

    query: str

    def bind(self, values: tuple[Any, ...]) -> Bound:
        return Bound(self.query, values)


class Client:
    """Has the rows of one user's devices, and notes what is written."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self.written: list[str] = []
        self._rows = rows

    def prepare(self, query: str, *, idempotent: bool = True) -> Prepared:
        return Prepared(query)

    async def read(self, bound: Bound) -> list[tuple[Any, ...]]:
        return self._rows if "registrations" in bound.query else []

    async def write(self, bound: Bound) -> None:
        self.written.append(bound.query.split()[0])


def revoked(number: int, *, was_registered: bool) -> tuple[Any, ...]:
    return f"device{number:03}", "", 1 if was_registered else None, 1, True, 1_000 + number, 1


@pytest.mark.parametrize(
    ("kept", "written"),
    [
        ([True] * REVOKED_KEPT_MAX, []),
        ([False] + [True] * (REVOKED_KEPT_MAX - 1), ["UPDATE", "DELETE"]),
        ([True] * (REVOKED_KEPT_MAX - 1), ["UPDATE"]),
    ],
    ids=["no place", "the place of another", "a place"],
)
async def test_an_id_that_no_device_had_leaves_no_more_than_it_must(kept: list[bool], written: list[str]) -> None:
    client = Client([revoked(number, was_registered=is_real) for number, is_real in enumerate(kept)])
    devices = CassandraDeviceStore(cast("CassandraClient", client))
    assert await devices.revoke("alice", "made-up", 1) is None
    assert client.written == written
