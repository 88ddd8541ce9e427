"""The admission of a device: whose token it is, whether the device may come in, and what its user's chats are."""

from collections.abc import Awaitable, Callable, Set
from typing import Protocol, TypeAlias

from chatgrpc.core.clock import Now
from chatgrpc.core.disconnect import Ended
from chatgrpc.core.effects import Admission, Admit
from chatgrpc.core.entries import Membership
from chatgrpc.core.limits import Limits
from chatgrpc.core.membership_pages import NAMED_CHATS_MAX, PAST_CHATS_MAX, MembershipPages
from chatgrpc.core.receipts import Mark
from chatgrpc.core.refusal import Code
from chatgrpc.core.visibility import is_member
from chatgrpc.edge.revocations import Revocations, check, ending
from chatgrpc.edge.watermarks import Watermarks
from chatgrpc.ports.accounts import DeviceRevokedError, DeviceStore, TooManyDevicesError
from chatgrpc.ports.chat_log import ChatReader
from chatgrpc.ports.cursors import CursorStore
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.tokens import (
    Claims,
    KeysUnavailableError,
    RevocationsUnavailableError,
    TokenRejectedError,
    TokenUncheckedError,
    TokenVerifier,
)
from chatgrpc.trouble import Trouble
from chatgrpc.v1 import chat_pb2, session_pb2

_MEMBERSHIPS_PER_READ = 500
_UNCHECKED_RETRY_AFTER_MS = 1_000

Identified: TypeAlias = Callable[[Claims], Awaitable[None]]
GaveWay: TypeAlias = Callable[[str, str], Awaitable[None]]


