"""Keys from the issuer's address, cached.

Verifying must neither wait for the issuer nor let strangers hammer it, so:

- keys younger than `refresh_after_s` are used as they are; from then on they are used while a fetch runs behind them;
- only past `wait_after_s`, when nobody asked for long, does a look-up wait for the fetch; so a withdrawn key is not accepted
  later than that as long as the issuer answers;
- an unknown `kid` may mean that the issuer rotated, and causes a fetch that all who wait share;
- fetches start at least `fetch_interval_s` apart, whatever asks for them: a token with a made-up `kid` costs nobody anything;
- when the issuer is down, or has no key that serves, the keys fetched last stay in use, and no look-up of one of them waits;
  but only for `stale_max_s`, since one of them may have been withdrawn meanwhile.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import httpx
import structlog

from chatgrpc import background
from chatgrpc.adapters.jwt.keys import JWKS_BYTES_MAX, STALE_MAX_S, InvalidJwksError, KeySet, VerificationKey, parse_jwks
from chatgrpc.addresses import is_loopback
from chatgrpc.ports.tokens import KeysUnavailableError
from chatgrpc.start_error import StartError

_log = structlog.get_logger(__name__)

FETCH_TIMEOUT_S = 5.0
REFRESH_AFTER_S = 300.0
WAIT_AFTER_S = 900.0
FETCH_INTERVAL_S = 5.0


class JwksFromUrl:
    """A JWK set at an HTTP address. Belongs to one event loop."""

    def __init__(
        self,
        url: str,
        *,
        refresh_after_s: float = REFRESH_AFTER_S,
        wait_after_s: float = WAIT_AFTER_S,
        fetch_interval_s: float = FETCH_INTERVAL_S,
        fetch_timeout_s: float = FETCH_TIMEOUT_S,
        stale_max_s: float = STALE_MAX_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Fetches nothing yet.

        Raises:
            StartError: the environment names a proxy that cannot be used.
        """
        self._url = url
        self._refresh_after_s = refresh_after_s
        self._wait_after_s = wait_after_s
        self._fetch_interval_s = fetch_interval_s
        self._fetch_timeout_s = fetch_timeout_s
        self._stale_max_s = stale_max_s
        self._monotonic = monotonic
        # No compression: the bound on the size holds for what arrives.
        headers = {"accept": "application/json, application/jwk-set+json", "accept-encoding": "identity"}
        self._http = _client(url, headers, fetch_timeout_s)
        self._keys: KeySet | None = None
        self._fetched_at_s = float("-inf")
        self._next_fetch_at_s = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._is_failing = False

    async def find(self, kid: str) -> VerificationKey | None:
        """See `KeySource.find`."""
        age_s = self._monotonic() - self._fetched_at_s
        if age_s >= self._wait_after_s and not self._is_failing:
            await self._fetched()
        elif age_s >= self._refresh_after_s:
            self._start_fetch()
        if self._keys is None or kid not in self._keys:
            await self._fetched()
        if self._keys is None:
            raise KeysUnavailableError("the issuer's keys could not be fetched yet")
        if self._monotonic() - self._fetched_at_s > self._stale_max_s:
            raise KeysUnavailableError("the issuer's keys could not be fetched for too long")
        return self._keys.get(kid)

    async def aclose(self) -> None:
        """Ends a fetch under way and closes the connections."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
        await self._http.aclose()

    async def _fetched(self) -> None:
        """Waits for the fetch under way, or for one that starts now if one may."""
        fetching = self._start_fetch()
        if fetching is not None:
            # Shielded: the fetch is shared, and outlives the one who gives up.
            await asyncio.shield(fetching)

    def _start_fetch(self) -> "asyncio.Task[None] | None":
        if self._fetching is not None:
            return self._fetching
        now_s = self._monotonic()
        if now_s < self._next_fetch_at_s:
            return None
        self._next_fetch_at_s = now_s + self._fetch_interval_s
        self._fetching = background.start(self._fetch(), background.logged("jwks-fetch"), name="jwks-fetch")
        return self._fetching

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(self._fetch_timeout_s):
                document = await self._get()
            self._keys = parse_jwks(document)
            self._fetched_at_s = self._monotonic()
            self._is_failing = False
        except (httpx.HTTPError, httpx.InvalidURL, InvalidJwksError, TimeoutError) as error:
            self._is_failing = True
            _log.error("jwks_not_fetched", host=self._http_host, error=error, keys_kept=len(self._keys or ()))
        else:
            _log.info("jwks_fetched", host=self._http_host, kids=sorted(self._keys))
        finally:
            self._fetching = None

    async def _get(self) -> bytes:
        document = bytearray()
        async with self._http.stream("GET", self._url) as response:
            if response.status_code != httpx.codes.OK:
                raise InvalidJwksError(f"the issuer answered with status {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise InvalidJwksError("the issuer compressed its answer unasked")
            async for chunk in response.aiter_raw():
                document += chunk
                if len(document) > JWKS_BYTES_MAX:
                    raise InvalidJwksError(f"larger than {JWKS_BYTES_MAX} bytes")
        return bytes(document)

    @property
    def _http_host(self) -> str:
        """What of the address may stand in a log: it may hold a password."""
        return httpx.URL(self._url).host


def _client(url: str, headers: Mapping[str, str], timeout_s: float) -> httpx.AsyncClient:
    """By the proxy of the environment, as anything else of this machine goes out; what is on this machine needs none."""
    if is_loopback(urlsplit(url).hostname or ""):
        return httpx.AsyncClient(headers=headers, timeout=timeout_s, trust_env=False, verify=httpx.create_ssl_context())
    try:
        return httpx.AsyncClient(headers=headers, timeout=timeout_s)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise StartError(
            f"auth.jwks_url cannot be asked through the proxy that the environment names (HTTPS_PROXY, ALL_PROXY): {error}"
        ) from error
