"""Looks for a node that can pass on a message which the one in use cannot: the link between two nodes may be cut.

The node in use is left only for one that reaches whoever orders the message's chat. Without a store or a quorum no node can
pass on anything, and none takes a new session: the one that the device has would be given up for nothing.
"""

from collections.abc import Iterable

import grpc.aio

from chatgrpc.v1 import message_service_pb2, message_service_pb2_grpc

from .bearer import checked_token
from .config import ClientConfig, TokenProvider
from .exceptions import FIRST_RETRYABLE_CODE
from .node_channel import NodeChannel
from .outbox import OutboxEntry

TIMEOUT_S = 3.0


class Scout:
    """Asks one other node at a time, now and then. Times are seconds of one monotonic clock."""

    def __init__(self, node: NodeChannel, config: ClientConfig, token: TokenProvider) -> None:
        self._node = node
        self._config = config
        self._token = token
        self._may_look_at_s = 0.0

    def wanted_for(self, unavailable: Iterable[tuple[OutboxEntry, float]], now_s: float) -> str | None:
        """The chat for which `find` is to be called now, if for any; after messages were refused (`Received.unavailable`)."""
        if now_s < self._may_look_at_s:
            return None
        chats = (entry.chat_id for entry, for_s in unavailable if for_s >= self._config.refused_send_max_s)
        chat_id = next(chats, None)
        if chat_id is not None:
            self._may_look_at_s = now_s + self._config.move_interval_s
        return chat_id

    async def find(self, chat_id: str) -> bool:
        """Whether another node was found that reaches whoever orders this chat; then `NodeChannel.move` leads there."""
        try:
            token = checked_token(await self._token())
        except Exception:  # the provider is the user's code; the session goes on
            return False
        return await self._node.look_for(lambda channel: _reaches(channel, token, chat_id))


async def _reaches(channel: grpc.aio.Channel, token: str, chat_id: str) -> bool:
    """Whether the node at the other end can say what stands last in a chat, which only the one that orders it knows."""
    request = message_service_pb2.ListMessagesRequest(chat_id=chat_id, page_size=1)
    metadata = (("authorization", f"Bearer {token}"),)
    try:
        stub = message_service_pb2_grpc.MessageServiceStub(channel)
        response = await stub.ListMessages(request, timeout=TIMEOUT_S, metadata=metadata)
    except grpc.aio.AioRpcError:
        return False
    return response.error.code < FIRST_RETRYABLE_CODE
