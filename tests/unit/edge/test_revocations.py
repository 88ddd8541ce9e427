"""What a revocation takes away, and for how long one may not know of it."""

import pytest

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.edge.revocations import (
    CLOCK_WRONG_MS,
    ISSUER_AHEAD_MS,
    KNOWN_FOR_S,
    RENEW_AFTER_MS,
    Revocations,
    TakenAway,
    UnrevokedTokens,
    check,
    ending,
    not_before_ms,
)
from chatgrpc.ports.accounts import DeviceStore, Standing
from chatgrpc.ports.errors import StoreUnavailableError
from chatgrpc.ports.tokens import Claims, RevocationsUnavailableError, TokenRejectedError
from tests.contract.jwt_issuer import Clock

NOW_MS = 1_700_000_000_700
EXPIRY_MS = NOW_MS + 600_000


def claims(issued_at_ms: int | None = NOW_MS, device_id: str | None = None) -> Claims:
    return Claims("alice", EXPIRY_MS, issued_at_ms, device_id)


def is_void(what: Claims, standing: Standing | TakenAway) -> bool:
    try:
        check(what, standing if isinstance(standing, TakenAway) else TakenAway(standing))
    except TokenRejectedError as rejected:
        return rejected.reason == "TOKEN_REVOKED"
    return False


def test_tokens_without_a_device_are_void_that_may_be_older_than_the_revocation() -> None:
    standing = Standing(NOW_MS, frozenset({"phone"}))
    assert is_void(claims(NOW_MS - 1), standing)
    assert is_void(claims(NOW_MS), standing)
    assert is_void(claims(NOW_MS - 700), standing), "an issuer that counts seconds may have issued it at any time in this one"
    assert not is_void(claims(NOW_MS + 1), standing)
    assert not is_void(claims(NOW_MS - 1), Standing())


def test_a_token_that_does_not_say_when_it_was_issued_is_void_once_that_matters() -> None:
    assert not is_void(claims(None), Standing())
    with pytest.raises(TokenRejectedError, match="`iat`"):
        check(claims(None), TakenAway(Standing(NOW_MS)))


def test_a_token_with_a_device_goes_with_it_and_with_no_other() -> None:
    standing = Standing(NOW_MS, frozenset({"phone"}))
    assert is_void(claims(NOW_MS + 9_000, "phone"), standing)
    assert not is_void(claims(NOW_MS - 9_000, "laptop"), standing)
    assert not is_void(claims(None, "laptop"), standing)


def test_a_stream_ends_for_its_device_or_for_its_token() -> None:
    standing = TakenAway(Standing(NOW_MS, frozenset({"phone"})))
    for token in (claims(), claims(NOW_MS + 1), claims(device_id="phone")):
        ended = ending(token, "phone", standing)
        assert ended is not None
        assert ended.status()[:2] == ("PERMISSION_DENIED", "DEVICE_REVOKED")
    ended = ending(claims(), "laptop", standing)
    assert ended is not None
    assert ended.status()[:2] == ("UNAUTHENTICATED", "TOKEN_REVOKED")
    told = ended.frame().disconnect
    assert (told.reason, told.reconnect_after_ms) == ("TOKEN_REVOKED", RENEW_AFTER_MS)
    assert ending(claims(NOW_MS + 1), "laptop", standing) is None
    assert ending(claims(device_id="laptop"), "laptop", standing) is None


class CountingStore:
    """A `DeviceStore` whose reads are counted, and can fail."""

    def __init__(self) -> None:
        self.devices: DeviceStore = MemoryStore().devices
        self.reads = 0
        self.is_away = False

    async def standing(self, user_id: str) -> Standing:
        if self.is_away:
            raise StoreUnavailableError("away")
        self.reads += 1
        return await self.devices.standing(user_id)


class AnyToken:
    """A `TokenVerifier` for which a token is a user's id."""

    async def verify(self, token: str, now_ms: int) -> Claims:
        return Claims(token, now_ms + 60_000, now_ms)


async def test_many_calls_cost_one_read_and_a_revocation_is_known_in_time() -> None:
    store, clock = CountingStore(), Clock()
    revocations = Revocations(store, clock)  # type: ignore[arg-type]  # the part of the port that is used
    tokens = UnrevokedTokens(AnyToken(), revocations)
    for _ in range(100):
        await tokens.verify("alice", NOW_MS)
    assert store.reads == 1
    await store.devices.connect("alice", "phone", "", NOW_MS, 10)
    await store.devices.revoke("alice", "phone", NOW_MS)  # through another node, of which this one does not hear
    clock.now_s += KNOWN_FOR_S
    with pytest.raises(TokenRejectedError):
        await tokens.verify("alice", NOW_MS)
    assert store.reads == 2
    await tokens.verify("alice", NOW_MS + 1)
    assert store.reads == 2


async def test_who_hears_of_a_revocation_knows_at_once() -> None:
    store, clock = CountingStore(), Clock()
    revocations = Revocations(store, clock)  # type: ignore[arg-type]  # as above
    tokens = UnrevokedTokens(AnyToken(), revocations)
    await tokens.verify("alice", NOW_MS)
    await store.devices.connect("alice", "phone", "", NOW_MS, 10)
    await store.devices.revoke("alice", "phone", NOW_MS)
    await revocations.now("alice")
    with pytest.raises(TokenRejectedError):
        await tokens.verify("alice", NOW_MS)


async def test_without_the_store_nobody_is_let_in_on_what_was_known_long_ago() -> None:
    store, clock = CountingStore(), Clock()
    tokens = UnrevokedTokens(AnyToken(), Revocations(store, clock))  # type: ignore[arg-type]  # as above
    await tokens.verify("alice", NOW_MS)
    store.is_away = True
    await tokens.verify("alice", NOW_MS)
    clock.now_s += KNOWN_FOR_S
    with pytest.raises(RevocationsUnavailableError):
        await tokens.verify("alice", NOW_MS)


