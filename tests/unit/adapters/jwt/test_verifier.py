"""What no table of cases thinks of: any text at all, and which keys the settings lead to."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.adapters.jwt import JwksFromFile, JwtVerifier, open_verifier
from chatgrpc.adapters.jwt.verifier import TokenRules
from chatgrpc.auth_settings import UserIdRule
from chatgrpc.config import AuthSettings, Settings
from chatgrpc.ports.tokens import Claims, TokenRejectedError
from chatgrpc.start_error import StartError
from tests.contract.jwt_issuer import AUDIENCE, ISSUER, NOW_MS, NOW_S, claims, compose, issuer_server, jwks, new_key, sign

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


@pytest.mark.parametrize(
    "document", [b"{}", b'{"keys": []}', b'{"keys": [{}]}', b"not json", b'{"keys": [{"kty": "oct", "kid": "a", "k": "AAAA"}]}']
)
async def test_a_file_without_a_key_that_serves_is_refused_at_the_start(tmp_path: Path, document: bytes) -> None:
    (tmp_path / "jwks.json").write_bytes(document)
    auth = AuthSettings(mode="jwks", issuer=ISSUER, audience=AUDIENCE, jwks_file=tmp_path / "jwks.json")
    with pytest.raises(StartError, match=r"auth\.jwks_file: .* without keys no token could be accepted"):
        open_verifier(Settings(auth=auth))


class Ruled:
    """A verifier with rules of its own."""

    def __init__(self, tmp_path: Path, rules: TokenRules, leeway_s: float = 0) -> None:
        (tmp_path / "jwks.json").write_bytes(jwks(KEY))
        keys = JwksFromFile(tmp_path / "jwks.json", check_interval_s=1e9)
        self._verifier = JwtVerifier(keys, issuer=ISSUER, audience=AUDIENCE, leeway_s=leeway_s, rules=rules)

    async def said(self, payload: dict[str, Any], now_ms: int = NOW_MS, **header: Any) -> Claims | str:
        """What a token says, or the reason for which it is rejected."""
        try:
            return await self.verify(payload, now_ms, **header)
        except TokenRejectedError as error:
            return error.reason

    async def verify(self, payload: dict[str, Any], now_ms: int = NOW_MS, **header: Any) -> Claims:
        """What a token says; raises as the verifier does."""
        return await self._verifier.verify(sign(KEY, "EdDSA", payload, **header), now_ms)


async def test_an_expiry_has_an_upper_bound(tmp_path: Path) -> None:
    ruled = Ruled(tmp_path, TokenRules(expiry_max_s=3_600), leeway_s=5)
    assert isinstance(await ruled.said(claims(exp=NOW_S + 3_605)), Claims)
    for exp in (NOW_S + 3_606, NOW_S * 2, 1e308, 10**400):
        assert await ruled.said(claims(exp=exp)) == "TOKEN_LIFETIME"


async def test_a_token_is_good_for_its_greatest_age_however_late_it_expires(tmp_path: Path) -> None:
    ruled = Ruled(tmp_path, TokenRules(age_max_s=60), leeway_s=5)
    assert await ruled.said(claims()) == Claims("alice", NOW_MS + 60_000, NOW_MS)
    assert await ruled.said(claims(exp=NOW_S + 20)) == Claims("alice", NOW_MS + 20_000, NOW_MS)
    assert isinstance(await ruled.said(claims(), NOW_MS + 64_999), Claims)
    assert await ruled.said(claims(), NOW_MS + 65_000) == "TOKEN_EXPIRED"
    assert await ruled.said(claims(iat=NOW_S + 6)) == "TOKEN_NOT_YET_VALID"
    for iat in (None, "yesterday", True, [1]):
        assert await ruled.said(claims(iat=iat)) == "TOKEN_LIFETIME"


async def test_an_id_token_is_no_access_token_where_the_issuer_tells_them_apart(tmp_path: Path) -> None:
    ruled = Ruled(tmp_path, TokenRules(token_type="at+jwt"))
    for typ in ("at+jwt", "AT+JWT", "application/at+jwt"):
        assert isinstance(await ruled.said(claims(), typ=typ), Claims)
    for other in ("JWT", None, "", "id+jwt", "at+jwt "):
        assert await ruled.said(claims(), typ=other) == "TOKEN_TYPE"


async def test_only_tokens_of_the_clients_that_are_named_are_accepted(tmp_path: Path) -> None:
    ruled = Ruled(tmp_path, TokenRules(parties=frozenset({"app", "web"})))
    for changes in ({"azp": "app"}, {"client_id": "web"}, {"azp": "app", "client_id": "other"}):
        assert isinstance(await ruled.said(claims(**changes)), Claims)
    others: list[dict[str, object]] = [
        {},
        {"azp": "other"},
        {"azp": "other", "client_id": "app"},
        {"azp": ["app"]},
        {"client_id": 7},
    ]
    for changed in others:
        assert await ruled.said(claims(**changed)) == "TOKEN_PARTY"


async def test_a_token_names_its_device_by_the_claim_that_the_issuer_uses(tmp_path: Path) -> None:
    ruled = Ruled(tmp_path, TokenRules(device_claim="https://example.com/device"))
    assert await ruled.said(claims(**{"https://example.com/device": "phone-1"})) == Claims(
        "alice", NOW_MS + 600_000, NOW_MS, "phone-1"
    )
    assert await ruled.said(claims(device_id="phone-1")) == Claims("alice", NOW_MS + 600_000, NOW_MS)
    for device_id in ("", "a b", 7, ["phone-1"], "x" * 65):
        assert await ruled.said(claims(**{"https://example.com/device": device_id})) == "TOKEN_DEVICE"


async def test_a_user_id_is_made_of_the_claim_that_is_named(tmp_path: Path) -> None:
    ruled = Ruled(tmp_path, TokenRules(user_id_claim="email", user_id_rule="escaped"))
    said = await ruled.said(claims(sub="auth0|1", email="o'neil@example.com"))
    assert isinstance(said, Claims)
    assert said.user_id == "o+27neil@example.com"
    for email in (None, "", 7, ["a"], "\ud800"):
        assert await ruled.said(claims(email=email)) == "TOKEN_SUBJECT"


@pytest.mark.parametrize("rule", ["as-is", "escaped", "hashed"])
async def test_an_issuer_that_counts_its_users_is_told_what_to_do(tmp_path: Path, rule: UserIdRule) -> None:
    ruled = Ruled(tmp_path, TokenRules(user_id_rule=rule))
    with pytest.raises(TokenRejectedError, match="a number as a text"):
        await ruled.verify(claims(sub=7))


def test_two_tokens_in_one_call_are_none(verifier: JwtVerifier) -> None:
    token = sign(KEY, "EdDSA", claims())
    assert rejected(verifier, f"{token}, Bearer {token}") == "TOKEN_MALFORMED"
