"""Verification keys: which algorithms are allowed, and which keys of a JWK set serve them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

_log = structlog.get_logger(__name__)

ALGORITHMS = ("EdDSA", "ES256", "RS256")
"""What a token may be signed with. Nothing symmetric: who can verify must not be able to sign."""

JWKS_BYTES_MAX = 256 * 1024
KEYS_MAX = 64
STALE_MAX_S = 86_400.0
"""Keys that could not be looked up again for as long are not trusted any more: one of them may have been withdrawn."""
_RSA_BITS = range(2048, 8192 + 1)
_RSA_MODULUS_CHARACTERS_MIN = 342  # 2048 bits in base64

PublicKey = OKPKey | ECKey | RSAKey


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key and the one algorithm it serves; the algorithm follows from the key, not from the token."""

    algorithm: str
    key: PublicKey


KeySet = Mapping[str, VerificationKey]
"""Keys by their `kid`."""


class KeySource(Protocol):
    """Where the verifier finds keys. Keys are cached; a change at the source is seen without a restart."""

    async def find(self, kid: str) -> VerificationKey | None:
        """The key called `kid`, None if the issuer has none.

        Raises:
            KeysUnavailableError: nothing was ever read from the source, or nothing for too long.
        """
        ...

    async def aclose(self) -> None:
        """Releases what the source holds open."""
        ...


class InvalidJwksError(Exception):
    """The document is not a JWK set that serves."""


class JwtRegistry(JWSRegistry):
    """joserfc's table of algorithms, cut down to ours."""

    max_header_length = 4096
    max_payload_length = 8192

    def __init__(self) -> None:
        # Issuers put headers of their own into tokens; RFC 7515 §4 says to ignore them (`crit` is refused elsewhere).
        super().__init__(algorithms=ALGORITHMS, strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        """As joserfc's, without its warning that RFC 9864 renames EdDSA: issuers still sign under this name."""
        if name in ALGORITHMS:
            return self.algorithms[name]
        return super().get_alg(name)


def parse_jwks(document: bytes) -> KeySet:
    """Reads a JWK set. Keys that cannot serve are passed over (RFC 7517 §5), so one odd key does not take out the others.

    Private parts, if any, are not kept. A set in which none can serve is rather a mistake of the issuer's than its wish that
    nobody be let in, so it is no set at all: what was read before stays, for as long as after any other failure.

    Raises:
        InvalidJwksError: the document is not a JWK set, or holds no key that serves, or more than `KEYS_MAX`.
    """
    try:
        entries = json.loads(document)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidJwksError("not a JSON object with a list `keys`") from error
    if not isinstance(entries, list):
        raise InvalidJwksError("`keys` is not a list")
    if len(entries) > KEYS_MAX:
        raise InvalidJwksError(f"{len(entries)} keys, at most {KEYS_MAX} are read")

    keys: dict[str, VerificationKey] = {}
    for position, entry in enumerate(entries):
        try:
            kid, key = _verification_key(entry)
            if kid in keys:
                raise InvalidJwksError("an earlier key has the same kid")
            keys[kid] = key
        except InvalidJwksError as error:
            _log.warning("jwks_key_passed_over", position=position, why=str(error))
    if not keys:
        raise InvalidJwksError("it holds no key that serves")
    return keys


def _verification_key(entry: object) -> tuple[str, VerificationKey]:
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
        raise InvalidJwksError("not an object with a `kid`")
    if entry.get("kty") == "RSA" and len(str(entry.get("n"))) < _RSA_MODULUS_CHARACTERS_MIN:
        raise InvalidJwksError("an RSA key of less than 2048 bits")
    try:
        key = JWKRegistry.import_key(entry)
        algorithm = _algorithm_of(key)
        key.check_use("sig")
        key.check_alg(algorithm)
        key.check_key_op("verify")
    except Exception as error:  # whatever an odd key makes the library raise, it is this key that is passed over
        raise InvalidJwksError(f"it does not fit: {type(error).__name__}") from error
    assert isinstance(key, PublicKey)
    public = type(key).import_key(key.as_dict(private=False))
    return entry["kid"], VerificationKey(algorithm, public)


def _algorithm_of(key: object) -> str:
    if isinstance(key, OKPKey) and key.curve_name == "Ed25519":
        return "EdDSA"
    if isinstance(key, ECKey) and key.curve_name == "P-256":
        return "ES256"
    if isinstance(key, RSAKey) and key.raw_value.key_size in _RSA_BITS:
        return "RS256"
    raise ValueError("no allowed algorithm fits the key")