async def test_of_many_users_those_are_forgotten_that_were_read_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatgrpc.edge.revocations._USERS_KNOWN_MAX", 3)
    store = CountingStore()
    tokens = UnrevokedTokens(AnyToken(), Revocations(store, Clock()))  # type: ignore[arg-type]  # as above
    for user_id in ("a", "b", "c", "d", "d", "c", "b"):
        await tokens.verify(user_id, NOW_MS)
    assert store.reads == 4
    await tokens.verify("a", NOW_MS)
    assert store.reads == 5


HOUR_MS = 3_600_000


class AheadWorld:
    """A node that reads what another one wrote, whose clock was two hours ahead."""

    def __init__(self) -> None:
        self.devices: DeviceStore = MemoryStore().devices
        self.now_ms = NOW_MS
        self.revocations = self.new_node()

    def new_node(self) -> Revocations:
        return Revocations(self.devices, Clock(), lambda: self.now_ms)

    async def revoke(self, device_id: str, ahead_ms: int = 2 * HOUR_MS) -> None:
        await self.devices.connect("alice", device_id, "", NOW_MS, 10)
        await self.devices.revoke("alice", device_id, self.now_ms + ahead_ms)

    async def is_void(self, issued_at_ms: int) -> bool:
        return is_void(claims(issued_at_ms), await self.revocations.now("alice"))


async def test_after_a_revocation_by_a_clock_that_was_ahead_a_new_token_serves_and_no_old_one_does() -> None:
    world = AheadWorld()
    await world.revoke("phone")
    stolen_ms = world.now_ms
    assert await world.is_void(stolen_ms)
    for _ in range(3):
        world.now_ms += 60_000
        assert await world.is_void(stolen_ms), "what was found when it was found stays so"
        assert not await world.is_void(world.now_ms)
    world.now_ms = stolen_ms + 2 * HOUR_MS + 1
    assert await world.is_void(stolen_ms)
    assert not await world.is_void(world.now_ms)


async def test_a_second_revocation_voids_what_the_first_one_let_in_though_nothing_lower_is_stored() -> None:
    world = AheadWorld()
    await world.revoke("phone")
    assert await world.is_void(world.now_ms)
    world.now_ms += 60_000
    fetched_ms = world.now_ms
    assert not await world.is_void(fetched_ms)
    world.now_ms += 60_000
    await world.revoke("laptop", ahead_ms=0)
    assert await world.is_void(fetched_ms)
    world.now_ms += 60_000
    assert not await world.is_void(world.now_ms)


async def test_after_the_clock_was_set_back_what_was_void_stays_so() -> None:
    world = AheadWorld()
    await world.revoke("phone", ahead_ms=0)
    stolen_ms = world.now_ms - 30_000
    for behind_ms in (2 * CLOCK_WRONG_MS, HOUR_MS, 24 * HOUR_MS):
        world.now_ms = NOW_MS - behind_ms
        world.revocations = world.new_node()
        assert await world.is_void(stolen_ms)
        assert not await world.is_void(NOW_MS + 1_000), "whose clock is right issues what is good"
        assert await world.is_void(world.now_ms), "by whichever clock it was issued"
        world.now_ms += 60_000
        assert not await world.is_void(world.now_ms)
        assert not await world.is_void(world.now_ms + ISSUER_AHEAD_MS)


async def test_who_revokes_while_the_clock_is_behind_voids_what_is_known_to_have_been_issued() -> None:
    world = AheadWorld()
    world.now_ms = NOW_MS - HOUR_MS
    until_ms = not_before_ms(world.now_ms, [claims(NOW_MS - 60_000), claims(NOW_MS), claims(None)])
    assert until_ms == NOW_MS
    await world.revoke("phone", ahead_ms=until_ms - world.now_ms)
    for now_ms in (world.now_ms, world.now_ms + 60_000, NOW_MS, NOW_MS + HOUR_MS):
        world.now_ms = now_ms
        assert await world.is_void(NOW_MS - 1_000)
        assert not await world.is_void(NOW_MS + 1_000)


def test_a_token_that_was_issued_after_its_own_end_does_not_show_the_time() -> None:
    assert not_before_ms(NOW_MS, [claims(EXPIRY_MS + 1), claims(NOW_MS - 1)]) == NOW_MS
    assert not_before_ms(NOW_MS, []) == NOW_MS


async def test_a_node_that_starts_later_wants_a_newer_token_and_is_content_with_it() -> None:
    world = AheadWorld()
    await world.revoke("phone")
    assert await world.is_void(world.now_ms)
    world.now_ms += 60_000
    world.revocations = world.new_node()
    assert await world.is_void(world.now_ms)
    world.now_ms += 1_000
    assert not await world.is_void(world.now_ms)


async def test_clocks_that_differ_a_little_are_believed() -> None:
    world = AheadWorld()
    await world.revoke("phone", ahead_ms=CLOCK_WRONG_MS)
    world.now_ms += 1_000
    assert await world.is_void(world.now_ms)
    assert await world.is_void(NOW_MS + CLOCK_WRONG_MS)
    assert not await world.is_void(NOW_MS + CLOCK_WRONG_MS + 1)


async def test_of_many_such_users_those_are_forgotten_that_were_found_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatgrpc.edge.revocations._USERS_KNOWN_MAX", 3)
    world = AheadWorld()
    for user_id in "abcde":
        await world.devices.connect(user_id, "phone", "", NOW_MS, 10)
        await world.devices.revoke(user_id, "phone", NOW_MS + HOUR_MS)
        await world.revocations.now(user_id)
    assert len(world.revocations._ahead) == 3
