"""The contract of `ports.tokens.TokenVerifier`, run against each source of keys."""

import hmac
import math
from abc import ABC, abstractmethod
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from chatgrpc.ports.tokens import Claims, TokenRejectedError, TokenVerifier
from tests.contract.jwt_issuer import ALGORITHMS, AUDIENCE, ISSUER, NOW_MS, NOW_S, claims, compose, jwks, new_key, sign

LEEWAY_S = 5

KEYS: dict[str, Key] = {algorithm: new_key(algorithm, f"key-{algorithm}") for algorithm in ALGORITHMS}


class PublishedKeys(Protocol):
    """A verifier whose issuer publishes what the test says."""

    @property
    def verifier(self) -> TokenVerifier:
        """For `ISSUER`, `AUDIENCE`, `LEEWAY_S`."""

    def publish(self, document: bytes) -> None:
        """Replaces the issuer's JWK set; the verifier may look for it at once."""


async def reason(verifier: TokenVerifier, token: str, now_ms: int = NOW_MS) -> str:
    """The reason for which the token is rejected."""
    with pytest.raises(TokenRejectedError) as rejected:
        await verifier.verify(token, now_ms)
    assert len(token) < 8 or token not in str(rejected.value)
    return rejected.value.reason


class TokenVerifierSuite(ABC):
    """Subclass it and say how keys are published."""

    @pytest.fixture
    @abstractmethod
    def published(self) -> AsyncIterator[PublishedKeys]:
        """A verifier, and the way its issuer publishes keys."""

    @pytest.fixture
    def verifier(self, published: PublishedKeys) -> TokenVerifier:
        published.publish(jwks(*KEYS.values()))
        return published.verifier

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    async def test_a_valid_token_names_its_bearer(self, verifier: TokenVerifier, algorithm: str) -> None:
        token = sign(KEYS[algorithm], algorithm, claims())
        assert await verifier.verify(token, NOW_MS) == Claims("alice", (NOW_S + 600) * 1000, NOW_MS)

    async def test_headers_and_claims_of_the_issuers_own_are_ignored(self, verifier: TokenVerifier) -> None:
        token = sign(KEYS["EdDSA"], "EdDSA", claims(roles=["x"], aud=["other", AUDIENCE]), nonce="n", typ="at+jwt")
        assert (await verifier.verify(token, NOW_MS)).user_id == "alice"

    async def test_no_token_is_missing(self, verifier: TokenVerifier) -> None:
        assert await reason(verifier, "") == "TOKEN_MISSING"

    @pytest.mark.parametrize(
        "token",
        [
            "x",
            "a.b",
            "a.b.c",
            "a.b.c.d",
            "é.é.é",
            "\ud800.a.b",
            "..",
            compose([], {}),
            compose("alg", {}),
            compose({"kid": "key-EdDSA"}, {}),
            compose({"alg": 5, "kid": "key-EdDSA"}, {}),
            compose({"alg": "EdDSA", "kid": 7}, {}),
            compose({"alg": "EdDSA", "kid": "key-EdDSA", "crit": ["exp"], "exp": 1}, {}),
            compose({"alg": "EdDSA", "kid": "key-EdDSA", "b64": False, "crit": ["b64"]}, {}),
            compose({"alg": "EdDSA", "kid": "key-EdDSA", "x" * 5000: 1}, {}),
            compose({"alg": "EdDSA", "kid": "key-EdDSA"}, {}) + "x" * 9000,
            "W1tbW1tbW1tb" * 300 + ".e30.AAAA",
        ],
        ids=lambda token: token[:24],
    )
    async def test_what_is_no_jwt_is_malformed(self, verifier: TokenVerifier, token: str) -> None:
        assert await reason(verifier, token) == "TOKEN_MALFORMED"

    @pytest.mark.parametrize(
        "payload",
        [
            b"not json",
            b"[]",
            b"[" * 5000,
            b'{"exp": ' + b"[" * 5000,
            b"\xff",
            b"",
        ],
        ids=lambda payload: payload[:12].decode(errors="replace"),
    )
    async def test_a_signed_payload_that_is_no_object_is_malformed(self, verifier: TokenVerifier, payload: bytes) -> None:
        assert await reason(verifier, sign(KEYS["EdDSA"], "EdDSA", payload)) == "TOKEN_MALFORMED"

    @pytest.mark.parametrize("exp", [None, "tomorrow", True, math.nan, math.inf, [1]])
    async def test_an_expiry_is_mandatory_and_a_number(self, verifier: TokenVerifier, exp: Any) -> None:
        assert await reason(verifier, sign(KEYS["EdDSA"], "EdDSA", claims(exp=exp))) == "TOKEN_MALFORMED"

    async def test_a_token_expires_after_the_leeway(self, verifier: TokenVerifier) -> None:
        token = sign(KEYS["EdDSA"], "EdDSA", claims(exp=NOW_S + 0.5))
        edge_ms = NOW_MS + 500 + LEEWAY_S * 1000
        assert (await verifier.verify(token, edge_ms - 1)).expires_at_ms == NOW_MS + 500
        assert await reason(verifier, token, edge_ms) == "TOKEN_EXPIRED"
        assert await reason(verifier, sign(KEYS["EdDSA"], "EdDSA", claims(exp=-(10**400)))) == "TOKEN_EXPIRED"

    async def test_a_token_is_not_valid_before_its_time_but_for_the_leeway(self, verifier: TokenVerifier) -> None:
        token = sign(KEYS["EdDSA"], "EdDSA", claims(nbf=NOW_S + 60, exp=10**400))
        edge_ms = NOW_MS + (60 - LEEWAY_S) * 1000
        assert (await verifier.verify(token, edge_ms)).user_id == "alice"
        assert await reason(verifier, token, edge_ms - 1) == "TOKEN_NOT_YET_VALID"
        assert await reason(verifier, sign(KEYS["EdDSA"], "EdDSA", claims(nbf="x"))) == "TOKEN_MALFORMED"
        assert (await verifier.verify(sign(KEYS["EdDSA"], "EdDSA", claims(nbf=None)), NOW_MS)).user_id == "alice"

    @pytest.mark.parametrize("iss", [None, "https://other.example", ISSUER + "/", [ISSUER], ""])
    async def test_the_issuer_must_be_ours(self, verifier: TokenVerifier, iss: Any) -> None:
        assert await reason(verifier, sign(KEYS["ES256"], "ES256", claims(iss=iss))) == "TOKEN_ISSUER"

    @pytest.mark.parametrize("aud", [None, "other", [], ["other"], {AUDIENCE: 1}, [[AUDIENCE]]])
    async def test_the_audience_must_be_us(self, verifier: TokenVerifier, aud: Any) -> None:
        assert await reason(verifier, sign(KEYS["ES256"], "ES256", claims(aud=aud))) == "TOKEN_AUDIENCE"

    @pytest.mark.parametrize("sub", [None, "", "al ice", "a" * 65, "_a", 7, ["alice"], "alice\n"])
    async def test_the_subject_must_be_a_user_id(self, verifier: TokenVerifier, sub: Any) -> None:
        assert await reason(verifier, sign(KEYS["ES256"], "ES256", claims(sub=sub))) == "TOKEN_SUBJECT"

    async def test_no_other_algorithm_is_accepted(self, verifier: TokenVerifier) -> None:
        for algorithm in ("none", "None", "HS256", "RS384", "PS256", "ES384", "Ed25519", "eddsa", ""):
            token = compose({"alg": algorithm, "kid": "key-RS256"}, claims())
            assert await reason(verifier, token) == "TOKEN_ALGORITHM"
        unsigned = compose({"alg": "none", "kid": "key-RS256"}, claims(), signature=b"")
        assert await reason(verifier, unsigned) == "TOKEN_ALGORITHM"

    async def test_a_public_key_does_not_serve_as_a_secret(self, verifier: TokenVerifier) -> None:
        public = KEYS["RS256"]
        assert isinstance(public, RSAKey)
        signed = compose({"alg": "HS256", "kid": "key-RS256"}, claims(), b"").rstrip(".")
        mac = hmac.digest(public.as_pem(private=False), signed.encode(), "sha256")
        token = f"{signed}.{urlsafe_b64encode(mac).decode().rstrip('=')}"
        assert await reason(verifier, token) == "TOKEN_ALGORITHM"

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    async def test_the_key_decides_the_algorithm(self, verifier: TokenVerifier, algorithm: str) -> None:
        for other in set(ALGORITHMS) - {algorithm}:
            token = sign(KEYS[algorithm], algorithm, claims(), kid=f"key-{other}")
            assert await reason(verifier, token) == "TOKEN_ALGORITHM"

    async def test_the_key_must_be_named_and_known(self, verifier: TokenVerifier) -> None:
        assert await reason(verifier, sign(KEYS["EdDSA"], "EdDSA", claims(), kid=None)) == "TOKEN_KEY_UNKNOWN"
        assert await reason(verifier, sign(KEYS["EdDSA"], "EdDSA", claims(), kid="gone")) == "TOKEN_KEY_UNKNOWN"

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    async def test_a_forged_signature_is_found(self, verifier: TokenVerifier, algorithm: str) -> None:
        token = sign(KEYS[algorithm], algorithm, claims())
        header, payload, signature = token.split(".")
        other = sign(KEYS[algorithm], algorithm, claims(sub="mallory")).split(".")[1]
        strangers = sign(new_key(algorithm, f"key-{algorithm}"), algorithm, claims())
        flipped = ("A" if signature[10] != "A" else "B").join((signature[:10], signature[11:]))
        for forged in (
            strangers,
            f"{header}.{other}.{signature}",
            f"{header}.{payload}.{flipped}",
            f"{header}.{payload}.{signature[:-4]}",
            f"{header}.{payload}.",
            f"{header}.{payload}.!!!!",
        ):
            assert await reason(verifier, forged) == "TOKEN_SIGNATURE"

    async def test_keys_rotate_without_a_restart(self, published: PublishedKeys) -> None:
        old, new = (OKPKey.generate_key("Ed25519", {"kid": kid}) for kid in ("old", "new"))
        of_old, of_new = (sign(key, "EdDSA", claims()) for key in (old, new))
        published.publish(jwks(old))
        assert (await published.verifier.verify(of_old, NOW_MS)).user_id == "alice"
        assert await reason(published.verifier, of_new) == "TOKEN_KEY_UNKNOWN"
        published.publish(jwks(old, new))
        assert (await published.verifier.verify(of_new, NOW_MS)).user_id == "alice"
        assert (await published.verifier.verify(of_old, NOW_MS)).user_id == "alice"
        published.publish(jwks(new))
        assert await reason(published.verifier, sign(new, "EdDSA", claims(), kid="look again")) == "TOKEN_KEY_UNKNOWN"
        assert await reason(published.verifier, of_old) == "TOKEN_KEY_UNKNOWN"

    async def test_a_key_that_is_replaced_under_its_name_no_longer_counts(self, published: PublishedKeys) -> None:
        first, second = (ECKey.generate_key("P-256", {"kid": "same"}) for _ in range(2))
        published.publish(jwks(first))
        assert (await published.verifier.verify(sign(first, "ES256", claims()), NOW_MS)).user_id == "alice"
        published.publish(jwks(second))
        assert await reason(published.verifier, sign(second, "ES256", claims(), kid="look")) == "TOKEN_KEY_UNKNOWN"
        assert await reason(published.verifier, sign(first, "ES256", claims())) == "TOKEN_SIGNATURE"

    async def test_a_document_that_is_no_jwks_changes_nothing(self, published: PublishedKeys) -> None:
        token = sign(KEYS["EdDSA"], "EdDSA", claims())
        published.publish(jwks(KEYS["EdDSA"]))
        await published.verifier.verify(token, NOW_MS)
        for document in (b"", b"<html>", b"{}", b"[]", b'{"keys": 5}', b'{"keys":' + b"[" * 9000, b" " * 300_000):
            published.publish(document)
            assert await reason(published.verifier, sign(KEYS["EdDSA"], "EdDSA", claims(), kid="look")) == "TOKEN_KEY_UNKNOWN"
            assert (await published.verifier.verify(token, NOW_MS)).user_id == "alice"
