"""What any session map must do, on every one: in memory, and in a real Redis."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatgrpc.adapters.memory import MemorySessionMap
from chatgrpc.adapters.redis import RedisClient, RedisSessionMap
from chatgrpc.ports.session_map import NODES_PER_DEVICE_MAX, SessionEntry, SessionMap


@pytest.fixture(params=["memory", "redis"])
async def session_map(request: pytest.FixtureRequest) -> AsyncIterator[SessionMap]:
    """An empty session map of each kind."""
    if request.param == "memory":
        yield MemorySessionMap()
        return
    client = RedisClient(request.getfixturevalue("shared_redis").url, "chat")
    async with client.bounded() as redis:
        await redis.flushall()
    yield RedisSessionMap(client)
    await client.close()


ALICE_PHONE = SessionEntry("alice", "phone", "node-1")
ALICE_WEB = SessionEntry("alice", "web", "node-2")
BOB_PHONE = SessionEntry("bob", "phone", "node-1")


async def test_it_begins_empty(session_map: SessionMap) -> None:
    assert await session_map.of_users(["alice", "bob"]) == {}
    assert await session_map.of_users([]) == {}


async def test_one_finds_all_devices_of_each_user_who_has_any(session_map: SessionMap) -> None:
    await session_map.put([ALICE_PHONE, BOB_PHONE, ALICE_WEB])
    found = await session_map.of_users(["alice", "carol", "bob"])
    assert _sets(found) == {"alice": {ALICE_PHONE, ALICE_WEB}, "bob": {BOB_PHONE}}
    assert len(found["alice"]) == 2


async def test_one_who_asks_twice_for_a_user_is_told_once(session_map: SessionMap) -> None:
    await session_map.put([BOB_PHONE])
    assert await session_map.of_users(["bob", "bob"]) == {"bob": [BOB_PHONE]}


async def test_the_entry_of_a_device_that_was_written_last_stands_last(session_map: SessionMap) -> None:
    moved = SessionEntry("alice", "phone", "node-3")
    await session_map.put([ALICE_PHONE])
    await session_map.put([moved])
    assert await session_map.of_users(["alice"]) == {"alice": [ALICE_PHONE, moved]}
    await session_map.put([ALICE_PHONE])
    assert await session_map.of_users(["alice"]) == {"alice": [moved, ALICE_PHONE]}
    await session_map.put([ALICE_PHONE, moved, moved])
    assert await session_map.of_users(["alice"]) == {"alice": [ALICE_PHONE, moved]}


async def test_entries_that_crashed_nodes_left_make_room(session_map: SessionMap) -> None:
    at_nodes = [SessionEntry("alice", "phone", f"node-{number}") for number in range(NODES_PER_DEVICE_MAX + 3)]
    for number, entry in enumerate(at_nodes):
        assert await session_map.put([entry]) == at_nodes[max(0, number - NODES_PER_DEVICE_MAX) : number]
    assert await session_map.of_users(["alice"]) == {"alice": at_nodes[-NODES_PER_DEVICE_MAX:]}


async def test_who_writes_a_device_is_told_which_other_nodes_have_it(session_map: SessionMap) -> None:
    moved = SessionEntry("alice", "phone", "node-3")
    assert await session_map.put([ALICE_PHONE, ALICE_WEB]) == []
    assert await session_map.put([ALICE_PHONE]) == []
    assert await session_map.put([BOB_PHONE, moved, ALICE_WEB]) == [ALICE_PHONE]
    assert await session_map.put([ALICE_PHONE]) == [moved]
    await session_map.remove([moved])
    assert await session_map.put([ALICE_PHONE]) == []


async def test_of_many_nodes_that_write_a_device_at_once_each_is_told_of_those_before(session_map: SessionMap) -> None:
    entries = [SessionEntry("alice", "phone", f"node-{number}") for number in range(NODES_PER_DEVICE_MAX)]
    told = await asyncio.gather(*(session_map.put([entry]) for entry in entries))
    standing = (await session_map.of_users(["alice"]))["alice"]
    assert set(standing) == set(entries)
    for place, entry in enumerate(standing):
        assert told[entries.index(entry)] == standing[:place]


async def test_what_is_removed_is_gone_and_the_rest_stays(session_map: SessionMap) -> None:
    await session_map.put([ALICE_PHONE, ALICE_WEB, BOB_PHONE])
    await session_map.remove([ALICE_PHONE, BOB_PHONE])
    assert await session_map.of_users(["alice", "bob"]) == {"alice": [ALICE_WEB]}


async def test_each_node_removes_its_own_entry_only(session_map: SessionMap) -> None:
    moved = SessionEntry("alice", "phone", "node-3")
    await session_map.put([ALICE_PHONE])
    await session_map.put([moved])
    await session_map.remove([SessionEntry("alice", "phone", "node-2")])
    assert await session_map.of_users(["alice"]) == {"alice": [ALICE_PHONE, moved]}
    await session_map.remove([ALICE_PHONE])
    assert await session_map.of_users(["alice"]) == {"alice": [moved]}


async def test_to_remove_what_is_not_there_does_nothing(session_map: SessionMap) -> None:
    await session_map.put([ALICE_WEB])
    await session_map.remove([ALICE_PHONE, BOB_PHONE, ALICE_PHONE])
    assert await session_map.of_users(["alice", "bob"]) == {"alice": [ALICE_WEB]}


async def test_a_device_that_comes_back_is_found_again(session_map: SessionMap) -> None:
    await session_map.put([ALICE_PHONE])
    await session_map.remove([ALICE_PHONE])
    await session_map.put([ALICE_PHONE])
    assert await session_map.of_users(["alice"]) == {"alice": [ALICE_PHONE]}


async def test_ids_of_every_kind_keep_apart(session_map: SessionMap) -> None:
    entries = [
        SessionEntry(user_id, device_id, node_id)
        for user_id in ("1", "1.", "a_b", "a@b.c+d", "x" * 64)
        for device_id in ("1", "2", "10", "0", "-1", "1.0", "__index", "d" * 64)
        for node_id in ("5f",)
    ]
    await session_map.put(entries)
    found = await session_map.of_users(["1", "1.", "a_b", "a@b.c+d", "x" * 64])
    assert sorted((entry for user in found.values() for entry in user), key=repr) == sorted(entries, key=repr)


async def test_thousands_of_users_are_found_in_one_question(session_map: SessionMap) -> None:
    entries = [SessionEntry(f"user{number}", "phone", f"node-{number % 7}") for number in range(25_000)]
    await session_map.put(entries)
    found = await session_map.of_users([f"user{number}" for number in range(30_000)])
    assert found == {entry.user_id: [entry] for entry in entries}
    await session_map.remove(entries[:24_990])
    assert len(await session_map.of_users([f"user{number}" for number in range(30_000)])) == 10


async def test_many_who_write_at_once_do_not_undo_one_another(session_map: SessionMap) -> None:
    devices = [SessionEntry("alice", f"device{number}", f"node-{number}") for number in range(60)]
    await asyncio.gather(*(session_map.put([device]) for device in devices))
    assert _sets(await session_map.of_users(["alice"])) == {"alice": set(devices)}
    await asyncio.gather(*(session_map.remove([device]) for device in devices[1:]))
    assert await session_map.of_users(["alice"]) == {"alice": devices[:1]}


_ENTRIES = st.lists(
    st.builds(SessionEntry, st.sampled_from(["u", "v"]), st.sampled_from(["1", "2"]), st.sampled_from(["n", "m"])), max_size=4
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.booleans(), _ENTRIES), max_size=8))
async def test_any_writes_leave_what_the_last_word_on_each_entry_says(
    session_map: SessionMap, steps: list[tuple[bool, list[SessionEntry]]]
) -> None:
    await session_map.remove([SessionEntry(user, device, node) for user in "uv" for device in "12" for node in "nm"])
    model: dict[SessionEntry, None] = {}  # the last one written last
    for puts, entries in steps:
        await (session_map.put if puts else session_map.remove)(entries)
        for entry in entries:
            model.pop(entry, None)
            if puts:
                model[entry] = None
    found = [entry for of_user in (await session_map.of_users(["u", "v"])).values() for entry in of_user]
    for user_id in "uv":
        for device_id in "12":
            assert [entry for entry in found if (entry.user_id, entry.device_id) == (user_id, device_id)] == [
                entry for entry in model if (entry.user_id, entry.device_id) == (user_id, device_id)
            ]


def _sets(found: dict[str, list[SessionEntry]]) -> dict[str, set[SessionEntry]]:
    return {user_id: set(entries) for user_id, entries in found.items()}
