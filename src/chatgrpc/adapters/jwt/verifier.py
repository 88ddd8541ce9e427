"""Verifies access tokens; the contract is `chatgrpc.ports.tokens`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn

from joserfc.errors import JoseError
from joserfc.jws import CompactSignature, extract_compact, validate_compact

from chatgrpc.adapters.jwt.dev_keys import DevIssuer
from chatgrpc.adapters.jwt.jwks_file import JwksFromFile
from chatgrpc.adapters.jwt.jwks_url import JwksFromUrl
from chatgrpc.adapters.jwt.keys import ALGORITHMS, InvalidJwksError, JwtRegistry, KeySource, VerificationKey
from chatgrpc.adapters.jwt.user_ids import user_id_of
from chatgrpc.auth_settings import DEV_DEVICE_CLAIM, UserIdRule
from chatgrpc.config import Settings
from chatgrpc.core.ids import is_device_id
from chatgrpc.ports.tokens import Claims, TokenRejectedError
from chatgrpc.start_error import StartError

TOKEN_BYTES_MAX = 8192

_TIME_S_MAX = 1 << 40
"""Beyond any date a token can mean (the year 36,812); keeps arithmetic on times exact."""

_MALFORMED = (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What joserfc and json raise on input that is no JWT; nesting that is too deep is a RecursionError."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What tokens must say besides issuer, audience and times, and which claims say it. See `AuthSettings`."""

    expiry_max_s: float = math.inf
    age_max_s: float | None = None
    token_type: str | None = None
    parties: frozenset[str] = frozenset()
    user_id_claim: str = "sub"
    user_id_rule: UserIdRule = "as-is"
    device_claim: str | None = None


