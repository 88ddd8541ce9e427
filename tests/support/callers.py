"""Users who call the unary services of a running server."""

import json
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from chatgrpc.v1 import chat_pb2, content_pb2
from chatgrpc.v1.chat_service_pb2 import ChatSummary, CreateGroupRequest, GetChatRequest, JoinByLinkRequest
from chatgrpc.v1.chat_service_pb2_grpc import ChatServiceStub
from chatgrpc.v1.device_service_pb2_grpc import DeviceServiceStub
from chatgrpc.v1.message_service_pb2 import (
    LIST_ORDER_OLDEST_FIRST,
    ListMessagesRequest,
    ListMessagesResponse,
    SendMessageRequest,
)
from chatgrpc.v1.message_service_pb2_grpc import MessageServiceStub
from chatgrpc.v1.user_service_pb2_grpc import UserServiceStub
from tests.error_info import ErrorInfoRequired


class _BearerToken(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_unary(
        self, continuation: Callable[..., Awaitable[Any]], client_call_details: Any, request: Any
    ) -> Any:
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()), ("authorization", f"Bearer {self._token}"))
        return await continuation(client_call_details._replace(metadata=metadata), request)


_ONE_AFTER_THE_OTHER = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


class Caller:
    """One user with a channel of their own, and shorthands for what tests do often."""

    def __init__(self, addresses: str | Sequence[str], user_id: str, token: str) -> None:
        """With several addresses, which are all `127.0.0.1:port`, every call goes to the next one."""
        self.user_id = user_id
        options: list[tuple[str, int | str]] = [("grpc.use_local_subchannel_pool", 1)]
        if isinstance(addresses, str) or len(addresses) == 1:
            target = addresses if isinstance(addresses, str) else addresses[0]
        else:
            target = "ipv4:" + ",".join(addresses)
            options.append(("grpc.service_config", _ONE_AFTER_THE_OTHER))
            # gRPC's own is a list of addresses, which is no authority as HTTP/2 has them; the native edge refuses such.
            options.append(("grpc.default_authority", addresses[0]))
        self._channel = grpc.aio.insecure_channel(
            target,
            options=options,
            interceptors=[_BearerToken(token), ErrorInfoRequired()],
        )
        self.users = UserServiceStub(self._channel)
        self.devices = DeviceServiceStub(self._channel)
        self.chats = ChatServiceStub(self._channel)
        self.messages = MessageServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._channel.close()

    async def create_group(self, *member_user_ids: str, title: str = "Friends") -> str:
        """Creates a group and returns its chat id."""
        reply = await self.chats.CreateGroup(CreateGroupRequest(title=title, member_user_ids=member_user_ids))
        assert reply.WhichOneof("outcome") == "chat", reply
        return reply.chat.chat_id

    async def send(self, chat_id: str, text: str) -> chat_pb2.SendResult:
        """Sends a text that must be accepted."""
        reply = await self.messages.SendMessage(SendMessageRequest(chat_id=chat_id, content=text_content(text)))
        assert reply.WhichOneof("outcome") == "sent", reply
        return reply.sent

    async def log(self, chat_id: str) -> list[chat_pb2.ChatEvent]:
        """All events of the chat that the user may see, oldest first, page by page."""
        events: list[chat_pb2.ChatEvent] = []
        reply = ListMessagesResponse()
        while not events or reply.next_page_token:
            request = ListMessagesRequest(
                chat_id=chat_id, order=LIST_ORDER_OLDEST_FIRST, page_size=100, page_token=reply.next_page_token
            )
            reply = await self.messages.ListMessages(request)
            assert not reply.HasField("error"), reply
            assert reply.events, reply
            events += reply.events
        return events

    async def seqs(self, chat_id: str) -> list[int]:
        """Seqs of all events of the chat that the user may see, oldest first."""
        return [event.seq for event in await self.log(chat_id)]

    async def summary(self, chat_id: str) -> ChatSummary:
        """The chat as its member sees it now."""
        reply = await self.chats.GetChat(GetChatRequest(chat_id=chat_id))
        assert reply.WhichOneof("outcome") == "chat", reply
        return reply.chat

    async def join(self, token: str) -> str:
        """Uses a join link and returns the arm of the outcome."""
        reply = await self.chats.JoinByLink(JoinByLinkRequest(token=token))
        return reply.WhichOneof("outcome") or ""


def text_content(text: str) -> content_pb2.Content:
    """A text message's content."""
    return content_pb2.Content(text=content_pb2.TextContent(text=text))


def code_of(reply: Any) -> str:
    """The name of the error code in a reply that must be a refusal, without its prefix; its message must say something."""
    assert reply.HasField("error"), reply
    assert len(reply.error.message) > 10
    return chat_pb2.ErrorCode.Name(reply.error.code).removeprefix("ERROR_CODE_")
