"""The port through which the edge learns whose token it was handed."""

from dataclasses import dataclass
from typing import ClassVar, Protocol


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says of its bearer."""

    user_id: str
    """Whose it is; already checked to be a valid user id (`core.ids.is_user_id`)."""
    expires_at_ms: int
    """The `exp` claim, or the end of the age that is allowed if that comes first, in milliseconds since the Unix epoch."""
    issued_at_ms: int | None = None
    """The `iat` claim, in milliseconds since the Unix epoch; None if the issuer does not say."""
    device_id: str | None = None
    """The device that the token was given to, and that alone may use it; None if the issuer does not say."""


class TokenRejectedError(Exception):
    """The token proves nothing.

    `reason` is one of the fixed words that reach the peer in `google.rpc.ErrorInfo.reason`: `TOKEN_MISSING`,
    `TOKEN_MALFORMED`, `TOKEN_EXPIRED`, `TOKEN_NOT_YET_VALID`, `TOKEN_ISSUER`, `TOKEN_AUDIENCE`, `TOKEN_ALGORITHM`,
    `TOKEN_KEY_UNKNOWN`, `TOKEN_SIGNATURE`, `TOKEN_SUBJECT`, `TOKEN_TYPE`, `TOKEN_PARTY`, `TOKEN_LIFETIME`, `TOKEN_DEVICE`,
    `TOKEN_REVOKED`. The message never contains the token.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TokenUncheckedError(Exception):
    """Nothing can be said of the token just now. The peer should retry."""

    reason: ClassVar[str]
    """One of the fixed words that reach the peer in `google.rpc.ErrorInfo.reason`."""
    explanation: ClassVar[str]
    """For the peer."""


class KeysUnavailableError(TokenUncheckedError):
    """The keys could not be fetched and none are cached."""

    reason = "KEYS_UNAVAILABLE"
    explanation = "The keys to check tokens with cannot be had just now."


class RevocationsUnavailableError(TokenUncheckedError):
    """The store does not say whether it was revoked."""

    reason = "REVOCATIONS_UNAVAILABLE"
    explanation = "Whether the token was revoked cannot be read just now."


class TokenVerifier(Protocol):
    """Verifies access tokens (JWT, RFC 7519) against the keys of their issuer."""

    async def verify(self, token: str, now_ms: int) -> Claims:
        """Checks signature, algorithm, issuer, audience, times and subject; not whether it was revoked (`Revocations`).

        Never blocks the event loop: keys come from a cache; a token with an unknown `kid` may cause one fetch, shared by all
        who wait and limited in rate.

        Raises:
            TokenRejectedError: the token is not valid.
            KeysUnavailableError: there are no keys to check it against.
        """
        ...
