"""The contract of `ports.cursors.CursorStore`."""

import itertools

import pytest

from chatgrpc.ports.cursors import Cursor
from tests.contract.stores.engines import Engine

CHAT = "g.AAAAAAAAAAAAAAAAAAAAAA"
OTHER = "d.BBBBBBBBBBBBBBBBBBBBBB"


async def test_nothing_saved_nothing_read(engine: Engine) -> None:
    await engine.cursors.save([])
    assert await engine.cursors.of_device("alice", "phone") == {}


async def test_reads_the_cursors_of_one_device(engine: Engine) -> None:
    await engine.cursors.save(
        [
            Cursor("alice", "phone", CHAT, 3),
            Cursor("alice", "phone", OTHER, 4),
            Cursor("alice", "laptop", CHAT, 5),
            Cursor("bob", "phone", CHAT, 6),
        ]
    )
    assert await engine.cursors.of_device("alice", "phone") == {CHAT: 3, OTHER: 4}
    assert await engine.cursors.of_device("alice", "laptop") == {CHAT: 5}
    assert await engine.cursors.of_device("bob", "phone") == {CHAT: 6}


@pytest.mark.parametrize("order", list(itertools.permutations([3, 9, 5])))
@pytest.mark.parametrize("together", [True, False])
async def test_a_cursor_never_falls(engine: Engine, order: tuple[int, ...], together: bool) -> None:
    cursors = [Cursor("alice", "phone", CHAT, seq) for seq in order]
    for batch in [cursors] if together else [[cursor] for cursor in cursors]:
        await engine.cursors.save(batch)
    assert await engine.cursors.of_device("alice", "phone") == {CHAT: 9}


async def test_those_of_one_device_are_forgotten(engine: Engine) -> None:
    kept = [Cursor("alice", "laptop", CHAT, 5), Cursor("bob", "phone", CHAT, 6)]
    await engine.cursors.save([Cursor("alice", "phone", CHAT, 3), Cursor("alice", "phone", OTHER, 2**40), *kept])
    await engine.cursors.forget("alice", "phone")
    await engine.cursors.forget("alice", "tablet")
    assert await engine.cursors.of_device("alice", "phone") == {}
    for cursor in kept:
        assert await engine.cursors.of_device(cursor.user_id, cursor.device_id) == {CHAT: cursor.acked_seq}
