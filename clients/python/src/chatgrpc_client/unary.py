"""Calls outside the stream: groups, devices, profiles, listings.

Each call is tried again while the server cannot be reached or asks for patience, until `request_timeout_s` has passed; writes
carry one `WriteKey` through all tries, so they are done once.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from chatgrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    chat_service_pb2_grpc,
    content_pb2,
    device_service_pb2,
    device_service_pb2_grpc,
    message_service_pb2,
    message_service_pb2_grpc,
    session_pb2,
    user_service_pb2,
    user_service_pb2_grpc,
)

from .backoff import Backoff
from .bearer import checked_token
from .config import ClientConfig, TokenProvider
from .exceptions import (
    LASTING,
    ChatError,
    ClientClosedError,
    NotAMemberError,
    NotFoundError,
    RequestTimeoutError,
    TemporaryError,
    TokenUnavailableError,
    UnauthenticatedError,
    WrongUserError,
    request_error,
)
from .node_channel import NodeChannel

Request_contra = TypeVar("Request_contra", bound=Message, contravariant=True)
Response_co = TypeVar("Response_co", bound=Message, covariant=True)

_CLOSED = "the client is closed; nothing is known of the outcome of a call that was under way"
_RETRIED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}


class _Method(Protocol[Request_contra, Response_co]):
    def __call__(
        self, request: Request_contra, /, *, timeout: float | None = None, metadata: tuple[tuple[str, str], ...] | None = None
    ) -> Awaitable[Response_co]: ...


class Stubs:
    """The unary services on one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.chats = chat_service_pb2_grpc.ChatServiceStub(channel)
        self.devices = device_service_pb2_grpc.DeviceServiceStub(channel)
        self.messages = message_service_pb2_grpc.MessageServiceStub(channel)
        self.users = user_service_pb2_grpc.UserServiceStub(channel)


_MethodOn = Callable[[Stubs], _Method[Request_contra, Response_co]]


