"""ChatService: chats and their members."""

import secrets
from collections.abc import Sized
from typing import Protocol

from chatgrpc.core.fold import apply_event, member_of
from chatgrpc.core.ids import group_chat_id, is_group_id
from chatgrpc.core.refusal import RefusedError
from chatgrpc.core.rules import link_invalid
from chatgrpc.core.write import Write
from chatgrpc.edge.backend import Backend
from chatgrpc.edge.interceptors import current_claims
from chatgrpc.edge.services.chat_views import page_of_summaries, summary_of
from chatgrpc.edge.services.page_tokens import issue_page_token, redeem_page_token
from chatgrpc.edge.services.refusals import refused_by, refused_by_status
from chatgrpc.edge.services.requests import (
    KeyedRequest,
    checked_chat_id,
    checked_page_size,
    checked_user_id,
    new_client_message_id,
    require,
    write_key,
)
from chatgrpc.v1 import chat_pb2, content_pb2
from chatgrpc.v1.chat_service_pb2 import (
    AddMembersRequest,
    AddMembersResponse,
    AnswerJoinRequestRequest,
    AnswerJoinRequestResponse,
    CreateGroupRequest,
    CreateGroupResponse,
    CreateJoinLinkRequest,
    CreateJoinLinkResponse,
    GetChatRequest,
    GetChatResponse,
    JoinByLinkRequest,
    JoinByLinkResponse,
    JoinPending,
    LeaveGroupRequest,
    LeaveGroupResponse,
    ListChatsRequest,
    ListChatsResponse,
    MuteMemberRequest,
    MuteMemberResponse,
    RemoveMemberRequest,
    RemoveMemberResponse,
    RevokeJoinLinkRequest,
    RevokeJoinLinkResponse,
    SetMemberRoleRequest,
    SetMemberRoleResponse,
    UpdateGroupRequest,
    UpdateGroupResponse,
)
from chatgrpc.v1.chat_service_pb2_grpc import ChatServiceServicer

_JOIN_SECRET_BYTES = 16


