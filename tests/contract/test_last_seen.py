"""What any memory of last times must do, on every one: in memory, and in a real Redis; and how the latter fails."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from chatgrpc.adapters.memory import MemoryLastSeen
from chatgrpc.adapters.redis import RedisClient, RedisLastSeen
from chatgrpc.adapters.redis.client import REPLY_TIMEOUT_S, Script
from chatgrpc.adapters.redis.last_seen import KEPT_S
from chatgrpc.ports.last_seen import LastSeen, LastSeenUnavailableError
from tests.support.services import RedisServer

NOW_MS = 1_795_000_000_123
GIVE_UP_S = 30 * REPLY_TIMEOUT_S
"""Far above any bound, so that a busy machine fails no test; without a bound a test would hang."""


@pytest.fixture
async def client(shared_redis: RedisServer) -> AsyncIterator[RedisClient]:
    """A client of an empty Redis."""
    client = RedisClient(shared_redis.url, "chat")
    async with client.bounded() as redis:
        await redis.flushall()
    yield client
    await client.close()


@pytest.fixture(params=["memory", "redis"])
def last_seen(request: pytest.FixtureRequest) -> LastSeen:
    """An empty one of each kind."""
    return MemoryLastSeen() if request.param == "memory" else RedisLastSeen(request.getfixturevalue("client"))


async def test_it_begins_empty(last_seen: LastSeen) -> None:
    assert await last_seen.of_users(["alice", "bob"]) == {}
    assert await last_seen.of_users([]) == {}
    await last_seen.put({})


async def test_one_finds_the_times_of_users_of_whom_something_is_known(last_seen: LastSeen) -> None:
    await last_seen.put({"alice": NOW_MS, "bob": NOW_MS + 1})
    assert await last_seen.of_users(["bob", "carol", "alice", "bob"]) == {"alice": NOW_MS, "bob": NOW_MS + 1}


async def test_a_later_time_stays_whatever_comes_after_it(last_seen: LastSeen) -> None:
    await last_seen.put({"alice": NOW_MS, "bob": NOW_MS})
    await last_seen.put({"alice": NOW_MS + 1, "bob": NOW_MS - 1})
    await last_seen.put({"alice": NOW_MS + 1})
    # As text the first is greater.
    await last_seen.put({"alice": 9, "carol": 9})
    await last_seen.put({"carol": 10})
    expected = {"alice": NOW_MS + 1, "bob": NOW_MS, "carol": 10}
    assert await last_seen.of_users(["alice", "bob", "carol"]) == expected


async def test_of_times_that_come_at_once_the_latest_stays(last_seen: LastSeen) -> None:
    await asyncio.gather(*(last_seen.put({"alice": NOW_MS + number * 37 % 60}) for number in range(60)))
    assert await last_seen.of_users(["alice"]) == {"alice": NOW_MS + 59}


async def test_thousands_of_users_are_noted_and_found(last_seen: LastSeen) -> None:
    times = {f"user{number}": NOW_MS + number for number in range(12_000)}
    await last_seen.put(times)
    assert await last_seen.of_users([f"user{number}" for number in range(15_000)]) == times


async def test_the_script_keeps_a_time_for_a_while_and_starts_anew_with_a_later_one(client: RedisClient) -> None:
    script = Script("put_last_seen.lua")
    async with client.bounded() as redis:
        await client.run(script, [(("seen:alice",), ("100", "1000", "9999"))])
        assert await redis.get("seen:alice") == "100"
        assert 0 < await redis.ttl("seen:alice") <= 1000
        await client.run(script, [(("seen:alice",), ("100", "5000", "9999")), (("seen:alice",), ("99", "5000", "9999"))])
        assert await redis.get("seen:alice") == "100"
        assert 0 < await redis.ttl("seen:alice") <= 1000
        await client.run(script, [(("seen:alice",), ("101", "5000", "9999"))])
        assert await redis.get("seen:alice") == "101"
        assert 1000 < await redis.ttl("seen:alice") <= 5000


async def test_nothing_stays_in_redis_for_ever(client: RedisClient) -> None:
    await RedisLastSeen(client).put({"alice": NOW_MS})
    async with client.bounded() as redis:
        assert await redis.keys("*") == ["chat:seen:alice"]
        assert KEPT_S - 3600 < await redis.ttl("chat:seen:alice") <= KEPT_S


async def test_without_redis_each_method_says_so_and_with_it_all_go_on(own_redis: RedisServer) -> None:
    client = RedisClient(own_redis.url, "chat")
    last_seen = RedisLastSeen(client)
    await last_seen.put({"alice": NOW_MS})
    own_redis.process.pause()
    await _all_fail(last_seen)
    own_redis.process.resume()
    assert await last_seen.of_users(["alice"]) == {"alice": NOW_MS}
    own_redis.kill()
    await _all_fail(last_seen)
    own_redis.start()
    assert await last_seen.of_users(["alice"]) == {}
    await last_seen.put({"alice": NOW_MS})
    assert await last_seen.of_users(["alice"]) == {"alice": NOW_MS}
    await client.close()


async def _all_fail(last_seen: LastSeen) -> None:
    with pytest.raises(LastSeenUnavailableError):
        await asyncio.wait_for(last_seen.put({"bob": NOW_MS}), GIVE_UP_S)
    with pytest.raises(LastSeenUnavailableError):
        await asyncio.wait_for(last_seen.of_users(["alice"]), GIVE_UP_S)


@pytest.mark.parametrize("value", ["garbage", "", "-5", "1e9", "9" * 5_000, "999999999999999", "١٢٣"])
async def test_what_is_no_time_is_passed_over_and_written_over(own_redis: RedisServer, value: str) -> None:
    client = RedisClient(own_redis.url, "chat")
    try:
        last_seen = RedisLastSeen(client)
        await last_seen.put({"bob": 5})
        async with client.bounded() as redis:
            await redis.set("chat:seen:alice", value)
            await redis.rpush("chat:seen:carol", "of another type")
        assert await last_seen.of_users(["alice", "bob", "carol"]) == {"bob": 5}
        await last_seen.put({"alice": 7, "carol": 8})
        assert await last_seen.of_users(["alice", "bob", "carol"]) == {"alice": 7, "bob": 5, "carol": 8}
    finally:
        await client.close()
