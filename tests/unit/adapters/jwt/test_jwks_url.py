"""Keys from an address: cached, refreshed behind the scenes, and never a way to hammer the issuer."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from structlog.testing import capture_logs

from chatgrpc.adapters.jwt import JwksFromUrl
from chatgrpc.adapters.jwt.jwks_url import FETCH_INTERVAL_S, REFRESH_AFTER_S, WAIT_AFTER_S
from chatgrpc.adapters.jwt.keys import VerificationKey
from chatgrpc.ports.tokens import KeysUnavailableError
from chatgrpc.start_error import StartError
from tests.contract.jwt_issuer import Clock, IssuerServer, issuer_server, jwks, new_key

KEY = new_key("EdDSA", "a")
OTHER = new_key("ES256", "b")


@pytest.fixture
def running() -> Iterator[tuple[IssuerServer, Callable[[], None]]]:
    with issuer_server() as server_and_stop:
        server_and_stop[0].document = jwks(KEY)
        yield server_and_stop


@pytest.fixture
def server(running: tuple[IssuerServer, Callable[[], None]]) -> IssuerServer:
    return running[0]


@pytest.fixture
def stop_server(running: tuple[IssuerServer, Callable[[], None]]) -> Callable[[], None]:
    return running[1]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def keys(server: IssuerServer, clock: Clock) -> AsyncIterator[JwksFromUrl]:
    keys = JwksFromUrl(server.url, monotonic=clock, fetch_timeout_s=60)
    yield keys
    server.open_gate.set()
    await keys.aclose()


async def fetch_ended(keys: JwksFromUrl) -> None:
    if keys._fetching is not None:
        await asyncio.wait([keys._fetching])


async def test_one_fetch_serves_all_who_ask_at_once(keys: JwksFromUrl, server: IssuerServer) -> None:
    server.open_gate.clear()
    looks = [asyncio.create_task(keys.find("a")) for _ in range(100)]
    await asyncio.to_thread(server.arrived.acquire)
    looks[0].cancel()
    server.open_gate.set()
    found = await asyncio.gather(*looks[1:])
    assert all(isinstance(key, VerificationKey) and key.algorithm == "EdDSA" for key in found)
    assert server.requests == 1


async def test_a_storm_of_unknown_kids_costs_the_issuer_one_fetch_an_interval(
    keys: JwksFromUrl, server: IssuerServer, clock: Clock
) -> None:
    await keys.find("a")
    assert server.requests == 1
    for interval in range(4):
        for second in range(int(FETCH_INTERVAL_S)):
            storm = await asyncio.gather(*(keys.find(f"forged-{interval}-{second}-{n}") for n in range(200)))
            assert set(storm) == {None}
            assert await keys.find("a") is not None
            clock.now_s += 1
        # The first interval has the first fetch, which was of this same moment.
        assert server.requests == 1 + interval


async def test_a_storm_while_the_issuer_is_down_is_bounded_too(keys: JwksFromUrl, server: IssuerServer, clock: Clock) -> None:
    server.status = 503
    for second in range(21):
        for outcome in await asyncio.gather(*(keys.find(f"{second}-{n}") for n in range(50)), return_exceptions=True):
            assert isinstance(outcome, KeysUnavailableError)
        clock.now_s += 1
    assert server.requests == 1 + 20 // FETCH_INTERVAL_S
    server.status = 200
    clock.now_s += FETCH_INTERVAL_S
    assert await keys.find("a") is not None


async def test_keys_are_refreshed_behind_the_look_up_before_they_are_old(
    keys: JwksFromUrl, server: IssuerServer, clock: Clock
) -> None:
    await keys.find("a")
    clock.now_s += REFRESH_AFTER_S - 0.001
    await keys.find("a")
    assert keys._fetching is None

    clock.now_s += 0.001
    server.document = jwks(OTHER)
    server.open_gate.clear()
    async with asyncio.timeout(30):
        assert await keys.find("a") is not None  # the issuer has not answered yet
        assert await keys.find("a") is not None
    server.open_gate.set()
    await fetch_ended(keys)
    assert await keys.find("a") is None
    assert await keys.find("b") is not None
    assert server.requests == 2


async def test_after_a_long_silence_a_withdrawn_key_is_not_accepted_once_more(
    keys: JwksFromUrl, server: IssuerServer, clock: Clock
) -> None:
    await keys.find("a")
    server.document = jwks(OTHER)
    clock.now_s += WAIT_AFTER_S
    assert await keys.find("a") is None


async def test_old_keys_stay_when_the_issuer_is_down(keys: JwksFromUrl, stop_server: Callable[[], None], clock: Clock) -> None:
    await keys.find("a")
    stop_server()
    for _ in range(3):
        clock.now_s += WAIT_AFTER_S
        assert await keys.find("a") is not None
        await fetch_ended(keys)
    assert await keys.find("b") is None


async def test_old_keys_stay_when_the_issuers_set_turns_empty(keys: JwksFromUrl, server: IssuerServer, clock: Clock) -> None:
    await keys.find("a")
    server.document = jwks()
    clock.now_s += REFRESH_AFTER_S
    with capture_logs() as logs:
        assert await keys.find("a") is not None
        await fetch_ended(keys)
    assert await keys.find("a") is not None
    [told] = [entry for entry in logs if entry["event"] == "jwks_not_fetched"]
    assert (str(told["error"]), told["keys_kept"]) == ("it holds no key that serves", 1)
    server.document = jwks(OTHER)
    clock.now_s += FETCH_INTERVAL_S
    assert await keys.find("b") is not None
    assert await keys.find("a") is None


async def test_with_an_issuer_that_hangs_known_keys_are_found_without_waiting(
    keys: JwksFromUrl, server: IssuerServer, clock: Clock
) -> None:
    await keys.find("a")
    server.status = 500
    clock.now_s += WAIT_AFTER_S
    await keys.find("a")  # learns that the issuer is down
    server.open_gate.clear()
    clock.now_s += WAIT_AFTER_S
    async with asyncio.timeout(30):
        assert await keys.find("a") is not None
    assert keys._fetching is not None


async def test_an_issuer_that_hangs_is_given_up(server: IssuerServer, clock: Clock) -> None:
    keys = JwksFromUrl(server.url, monotonic=clock, fetch_timeout_s=0.05)
    server.open_gate.clear()
    with pytest.raises(KeysUnavailableError):
        await keys.find("a")
    server.open_gate.set()
    await keys.aclose()


@pytest.mark.parametrize(
    "headers", [{"content-encoding": "gzip"}, {"content-length": "999"}], ids=["compressed unasked", "cut short"]
)
async def test_an_answer_that_is_not_as_asked_is_refused(
    keys: JwksFromUrl, server: IssuerServer, headers: dict[str, str]
) -> None:
    server.headers = headers
    with pytest.raises(KeysUnavailableError):
        await keys.find("a")


@pytest.mark.parametrize("status", [301, 302, 404, 500])
async def test_only_an_ok_answer_counts(keys: JwksFromUrl, server: IssuerServer, status: int) -> None:
    server.status = status
    server.headers = {"location": server.url}
    with pytest.raises(KeysUnavailableError):
        await keys.find("a")
    assert server.requests == 1


async def test_an_answer_that_is_too_large_is_refused(keys: JwksFromUrl, server: IssuerServer) -> None:
    server.document = jwks(KEY)[:-1] + b" " * 50_000_000 + b"}"
    with pytest.raises(KeysUnavailableError):
        await keys.find("a")


async def test_closing_ends_a_fetch_under_way(server: IssuerServer, clock: Clock) -> None:
    keys = JwksFromUrl(server.url, monotonic=clock, fetch_timeout_s=60)
    server.open_gate.clear()
    look = asyncio.create_task(keys.find("a"))
    await asyncio.to_thread(server.arrived.acquire)
    async with asyncio.timeout(30):
        await keys.aclose()
        await asyncio.wait([look])
    server.open_gate.set()
    assert look.cancelled()


async def test_a_password_in_the_address_stays_out_of_the_log(
    server: IssuerServer, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    server.status = 500
    keys = JwksFromUrl(server.url.replace("http://", "http://user:hunter2@"), monotonic=clock)
    with pytest.raises(KeysUnavailableError):
        await keys.find("a")
    await keys.aclose()
    captured = capsys.readouterr()
    assert "127.0.0.1" in captured.out + captured.err
    assert "hunter2" not in captured.out + captured.err


async def test_keys_that_could_not_be_fetched_again_for_long_are_not_trusted(server: IssuerServer, clock: Clock) -> None:
    keys = JwksFromUrl(server.url, monotonic=clock, stale_max_s=86_400)
    server.document = jwks(KEY)
    assert await keys.find("a") is not None
    server.status = 500
    clock.now_s += 86_400
    assert await keys.find("a") is not None
    clock.now_s += 1
    with pytest.raises(KeysUnavailableError):
        await keys.find("a")
    server.status = 200
    clock.now_s += 60
    await keys._fetched()
    assert await keys.find("a") is not None
    await keys.aclose()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes this the only proxy that the environment names."""

    def name(variable: str, address: str) -> None:
        for other in list(os.environ):
            if other.lower().endswith("_proxy"):
                monkeypatch.delenv(other)
        monkeypatch.setenv(variable, address)

    return name


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:9", "ftp://127.0.0.1:9", "http://127.0.0.1:9"])
async def test_no_proxy_is_asked_for_this_machine(
    server: IssuerServer, proxy: Callable[[str, str], None], address: str
) -> None:
    proxy("ALL_PROXY", address)
    keys = JwksFromUrl(server.url)
    try:
        assert await keys.find("a") is not None
    finally:
        await keys.aclose()


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:9", "ftp://127.0.0.1:9", "http://127.0.0.1:none"])
def test_a_proxy_that_cannot_be_used_is_a_sentence(proxy: Callable[[str, str], None], address: str) -> None:
    proxy("ALL_PROXY", address)
    with pytest.raises(StartError, match="through the proxy"):
        JwksFromUrl("https://issuer.example/keys")