class ChatService(ChatServiceServicer):
    """Every change is a `Write` to the chat's owner, which decides who may do what; this only says what is asked for."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @refused_by(CreateGroupResponse)
    async def CreateGroup(self, request: CreateGroupRequest, context: object) -> CreateGroupResponse:
        """Creates a group; the caller is its owner."""
        caller = current_claims().user_id
        self._check_member_count(request.member_user_ids)
        others = dict.fromkeys(checked_user_id(user_id) for user_id in request.member_user_ids)
        others.pop(caller, None)
        created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title=request.title)
        created.members.add(user_id=caller, role=content_pb2.MEMBER_ROLE_OWNER, joined_seq=1)
        for user_id in others:
            created.members.add(user_id=user_id, role=content_pb2.MEMBER_ROLE_MEMBER, joined_seq=1)
        client_message_id, seen_seq = write_key(request)
        chat_id = group_chat_id(caller, client_message_id)
        content = content_pb2.Content(chat_created=created)
        committed = await self._submit(Write(chat_id, caller, content, client_message_id, seen_seq))
        chat = chat_pb2.Chat()
        # As it was created, whatever has become of it since.
        apply_event(chat, await self._event_of(request, committed, content))
        return CreateGroupResponse(chat=chat)

    @refused_by(GetChatResponse)
    async def GetChat(self, request: GetChatRequest, context: object) -> GetChatResponse:
        """Reads one chat of the caller."""
        chat_id = checked_chat_id(request.chat_id)
        return GetChatResponse(chat=await summary_of(self._backend, current_claims().user_id, chat_id))

    @refused_by_status
    async def ListChats(self, request: ListChatsRequest, context: object) -> ListChatsResponse:
        """Lists the caller's chats, by chat id."""
        caller, limits = current_claims().user_id, self._backend.limits
        page_size = checked_page_size(request.page_size, limits.chats_page_default, limits.chats_page_max)
        after_chat_id = redeem_page_token(request.page_token, "chats", caller) if request.page_token else ""
        summaries, next_after = await page_of_summaries(self._backend, caller, after_chat_id, page_size)
        next_page_token = issue_page_token(next_after, "chats", caller) if next_after else ""
        return ListChatsResponse(chats=summaries, next_page_token=next_page_token)

    @refused_by(UpdateGroupResponse)
    async def UpdateGroup(self, request: UpdateGroupRequest, context: object) -> UpdateGroupResponse:
        """Changes a group's title or picture."""
        changed = content_pb2.ChatInfoChangedContent()
        if request.HasField("title"):
            changed.title = request.title
        if request.HasField("picture_url"):
            changed.picture_url = request.picture_url
        return UpdateGroupResponse(committed=await self._change(request, content_pb2.Content(chat_info_changed=changed)))

    @refused_by(AddMembersResponse)
    async def AddMembers(self, request: AddMembersRequest, context: object) -> AddMembersResponse:
        """Adds members."""
        self._check_member_count(request.user_ids)
        added = content_pb2.MembersAddedContent(user_ids=request.user_ids)
        return AddMembersResponse(committed=await self._change(request, content_pb2.Content(members_added=added)))

    @refused_by(RemoveMemberResponse)
    async def RemoveMember(self, request: RemoveMemberRequest, context: object) -> RemoveMemberResponse:
        """Removes a member."""
        removed = content_pb2.MemberRemovedContent(user_id=checked_user_id(request.user_id))
        return RemoveMemberResponse(committed=await self._change(request, content_pb2.Content(member_removed=removed)))

    @refused_by(LeaveGroupResponse)
    async def LeaveGroup(self, request: LeaveGroupRequest, context: object) -> LeaveGroupResponse:
        """Leaves a group."""
        removed = content_pb2.MemberRemovedContent(user_id=current_claims().user_id)
        return LeaveGroupResponse(committed=await self._change(request, content_pb2.Content(member_removed=removed)))

    @refused_by(SetMemberRoleResponse)
    async def SetMemberRole(self, request: SetMemberRoleRequest, context: object) -> SetMemberRoleResponse:
        """Gives a member another role."""
        changed = content_pb2.RoleChangedContent(user_id=checked_user_id(request.user_id), role=request.role)
        return SetMemberRoleResponse(committed=await self._change(request, content_pb2.Content(role_changed=changed)))

    @refused_by(MuteMemberResponse)
    async def MuteMember(self, request: MuteMemberRequest, context: object) -> MuteMemberResponse:
        """Mutes a member, or lets them write again."""
        user_id = checked_user_id(request.user_id)
        muted = content_pb2.MemberMutedContent(user_id=user_id, muted_until_ms=request.muted_until_ms)
        return MuteMemberResponse(committed=await self._change(request, content_pb2.Content(member_muted=muted)))

    @refused_by(CreateJoinLinkResponse)
    async def CreateJoinLink(self, request: CreateJoinLinkRequest, context: object) -> CreateJoinLinkResponse:
        """Makes a join link; an earlier one stops working."""
        token = f"{request.chat_id}.{secrets.token_urlsafe(_JOIN_SECRET_BYTES)}"
        link = content_pb2.JoinLink(token=token, approval_required=request.approval_required)
        content = content_pb2.Content(join_link_changed=content_pb2.JoinLinkChangedContent(join_link=link))
        committed = await self._change(request, content)
        made = await self._event_of(request, committed, content)
        # Of a repeated request the first try's link counts, which its caller had, though it may be dead by now.
        return CreateJoinLinkResponse(join_link=made.content.join_link_changed.join_link, committed=committed)

    @refused_by(RevokeJoinLinkResponse)
    async def RevokeJoinLink(self, request: RevokeJoinLinkRequest, context: object) -> RevokeJoinLinkResponse:
        """Revokes the join link."""
        revoked = content_pb2.JoinLinkChangedContent()
        return RevokeJoinLinkResponse(committed=await self._change(request, content_pb2.Content(join_link_changed=revoked)))

    @refused_by(JoinByLinkResponse)
    async def JoinByLink(self, request: JoinByLinkRequest, context: object) -> JoinByLinkResponse:
        """Joins a group by its link, or asks to be let in.

        Answers what is the case afterwards, so whoever is in, or waits, already is told so, by whichever try it came to be.
        """
        caller = current_claims().user_id
        chat_id = _chat_id_of_link(request.token)
        content = content_pb2.Content(join_requested=content_pb2.JoinRequestedContent())
        write = Write(chat_id, caller, content, new_client_message_id(), None, join_token=request.token)
        outcome = await self._backend.submit(write)
        stored = await self._backend.log.load(chat_id)
        if stored is None:
            raise link_invalid()
        chat = chat_pb2.Chat.FromString(stored.chat)
        if member_of(chat, caller) is not None:
            return JoinByLinkResponse(joined=chat)
        if caller in chat.join_request_user_ids:
            return JoinByLinkResponse(pending=JoinPending(chat_id=chat_id))
        if isinstance(outcome, chat_pb2.Error):
            return JoinByLinkResponse(error=outcome)
        raise RefusedError(chat_pb2.ERROR_CODE_NOT_A_MEMBER, "You were declined, or removed, at this very moment.")

    @refused_by(AnswerJoinRequestResponse)
    async def AnswerJoinRequest(self, request: AnswerJoinRequestRequest, context: object) -> AnswerJoinRequestResponse:
        """Lets someone in who asked, or declines."""
        user_id = checked_user_id(request.user_id)
        if not request.approve:
            declined = content_pb2.Content(join_declined=content_pb2.JoinDeclinedContent(user_id=user_id))
            return AnswerJoinRequestResponse(committed=await self._change(request, declined))
        approved = content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=[user_id]))
        return AnswerJoinRequestResponse(committed=await self._change(request, approved, answers_request=True))

    def _check_member_count(self, user_ids: Sized) -> None:
        """Before anything is done for each of them."""
        members_max = self._backend.limits.group_members_max
        if len(user_ids) > members_max:
            raise RefusedError(
                chat_pb2.ERROR_CODE_LIMIT_EXCEEDED, f"A group has at most {members_max} members. Name no more than that."
            )

    async def _change(
        self, request: "_GroupRequest", content: content_pb2.Content, *, answers_request: bool = False
    ) -> chat_pb2.SendResult:
        """Nothing that rests on the chat's state is looked at before: only the owner knows whether this was done already."""
        client_message_id, seen_seq = write_key(request)
        chat_id = checked_chat_id(request.chat_id)
        caller = current_claims().user_id
        write = Write(chat_id, caller, content, client_message_id, seen_seq, answers_request=answers_request)
        return await self._submit(write)

    async def _event_of(
        self, request: KeyedRequest, committed: chat_pb2.SendResult, content: content_pb2.Content
    ) -> chat_pb2.ChatEvent:
        """The event that a write of this call became, at its first try, so far as its answer needs it.

        Without a key this was the first try, and nothing is read: a read that fails would have it sent again though it is done.
        """
        seq = committed.seq
        if not request.HasField("key"):
            return chat_pb2.ChatEvent(
                chat_id=committed.chat_id,
                seq=seq,
                sender_user_id=current_claims().user_id,
                sent_at_ms=committed.sent_at_ms,
                content=content,
            )
        [stored] = await self._backend.log.read_after(committed.chat_id, seq - 1, seq, limit=1, bytes_max=1)
        event = chat_pb2.ChatEvent.FromString(stored.event)
        is_of_this_call = event.content.WhichOneof("body") == content.WhichOneof("body")
        require(is_of_this_call, "This key was used for another call. Make a new one for each.")
        return event

    async def _submit(self, write: Write) -> chat_pb2.SendResult:
        outcome = await self._backend.submit(write)
        if isinstance(outcome, chat_pb2.Error):
            raise RefusedError(outcome.code, outcome.message, outcome.retry_after_ms)
        return outcome


class _GroupRequest(KeyedRequest, Protocol):
    @property
    def chat_id(self) -> str: ...


def _chat_id_of_link(token: str) -> str:
    """The chat id that stands before the token's last dot; the secret contains none. Only groups have links: ids of other chats
    can be computed, and whether there is such a chat is nobody's business."""
    chat_id, _, _secret = token.rpartition(".")
    if not is_group_id(chat_id):
        raise link_invalid()
    return chat_id
