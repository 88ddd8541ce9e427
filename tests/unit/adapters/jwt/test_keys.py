"""Which keys of a JWK set serve."""

import json
from typing import Any

import pytest
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from chatgrpc.adapters.jwt.keys import KEYS_MAX, InvalidJwksError, parse_jwks
from tests.contract.jwt_issuer import ALGORITHMS, jwks, new_key

GOOD = new_key("EdDSA", "good")


def document(*entries: Any) -> bytes:
    return json.dumps({"keys": [*entries, GOOD.as_dict(private=False)]}).encode()


def public(key: Any, **changes: Any) -> dict[str, Any]:
    return dict(key.as_dict(private=False)) | changes


def test_each_key_serves_the_algorithm_of_its_type() -> None:
    keys = parse_jwks(jwks(*(new_key(algorithm, algorithm) for algorithm in ALGORITHMS)))
    assert {kid: key.algorithm for kid, key in keys.items()} == {algorithm: algorithm for algorithm in ALGORITHMS}


def _weak_rsa() -> dict[str, Any]:
    with pytest.warns(UserWarning, match="2048"):
        return public(RSAKey.generate_key(1024, {"kid": "x"}))


@pytest.mark.parametrize(
    "entry",
    [
        lambda: public(new_key("EdDSA", "x"), kid=None),
        lambda: public(new_key("EdDSA", "x"), kid=5),
        lambda: public(new_key("EdDSA", "x"), use="enc"),
        lambda: public(new_key("EdDSA", "x"), alg="ES256"),
        lambda: public(new_key("RS256", "x"), alg="PS256"),
        lambda: public(new_key("EdDSA", "x"), key_ops=["sign"]),
        lambda: public(new_key("EdDSA", "x"), x="AAAA"),
        lambda: public(new_key("EdDSA", "x"), x=[1]),
        lambda: public(new_key("ES256", "x"), y="AAAA"),
        lambda: public(ECKey.generate_key("P-384", {"kid": "x"})),
        lambda: public(OKPKey.generate_key("X25519", {"kid": "x"})),
        lambda: public(OKPKey.generate_key("Ed448", {"kid": "x"})),
        lambda: {"kty": "RSA", "kid": "x", "n": "A" * 400, "e": "AQAB"},
        lambda: {"kty": "of the future", "kid": "x"},
        lambda: {"kty": ["EC"], "kid": "x"},
        lambda: {"kid": "x"},
        lambda: OctKey.generate_key(256, {"kid": "x"}).as_dict(private=True),
        lambda: public(new_key("ES256", "x"), kid="good"),
        _weak_rsa,
        lambda: "text",
        lambda: None,
    ],
)
def test_a_key_that_cannot_serve_is_passed_over_and_the_others_stay(entry: Any) -> None:
    odd = entry()
    others = parse_jwks(document(odd))
    assert set(others) == {"good"}


def test_the_first_of_two_keys_with_one_name_counts() -> None:
    keys = parse_jwks(document(public(new_key("ES256", "x")), public(new_key("RS256", "x"))))
    assert keys["x"].algorithm == "ES256"


def test_private_parts_are_not_kept() -> None:
    key = new_key("EdDSA", "private")
    (kept,) = parse_jwks(json.dumps({"keys": [key.as_dict(private=True)]}).encode()).values()
    assert not kept.key.is_private
    assert "d" not in kept.key.dict_value


@pytest.mark.parametrize("document", [b'{"keys": []}', b'{"keys": [{"kid": "a", "kty": "oct", "k": "AAAA"}]}'])
def test_a_set_without_a_key_that_serves_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidJwksError, match="no key that serves"):
        parse_jwks(document)


def test_a_set_of_too_many_keys_is_refused() -> None:
    with pytest.raises(InvalidJwksError):
        parse_jwks(json.dumps({"keys": [{}] * (KEYS_MAX + 1)}).encode())
