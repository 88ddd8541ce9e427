"""JWT verified by keys fetched from a server."""

from collections.abc import AsyncIterator

import pytest

from chatgrpc.adapters.jwt import JwksFromUrl, JwtVerifier
from tests.contract.jwt_issuer import AUDIENCE, ISSUER, Clock, IssuerServer, issuer_server
from tests.contract.token_verifier_suite import LEEWAY_S, PublishedKeys, TokenVerifierSuite

FETCH_INTERVAL_S = 5.0


class _AtUrl:
    def __init__(self, server: IssuerServer) -> None:
        self._server = server
        self._clock = Clock()
        keys = JwksFromUrl(server.url, fetch_interval_s=FETCH_INTERVAL_S, monotonic=self._clock)
        self.verifier = JwtVerifier(keys, issuer=ISSUER, audience=AUDIENCE, leeway_s=LEEWAY_S)

    def publish(self, document: bytes) -> None:
        self._server.document = document
        self._clock.now_s += FETCH_INTERVAL_S


class TestJwtByUrl(TokenVerifierSuite):
    @pytest.fixture
    async def published(self) -> AsyncIterator[PublishedKeys]:
        with issuer_server() as (server, _):
            published = _AtUrl(server)
            yield published
            await published.verifier.aclose()