class JwtVerifier:
    """`TokenVerifier` for JWT signed with EdDSA (Ed25519), ES256 or RS256."""

    def __init__(
        self, keys: KeySource, *, issuer: str, audience: str, leeway_s: float, rules: TokenRules = TokenRules()
    ) -> None:
        """
        Args:
            keys: the issuer's keys; the verifier closes them.
            issuer: what `iss` must be.
            audience: what `aud` must be or contain.
            leeway_s: difference of clocks that is forgiven in `exp`, `nbf` and the age.
            rules: what else tokens must say.
        """
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._leeway_ms = leeway_s * 1000
        self._rules = rules
        self._registry = JwtRegistry()

    async def verify(self, token: str, now_ms: int) -> Claims:
        """See `TokenVerifier.verify`."""
        signed = self._parse(token)
        header = signed.headers()
        if header["alg"] not in ALGORITHMS:
            _reject("TOKEN_ALGORITHM", f"tokens must be signed with one of {', '.join(ALGORITHMS)}")
        if not isinstance(header.get("kid"), str):
            _reject("TOKEN_KEY_UNKNOWN", "the token does not name its key: the header `kid` is missing")
        self._check_type(header.get("typ"))

        key = await self._keys.find(header["kid"])
        if key is None:
            _reject("TOKEN_KEY_UNKNOWN", "the issuer has no such key; get a new token")
        if key.algorithm != header["alg"]:
            _reject("TOKEN_ALGORITHM", "the token's algorithm is not its key's")
        if not self._is_signed_with(signed, key):
            _reject("TOKEN_SIGNATURE", "the signature is not the issuer's")
        return self._check(_claims(signed), now_ms)

    async def aclose(self) -> None:
        """Closes the source of the keys."""
        await self._keys.aclose()

    def _parse(self, token: str) -> CompactSignature:
        if not token:
            _reject("TOKEN_MISSING", "no token was sent; send one as `authorization: Bearer …` or in Hello")
        if "," in token:
            _reject("TOKEN_MALFORMED", "there is more than one token in `authorization`; send one")
        if len(token) > TOKEN_BYTES_MAX:
            _reject("TOKEN_MALFORMED", f"the token is longer than {TOKEN_BYTES_MAX} bytes")
        try:
            signed = extract_compact(token.encode("ascii"), registry=self._registry)
            header = signed.headers()
            if not isinstance(header, dict) or not isinstance(header["alg"], str) or "crit" in header:
                raise ValueError("header")
            self._registry.check_header(header)
        except _MALFORMED:
            # The cause may quote the token.
            raise TokenRejectedError("TOKEN_MALFORMED", "this is not a signed JWT") from None
        return signed

    def _is_signed_with(self, signed: CompactSignature, key: VerificationKey) -> bool:
        try:
            return validate_compact(signed, key.key, registry=self._registry)
        except _MALFORMED:
            return False

    def _check_type(self, stated: object) -> None:
        wanted = self._rules.token_type
        if wanted is not None and (not isinstance(stated, str) or _media_type(stated) != _media_type(wanted)):
            _reject("TOKEN_TYPE", f"the token's header `typ` must be {wanted}; an ID token is no access token")

    def _check(self, claims: dict[str, Any], now_ms: int) -> Claims:
        if claims.get("iss") != self._issuer:
            _reject("TOKEN_ISSUER", f"the token's issuer must be {self._issuer}")
        audience = claims.get("aud")
        if self._audience not in (audience if isinstance(audience, list) else [audience]):
            _reject("TOKEN_AUDIENCE", f"the token's audience must be {self._audience}")
        if self._rules.parties and not _is_one_of(claims.get("azp", claims.get("client_id")), self._rules.parties):
            _reject("TOKEN_PARTY", "the token was given to a client that may not use this server: see its `azp` or `client_id`")
        issued_at_ms = _issued_at_ms(claims)
        expires_at_ms = self._expiry_ms(claims, issued_at_ms, now_ms)
        return Claims(self._user_id(claims), expires_at_ms, issued_at_ms, self._device_id(claims))

    def _expiry_ms(self, claims: dict[str, Any], issued_at_ms: int | None, now_ms: int) -> int:
        expires_at_ms = _time_ms(claims, "exp")
        if expires_at_ms is None:
            _reject("TOKEN_MALFORMED", "the token does not say when it expires: `exp` is missing")
        if expires_at_ms + self._leeway_ms <= now_ms:
            _reject("TOKEN_EXPIRED", "the token has expired; get a new one")
        not_before_ms = _time_ms(claims, "nbf")
        if not_before_ms is not None and not_before_ms - self._leeway_ms > now_ms:
            _reject("TOKEN_NOT_YET_VALID", "the token is not valid yet; compare the clocks")
        if expires_at_ms - self._leeway_ms > now_ms + self._rules.expiry_max_s * 1000:
            _reject(
                "TOKEN_LIFETIME",
                f"the token expires more than {self._rules.expiry_max_s:g} seconds from now; get one that expires sooner",
            )
        if self._rules.age_max_s is None:
            return expires_at_ms
        if issued_at_ms is None:
            _reject("TOKEN_LIFETIME", "the token does not say when it was issued: `iat` is missing")
        if issued_at_ms - self._leeway_ms > now_ms:
            _reject("TOKEN_NOT_YET_VALID", "the token was issued in the future; compare the clocks")
        oldest_at_ms = issued_at_ms + int(self._rules.age_max_s * 1000)
        if oldest_at_ms + self._leeway_ms <= now_ms:
            _reject("TOKEN_EXPIRED", f"the token has expired: it is older than {self._rules.age_max_s:g} s; get a new one")
        return min(expires_at_ms, oldest_at_ms)

    def _user_id(self, claims: dict[str, Any]) -> str:
        rules = self._rules
        subject = claims.get(rules.user_id_claim)
        what = "subject" if rules.user_id_claim == "sub" else f"claim `{rules.user_id_claim}`"
        if not isinstance(subject, str):
            _reject(
                "TOKEN_SUBJECT", f"the token's {what} is missing, or no text: the issuer must write also a number as a text"
            )
        user_id = user_id_of(subject, rules.user_id_rule)
        if user_id is None:
            _reject(
                "TOKEN_SUBJECT",
                f"the token's {what} is not a valid user id; the server's auth.user_id_rule can make one of it"
                if rules.user_id_rule == "as-is"
                else f"the token's {what} is empty, or no valid text",
            )
        return user_id

    def _device_id(self, claims: dict[str, Any]) -> str | None:
        device_id = None if self._rules.device_claim is None else claims.get(self._rules.device_claim)
        if device_id is not None and not (isinstance(device_id, str) and is_device_id(device_id)):
            _reject("TOKEN_DEVICE", f"the token's claim `{self._rules.device_claim}` is not a valid device id")
        return device_id


