"""What any memory of looks must do, on every one: in memory, and in a real Redis; and how the latter fails."""

from collections.abc import AsyncIterator

import pytest

from chatgrpc.adapters.memory import MemorySharedLooks
from chatgrpc.adapters.redis import RedisClient, RedisSharedLooks
from chatgrpc.ports.shared_looks import LOOK_KEPT_S, SharedLooks, SharedLooksUnavailableError
from tests.support.services import RedisServer


@pytest.fixture
async def client(shared_redis: RedisServer) -> AsyncIterator[RedisClient]:
    """A client of an empty Redis."""
    client = RedisClient(shared_redis.url, "chat")
    async with client.bounded() as redis:
        await redis.flushall()
    yield client
    await client.close()


@pytest.fixture(params=["memory", "redis"])
def looks(request: pytest.FixtureRequest) -> SharedLooks:
    """An empty one of each kind."""
    return MemorySharedLooks(lambda: 0.0) if request.param == "memory" else RedisSharedLooks(request.getfixturevalue("client"))


async def test_one_finds_who_looks_back(looks: SharedLooks) -> None:
    assert await looks.look([]) == set()
    assert await looks.look([("alice", "bob"), ("alice", "carol")]) == set()
    assert await looks.look([("bob", "alice"), ("carol", "bob")]) == {("bob", "alice")}
    assert await looks.look([("alice", "bob"), ("alice", "carol")]) == {("alice", "bob")}


async def test_both_may_be_said_at_once(looks: SharedLooks) -> None:
    assert await looks.look([("alice", "bob"), ("bob", "alice")]) == {("alice", "bob"), ("bob", "alice")}


async def test_thousands_are_noted_and_found(looks: SharedLooks) -> None:
    pairs = [(f"user{number}", "alice") for number in range(5_000)]
    assert await looks.look(pairs) == set()
    back = [(looked_at, user_id) for user_id, looked_at in pairs]
    assert await looks.look(back) == set(back)


async def test_whoever_says_no_more_that_they_look_is_forgotten() -> None:
    now_s = 0.0
    looks = MemorySharedLooks(lambda: now_s)
    await looks.look([("alice", "bob")])
    now_s = LOOK_KEPT_S - 1.0
    assert await looks.look([("bob", "alice")]) == {("bob", "alice")}
    now_s = LOOK_KEPT_S
    assert await looks.look([("bob", "alice")]) == set()


async def test_a_key_ends_by_itself(client: RedisClient) -> None:
    looks = RedisSharedLooks(client)
    for _ in range(2):
        await looks.look([("alice", "bob")])
        async with client.bounded() as redis:
            assert [0 < await redis.ttl(key) <= LOOK_KEPT_S for key in await redis.keys()] == [True]


async def test_without_redis_it_fails_with_the_error_of_the_port_and_works_again_once_it_is_back(
    own_redis: RedisServer,
) -> None:
    client = RedisClient(own_redis.url, "chat")
    try:
        looks = RedisSharedLooks(client)
        await looks.look([("alice", "bob")])
        own_redis.kill()
        with pytest.raises(SharedLooksUnavailableError):
            await looks.look([("alice", "bob")])
        own_redis.start()
        assert await looks.look([("alice", "bob"), ("bob", "alice")]) == {("alice", "bob"), ("bob", "alice")}
    finally:
        await client.close()
