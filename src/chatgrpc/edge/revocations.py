"""What a revocation takes away: the device, and the tokens that whoever holds it may hold.

A token that names its device (`auth.device_claim`) goes with the device. One that does not could be shown by any device, so a
revocation makes all such tokens of the user void that were issued until then, and each device of the user fetches a new one.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from chatgrpc.core.disconnect import Ended
from chatgrpc.ports.accounts import DeviceStore, Standing
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.lease_clock import wall_clock_ms
from chatgrpc.ports.tokens import Claims, RevocationsUnavailableError, TokenRejectedError, TokenVerifier
from chatgrpc.v1 import session_pb2

KNOWN_FOR_S: Final = 5.0
"""A unary call may be judged by what the store said of its caller this long ago. A node told of a revocation reads again."""
_USERS_KNOWN_MAX: Final = 10_000

CLOCK_WRONG_MS: Final = 5 * 60_000
"""If a not-before lies this far ahead, a clock is wrong: the one that it was written by, or the own one."""
ISSUER_AHEAD_MS: Final = 30_000
"""A token that is issued no further ahead than this does not show that a clock is wrong."""

RENEW_AFTER_MS: Final = 1_000
"""Issuers count seconds: a token that is fetched in the second of the revocation cannot be told from one before it."""


@dataclass(frozen=True, slots=True)
class TakenAway:
    """What was taken away from a user, as a node sees it whose clock may be another than that of the one that revoked."""

    standing: Standing
    spared_after_ms: int = 0
    spared_until_ms: int = 0
    """Tokens that were issued between these two times are not void, though the not-before lies ahead of them."""

    def voids(self, issued_at_ms: int) -> bool:
        """Whether a token that names no device, and was issued then, was taken away."""
        is_spared = self.spared_after_ms < issued_at_ms <= self.spared_until_ms
        return issued_at_ms <= self.standing.not_before_ms and not is_spared


def not_before_ms(now_ms: int, known: Iterable[Claims]) -> int:
    """Until when tokens are void of which some are known: until now, and at least until the latest of those was issued.

    If the own clock is behind, that is what shows it.
    """
    return max([now_ms, *map(_issued_at_ms, known)])


def _issued_at_ms(claims: Claims) -> int:
    """0 if it does not say, or says what cannot be."""
    issued_at_ms = claims.issued_at_ms or 0
    return issued_at_ms if issued_at_ms <= claims.expires_at_ms else 0


def check(claims: Claims, taken: TakenAway) -> None:
    """Checks that the token was not taken away.

    Raises:
        TokenRejectedError: it was.
    """
    if claims.device_id is not None:
        if claims.device_id in taken.standing.revoked:
            raise TokenRejectedError("TOKEN_REVOKED", "The device that the token was given to was revoked.")
        return
    if not taken.standing.not_before_ms:
        return
    if claims.issued_at_ms is None:
        raise TokenRejectedError(
            "TOKEN_REVOKED",
            "One of the user's devices was revoked, and the token does not say when it was issued: its issuer must set `iat`.",
        )
    if taken.voids(claims.issued_at_ms):
        raise TokenRejectedError(
            "TOKEN_REVOKED", "One of the user's devices was revoked after the token was issued. Get a new token."
        )


def ending(claims: Claims, device_id: str, taken: TakenAway) -> Ended | None:
    """How the stream of a device that came with this token ends; None if it goes on."""
    if device_id in taken.standing.revoked:
        return Ended(session_pb2.DISCONNECT_CODE_DEVICE_REVOKED)
    try:
        check(claims, taken)
    except TokenRejectedError as rejected:
        return Ended(
            session_pb2.DISCONNECT_CODE_UNAUTHENTICATED, str(rejected), rejected.reason, reconnect_after_ms=RENEW_AFTER_MS
        )
    return None


@dataclass(frozen=True, slots=True)
class _Known:
    taken: TakenAway
    read_at_s: float


class Revocations:
    """What was taken away from whom, as the store says, or said a moment ago."""

    def __init__(
        self,
        devices: DeviceStore,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._devices = devices
        self._monotonic = monotonic
        self._wall_ms = wall_ms
        self._known: OrderedDict[str, _Known] = OrderedDict()  # by user id; the one that was read last is at the end
        self._ahead: OrderedDict[str, tuple[Standing, int]] = (
            OrderedDict()
        )  # by user id; what was stored, and when it was found

    async def now(self, user_id: str) -> TakenAway:
        """What the store says now.

        Raises:
            StoreError: it cannot be read.
        """
        read_at_s = self._monotonic()
        taken = self._seen(user_id, await self._devices.standing(user_id))
        self._known[user_id] = _Known(taken, read_at_s)
        self._known.move_to_end(user_id)
        if len(self._known) > _USERS_KNOWN_MAX:
            self._known.popitem(last=False)
        return taken

    def _seen(self, user_id: str, stored: Standing) -> TakenAway:
        """What is stored, but that no token is void which was issued after this node had found it so, and by now.

        A server whose clock is ahead stores a not-before that lies ahead too, and none that is lower takes its place. As it is
        stored by now, the revocation has been. So who is refused by it and fetches a new token comes in. Each revocation raises
        what is stored, and so is found anew.

        A node whose own clock is behind sees the same. But there tokens are ahead of its clock too, and so tell it: to them the
        not-before applies as it is stored.
        """
        now_ms = self._wall_ms()
        if stored.not_before_ms <= now_ms + CLOCK_WRONG_MS:
            self._ahead.pop(user_id, None)
            return TakenAway(stored)
        found, found_at_ms = self._ahead.get(user_id, (None, 0))
        if found != stored:
            found_at_ms = now_ms
            self._ahead[user_id] = stored, found_at_ms
            if len(self._ahead) > _USERS_KNOWN_MAX:
                self._ahead.popitem(last=False)
        return TakenAway(stored, found_at_ms, now_ms + ISSUER_AHEAD_MS)

    async def lately(self, user_id: str) -> TakenAway:
        """What the store said in the last `KNOWN_FOR_S`.

        Raises:
            StoreError: it cannot be read.
        """
        known = self._known.get(user_id)
        if known is not None and self._monotonic() - known.read_at_s < KNOWN_FOR_S:
            return known.taken
        return await self.now(user_id)


class UnrevokedTokens:
    """`TokenVerifier` that also refuses tokens that were revoked, at the latest `KNOWN_FOR_S` after the revocation."""

    def __init__(self, tokens: TokenVerifier, revocations: Revocations) -> None:
        self._tokens = tokens
        self._revocations = revocations

    async def verify(self, token: str, now_ms: int) -> Claims:
        """See the port."""
        claims = await self._tokens.verify(token, now_ms)
        try:
            taken = await self._revocations.lately(claims.user_id)
        except StoreError as error:
            raise RevocationsUnavailableError from error
        check(claims, taken)
        return claims
