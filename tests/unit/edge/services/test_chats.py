"""ChatService."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from chatgrpc.adapters.sqlite.chat_log import SqliteChatLog
from chatgrpc.core.entries import StoredEvent
from chatgrpc.core.ids import direct_chat_id, group_chat_id, self_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import chat_damaged, outcome_unknown
from chatgrpc.core.write import Write
from chatgrpc.edge.errors import error_info_of
from chatgrpc.edge.services import chats
from chatgrpc.ports.errors import ChatDamagedError, StoreUnavailableError
from chatgrpc.ports.tokens import Claims
from chatgrpc.v1 import chat_pb2, chat_service_pb2, content_pb2
from chatgrpc.v1.chat_service_pb2 import (
    AddMembersRequest,
    AnswerJoinRequestRequest,
    CreateGroupRequest,
    CreateJoinLinkRequest,
    GetChatRequest,
    JoinByLinkRequest,
    LeaveGroupRequest,
    ListChatsRequest,
    ListChatsResponse,
    MuteMemberRequest,
    RemoveMemberRequest,
    RevokeJoinLinkRequest,
    SetMemberRoleRequest,
    UpdateGroupRequest,
)
from chatgrpc.v1.message_service_pb2 import GetMessageRequest, MarkReadRequest, SendMessageRequest
from tests.support.callers import Caller, code_of, text_content

MEMBER, ADMIN, OWNER = content_pb2.MEMBER_ROLE_MEMBER, content_pb2.MEMBER_ROLE_ADMIN, content_pb2.MEMBER_ROLE_OWNER
NO_CHAT = "g." + "A" * 22
KEY = chat_pb2.WriteKey(client_message_id=bytes(range(16)))
BAD_KEY = chat_pb2.WriteKey(client_message_id=b"short")


def roles(chat: chat_pb2.Chat) -> dict[str, content_pb2.MemberRole.ValueType]:
    return {member.user_id: member.role for member in chat.members}


async def chat_of(caller: Caller, chat_id: str) -> chat_pb2.Chat:
    reply = await caller.chats.GetChat(GetChatRequest(chat_id=chat_id))
    assert reply.WhichOneof("outcome") == "chat", reply
    return reply.chat.chat


async def committed_content(caller: Caller, reply: Any) -> content_pb2.Content:
    """The content of the event that a change committed, as a member reads it."""
    assert reply.WhichOneof("outcome") == "committed", reply
    request = GetMessageRequest(chat_id=reply.committed.chat_id, seq=reply.committed.seq)
    return (await caller.messages.GetMessage(request)).event.content


# Creating.


async def test_create_group(alice: Caller, bob: Caller) -> None:
    request = CreateGroupRequest(title="Friends", member_user_ids=["bob", "carol", "bob", "alice"], key=KEY)
    chat = (await alice.chats.CreateGroup(request)).chat
    assert chat.chat_id == group_chat_id("alice", KEY.client_message_id)
    assert (chat.kind, chat.title, chat.creator_user_id) == (content_pb2.CHAT_KIND_GROUP, "Friends", "alice")
    assert roles(chat) == {"alice": OWNER, "bob": MEMBER, "carol": MEMBER}
    assert {member.joined_seq for member in chat.members} == {1}
    assert await chat_of(bob, chat.chat_id) == chat


async def test_a_repeated_key_returns_the_same_group(alice: Caller) -> None:
    first = await alice.chats.CreateGroup(CreateGroupRequest(title="Friends", key=KEY))
    await alice.send(first.chat.chat_id, "x")
    again = await alice.chats.CreateGroup(CreateGroupRequest(title="Another title", member_user_ids=["bob"], key=KEY))
    assert again == first
    assert await alice.seqs(first.chat.chat_id) == [1, 2]


async def test_what_was_done_without_a_key_is_answered_though_nothing_can_be_read(
    alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to send it again they would make a second group, or end the link that they just made."""

    async def failing(*_: object, **__: object) -> list[StoredEvent]:
        raise StoreUnavailableError("injected")

    with monkeypatch.context() as fault:
        fault.setattr(SqliteChatLog, "read_after", failing)
        created = (await alice.chats.CreateGroup(CreateGroupRequest(title="Friends", member_user_ids=["bob"]))).chat
        made = (await alice.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=created.chat_id))).join_link
        keyed = CreateGroupRequest(title="Friends", key=KEY)
        assert code_of(await alice.chats.CreateGroup(keyed)) == "UNAVAILABLE", "again it names the same group"
    chat = await chat_of(alice, created.chat_id)
    assert chat.join_link == made
    chat.ClearField("join_link")
    chat.as_of_seq = 1
    assert created == chat


