"""Settings of the group `auth`: whose tokens are accepted, and what a token must say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from chatgrpc.addresses import is_loopback
from chatgrpc.settings_group import SettingsGroup

DEV_ISSUER = "chatgrpc-dev"
DEV_AUDIENCE = "chatgrpc"
DEV_DEVICE_CLAIM = "device_id"

_LEEWAY_S = 30.0

UserIdRule = Literal["as-is", "escaped", "hashed"]


class AuthSettings(SettingsGroup):
    """Whose tokens are accepted."""

    mode: Literal["dev", "jwks"] = Field(
        default="dev", description="dev: tokens of `chatgrpc token`; jwks: tokens of an issuer, by its public keys."
    )
    issuer: str | None = Field(default=None, min_length=1, description="The `iss` that tokens must carry (jwks).")
    audience: str = Field(default=DEV_AUDIENCE, min_length=1, description="The `aud` that tokens must carry (jwks).")
    jwks_file: Path | None = Field(default=None, description="The issuer's public keys, a JWK set, read again when it changes.")
    jwks_url: str | None = Field(default=None, repr=False, description="Address of the issuer's public keys, a JWK set.")
    jwks_stale_max_s: float = Field(
        default=86_400.0, gt=0, description="Keys that could not be looked up again for as long are not trusted any more."
    )
    leeway_s: float | None = Field(
        default=None, ge=0, le=600, description="Difference of clocks that is forgiven in a token's times; 30, and 0 in dev."
    )
    token_expiry_max_s: float = Field(
        default=30 * 86_400.0, gt=0, description="A token whose `exp` lies further ahead than this is refused."
    )
    token_age_max_s: float | None = Field(
        default=None, gt=0, description="A token is good for as long after its `iat`, even if its `exp` is later (jwks)."
    )
    token_type: str | None = Field(
        default=None, min_length=1, description="The header `typ` that tokens must carry, such as at+jwt (jwks)."
    )
    authorized_parties: str | None = Field(
        default=None,
        min_length=1,
        description="Clients whose tokens are accepted, by `azp` or `client_id`, comma between (jwks).",
    )
    user_id_claim: str = Field(default="sub", min_length=1, description="The claim that a user's id is made of (jwks).")
    user_id_rule: UserIdRule = Field(
        default="as-is",
        description="as-is: the claim is the user id; escaped: other characters are escaped; hashed: a hash of it (jwks).",
    )
    device_claim: str | None = Field(
        default=None, min_length=1, description="The claim that names the device a token was given to, if the issuer has one."
    )

    @property
    def token_leeway_s(self) -> float:
        """The difference of clocks that is forgiven. Development tokens are made by the clock that judges them."""
        if self.leeway_s is not None:
            return self.leeway_s
        return 0.0 if self.mode == "dev" else _LEEWAY_S

    @property
    def parties(self) -> frozenset[str]:
        """`authorized_parties`, one by one; none = all are accepted."""
        return frozenset(part.strip() for part in (self.authorized_parties or "").split(",") if part.strip())


_FOR_DEV_TOO = ("mode", "leeway_s", "token_expiry_max_s")
"""All others are of an issuer's tokens."""


def auth_problems(auth: AuthSettings) -> Iterator[str]:
    """What does not go together."""
    if auth.mode == "dev":
        for key, field in AuthSettings.model_fields.items():
            if key not in _FOR_DEV_TOO and getattr(auth, key) != field.default:
                yield f"auth.{key} is set, but auth.mode is dev, which would not use it; set auth.mode to jwks"
        return
    if auth.issuer is None:
        yield "auth.issuer is missing: auth.mode jwks needs the `iss` that tokens carry"
    if (auth.jwks_file is None) == (auth.jwks_url is None):
        yield "auth.mode jwks needs auth.jwks_file or auth.jwks_url, and not both"
    if auth.jwks_url is not None:
        yield from _url_problems(auth.jwks_url)
    if auth.authorized_parties is not None and not auth.parties:
        yield "auth.authorized_parties names nobody; leave it out, or name clients with commas between"


def _url_problems(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        usable = parts.scheme in ("https", "http") and bool(host) and parts.port != 0
    except ValueError:
        parts, host, usable = urlsplit(""), "", False
    if not usable:
        yield "auth.jwks_url is not an address that starts with https://"
    elif parts.scheme == "http" and not is_loopback(host):
        yield "auth.jwks_url must start with https://: who can change the answer can sign tokens"
