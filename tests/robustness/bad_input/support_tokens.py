"""Tokens that must not be accepted."""

import json
import time
from pathlib import Path
from typing import Any

from joserfc.jwk import OKPKey

from chatgrpc.adapters.jwt.dev_keys import FILE_NAME
from chatgrpc.config import DEV_AUDIENCE, DEV_ISSUER
from tests.contract.jwt_issuer import compose, new_key, sign
from tests.support.server import ServerProcess

_STRANGERS_KEY = new_key("EdDSA", "strangers-key")


def forged_token(user_id: str) -> str:
    """Well formed, and signed by a key that is not the issuer's."""
    return sign(_STRANGERS_KEY, "EdDSA", claims(user_id))


def claims(user_id: str, **changes: Any) -> dict[str, Any]:
    """Claims that the development issuer would make, with changes; None leaves one out."""
    now_s = int(time.time())
    made = {"iss": DEV_ISSUER, "aud": DEV_AUDIENCE, "sub": user_id, "iat": now_s, "exp": now_s + 3600}
    return {name: value for name, value in (made | changes).items() if value is not None}


def bad_tokens(server: ServerProcess, user_id: str) -> dict[str, tuple[str, str]]:
    """Every way to get a token wrong: what is wrong with it, the reason that the server gives, and the token."""
    key = _issuers_key(server.data_dir)
    now_s = int(time.time())
    good = server.token(user_id)
    header, payload, signature = good.split(".")
    other_payload = server.token("somebody-else").split(".")[1]
    return {
        "no JWT": ("TOKEN_MALFORMED", "nonsense"),
        "three empty parts": ("TOKEN_MALFORMED", ".."),
        "long": ("TOKEN_MALFORMED", "x" * 7_000),
        "cut": ("TOKEN_MALFORMED", good[:20]),
        "deeply nested header": ("TOKEN_MALFORMED", compose(_nested(100), claims(user_id))),
        "alg none": ("TOKEN_ALGORITHM", compose({"alg": "none", "kid": key.kid}, claims(user_id), b"")),
        "alg HS256": ("TOKEN_ALGORITHM", compose({"alg": "HS256", "kid": key.kid}, claims(user_id))),
        "alg of another kind of key": ("TOKEN_ALGORITHM", compose({"alg": "ES256", "kid": key.kid}, claims(user_id))),
        "no kid": ("TOKEN_KEY_UNKNOWN", compose({"alg": "EdDSA"}, claims(user_id))),
        "a stranger's key": ("TOKEN_KEY_UNKNOWN", forged_token(user_id)),
        "a stranger's key under the issuer's name": (
            "TOKEN_SIGNATURE",
            sign(new_key("EdDSA", str(key.kid)), "EdDSA", claims(user_id)),
        ),
        "no signature": ("TOKEN_SIGNATURE", f"{header}.{payload}."),
        "another user put in": ("TOKEN_SIGNATURE", f"{header}.{other_payload}.{signature}"),
        "expired": ("TOKEN_EXPIRED", sign(key, "EdDSA", claims(user_id, exp=now_s - 3600))),
        "expired long ago": ("TOKEN_EXPIRED", sign(key, "EdDSA", claims(user_id, exp=-(2**62)))),
        "not valid yet": ("TOKEN_NOT_YET_VALID", sign(key, "EdDSA", claims(user_id, nbf=now_s + 3600))),
        "no expiry": ("TOKEN_MALFORMED", sign(key, "EdDSA", claims(user_id, exp=None))),
        "another issuer": ("TOKEN_ISSUER", sign(key, "EdDSA", claims(user_id, iss="https://evil.example"))),
        "another audience": ("TOKEN_AUDIENCE", sign(key, "EdDSA", claims(user_id, aud="another-service"))),
        "no subject": ("TOKEN_SUBJECT", sign(key, "EdDSA", claims(user_id, sub=None))),
        "a subject that is no user id": ("TOKEN_SUBJECT", sign(key, "EdDSA", claims(user_id, sub="x' OR 1=1 --"))),
        "payload that is no object": ("TOKEN_MALFORMED", sign(key, "EdDSA", b"[1]")),
        "a critical header": ("TOKEN_MALFORMED", compose({"alg": "EdDSA", "kid": key.kid, "crit": ["x"]}, claims(user_id))),
    }


def _issuers_key(data_dir: Path) -> OKPKey:
    return OKPKey.import_key(json.loads((data_dir / FILE_NAME).read_bytes())["keys"][0])


def _nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = {"alg": value}
    return value
