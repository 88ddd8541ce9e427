"""What no table of cases thinks of: any text at all, and which keys the settings lead to."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.adapters.jwt import JwksFromFile, JwtVerifier, open_verifier
from chatgrpc.config import AuthSettings, Settings
from chatgrpc.ports.tokens import TokenRejectedError
from tests.contract.jwt_issuer import AUDIENCE, ISSUER, NOW_MS, claims, compose, issuer_server, jwks, new_key, sign

KEY = new_key("EdDSA", "a")
REASONS = {
    *("TOKEN_MISSING", "TOKEN_MALFORMED", "TOKEN_EXPIRED", "TOKEN_NOT_YET_VALID", "TOKEN_ISSUER", "TOKEN_AUDIENCE"),
    *("TOKEN_ALGORITHM", "TOKEN_KEY_UNKNOWN", "TOKEN_SIGNATURE", "TOKEN_SUBJECT"),
}

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.sampled_from(["EdDSA", "ES256", "none"]) | json_values,
        "kid": st.just("a") | json_values,
        "crit": json_values,
        "b64": json_values,
        "typ": json_values,
    },
)
claim_sets = st.dictionaries(st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "x"]), json_values)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> JwtVerifier:
    path = tmp_path_factory.mktemp("keys") / "jwks.json"
    path.write_bytes(jwks(KEY))
    return JwtVerifier(JwksFromFile(path, check_interval_s=1e9), issuer=ISSUER, audience=AUDIENCE, leeway_s=0)


def rejected(verifier: JwtVerifier, token: str) -> str:
    with pytest.raises(TokenRejectedError) as error:
        asyncio.run(verifier.verify(token, NOW_MS))
    assert error.value.reason in REASONS
    return error.value.reason


@given(token=st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,90}"))
def test_any_text_is_rejected(verifier: JwtVerifier, token: str) -> None:
    rejected(verifier, token)


@given(header=headers | json_values, payload=claim_sets | json_values, signature=st.binary(max_size=70))
def test_any_unsigned_parts_are_rejected(verifier: JwtVerifier, header: Any, payload: Any, signature: bytes) -> None:
    rejected(verifier, compose(header, payload, signature))


@given(changes=claim_sets)
def test_signed_claims_of_any_kind_are_answered(verifier: JwtVerifier, changes: dict[str, Any]) -> None:
    token = sign(KEY, "EdDSA", json.dumps(claims() | changes).encode())
    try:
        reason = f"accepted for {asyncio.run(verifier.verify(token, NOW_MS)).user_id}"
    except TokenRejectedError as error:
        reason = error.reason
    accepted = f"accepted for {changes.get('sub', 'alice')}"
    assert reason in ({*REASONS, accepted} if changes.keys() & {"iss", "aud", "sub", "exp", "nbf"} else {accepted})


async def test_settings_lead_to_a_file_of_keys(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks(KEY))
    auth = AuthSettings(mode="jwks", issuer=ISSUER, audience=AUDIENCE, jwks_file=tmp_path / "jwks.json")
    verifier = open_verifier(Settings(data_dir=tmp_path / "data", auth=auth))
    assert (await verifier.verify(sign(KEY, "EdDSA", claims()), NOW_MS)).user_id == "alice"
    await verifier.aclose()
    assert not (tmp_path / "data").exists()  # no development key where it is not wanted


async def test_settings_lead_to_an_address_of_keys() -> None:
    with issuer_server() as (server, _):
        server.document = jwks(KEY)
        verifier = open_verifier(
            Settings(auth=AuthSettings(mode="jwks", issuer=ISSUER, audience=AUDIENCE, jwks_url=server.url))
        )
        assert (await verifier.verify(sign(KEY, "EdDSA", claims()), NOW_MS)).user_id == "alice"
        await verifier.aclose()
