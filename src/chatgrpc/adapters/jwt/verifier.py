"""Verifies access tokens; the contract is `chatgrpc.ports.tokens`."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from joserfc.errors import JoseError
from joserfc.jws import CompactSignature, extract_compact, validate_compact

from chatgrpc.adapters.jwt.dev_keys import DevIssuer
from chatgrpc.adapters.jwt.jwks_file import JwksFromFile
from chatgrpc.adapters.jwt.jwks_url import JwksFromUrl
from chatgrpc.adapters.jwt.keys import ALGORITHMS, JwtRegistry, KeySource, VerificationKey
from chatgrpc.config import Settings, StartError
from chatgrpc.core.ids import is_user_id
from chatgrpc.ports.tokens import Claims, TokenRejectedError

TOKEN_BYTES_MAX = 8192

_TIME_S_MAX = 1 << 40
"""Beyond any date a token can mean (the year 36,812); keeps arithmetic on times exact."""

_MALFORMED = (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What joserfc and json raise on input that is no JWT; nesting that is too deep is a RecursionError."""


class JwtVerifier:
    """`TokenVerifier` for JWT signed with EdDSA (Ed25519), ES256 or RS256."""

    def __init__(self, keys: KeySource, *, issuer: str, audience: str, leeway_s: float) -> None:
        """
        Args:
            keys: the issuer's keys; the verifier closes them.
            issuer: what `iss` must be.
            audience: what `aud` must be or contain.
            leeway_s: difference of clocks that is forgiven in `exp` and `nbf`.
        """
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._leeway_ms = leeway_s * 1000
        self._registry = JwtRegistry()

    async def verify(self, token: str, now_ms: int) -> Claims:
        """See `TokenVerifier.verify`."""
        signed = self._parse(token)
        header = signed.headers()
        if header["alg"] not in ALGORITHMS:
            _reject("TOKEN_ALGORITHM", f"tokens must be signed with one of {', '.join(ALGORITHMS)}")
        if not isinstance(header.get("kid"), str):
            _reject("TOKEN_KEY_UNKNOWN", "the token does not name its key: the header `kid` is missing")

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

    def _check(self, claims: dict[str, Any], now_ms: int) -> Claims:
        if claims.get("iss") != self._issuer:
            _reject("TOKEN_ISSUER", f"the token's issuer must be {self._issuer}")
        audience = claims.get("aud")
        if self._audience not in (audience if isinstance(audience, list) else [audience]):
            _reject("TOKEN_AUDIENCE", f"the token's audience must be {self._audience}")

        expires_at_ms = _time_ms(claims, "exp")
        if expires_at_ms is None:
            _reject("TOKEN_MALFORMED", "the token does not say when it expires: `exp` is missing")
        if expires_at_ms + self._leeway_ms <= now_ms:
            _reject("TOKEN_EXPIRED", "the token has expired; get a new one")
        not_before_ms = _time_ms(claims, "nbf")
        if not_before_ms is not None and not_before_ms - self._leeway_ms > now_ms:
            _reject("TOKEN_NOT_YET_VALID", "the token is not valid yet; compare the clocks")

        subject = claims.get("sub")
        if not isinstance(subject, str) or not is_user_id(subject):
            _reject("TOKEN_SUBJECT", "the token's subject is not a valid user id")
        return Claims(user_id=subject, expires_at_ms=expires_at_ms)


def open_verifier(settings: Settings) -> JwtVerifier:
    """The verifier that the settings ask for. In dev mode makes the development key if there is none yet.

    Raises:
        StartError: the development key can be neither read nor made; there is no file of keys.
    """
    keys = _key_source(settings)
    return JwtVerifier(keys, issuer=settings.token_issuer, audience=settings.token_audience, leeway_s=settings.auth.leeway_s)


def _key_source(settings: Settings) -> KeySource:
    if settings.auth.mode == "dev":
        return JwksFromFile(DevIssuer.open(settings.data_dir).path)
    if settings.auth.jwks_url is not None:
        return JwksFromUrl(settings.auth.jwks_url)
    jwks_file = settings.auth.jwks_file or Path()
    if not jwks_file.is_file():
        raise StartError(f"auth.jwks_file: {jwks_file} is not a file; without keys no token could be accepted")
    return JwksFromFile(jwks_file)


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
    return int(max(-_TIME_S_MAX, min(value, _TIME_S_MAX)) * 1000)


def _reject(reason: str, message: str) -> NoReturn:
    raise TokenRejectedError(reason, message)
