"""What the session map does when Redis loses its data, restarts, is gone, or does not answer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest

from chatgrpc.adapters.redis import RedisClient, RedisSessionMap
from chatgrpc.adapters.redis import client as client_module
from chatgrpc.adapters.redis.client import CONNECTIONS_MAX, REPLY_TIMEOUT_S
from chatgrpc.adapters.redis.session_map import KEPT_S
from chatgrpc.ports.session_map import SessionEntry, SessionMapUnavailableError
from tests.support.services import RedisServer

PHONE = SessionEntry("alice", "phone", "node-1")
WEB = SessionEntry("alice", "web", "node-2")
GIVE_UP_S = 30 * REPLY_TIMEOUT_S
"""Far above any bound, so that a busy machine fails no test; without a bound a test would hang."""


@pytest.fixture
async def client(own_redis: RedisServer) -> AsyncIterator[RedisClient]:
    client = RedisClient(own_redis.url, "chat")
    yield client
    await client.close()


@pytest.fixture
def session_map(client: RedisClient) -> RedisSessionMap:
    return RedisSessionMap(client)


async def test_a_session_without_devices_leaves_no_key(session_map: RedisSessionMap, client: RedisClient) -> None:
    await session_map.put([PHONE, WEB])
    async with client.bounded() as redis:
        assert json.loads(str(await redis.get("chat:session:alice"))) == {"phone": ["node-1"], "web": ["node-2"]}
        assert 0 < await redis.ttl("chat:session:alice") <= KEPT_S
        await session_map.remove([WEB, PHONE])
        assert await redis.dbsize() == 0


async def test_clusters_share_a_redis(session_map: RedisSessionMap, own_redis: RedisServer) -> None:
    await session_map.put([PHONE])
    client = RedisClient(own_redis.url, "other")
    try:
        other = RedisSessionMap(client)
        assert await other.of_users(["alice"]) == {}
        await other.put([WEB])
    finally:
        await client.close()
    assert await session_map.of_users(["alice"]) == {"alice": [PHONE]}


async def test_lost_data_is_written_back(session_map: RedisSessionMap, client: RedisClient) -> None:
    await session_map.put([PHONE])
    async with client.bounded() as redis:
        await redis.flushall()
    assert await session_map.of_users(["alice"]) == {}
    await session_map.remove([WEB])
    await session_map.put([PHONE])
    assert await session_map.of_users(["alice"]) == {"alice": [PHONE]}


async def test_scripts_that_redis_forgot_run_all_the_same(session_map: RedisSessionMap, client: RedisClient) -> None:
    await session_map.put([PHONE])
    async with client.bounded() as redis:
        await redis.script_flush("SYNC")
    await session_map.remove([PHONE])
    assert await session_map.of_users(["alice"]) == {}


async def test_after_a_restart_nothing_fails(session_map: RedisSessionMap, own_redis: RedisServer) -> None:
    # Every connection is open, and each will find itself broken.
    await asyncio.gather(*(session_map.put([PHONE]) for _ in range(3 * CONNECTIONS_MAX)))
    own_redis.kill()
    own_redis.start()
    found = await asyncio.gather(*(session_map.of_users(["alice"]) for _ in range(3 * CONNECTIONS_MAX)))
    assert found == [{}] * 3 * CONNECTIONS_MAX
    await session_map.put([WEB])
    assert await session_map.of_users(["alice"]) == {"alice": [WEB]}


async def test_without_redis_each_method_says_so_and_with_it_all_go_on(
    session_map: RedisSessionMap, own_redis: RedisServer
) -> None:
    await session_map.put([PHONE])
    own_redis.kill()
    await _all_fail(session_map)
    own_redis.start()
    await session_map.put([PHONE])
    assert await session_map.of_users(["alice"]) == {"alice": [PHONE]}


async def test_a_redis_that_does_not_answer_is_given_up(session_map: RedisSessionMap, own_redis: RedisServer) -> None:
    await session_map.put([PHONE])
    own_redis.process.pause()
    try:
        began_s = time.monotonic()
        await _all_fail(session_map)
        # More than there are connections: those that wait for one are given up as well.
        crowd = (session_map.of_users(["alice"]) for _ in range(5 * CONNECTIONS_MAX))
        outcomes = await asyncio.wait_for(asyncio.gather(*crowd, return_exceptions=True), GIVE_UP_S)
        assert {type(outcome) for outcome in outcomes} == {SessionMapUnavailableError}
        assert time.monotonic() - began_s >= REPLY_TIMEOUT_S
    finally:
        own_redis.process.resume()
    await session_map.put([PHONE])
    assert await session_map.of_users(["alice"]) == {"alice": [PHONE]}


async def test_who_gives_up_waiting_gets_nobody_elses_answer(session_map: RedisSessionMap, own_redis: RedisServer) -> None:
    users = [SessionEntry(f"user{number}", "phone", f"node-{number}") for number in range(200)]
    await session_map.put(users)

    async def ask(entry: SessionEntry) -> bool:
        return await session_map.of_users([entry.user_id]) == {entry.user_id: [entry]}

    for turn in range(10):
        asked = [asyncio.create_task(ask(entry)) for entry in users]
        await asyncio.sleep(0.001 * turn)
        for task in asked[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(outcome is True or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert all(outcome is True for outcome in outcomes[1::2])


async def test_a_wrong_password_is_an_error_that_does_not_tell_it(own_redis: RedisServer) -> None:
    client = RedisClient(own_redis.url.replace("//", "//someone:hunter2@"), "chat")
    with pytest.raises(SessionMapUnavailableError) as raised:
        await RedisSessionMap(client).put([PHONE])
    assert "hunter2" not in str(raised.value)
    await client.close()


async def test_a_full_redis_is_an_error(session_map: RedisSessionMap, client: RedisClient) -> None:
    await session_map.put([PHONE])
    async with client.bounded() as redis:
        await redis.config_set("maxmemory", "1")
    with pytest.raises(SessionMapUnavailableError, match="maxmemory"):
        await session_map.put([WEB])
    assert await session_map.of_users(["alice"]) == {"alice": [PHONE]}


async def _all_fail(session_map: RedisSessionMap) -> None:
    with pytest.raises(SessionMapUnavailableError):
        await asyncio.wait_for(session_map.put([PHONE]), GIVE_UP_S)
    with pytest.raises(SessionMapUnavailableError):
        await asyncio.wait_for(session_map.remove([PHONE]), GIVE_UP_S)
    with pytest.raises(SessionMapUnavailableError):
        await asyncio.wait_for(session_map.of_users(["alice"]), GIVE_UP_S)


# What others may have written.

POISON = [
    b"garbage",
    b"",
    b"\xff\xfe\xfd",
    b"[]",
    b"17",
    b"null",
    b'"text"',
    b'{"phone": "node-1"}',
    b'{"phone": {"a": 1}, "web": 5, "tablet": null}',
    b'{"phone": [1, null, {}, ["node"]]}',
    b'{"phone": [1e999], "web": [-1e999, NaN]}',
    b'{"web": [' + b"[" * 900 + b"]" * 900 + b"]}",
    b"[" * 100_000,
    b'{"phone": ["' + b"x" * 1_000_000 + b'"]}',
    b'{"web": [1, "node\xff"]}',
    b'{"phone": ["\\ud800"], "\\udfff": ["node-1"]}',
    b'{"phone": ["no node", ""], "": ["node-1"]}',
]


@pytest.mark.parametrize("value", POISON, ids=lambda value: repr(value[:20]))
async def test_what_is_no_entry_is_passed_over_and_written_over(
    session_map: RedisSessionMap, client: RedisClient, value: bytes
) -> None:
    bob = SessionEntry("bob", "phone", "node-1")
    await session_map.put([bob])
    async with client.bounded() as redis:
        await redis.set("chat:session:alice", value)
    assert await session_map.of_users(["alice", "bob"]) == {"bob": [bob]}
    await session_map.remove([PHONE])
    assert await session_map.put([PHONE, bob]) == []
    assert await session_map.of_users(["alice", "bob"]) == {"alice": [PHONE], "bob": [bob]}


async def test_a_key_of_another_type_is_passed_over_and_written_over(session_map: RedisSessionMap, client: RedisClient) -> None:
    async with client.bounded() as redis:
        await redis.rpush("chat:session:alice", "garbage")
    assert await session_map.of_users(["alice"]) == {}
    await session_map.remove([PHONE])
    await session_map.put([PHONE])
    assert await session_map.of_users(["alice"]) == {"alice": [PHONE]}


async def test_a_master_that_became_a_copy_is_left(session_map: RedisSessionMap, own_redis: RedisServer) -> None:
    """The name leads to the new master by then; connections that are kept would lead to the old one for ever."""
    await session_map.put([PHONE])
    async with _admin(own_redis) as admin:
        assert await _is_left(admin, session_map.stands("alice")) == "", "it works"
        assert not await session_map.stands("bob")
        async with admin.bounded() as redis:
            await redis.replicaof("127.0.0.1", "1")
        assert "ReadOnly" in await _is_left(admin, session_map.stands("alice"))
        assert await session_map.of_users(["alice"]) == {"alice": [PHONE]}, "by a new connection"
        assert "ReadOnly" in await _is_left(admin, session_map.put([WEB]))
        async with admin.bounded() as redis:
            await redis.replicaof("NO", "ONE")
        await session_map.put([WEB])


async def test_a_master_that_is_cut_off_from_its_copies_is_left(
    session_map: RedisSessionMap, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them may be the new master, to which the name leads by then."""
    monkeypatch.setattr(client_module, "_LONELY_LEFT_INTERVAL_S", 0.0)
    await session_map.put([PHONE])
    async with _admin(own_redis) as admin:
        async with admin.bounded() as redis:
            await redis.config_set("min-replicas-to-write", 1)
        assert "NOREPLICAS" in await _is_left(admin, session_map.stands("alice"))
        assert await session_map.of_users(["alice"]) == {"alice": [PHONE]}, "by a new connection"
        assert "NOREPLICAS" in await _is_left(admin, session_map.put([WEB]))
        async with admin.bounded() as redis:
            await redis.config_set("min-replicas-to-write", 0)
        await session_map.put([WEB])