async def test_nobody_knows_what_became_of_a_write_without_a_key_whose_chat_is_damaged(
    alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def damaged(_: object, chat_id: str) -> None:
        raise ChatDamagedError(chat_id, "injected")

    monkeypatch.setattr(SqliteChatLog, "load", damaged)
    keyless = (await alice.chats.CreateGroup(CreateGroupRequest(title="Friends"))).error
    keyed = (await alice.chats.CreateGroup(CreateGroupRequest(title="Friends", key=KEY))).error
    assert keyless.code == keyed.code == chat_pb2.ERROR_CODE_CHAT_DAMAGED
    assert keyed == chat_damaged()
    assert keyless == outcome_unknown(chat_damaged())


async def test_a_group_made_without_a_key_is_answered_as_its_owner_completes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the owner is another node, and what it completes is a copy."""
    monkeypatch.setattr(chats, "current_claims", lambda: Claims("alice", 2**53))
    backend = _FarOwner()
    service = chats.ChatService(backend)  # type: ignore[arg-type]  # the part of a Backend that is used
    reply = await service.CreateGroup(CreateGroupRequest(title="Friends", member_user_ids=["bob"]), None)
    assert [member.joined_seq for member in reply.chat.members] == [1, 1]
    assert (reply.chat.creator_user_id, reply.chat.created_at_ms, reply.chat.as_of_seq) == ("alice", 5, 1)


class _FarOwner:
    """A node behind which somebody else commits."""

    limits = Limits()

    async def submit(self, write: Write) -> chat_pb2.SendResult:
        return chat_pb2.SendResult(chat_id=write.chat_id, seq=1, sent_at_ms=5)


async def test_whoever_left_their_group_gets_it_by_its_key_as_they_made_it(alice: Caller) -> None:
    made = (await alice.chats.CreateGroup(CreateGroupRequest(title="T", member_user_ids=["bob"], key=KEY))).chat
    await alice.chats.UpdateGroup(UpdateGroupRequest(chat_id=made.chat_id, title="Newer"))
    await alice.chats.LeaveGroup(LeaveGroupRequest(chat_id=made.chat_id))
    assert (await alice.chats.CreateGroup(CreateGroupRequest(title="T", key=KEY))).chat == made
    assert code_of(await alice.chats.GetChat(GetChatRequest(chat_id=made.chat_id))) == "NOT_A_MEMBER"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (CreateGroupRequest(), "INVALID_ARGUMENT"),
        (CreateGroupRequest(title=" "), "INVALID_ARGUMENT"),
        (CreateGroupRequest(title="x" * 101), "TOO_LARGE"),
        (CreateGroupRequest(title="T", member_user_ids=["not a user"]), "INVALID_ARGUMENT"),
        (CreateGroupRequest(title="T", member_user_ids=[f"user{n}" for n in range(256)]), "LIMIT_EXCEEDED"),
        (CreateGroupRequest(title="T", key=BAD_KEY), "INVALID_ARGUMENT"),
    ],
    ids=["no title", "blank title", "long title", "user id", "members", "key"],
)
async def test_create_group_refuses(alice: Caller, request_: CreateGroupRequest, code: str) -> None:
    assert code_of(await alice.chats.CreateGroup(request_)) == code


# Reading.


async def test_get_chat_shows_head_and_everyones_marks(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group()
    await alice.send(chat_id, "before bob")
    await alice.chats.AddMembers(AddMembersRequest(chat_id=chat_id, user_ids=["bob"]))
    await alice.send(chat_id, "to bob")
    await bob.messages.MarkRead(MarkReadRequest(chat_id=chat_id, seq=3))
    summary = (await bob.chats.GetChat(GetChatRequest(chat_id=chat_id))).chat
    assert (summary.head_seq, summary.first_visible_seq, summary.chat.as_of_seq) == (4, 3, 3)
    marks = {receipt.user_id: (receipt.delivered_seq, receipt.read_seq) for receipt in summary.receipts}
    assert marks["bob"] == (3, 3)
    assert marks.keys() == {"alice", "bob"}


@pytest.mark.parametrize(("members", "shown"), [(32, 32), (33, 1)])
async def test_a_large_group_shows_the_callers_marks_only(alice: Caller, members: int, shown: int) -> None:
    chat_id = await alice.create_group(*(f"user{n}" for n in range(members - 1)))
    await alice.messages.MarkRead(MarkReadRequest(chat_id=chat_id, seq=1))
    receipts = (await alice.chats.GetChat(GetChatRequest(chat_id=chat_id))).chat.receipts
    assert len(receipts) == shown
    assert [receipt.read_seq for receipt in receipts if receipt.user_id == "alice"] == [1]


async def test_get_chat_refuses(alice: Caller, bob: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group("bob")
    await bob.chats.LeaveGroup(LeaveGroupRequest(chat_id=chat_id))
    assert code_of(await bob.chats.GetChat(GetChatRequest(chat_id=chat_id))) == "NOT_A_MEMBER"
    assert code_of(await carol.chats.GetChat(GetChatRequest(chat_id=chat_id))) == "NOT_A_MEMBER"
    assert code_of(await carol.chats.GetChat(GetChatRequest(chat_id=NO_CHAT))) == "NOT_A_MEMBER"
    assert code_of(await carol.chats.GetChat(GetChatRequest(chat_id="x"))) == "INVALID_ARGUMENT"


async def test_list_chats_pages_through_present_chats_of_every_kind(alice: Caller, bob: Caller) -> None:
    groups = [await alice.create_group("bob") for _ in range(12)]
    await bob.messages.SendMessage(SendMessageRequest(user_id="alice", content=text_content("hello")))
    await bob.messages.SendMessage(SendMessageRequest(user_id="bob", content=text_content("note")))
    await bob.create_group(title="Bob's")
    for chat_id in groups[::2]:
        await bob.chats.LeaveGroup(LeaveGroupRequest(chat_id=chat_id))
    own = {chat.chat.chat_id: chat for chat in (await bob.chats.ListChats(ListChatsRequest())).chats}
    assert own.keys() >= {*groups[1::2], direct_chat_id("alice", "bob"), self_chat_id("bob")}
    assert len(own) == 9
    for page_size in (1, 2, 4, 8, 9, 10):
        pages = await _pages(bob, page_size)
        assert [chat.chat.chat_id for page in pages for chat in page] == sorted(own)
        assert [len(page) for page in pages[:-1]] == [page_size] * (len(pages) - 1)
    for chat_id, summary in own.items():
        assert summary == (await bob.chats.GetChat(GetChatRequest(chat_id=chat_id))).chat


async def test_list_chats_of_nobody(alice: Caller) -> None:
    assert await alice.chats.ListChats(ListChatsRequest()) == ListChatsResponse()


async def test_a_page_of_chats_ends_early_past_its_size_in_bytes(
    alice: Caller, address: str, token_of: Callable[[str, str], str]
) -> None:
    members = [f"{n:064}" for n in range(254)]
    made: list[str] = []
    for number in range(40):  # by as many users, since one may not draw so many into groups at once
        async with Caller(address, f"maker{number}", token_of(f"maker{number}", "caller")) as maker:
            made.append(await maker.create_group("alice", *members, title=str(number)))
    pages = await _pages(alice, 100)
    assert len(pages) == 2
    assert [chat.chat.chat_id for page in pages for chat in page] == sorted(made)


async def test_list_chats_passes_over_chats_that_were_left(alice: Caller, bob: Caller) -> None:
    left = [await alice.create_group("bob") for _ in range(60)]
    await asyncio.gather(*(bob.chats.LeaveGroup(LeaveGroupRequest(chat_id=chat_id)) for chat_id in left))
    kept = await bob.create_group()
    pages = await _pages(bob, 1)
    assert [[chat.chat.chat_id for chat in page] for page in pages] == [[kept]]


@pytest.mark.parametrize(
    "request_",
    [ListChatsRequest(page_size=-1), ListChatsRequest(page_token="bm90IG91cnM")],
    ids=["page size", "page token"],
)
async def test_list_chats_refuses_by_a_status_with_error_info(alice: Caller, request_: ListChatsRequest) -> None:
    await _refused_by_status(lambda: alice.chats.ListChats(request_))


async def test_a_page_token_of_chats_belongs_to_its_user(alice: Caller, bob: Caller) -> None:
    for _ in range(2):
        await alice.create_group("bob")
    token = (await alice.chats.ListChats(ListChatsRequest(page_size=1))).next_page_token
    await _refused_by_status(lambda: bob.chats.ListChats(ListChatsRequest(page_token=token)))


# Changing.


async def test_update_group_leaves_what_is_not_set(alice: Caller) -> None:
    chat_id = await alice.create_group(title="Before")
    await alice.chats.UpdateGroup(UpdateGroupRequest(chat_id=chat_id, picture_url="https://pictures.example/g"))
    reply = await alice.chats.UpdateGroup(UpdateGroupRequest(chat_id=chat_id, title="After"))
    content = await committed_content(alice, reply)
    assert content.chat_info_changed.title == "After"
    assert not content.chat_info_changed.HasField("picture_url"), "two admins who change one each must not undo one another"
    assert (await chat_of(alice, chat_id)).picture_url == "https://pictures.example/g"
    await alice.chats.UpdateGroup(UpdateGroupRequest(chat_id=chat_id, picture_url=""))
    chat = await chat_of(alice, chat_id)
    assert (chat.title, chat.picture_url) == ("After", "")


async def test_update_group_refuses(alice: Caller, bob: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group("bob")
    for request, code in (
        (UpdateGroupRequest(chat_id="x", title="T"), "INVALID_ARGUMENT"),
        (UpdateGroupRequest(chat_id=chat_id), "INVALID_ARGUMENT"),
        (UpdateGroupRequest(chat_id=chat_id, title=""), "INVALID_ARGUMENT"),
        (UpdateGroupRequest(chat_id=chat_id, title="T", key=BAD_KEY), "INVALID_ARGUMENT"),
        (UpdateGroupRequest(chat_id=chat_id, title="x" * 101), "TOO_LARGE"),
        (UpdateGroupRequest(chat_id=chat_id, picture_url="x" * 2_049), "TOO_LARGE"),
    ):
        assert code_of(await alice.chats.UpdateGroup(request)) == code
    assert code_of(await bob.chats.UpdateGroup(UpdateGroupRequest(chat_id=chat_id, title="T"))) == "FORBIDDEN"
    assert code_of(await carol.chats.UpdateGroup(UpdateGroupRequest(chat_id=chat_id, title="T"))) == "NOT_A_MEMBER"
    direct = (await alice.messages.SendMessage(SendMessageRequest(user_id="bob", content=text_content("x")))).sent.chat_id
    assert code_of(await alice.chats.UpdateGroup(UpdateGroupRequest(chat_id=direct, title="T"))) == "UNSUPPORTED_CONTENT"


async def test_add_members_passes_over_those_who_are_in(alice: Caller) -> None:
    chat_id = await alice.create_group("bob")
    reply = await alice.chats.AddMembers(AddMembersRequest(chat_id=chat_id, user_ids=["bob", "carol", "dave", "carol"]))
    content = await committed_content(alice, reply)
    assert list(content.members_added.user_ids) == ["carol", "dave"]
    assert roles(await chat_of(alice, chat_id)) == {"alice": OWNER, "bob": MEMBER, "carol": MEMBER, "dave": MEMBER}


async def test_add_members_refuses(alice: Caller, bob: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group("bob")
    for request, code in (
        (AddMembersRequest(chat_id="x", user_ids=["carol"]), "INVALID_ARGUMENT"),
        (AddMembersRequest(chat_id=chat_id), "INVALID_ARGUMENT"),
        (AddMembersRequest(chat_id=chat_id, user_ids=["not a user"]), "INVALID_ARGUMENT"),
        (AddMembersRequest(chat_id=chat_id, user_ids=["carol"], key=BAD_KEY), "INVALID_ARGUMENT"),
        (AddMembersRequest(chat_id=chat_id, user_ids=[f"user{n}" for n in range(255)]), "LIMIT_EXCEEDED"),
    ):
        assert code_of(await alice.chats.AddMembers(request)) == code
    assert code_of(await bob.chats.AddMembers(AddMembersRequest(chat_id=chat_id, user_ids=["carol"]))) == "FORBIDDEN"
    assert code_of(await carol.chats.AddMembers(AddMembersRequest(chat_id=chat_id, user_ids=["carol"]))) == "NOT_A_MEMBER"
    assert await alice.seqs(chat_id) == [1]


async def test_remove_member(alice: Caller) -> None:
    chat_id = await alice.create_group("bob")
    reply = await alice.chats.RemoveMember(RemoveMemberRequest(chat_id=chat_id, user_id="bob"))
    assert (await committed_content(alice, reply)).member_removed.user_id == "bob"
    assert roles(await chat_of(alice, chat_id)) == {"alice": OWNER}


async def test_remove_member_refuses(alice: Caller, bob: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group("bob")
    for request, code in (
        (RemoveMemberRequest(chat_id="x", user_id="bob"), "INVALID_ARGUMENT"),
        (RemoveMemberRequest(chat_id=chat_id), "INVALID_ARGUMENT"),
        (RemoveMemberRequest(chat_id=chat_id, user_id="bob", key=BAD_KEY), "INVALID_ARGUMENT"),
        (RemoveMemberRequest(chat_id=chat_id, user_id="carol"), "NOT_FOUND"),
    ):
        assert code_of(await alice.chats.RemoveMember(request)) == code
    assert code_of(await bob.chats.RemoveMember(RemoveMemberRequest(chat_id=chat_id, user_id="alice"))) == "FORBIDDEN"
    assert code_of(await carol.chats.RemoveMember(RemoveMemberRequest(chat_id=chat_id, user_id="bob"))) == "NOT_A_MEMBER"


async def test_leave_group_names_a_new_owner(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group("bob", "carol")
    reply = await alice.chats.LeaveGroup(LeaveGroupRequest(chat_id=chat_id, key=KEY))
    removed = (await committed_content(alice, reply)).member_removed  # the last event that alice may see
    assert (removed.user_id, removed.new_owner_user_id) == ("alice", "bob")
    assert roles(await chat_of(bob, chat_id)) == {"bob": OWNER, "carol": MEMBER}
    again = await alice.chats.LeaveGroup(LeaveGroupRequest(chat_id=chat_id, key=KEY))
    assert (again.committed.seq, again.committed.duplicate) == (reply.committed.seq, True)


async def test_leave_group_refuses(alice: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group("bob")
    assert code_of(await carol.chats.LeaveGroup(LeaveGroupRequest(chat_id=chat_id))) == "NOT_A_MEMBER"
    assert code_of(await alice.chats.LeaveGroup(LeaveGroupRequest(chat_id="x"))) == "INVALID_ARGUMENT"
    assert code_of(await alice.chats.LeaveGroup(LeaveGroupRequest(chat_id=chat_id, key=BAD_KEY))) == "INVALID_ARGUMENT"


async def test_set_member_role(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group("bob", "carol")
    reply = await alice.chats.SetMemberRole(SetMemberRoleRequest(chat_id=chat_id, user_id="bob", role=ADMIN))
    changed = (await committed_content(bob, reply)).role_changed
    assert (changed.user_id, changed.role) == ("bob", ADMIN)
    assert (await bob.chats.RemoveMember(RemoveMemberRequest(chat_id=chat_id, user_id="carol"))).HasField("committed")


async def test_set_member_role_refuses(alice: Caller, bob: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group("bob")
    for request, code in (
        (SetMemberRoleRequest(chat_id="x", user_id="bob", role=ADMIN), "INVALID_ARGUMENT"),
        (SetMemberRoleRequest(chat_id=chat_id, user_id="", role=ADMIN), "INVALID_ARGUMENT"),
        (SetMemberRoleRequest(chat_id=chat_id, user_id="bob"), "INVALID_ARGUMENT"),
        (SetMemberRoleRequest(chat_id=chat_id, user_id="bob", role=9), "INVALID_ARGUMENT"),  # type: ignore[arg-type]
        (SetMemberRoleRequest(chat_id=chat_id, user_id="bob", role=ADMIN, key=BAD_KEY), "INVALID_ARGUMENT"),
        (SetMemberRoleRequest(chat_id=chat_id, user_id="carol", role=ADMIN), "NOT_FOUND"),
        (SetMemberRoleRequest(chat_id=chat_id, user_id="alice", role=MEMBER), "FORBIDDEN"),
    ):
        assert code_of(await alice.chats.SetMemberRole(request)) == code
    request = SetMemberRoleRequest(chat_id=chat_id, user_id="bob", role=OWNER)
    assert code_of(await bob.chats.SetMemberRole(request)) == "FORBIDDEN"
    assert code_of(await carol.chats.SetMemberRole(request)) == "NOT_A_MEMBER"


async def test_mute_member(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group("bob")
    until_ms = time.time_ns() // 1_000_000 + 3_600_000
    reply = await alice.chats.MuteMember(MuteMemberRequest(chat_id=chat_id, user_id="bob", muted_until_ms=until_ms))
    muted = (await committed_content(bob, reply)).member_muted
    assert (muted.user_id, muted.muted_until_ms) == ("bob", until_ms)
    send = SendMessageRequest(chat_id=chat_id, content=text_content("x"))
    assert code_of(await bob.messages.SendMessage(send)) == "MUTED"
    await alice.chats.MuteMember(MuteMemberRequest(chat_id=chat_id, user_id="bob"))
    assert (await bob.messages.SendMessage(send)).HasField("sent")


async def test_mute_member_refuses(alice: Caller, bob: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group("bob")
    for request, code in (
        (MuteMemberRequest(chat_id="x", user_id="bob"), "INVALID_ARGUMENT"),
        (MuteMemberRequest(chat_id=chat_id), "INVALID_ARGUMENT"),
        *(
            (MuteMemberRequest(chat_id=chat_id, user_id="bob", muted_until_ms=until_ms), "INVALID_ARGUMENT")
            for until_ms in (-1, -(2**63), 5_000_000_000_000, 2**53, 253_402_300_800_000, 2**63 - 1)
        ),
        (MuteMemberRequest(chat_id=chat_id, user_id="bob", key=BAD_KEY), "INVALID_ARGUMENT"),
        (MuteMemberRequest(chat_id=chat_id, user_id="carol"), "NOT_FOUND"),
    ):
        assert code_of(await alice.chats.MuteMember(request)) == code
    assert code_of(await bob.chats.MuteMember(MuteMemberRequest(chat_id=chat_id, user_id="alice"))) == "FORBIDDEN"
    assert code_of(await carol.chats.MuteMember(MuteMemberRequest(chat_id=chat_id, user_id="bob"))) == "NOT_A_MEMBER"


# Joining.


async def link_of(caller: Caller, chat_id: str, approval_required: bool = False) -> str:
    request = CreateJoinLinkRequest(chat_id=chat_id, approval_required=approval_required)
    reply = await caller.chats.CreateJoinLink(request)
    assert reply.WhichOneof("outcome") == "join_link", reply
    assert reply.join_link.approval_required == approval_required
    where = GetMessageRequest(chat_id=chat_id, seq=reply.committed.seq)
    assert (await caller.messages.GetMessage(where)).event.content.join_link_changed.join_link == reply.join_link
    return reply.join_link.token


async def test_join_by_link(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group()
    token = await link_of(alice, chat_id)
    assert token.startswith(chat_id + ".")
    assert len(token) == len(chat_id) + 23
    reply = await bob.chats.JoinByLink(JoinByLinkRequest(token=token))
    assert roles(reply.joined) == {"alice": OWNER, "bob": MEMBER}
    assert await bob.seqs(chat_id) == [3]
    again = await bob.chats.JoinByLink(JoinByLinkRequest(token=token))
    assert again.joined == reply.joined
    assert await alice.seqs(chat_id) == [1, 2, 3]


async def test_join_with_approval(alice: Caller, bob: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group()
    token = await link_of(alice, chat_id, approval_required=True)
    for caller in (bob, bob, carol):
        reply = await caller.chats.JoinByLink(JoinByLinkRequest(token=token))
        assert reply.pending == chat_service_pb2.JoinPending(chat_id=chat_id)
    assert code_of(await bob.chats.GetChat(GetChatRequest(chat_id=chat_id))) == "NOT_A_MEMBER"
    assert list((await chat_of(alice, chat_id)).join_request_user_ids) == ["bob", "carol"]

    approve = AnswerJoinRequestRequest(chat_id=chat_id, user_id="bob", approve=True, key=KEY)
    approved = await alice.chats.AnswerJoinRequest(approve)
    assert list((await committed_content(alice, approved)).members_added.user_ids) == ["bob"]
    assert await bob.join(token) == "joined"
    again = await alice.chats.AnswerJoinRequest(approve)
    assert (again.committed.seq, again.committed.duplicate) == (approved.committed.seq, True)

    declined = await alice.chats.AnswerJoinRequest(AnswerJoinRequestRequest(chat_id=chat_id, user_id="carol"))
    assert (await committed_content(alice, declined)).join_declined.user_id == "carol"
    assert list((await chat_of(alice, chat_id)).join_request_user_ids) == []
    assert await carol.join(token) == "pending"


async def test_who_asks_twice_waits_once_and_asks_anew_when_declined(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group()
    request = JoinByLinkRequest(token=await link_of(alice, chat_id, approval_required=True))
    assert (await bob.chats.JoinByLink(request)).HasField("pending")
    assert (await bob.chats.JoinByLink(request)).HasField("pending")
    await alice.chats.AnswerJoinRequest(AnswerJoinRequestRequest(chat_id=chat_id, user_id="bob"))
    assert (await bob.chats.JoinByLink(request)).HasField("pending")
    assert await alice.seqs(chat_id) == [1, 2, 3, 4, 5]


async def test_a_new_link_replaces_the_old_and_a_repeated_key_returns_the_first(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group()
    old = await link_of(alice, chat_id)
    request = CreateJoinLinkRequest(chat_id=chat_id, key=KEY)
    link = (await alice.chats.CreateJoinLink(request)).join_link
    assert link.token != old
    assert (await alice.chats.CreateJoinLink(request)).join_link == link
    assert code_of(await bob.chats.JoinByLink(JoinByLinkRequest(token=old))) == "LINK_INVALID"
    assert (await bob.chats.JoinByLink(JoinByLinkRequest(token=link.token))).HasField("joined")


async def test_revoke_join_link(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group()
    create = CreateJoinLinkRequest(chat_id=chat_id, key=KEY)
    token = (await alice.chats.CreateJoinLink(create)).join_link.token
    reply = await alice.chats.RevokeJoinLink(RevokeJoinLinkRequest(chat_id=chat_id))
    assert not (await committed_content(alice, reply)).join_link_changed.HasField("join_link")
    assert code_of(await bob.chats.JoinByLink(JoinByLinkRequest(token=token))) == "LINK_INVALID"
    assert (await alice.chats.CreateJoinLink(create)).join_link.token == token, "the first result, though it is dead"


async def test_whoever_was_removed_gets_no_newer_link_by_an_old_key(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group("bob")
    await alice.chats.SetMemberRole(SetMemberRoleRequest(chat_id=chat_id, user_id="bob", role=ADMIN))
    create = CreateJoinLinkRequest(chat_id=chat_id, key=KEY)
    theirs = (await bob.chats.CreateJoinLink(create)).join_link
    await alice.chats.RemoveMember(RemoveMemberRequest(chat_id=chat_id, user_id="bob"))
    newer = await link_of(alice, chat_id)
    assert (await bob.chats.CreateJoinLink(create)).join_link == theirs
    assert theirs.token != newer
    assert code_of(await bob.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=chat_id))) == "NOT_A_MEMBER"


async def test_join_links_refuse(alice: Caller, bob: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group("bob")
    for create, code in (
        (CreateJoinLinkRequest(chat_id="x"), "INVALID_ARGUMENT"),
        (CreateJoinLinkRequest(chat_id=chat_id, key=BAD_KEY), "INVALID_ARGUMENT"),
        (CreateJoinLinkRequest(chat_id=NO_CHAT), "NOT_A_MEMBER"),
    ):
        assert code_of(await alice.chats.CreateJoinLink(create)) == code
    assert code_of(await bob.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=chat_id))) == "FORBIDDEN"
    assert code_of(await carol.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=chat_id))) == "NOT_A_MEMBER"
    assert code_of(await alice.chats.RevokeJoinLink(RevokeJoinLinkRequest(chat_id="x"))) == "INVALID_ARGUMENT"
    assert code_of(await alice.chats.RevokeJoinLink(RevokeJoinLinkRequest(chat_id=chat_id, key=BAD_KEY))) == "INVALID_ARGUMENT"
    assert code_of(await bob.chats.RevokeJoinLink(RevokeJoinLinkRequest(chat_id=chat_id))) == "FORBIDDEN"
    assert code_of(await carol.chats.RevokeJoinLink(RevokeJoinLinkRequest(chat_id=chat_id))) == "NOT_A_MEMBER"


async def test_join_by_link_refuses(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group()
    direct = direct_chat_id("alice", "bob")
    await alice.messages.SendMessage(SendMessageRequest(user_id="carol", content=text_content("x")))
    secret = "A" * 22
    for token in ("", "x", ".", chat_id, f"{chat_id}.", f"{chat_id}.{secret}", f"{NO_CHAT}.{secret}", f"{direct}.{secret}"):
        assert code_of(await bob.chats.JoinByLink(JoinByLinkRequest(token=token))) == "LINK_INVALID"
    token = await link_of(alice, chat_id)
    await alice.chats.AddMembers(AddMembersRequest(chat_id=chat_id, user_ids=[f"user{n}" for n in range(255)]))
    assert code_of(await bob.chats.JoinByLink(JoinByLinkRequest(token=token))) == "LIMIT_EXCEEDED"


async def test_answer_join_request_refuses(alice: Caller, bob: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group("bob")
    for approve in (True, False):
        for request, code in (
            (AnswerJoinRequestRequest(chat_id="x", user_id="carol", approve=approve), "INVALID_ARGUMENT"),
            (AnswerJoinRequestRequest(chat_id=chat_id, user_id="", approve=approve), "INVALID_ARGUMENT"),
            (AnswerJoinRequestRequest(chat_id=chat_id, user_id="carol", approve=approve), "NOT_FOUND"),
        ):
            assert code_of(await alice.chats.AnswerJoinRequest(request)) == code
    assert await carol.join(await link_of(alice, chat_id, approval_required=True)) == "pending"
    for approve in (True, False):
        request = AnswerJoinRequestRequest(chat_id=chat_id, user_id="carol", approve=approve)
        assert code_of(await bob.chats.AnswerJoinRequest(request)) == "FORBIDDEN"
        assert code_of(await carol.chats.AnswerJoinRequest(request)) == "NOT_A_MEMBER"
        request.key.CopyFrom(BAD_KEY)
        assert code_of(await alice.chats.AnswerJoinRequest(request)) == "INVALID_ARGUMENT"


async def _pages(caller: Caller, page_size: int) -> list[list[chat_service_pb2.ChatSummary]]:
    pages: list[list[chat_service_pb2.ChatSummary]] = []
    reply = ListChatsResponse()
    while not pages or reply.next_page_token:
        reply = await caller.chats.ListChats(ListChatsRequest(page_size=page_size, page_token=reply.next_page_token))
        pages.append(list(reply.chats))
    return pages


async def _refused_by_status(call: Callable[[], Any]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call()
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    info = error_info_of(failed.value.trailing_metadata())
    assert info is not None
    assert (info.domain, info.reason) == ("chatgrpc", "INVALID_ARGUMENT")
