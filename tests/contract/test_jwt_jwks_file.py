"""JWT verified by keys in a file."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chatgrpc.adapters.jwt import JwksFromFile, JwtVerifier
from tests.contract.jwt_issuer import AUDIENCE, ISSUER, Clock
from tests.contract.token_verifier_suite import LEEWAY_S, PublishedKeys, TokenVerifierSuite

CHECK_INTERVAL_S = 2.0


class _InFile:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "jwks.json"
        self._clock = Clock()
        keys = JwksFromFile(self._path, check_interval_s=CHECK_INTERVAL_S, monotonic=self._clock)
        self.verifier = JwtVerifier(keys, issuer=ISSUER, audience=AUDIENCE, leeway_s=LEEWAY_S)

    def publish(self, document: bytes) -> None:
        draft = self._path.with_suffix(".new")
        draft.write_bytes(document)
        os.replace(draft, self._path)
        self._clock.now_s += CHECK_INTERVAL_S


class TestJwtByFile(TokenVerifierSuite):
    @pytest.fixture
    async def published(self, tmp_path: Path) -> AsyncIterator[PublishedKeys]:
        published = _InFile(tmp_path)
        yield published
        await published.verifier.aclose()
