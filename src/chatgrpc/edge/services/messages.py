"""MessageService: messages, one call at a time."""

from typing import Literal

from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.refusal import RefusedError
from chatgrpc.core.rules import MESSAGES, not_a_member
from chatgrpc.core.visibility import is_visible
from chatgrpc.core.write import Write, copied
from chatgrpc.edge.backend import Backend
from chatgrpc.edge.history import Page, read_page
from chatgrpc.edge.interceptors import current_claims
from chatgrpc.edge.services.page_tokens import issue_page_token, redeem_seq_token
from chatgrpc.edge.services.refusals import refused_by
from chatgrpc.edge.services.requests import checked_chat_id, checked_page_size, checked_user_id, require, write_key
from chatgrpc.ports.chat_log import Membership
from chatgrpc.v1 import chat_pb2, message_service_pb2
from chatgrpc.v1.message_service_pb2 import (
    GetMessageRequest,
    GetMessageResponse,
    ListMessagesRequest,
    ListMessagesResponse,
    MarkReadRequest,
    MarkReadResponse,
    SendMessageRequest,
    SendMessageResponse,
)
from chatgrpc.v1.message_service_pb2_grpc import MessageServiceServicer

_NEWEST_FIRST = message_service_pb2.LIST_ORDER_NEWEST_FIRST
_OLDEST_FIRST = message_service_pb2.LIST_ORDER_OLDEST_FIRST


class MessageService(MessageServiceServicer):
    """Sends for callers that hold no stream, and reads what a user may see: also of chats that they left, up to there (G6)."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @refused_by(SendMessageResponse)
    async def SendMessage(self, request: SendMessageRequest, context: object) -> SendMessageResponse:
        """Sends a message."""
        caller = current_claims().user_id
        chat_id, peer_user_id = _addressee(request, caller)
        arm = request.content.WhichOneof("body")
        if arm is not None and arm not in MESSAGES:
            raise RefusedError(
                chat_pb2.ERROR_CODE_UNSUPPORTED_CONTENT, f"{arm} is written by the server. Change a chat through ChatService."
            )
        client_message_id, seen_seq = write_key(request)
        write = Write(chat_id, caller, copied(request.content), client_message_id, seen_seq, peer_user_id=peer_user_id)
        outcome = await self._backend.submit(write)
        if isinstance(outcome, chat_pb2.Error):
            return SendMessageResponse(error=outcome)
        return SendMessageResponse(sent=outcome)

    @refused_by(ListMessagesResponse)
    async def ListMessages(self, request: ListMessagesRequest, context: object) -> ListMessagesResponse:
        """Lists a chat's events by pages, in either direction."""
        limits = self._backend.limits
        chat_id = checked_chat_id(request.chat_id)
        order = request.order or _NEWEST_FIRST
        require(order in {_NEWEST_FIRST, _OLDEST_FIRST}, "order is unknown: leave it out or take one of ListOrder.")
        limit = checked_page_size(request.page_size, limits.history_page_default, limits.history_page_max)
        start_seq = request.start_seq
        if request.page_token:
            start_seq = redeem_seq_token(request.page_token, "messages", chat_id, str(order))
        membership = await self._membership(chat_id)
        side: Literal["before", "after"] = "after" if order == _OLDEST_FIRST else "before"
        if side == "before" and start_seq == 0:
            start_seq = membership.head_seq + 1
        page = await read_page(self._backend.log, membership, side, start_seq, limit=limit, limits=limits)
        next_seq = _next_seq(page, side)
        reply = ListMessagesResponse()
        if next_seq:
            reply.next_page_token = issue_page_token(str(next_seq), "messages", chat_id, str(order))
        for stored in page.events if side == "after" else reversed(page.events):
            reply.events.add().MergeFromString(stored.event)
        return reply

    @refused_by(GetMessageResponse)
    async def GetMessage(self, request: GetMessageRequest, context: object) -> GetMessageResponse:
        """Reads one event."""
        require(request.seq > 0, "seq is missing: events count from 1.")
        membership = await self._membership(checked_chat_id(request.chat_id))
        if request.seq > membership.head_seq or not is_visible(membership.intervals, request.seq):
            raise RefusedError(chat_pb2.ERROR_CODE_NOT_FOUND, f"There is no event {request.seq} that you may see in this chat.")
        [stored] = await self._backend.log.read_after(request.chat_id, request.seq - 1, request.seq, limit=1, bytes_max=1)
        return GetMessageResponse(event=chat_pb2.ChatEvent.FromString(stored.event))

    @refused_by(MarkReadResponse)
    async def MarkRead(self, request: MarkReadRequest, context: object) -> MarkReadResponse:
        """Raises the caller's read mark."""
        require(request.seq > 0, "seq is missing: set it to the last event read.")
        outcome = await self._backend.mark_read(current_claims().user_id, checked_chat_id(request.chat_id), request.seq)
        if isinstance(outcome, chat_pb2.Error):
            return MarkReadResponse(error=outcome)
        return MarkReadResponse(receipt=outcome)

    async def _membership(self, chat_id: str) -> Membership:
        """The caller's membership, present or past."""
        membership = await self._backend.log.membership(current_claims().user_id, chat_id)
        if membership is None:
            raise not_a_member()
        return membership


def _addressee(request: SendMessageRequest, caller: str) -> tuple[str, str]:
    """The chat id, and the other user if the send may create the direct chat with them."""
    match request.WhichOneof("to"):
        case "chat_id":
            return checked_chat_id(request.chat_id), ""
        case "user_id":
            user_id = checked_user_id(request.user_id)
            return direct_chat_id(caller, user_id), user_id if user_id != caller else ""
        case _:
            raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "No addressee: set chat_id or user_id.")


def _next_seq(page: Page, side: Literal["before", "after"]) -> int:
    """The seq beside which the page after this one lies; 0 = there is none."""
    if not page.events:
        return 0
    if side == "after":
        return page.events[-1].seq if page.more_after else 0
    return page.events[0].seq if page.more_before else 0