class Caller:
    """Makes unary calls on the node in use, for the user of the settings: nothing is asked with another user's token."""

    def __init__(self, node: NodeChannel, config: ClientConfig, token: TokenProvider, *, moves: bool = False) -> None:
        """Makes calls on whatever node `node` stands for.

        Args:
            node: shared with the stream, if there is one, which then decides where the calls go.
            config: the settings.
            token: provides the caller's token.
            moves: there is no stream, so this moves to another node when a call fails.
        """
        self._node = node
        self._config = config
        self._token = token
        self._moves = moves
        self._stubs = Stubs(node.channel)
        self._own_token = ""
        """The last token of which the server said that it is this user's."""

    async def call(self, method: _MethodOn[Request_contra, Response_co], request: Request_contra) -> Response_co:
        """Calls until there is an answer, and returns it. `method` finds the method among the stubs, anew for each try.

        Raises:
            RequestError: the server refused it.
            UnauthenticatedError: the token is not valid.
            TokenUnavailableError: no token could be had.
            WrongUserError: the token is another user's.
            RequestTimeoutError: there was no answer in time.
            ClientClosedError: the client is closed.
        """
        deadline_s = time.monotonic() + self._config.request_timeout_s
        backoff = Backoff(self._config.backoff_base_s, self._config.backoff_cap_s)
        while True:
            try:
                return await self._call_once(method, request, deadline_s)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    raise UnauthenticatedError(
                        session_pb2.DISCONNECT_CODE_UNAUTHENTICATED, error.details() or "the token is not valid"
                    ) from error
                if error.code() not in _RETRIED:
                    raise request_error(
                        chat_pb2.Error(message=f"{error.code().name}: {error.details() or 'the call failed'}")
                    ) from error
                delay_s, reason = backoff.next_delay_s(), self._node.explain(error)
                if self._moves:
                    self._node.move()
            except TemporaryError as error:
                delay_s, reason = backoff.next_delay_s(error.retry_after_s), str(error)
                if isinstance(error, LASTING) and time.monotonic() + delay_s >= deadline_s:
                    raise
            if time.monotonic() + delay_s >= deadline_s:
                raise RequestTimeoutError(f"no answer within {self._config.request_timeout_s:g} s: {reason}")
            await asyncio.sleep(delay_s)

    async def _call_once(
        self, method: _MethodOn[Request_contra, Response_co], request: Request_contra, deadline_s: float
    ) -> Response_co:
        try:
            token = checked_token(await self._token())
        except ChatError:
            raise
        except Exception as failure:  # the provider is the user's code
            raise TokenUnavailableError(f"no token could be had: {failure}") from failure
        if token != self._own_token:
            owner = (await self._answer(lambda on: on.users.GetUser, user_service_pb2.GetUserRequest(), token, deadline_s)).user
            if owner.user_id != self._config.user_id:
                raise WrongUserError(f"the token is {owner.user_id}'s, and not {self._config.user_id}'s")
            self._own_token = token
        return await self._answer(method, request, token, deadline_s)

    async def _answer(
        self, method: _MethodOn[Request_contra, Response_co], request: Request_contra, token: str, deadline_s: float
    ) -> Response_co:
        metadata = (("authorization", f"Bearer {token}"),)
        timeout_s = max(0.001, deadline_s - time.monotonic())
        if self._stubs.channel is not self._node.channel:
            self._stubs = Stubs(self._node.channel)
        try:
            response = await method(self._stubs)(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.UsageError:  # the channel is closed
            raise ClientClosedError(_CLOSED) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ClientClosedError(_CLOSED) from None  # which ended the call, and nobody meant to end the caller
        error = getattr(response, "error", None)
        if isinstance(error, chat_pb2.Error) and response.HasField("error"):
            raise request_error(error)
        return response

    async def list_events(
        self, chat_id: str, *, newest_first: bool, start_seq: int = 0, page_size: int = 100
    ) -> AsyncIterator[chat_pb2.ChatEvent]:
        """Lists a chat's events, page after page, in either direction.

        `start_seq`: begin just below it (newest first) or just above it (oldest first); 0 = at the end of the log.
        """
        order = message_service_pb2.LIST_ORDER_NEWEST_FIRST if newest_first else message_service_pb2.LIST_ORDER_OLDEST_FIRST
        request = message_service_pb2.ListMessagesRequest(
            chat_id=chat_id, order=order, page_size=page_size, start_seq=start_seq
        )
        while True:
            response = await self.call(lambda on: on.messages.ListMessages, request)
            for event in response.events:
                yield event
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def head_of(self, chat_id: str) -> int:
        """The last seq of a chat; 0 if it does not exist, or is not the caller's."""
        try:
            async for event in self.list_events(chat_id, newest_first=True, page_size=1):
                return event.seq
        except NotAMemberError:
            pass
        return 0


class Groups:
    """Groups and their members. Every method raises what `Caller.call` raises."""

    def __init__(self, caller: Caller, cursor: Callable[[str], int | None], own_write: Callable[[str, int], None]) -> None:
        """Makes the calls.

        Args:
            caller: makes calls.
            cursor: what the device holds of a chat.
            own_write: told of each change that is committed.
        """
        self._caller = caller
        self._cursor = cursor
        self._own_write = own_write

    async def _key(self, chat_id: str) -> chat_pb2.WriteKey:
        """A key for one write, made before its first try: an earlier try is found above what `seen_seq` says.

        Where nothing is held of the chat, as right after it was created, its end is asked. Without a key no try could be
        repeated: nobody would know it as one.
        """
        seen_seq = self._cursor(chat_id)
        return _new_key(await self._caller.head_of(chat_id) if seen_seq is None else seen_seq)

    def _done(self, result: chat_pb2.SendResult) -> chat_pb2.SendResult:
        self._own_write(result.chat_id, result.seq)
        return result

    async def create(self, title: str, member_user_ids: Sequence[str]) -> chat_pb2.Chat:
        """Creates a group; the caller is its owner."""
        request = chat_service_pb2.CreateGroupRequest(title=title, member_user_ids=member_user_ids, key=_new_key(seen_seq=0))
        chat = (await self._caller.call(lambda on: on.chats.CreateGroup, request)).chat
        self._own_write(chat.chat_id, 1)
        return chat

    async def update(self, chat_id: str, *, title: str | None = None, picture_url: str | None = None) -> chat_pb2.SendResult:
        """Changes the title or the picture; None leaves it as it is."""
        request = chat_service_pb2.UpdateGroupRequest(
            chat_id=chat_id, title=title, picture_url=picture_url, key=await self._key(chat_id)
        )
        return self._done((await self._caller.call(lambda on: on.chats.UpdateGroup, request)).committed)

    async def add(self, chat_id: str, user_ids: Sequence[str]) -> chat_pb2.SendResult:
        """Adds members."""
        request = chat_service_pb2.AddMembersRequest(chat_id=chat_id, user_ids=user_ids, key=await self._key(chat_id))
        return self._done((await self._caller.call(lambda on: on.chats.AddMembers, request)).committed)

    async def remove(self, chat_id: str, user_id: str) -> chat_pb2.SendResult:
        """Removes a member."""
        request = chat_service_pb2.RemoveMemberRequest(chat_id=chat_id, user_id=user_id, key=await self._key(chat_id))
        return self._done((await self._caller.call(lambda on: on.chats.RemoveMember, request)).committed)

    async def leave(self, chat_id: str) -> chat_pb2.SendResult:
        """Leaves a group."""
        request = chat_service_pb2.LeaveGroupRequest(chat_id=chat_id, key=await self._key(chat_id))
        return self._done((await self._caller.call(lambda on: on.chats.LeaveGroup, request)).committed)

    async def set_role(self, chat_id: str, user_id: str, role: content_pb2.MemberRole.ValueType) -> chat_pb2.SendResult:
        """Gives a member another role."""
        request = chat_service_pb2.SetMemberRoleRequest(
            chat_id=chat_id, user_id=user_id, role=role, key=await self._key(chat_id)
        )
        return self._done((await self._caller.call(lambda on: on.chats.SetMemberRole, request)).committed)

    async def mute(self, chat_id: str, user_id: str, muted_until_ms: int) -> chat_pb2.SendResult:
        """Mutes a member until a time in milliseconds since the Unix epoch; 0 lets them write again."""
        request = chat_service_pb2.MuteMemberRequest(
            chat_id=chat_id, user_id=user_id, muted_until_ms=muted_until_ms, key=await self._key(chat_id)
        )
        return self._done((await self._caller.call(lambda on: on.chats.MuteMember, request)).committed)

    async def create_link(self, chat_id: str, *, approval_required: bool = False) -> content_pb2.JoinLink:
        """Makes a join link; an earlier one stops working."""
        request = chat_service_pb2.CreateJoinLinkRequest(
            chat_id=chat_id, approval_required=approval_required, key=await self._key(chat_id)
        )
        response = await self._caller.call(lambda on: on.chats.CreateJoinLink, request)
        self._done(response.committed)
        return response.join_link

    async def revoke_link(self, chat_id: str) -> chat_pb2.SendResult:
        """Revokes the join link."""
        request = chat_service_pb2.RevokeJoinLinkRequest(chat_id=chat_id, key=await self._key(chat_id))
        return self._done((await self._caller.call(lambda on: on.chats.RevokeJoinLink, request)).committed)

    async def join(self, token: str) -> chat_service_pb2.JoinByLinkResponse:
        """Joins by a link's token, or asks to be let in; the answer says which."""
        request = chat_service_pb2.JoinByLinkRequest(token=token)
        response = await self._caller.call(lambda on: on.chats.JoinByLink, request)
        self._own_write(response.joined.chat_id, response.joined.as_of_seq)  # nothing, if it waits to be let in
        return response

    async def answer_request(self, chat_id: str, user_id: str, *, approve: bool) -> chat_pb2.SendResult:
        """Lets someone in who asked, or declines."""
        request = chat_service_pb2.AnswerJoinRequestRequest(
            chat_id=chat_id, user_id=user_id, approve=approve, key=await self._key(chat_id)
        )
        return self._done((await self._caller.call(lambda on: on.chats.AnswerJoinRequest, request)).committed)


def _new_key(seen_seq: int) -> chat_pb2.WriteKey:
    return chat_pb2.WriteKey(client_message_id=os.urandom(16), seen_seq=seen_seq)


class Devices:
    """The user's devices. Every method raises what `Caller.call` raises."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def list(self) -> list[device_service_pb2.Device]:
        """Lists the devices, oldest first."""
        request = device_service_pb2.ListDevicesRequest()
        return list((await self._caller.call(lambda on: on.devices.ListDevices, request)).devices)

    async def rename(self, device_id: str, name: str) -> device_service_pb2.Device:
        """Gives a device another name."""
        request = device_service_pb2.RenameDeviceRequest(device_id=device_id, name=name)
        return (await self._caller.call(lambda on: on.devices.RenameDevice, request)).device

    async def revoke(self, device_id: str) -> device_service_pb2.Device:
        """Revokes a device: its stream is closed and its id never connects again.

        A token that names no device is void afterwards, also the caller's own.
        """
        registered = next((device for device in await self.list() if device.device_id == device_id), None)
        request = device_service_pb2.RevokeDeviceRequest(device_id=device_id)
        try:
            return (await self._caller.call(lambda on: on.devices.RevokeDevice, request)).device
        except NotFoundError:
            if registered is None:
                raise
            return registered  # it was there a moment ago: a try whose answer was lost revoked it
        except UnauthenticatedError as error:  # which the token was not a moment ago; perhaps by this very revocation
            said = f"{str(error).removesuffix('.')}; whether the device is revoked, a new token shows in the list of devices"
            raise UnauthenticatedError(error.code, said) from error


class Profiles:
    """Who people are. Every method raises what `Caller.call` raises."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def get(self, user_id: str = "") -> user_service_pb2.User:
        """Reads a profile; without a user id, the caller's own."""
        request = user_service_pb2.GetUserRequest(user_id=user_id)
        return (await self._caller.call(lambda on: on.users.GetUser, request)).user

    async def update(
        self, *, display_name: str | None = None, about: str | None = None, picture_url: str | None = None
    ) -> user_service_pb2.User:
        """Changes the caller's profile; None leaves a field as it is."""
        request = user_service_pb2.UpdateProfileRequest(display_name=display_name, about=about, picture_url=picture_url)
        return (await self._caller.call(lambda on: on.users.UpdateProfile, request)).user