def open_verifier(settings: Settings) -> JwtVerifier:
    """The verifier that the settings ask for. In dev mode makes the development key if there is none yet.

    Raises:
        StartError: the development key can be neither read nor made; there is no file of keys.
    """
    auth = settings.auth
    rules = TokenRules(
        expiry_max_s=auth.token_expiry_max_s,
        age_max_s=auth.token_age_max_s,
        token_type=auth.token_type,
        parties=auth.parties,
        user_id_claim=auth.user_id_claim,
        user_id_rule=auth.user_id_rule,
        device_claim=DEV_DEVICE_CLAIM if auth.mode == "dev" else auth.device_claim,
    )
    return JwtVerifier(
        _key_source(settings),
        issuer=settings.token_issuer,
        audience=settings.token_audience,
        leeway_s=auth.token_leeway_s,
        rules=rules,
    )


def _key_source(settings: Settings) -> KeySource:
    auth = settings.auth
    if auth.mode == "dev":
        return JwksFromFile(DevIssuer.open(settings.data_dir).path)
    if auth.jwks_url is not None:
        return JwksFromUrl(auth.jwks_url, stale_max_s=auth.jwks_stale_max_s)
    jwks_file = auth.jwks_file or Path()
    keys = JwksFromFile(jwks_file, stale_max_s=auth.jwks_stale_max_s)
    try:
        if not S_ISREG(jwks_file.stat().st_mode):  # `is_file` says no also of what may not be looked at, from Python 3.14 on
            raise StartError(f"auth.jwks_file: {jwks_file} is not a file; without keys no token could be accepted")
        keys.check()
    except (OSError, InvalidJwksError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise StartError(
            f"auth.jwks_file: {jwks_file}: {reason}; without keys no token could be accepted. It must be the issuer's JWK set "
            f"with a key for one of {', '.join(ALGORITHMS)}"
        ) from error
    return keys


def _claims(signed: CompactSignature) -> dict[str, Any]:
    try:
        claims = json.loads(signed.payload)
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        _reject("TOKEN_MALFORMED", "the token's payload is not a JSON object")
    return claims


def _time_ms(claims: dict[str, Any], name: str) -> int | None:
    """A NumericDate (RFC 7519 §2) in milliseconds, None if the claim is absent."""
    value = claims.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if isinstance(value, bool) or not is_number:
        _reject("TOKEN_MALFORMED", f"the claim `{name}` is not a time")
    time_s: float = max(-_TIME_S_MAX, min(value, _TIME_S_MAX))
    return round(time_s * 1000)


def _issued_at_ms(claims: dict[str, Any]) -> int | None:
    """`iat` in milliseconds. One that is no time says nothing, as none does; who needs it refuses the token for that."""
    try:
        return _time_ms(claims, "iat")
    except TokenRejectedError:
        return None


def _media_type(name: str) -> str:
    """A `typ`, whose `application/` may be left out (RFC 7515 §4.1.9)."""
    return name.lower().removeprefix("application/")


def _is_one_of(value: object, names: frozenset[str]) -> bool:
    return isinstance(value, str) and value in names


def _reject(reason: str, message: str) -> NoReturn:
    raise TokenRejectedError(reason, message)