class MembershipReader(Protocol):
    """As much of `ports.chat_log.ChatReader` as is read of memberships here."""

    async def readable_memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> tuple[list[Membership], list[str]]:
        """See there."""
        ...

    async def past_membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See there."""
        ...


class Admissions:
    """Admits devices."""

    def __init__(
        self,
        verifier: TokenVerifier,
        devices: DeviceStore,
        revocations: Revocations,
        log: ChatReader,
        cursors: CursorStore,
        watermarks: Watermarks,
        limits: Limits,
    ) -> None:
        self._verifier = verifier
        self._devices = devices
        self._revocations = revocations
        self._log = log
        self._cursors = cursors
        self._watermarks = watermarks
        self._limits = limits
        self._trouble = Trouble("admission_failed")
        self._trouble_of_marks = Trouble("receipts_not_read")

    async def admit(self, wanted: Admit, now: Now, identified: Identified, gave_way: GaveWay) -> Admission | Ended:
        """Admits a device, or says why not.

        Args:
            wanted: what the session asked for.
            now: the time of the Hello.
            identified: awaited as soon as the device may come in, before its chats are read. From then on the session must
                be found and note deliveries, so that none falls between the reading and the opening.
            gave_way: awaited with the user and the id of an ephemeral device that is none of the user's any more.
        """
        try:
            claims = await self._verifier.verify(wanted.token, now.wall_ms)
            _check_device(claims, wanted.device_id)
            # Before it is registered, lest a void token uses up the places of the user's devices.
            refusal = ending(claims, wanted.device_id, await self._revocations.lately(claims.user_id))
            if refusal is not None:
                return refusal
            connected = await self._devices.connect(
                claims.user_id,
                wanted.device_id,
                wanted.device_name,
                now.wall_ms,
                self._limits.devices_per_user_max,
                ephemeral=wanted.ephemeral,
            )
            if connected.gave_way:
                await gave_way(claims.user_id, connected.gave_way)
            await identified(claims)
            # A revocation ends the streams that it finds; from here on it finds this one.
            refusal = ending(claims, wanted.device_id, await self._revocations.now(claims.user_id))
            if refusal is not None:
                return refusal
            memberships, unknown = await readable_memberships(self._log, claims.user_id, wanted.held)
            await self._watermarks.save()  # so that what was acknowledged a moment ago is found
            acked = await self._acked(claims.user_id, wanted, {membership.chat_id for membership in memberships}.union(unknown))
            marks, sync_token = await self._changed_marks(claims.user_id, wanted.sync_token, now)
        except TokenRejectedError as rejected:
            return Ended(session_pb2.DISCONNECT_CODE_UNAUTHENTICATED, str(rejected), rejected.reason)
        except KeysUnavailableError:
            return Ended(session_pb2.DISCONNECT_CODE_UNAVAILABLE, "The key server cannot be reached. Try later.")
        except DeviceRevokedError:
            return Ended(session_pb2.DISCONNECT_CODE_DEVICE_REVOKED)
        except TooManyDevicesError:
            return Ended(session_pb2.DISCONNECT_CODE_TOO_MANY_DEVICES)
        except StoreError as error:
            self._trouble.failed(error)
            return Ended(session_pb2.DISCONNECT_CODE_UNAVAILABLE)
        self._trouble.worked()
        return Admission(
            user_id=claims.user_id,
            token_expires_at_ms=claims.expires_at_ms,
            memberships=memberships,
            acked=acked,
            receipts=[mark.receipt() for mark in marks],
            sync_token=sync_token,
            unknown=unknown,
        )

    async def _acked(self, user_id: str, wanted: Admit, chat_ids: Set[str]) -> dict[str, int]:
        """What the device has acknowledged, if there is a chat that begins there."""
        if wanted.ephemeral or wanted.at_head or chat_ids <= wanted.held:
            return {}
        return await self._cursors.of_device(user_id, wanted.device_id)

    async def _changed_marks(self, user_id: str, sync_token: str, now: Now) -> tuple[list[Mark], str]:
        """What `Watermarks.changed` says. Marks that cannot be read keep nobody out: without them the device is given back the
        token that it showed, so its next Hello asks for them again."""
        try:
            changed = await self._watermarks.changed(user_id, sync_token, now)
        except StoreError as error:
            self._trouble_of_marks.failed(error)
            return [], sync_token
        self._trouble_of_marks.worked()
        return changed

    async def verify(self, token: str, device_id: str, now_ms: int) -> Claims | chat_pb2.Error:
        """Verifies a newer token of a device; returns what it says, or why it is not accepted, now or at all."""
        try:
            claims = await self._verifier.verify(token, now_ms)
            _check_device(claims, device_id)
            check(claims, await self._revocations.now(claims.user_id))
            return claims
        except TokenRejectedError as rejected:
            return _refused(chat_pb2.ERROR_CODE_TOKEN_INVALID, str(rejected))
        except (StoreError, TokenUncheckedError) as error:
            unchecked = error if isinstance(error, TokenUncheckedError) else RevocationsUnavailableError
            return _refused(chat_pb2.ERROR_CODE_UNAVAILABLE, f"{unchecked.explanation} Try again.", _UNCHECKED_RETRY_AFTER_MS)


def _refused(code: Code, message: str, retry_after_ms: int = 0) -> chat_pb2.Error:
    return chat_pb2.Error(
        code=code, message=f"{message} The session goes on with the token it has.", retry_after_ms=retry_after_ms
    )


async def readable_memberships(
    log: MembershipReader,
    user_id: str,
    held: Set[str],
    per_read: int = _MEMBERSHIPS_PER_READ,
    past_max: int = PAST_CHATS_MAX,
) -> tuple[list[Membership], list[str]]:
    """The user's chats: those that can be read, and the ids of the others.

    Of chats that are over for the user, `past_max` and a page at most, and beyond it some of those that the device holds.
    """
    memberships: list[Membership] = []
    unknown: list[str] = []
    pages = MembershipPages(past_max)
    while not pages.is_done:
        page, silent = await log.readable_memberships(user_id, pages.after_chat_id, per_read, present_only=pages.present_only)
        memberships += page
        unknown += silent
        past = sum(not is_member(membership.intervals) for membership in page)
        last_chat_id = max([membership.chat_id for membership in page[-1:]] + silent[-1:], default="")
        pages.took(last_chat_id, past, is_last=len(page) + len(silent) < per_read)
    if pages.present_only:
        known = {membership.chat_id for membership in memberships}.union(unknown)
        named = [chat_id for chat_id in held if chat_id not in known]
        for chat_id in named[:NAMED_CHATS_MAX]:
            membership = await log.past_membership(user_id, chat_id)
            if membership is not None:
                memberships.append(membership)
    return memberships, unknown


def _check_device(claims: Claims, device_id: str) -> None:
    if claims.device_id is not None and claims.device_id != device_id:
        raise TokenRejectedError("TOKEN_DEVICE", "The token was given to another device; each needs one of its own.")
