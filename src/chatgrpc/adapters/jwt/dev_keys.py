"""The development issuer: a key pair in the data folder, so that two people can chat before there is an identity provider."""

import json
from pathlib import Path
from typing import Self

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from chatgrpc.adapters.jwt.keys import JwtRegistry
from chatgrpc.auth_settings import DEV_DEVICE_CLAIM
from chatgrpc.config import DEV_AUDIENCE, DEV_ISSUER
from chatgrpc.core.ids import is_device_id, is_user_id
from chatgrpc.secret_files import create_secret_file, read_secret_file
from chatgrpc.start_error import StartError

FILE_NAME = "dev_issuer.json"


class DevIssuer:
    """Signs tokens with the key in `<data_dir>/dev_issuer.json`, a JWK set of one private Ed25519 key, readable by its owner.

    Who can read the file can be any user; production verifies the tokens of a real issuer (`auth.mode = "jwks"`).
    """

    def __init__(self, path: Path, key: OKPKey) -> None:
        self.path = path
        self._key = key

    @classmethod
    def open(cls, data_dir: Path) -> Self:
        """Reads the key, and makes it first if there is none; processes that race to make it end with the same one.

        Raises:
            StartError: the folder cannot be written, or the file does not hold a key, or others may read it.
        """
        path = data_dir / FILE_NAME
        try:
            if not path.exists():
                _create(path)
            return cls(path, _read(path))
        except OSError as error:
            reason = error.strerror or error
            raise StartError(f"The data folder {data_dir} cannot be used: {reason}. Choose another with --data-dir.") from error
        except (JoseError, ValueError, KeyError, TypeError, IndexError) as error:
            raise StartError(f"{path}: not a development key; move it away and a new one is made") from error

    def mint(self, user_id: str, ttl_s: int, now_ms: int, device_id: str | None = None) -> str:
        """A token for `user_id` that expires `ttl_s` after `now_ms`; for one device only if it is named.

        Raises:
            ValueError: `user_id` or `device_id` is not a valid id, or `ttl_s` is not positive.
        """
        if not is_user_id(user_id):
            raise ValueError(f"{user_id!r} is not a user id: 1 to 64 of A-Z a-z 0-9 _ . @ + -, a letter or digit first")
        if ttl_s <= 0:
            raise ValueError("a token must live at least one second")
        if device_id is not None and not is_device_id(device_id):
            raise ValueError(f"{device_id!r} is not a device id: 1 to 64 of A-Z a-z 0-9 _ . -")
        claims: dict[str, object] = {
            "iss": DEV_ISSUER,
            "aud": DEV_AUDIENCE,
            "sub": user_id,
            # To the millisecond (RFC 7519 allows it): one that is made right after a revocation is newer than it.
            "iat": now_ms / 1000,
            "exp": now_ms // 1000 + ttl_s,
        }
        if device_id is not None:
            claims[DEV_DEVICE_CLAIM] = device_id
        return jwt.encode({"alg": "EdDSA", "kid": self._key.kid}, claims, self._key, registry=JwtRegistry())


def _read(path: Path) -> OKPKey:
    key = OKPKey.import_key(json.loads(read_secret_file(path))["keys"][0])
    if not key.is_private or key.curve_name != "Ed25519" or not key.kid:
        raise ValueError("not a private Ed25519 key")
    return key


def _create(path: Path) -> None:
    key = OKPKey.generate_key("Ed25519", {"use": "sig", "alg": "EdDSA"}, auto_kid=True)
    create_secret_file(path, json.dumps({"keys": [key.as_dict(private=True)]}, indent=2).encode())