async def test_a_master_whose_copies_are_away_answers_what_is_under_way_and_is_left_now_and_then(
    session_map: RedisSessionMap, client: RedisClient, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the right one."""
    monkeypatch.setattr(client_module, "_LONELY_LEFT_INTERVAL_S", 3_600.0)
    pool = client._redis.connection_pool
    async with _admin(own_redis) as admin:
        own = await pool.get_connection()  # type: ignore[no-untyped-call]
        await own.send_command("BLPOP", "nothing", "0")  # under way until it is pushed
        async with admin.bounded() as other:
            await other.config_set("min-replicas-to-write", 1)
        with pytest.raises(SessionMapUnavailableError, match="NOREPLICAS"):
            await session_map.put([PHONE])
        assert not any(idle.is_connected for idle in pool._available_connections)
        await session_map.of_users(["alice"])
        with pytest.raises(SessionMapUnavailableError, match="NOREPLICAS"):
            await session_map.put([PHONE])
        assert any(idle.is_connected for idle in pool._available_connections), "it was left a moment ago"
        async with admin.bounded() as other:
            await other.config_set("min-replicas-to-write", 0)
            await other.rpush("nothing", "something")
        assert await own.read_response() == ["nothing", "something"]
        await pool.release(own)
        assert not own.is_connected


async def test_a_copy_that_has_lost_its_master_is_left(session_map: RedisSessionMap, own_redis: RedisServer) -> None:
    """Such a one may be set up to answer no reads either."""
    await session_map.put([PHONE])
    async with _admin(own_redis) as admin:
        async with admin.bounded() as redis:
            await redis.config_set("replica-serve-stale-data", "no")
            await redis.replicaof("127.0.0.1", "1")
        assert "MasterDown" in await _is_left(admin, session_map.of_users(["alice"]))


@asynccontextmanager
async def _admin(server: RedisServer) -> AsyncIterator[RedisClient]:
    admin = RedisClient(server.url, "chat")
    try:
        yield admin
    finally:
        await admin.close()


async def _is_left(admin: RedisClient, trip: Awaitable[object]) -> str:
    """Makes a trip; if it fails, no connection may stand that stood before. Returns why it failed."""
    before = await _connected(admin)
    try:
        await trip
    except SessionMapUnavailableError as error:
        async with asyncio.timeout(GIVE_UP_S):  # Redis may be told of it a moment later
            while await _connected(admin) & before:
                await asyncio.sleep(0.01)
        return str(error)
    return ""


async def _connected(admin: RedisClient) -> set[str]:
    """The ids of all connections but the admin's own."""
    async with admin.bounded() as redis:
        own_id = str(await redis.client_id())
        return {each["id"] for each in await redis.client_list()} - {own_id}


def test_another_format_stands_at_another_key(client: RedisClient) -> None:
    assert client.key("session", "alice") == client.key("session", "alice", version=1)
    assert client.key("session", "alice", version=2) != client.key("session", "alice")
