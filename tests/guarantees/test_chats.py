"""M1 and M2: direct chats and groups, with every operation seen by every member's device as an event of the one log."""

import asyncio
import time

import pytest

from chatgrpc.core.ids import direct_chat_id
from chatgrpc.v1 import chat_pb2, content_pb2
from chatgrpc.v1.chat_service_pb2 import (
    AddMembersRequest,
    AnswerJoinRequestRequest,
    CreateJoinLinkRequest,
    JoinByLinkRequest,
    LeaveGroupRequest,
    MuteMemberRequest,
    RemoveMemberRequest,
    RevokeJoinLinkRequest,
    SetMemberRoleRequest,
    UpdateGroupRequest,
)
from chatgrpc.v1.message_service_pb2 import SendMessageRequest
from tests.support.callers import code_of, text_content
from tests.support.cast import Cast
from tests.support.device import Device

MEMBER = content_pb2.MEMBER_ROLE_MEMBER
ADMIN = content_pb2.MEMBER_ROLE_ADMIN
OWNER = content_pb2.MEMBER_ROLE_OWNER


class Group:
    """A group of alice, who owns it, bob and carol, each with a device that has been there from the beginning."""

    def __init__(self, cast: Cast, chat_id: str, devices: list[Device]) -> None:
        self.cast = cast
        self.chat_id = chat_id
        self.devices = devices
        self.chats = cast.caller("alice").chats

    async def seen(self, committed: chat_pb2.SendResult) -> content_pb2.Content:
        """What all devices saw of a change: the same event, after which they agree with the server on the chat's state."""
        assert committed.seq, "it was refused"
        fresh = (await self.cast.caller("alice").summary(self.chat_id)).chat
        for device in self.devices:
            await device.until_held(self.chat_id, committed.seq)
            assert device.held.chats[self.chat_id] == fresh
        (event,) = {
            device.held.events[self.chat_id][committed.seq].SerializeToString(deterministic=True) for device in self.devices
        }
        return chat_pb2.ChatEvent.FromString(event).content

    def role(self, name: str) -> int:
        """The role that the devices know of a member; 0 = none."""
        members = self.devices[0].held.chats[self.chat_id].members
        return next((member.role for member in members if member.user_id == self.cast.user(name)), 0)


@pytest.fixture
async def group(cast: Cast) -> Group:
    devices = [await cast.online(name) for name in ("alice", "bob", "carol")]
    chat_id = await cast.group("alice", "bob", "carol", title="Friends")
    for device in devices:
        await device.until_held(chat_id, 1)
    return Group(cast, chat_id, devices)


# M1.


async def test_a_direct_chat_has_one_id_whoever_begins(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    assert (await alice.send(bob.user_id, "from alice")).chat_id == (await bob.send(alice.user_id, "from bob")).chat_id
    for device in (alice, bob):
        await device.until_held(direct_chat_id(alice.user_id, bob.user_id), 3)


async def test_both_may_begin_at_the_same_moment(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    by_call = [
        cast.caller(name).messages.SendMessage(SendMessageRequest(user_id=cast.user(other), content=text_content("hello")))
        for name, other in (("alice", "bob"), ("bob", "alice"))
    ]
    by_stream = [alice.send(bob.user_id, "hello"), bob.send(alice.user_id, "hello")]
    sent = [*(await asyncio.gather(*by_stream)), *(reply.sent for reply in await asyncio.gather(*by_call))]
    assert sorted(result.seq for result in sent) == [2, 3, 4, 5]
    assert len({result.chat_id for result in sent}) == 1
    log = await cast.caller("bob").log(sent[0].chat_id)
    assert [event.content.WhichOneof("body") for event in log] == ["chat_created", *["text"] * 4]
    assert {member.user_id for member in log[0].content.chat_created.members} == {alice.user_id, bob.user_id}


async def test_a_message_to_oneself_goes_to_the_self_chat(cast: Cast) -> None:
    alice, laptop = await cast.online("alice"), await cast.online("alice", "laptop")
    sent = await alice.send(alice.user_id, "note")
    await laptop.until_held(sent.chat_id, 2)
    assert sent.chat_id.startswith("s.")
    assert laptop.held.texts(sent.chat_id) == ["note"]


# M2.


async def test_title_and_picture(group: Group) -> None:
    request = UpdateGroupRequest(chat_id=group.chat_id, title="Best friends", picture_url="https://example.org/p.png")
    seen = await group.seen((await group.chats.UpdateGroup(request)).committed)
    assert seen.chat_info_changed.title == "Best friends"
    only_title = UpdateGroupRequest(chat_id=group.chat_id, title="Old friends")
    seen = await group.seen((await group.chats.UpdateGroup(only_title)).committed)
    assert not seen.chat_info_changed.HasField("picture_url")
    chat = group.devices[0].held.chats[group.chat_id]
    assert (chat.title, chat.picture_url) == ("Old friends", "https://example.org/p.png")


async def test_members_are_added_and_removed(group: Group, cast: Cast) -> None:
    dave = await cast.online("dave")
    added = await group.chats.AddMembers(
        AddMembersRequest(chat_id=group.chat_id, user_ids=[cast.user("bob"), cast.user("dave")])
    )
    seen = await group.seen(added.committed)
    assert list(seen.members_added.user_ids) == [cast.user("dave")], "bob was in it already"
    await dave.until_held(group.chat_id, added.committed.seq)
    assert dave.held.chats[group.chat_id] == group.devices[0].held.chats[group.chat_id]
    removed = await group.chats.RemoveMember(RemoveMemberRequest(chat_id=group.chat_id, user_id=cast.user("dave")))
    await group.seen(removed.committed)
    await dave.until_held(group.chat_id, removed.committed.seq)
    assert group.role("dave") == 0


async def test_the_owner_who_leaves_has_an_heir(group: Group, cast: Cast) -> None:
    """The longest-standing admin, else the longest-standing member."""
    set_admin = SetMemberRoleRequest(chat_id=group.chat_id, user_id=cast.user("carol"), role=ADMIN)
    await group.seen((await group.chats.SetMemberRole(set_admin)).committed)
    left = await group.chats.LeaveGroup(LeaveGroupRequest(chat_id=group.chat_id))
    for device in group.devices:
        await device.until_held(group.chat_id, left.committed.seq)
        removed = device.held.events[group.chat_id][left.committed.seq].content.member_removed
        assert (removed.user_id, removed.new_owner_user_id) == (cast.user("alice"), cast.user("carol"))
    left = await cast.caller("carol").chats.LeaveGroup(LeaveGroupRequest(chat_id=group.chat_id))
    await group.devices[1].until_held(group.chat_id, left.committed.seq)
    members = (await cast.caller("bob").summary(group.chat_id)).chat.members
    assert [(member.user_id, member.role) for member in members] == [(cast.user("bob"), OWNER)]


async def test_roles_say_who_may_do_what(group: Group, cast: Cast) -> None:
    bob, carol = cast.caller("bob").chats, cast.caller("carol").chats
    rename = UpdateGroupRequest(chat_id=group.chat_id, title="Bob's")
    assert code_of(await bob.UpdateGroup(rename)) == "FORBIDDEN"
    make_admin = SetMemberRoleRequest(chat_id=group.chat_id, user_id=cast.user("bob"), role=ADMIN)
    assert code_of(await bob.SetMemberRole(make_admin)) == "FORBIDDEN"
    seen = await group.seen((await group.chats.SetMemberRole(make_admin)).committed)
    assert seen.role_changed.role == ADMIN
    await group.seen((await bob.UpdateGroup(rename)).committed)
    remove_alice = RemoveMemberRequest(chat_id=group.chat_id, user_id=cast.user("alice"))
    assert code_of(await bob.RemoveMember(remove_alice)) == "FORBIDDEN"
    assert code_of(await carol.AddMembers(AddMembersRequest(chat_id=group.chat_id, user_ids=["x"]))) == "FORBIDDEN"
    resign = SetMemberRoleRequest(chat_id=group.chat_id, user_id=cast.user("alice"), role=MEMBER)
    assert code_of(await group.chats.SetMemberRole(resign)) == "FORBIDDEN", "a group keeps an owner"
    second_owner = SetMemberRoleRequest(chat_id=group.chat_id, user_id=cast.user("bob"), role=OWNER)
    await group.seen((await group.chats.SetMemberRole(second_owner)).committed)
    await group.seen((await bob.SetMemberRole(resign)).committed)
    assert (group.role("alice"), group.role("bob")) == (MEMBER, OWNER)


async def test_a_muted_member_may_not_write_until_unmuted(group: Group, cast: Cast) -> None:
    bob = group.devices[1]
    until_ms = time.time_ns() // 1_000_000 + 3_600_000
    mute = MuteMemberRequest(chat_id=group.chat_id, user_id=bob.user_id, muted_until_ms=until_ms)
    seen = await group.seen((await group.chats.MuteMember(mute)).committed)
    assert seen.member_muted.muted_until_ms == until_ms
    assert (await bob.request(bob.compose(group.chat_id, "hello?"))).error.code == chat_pb2.ERROR_CODE_MUTED
    unmute = MuteMemberRequest(chat_id=group.chat_id, user_id=bob.user_id)
    await group.seen((await group.chats.MuteMember(unmute)).committed)
    await bob.send(group.chat_id, "hello!")


async def test_a_join_link_lets_people_in_until_it_is_replaced_or_revoked(group: Group, cast: Cast) -> None:
    links = []
    for _ in range(2):
        made = await group.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=group.chat_id))
        links.append(made.join_link.token)
    assert code_of(await cast.caller("dave").chats.JoinByLink(JoinByLinkRequest(token=links[0]))) == "LINK_INVALID"
    joined = (await cast.caller("dave").chats.JoinByLink(JoinByLinkRequest(token=links[1]))).joined
    assert cast.user("dave") in {member.user_id for member in joined.members}
    for device in group.devices:
        await device.until_held(group.chat_id, joined.as_of_seq)
        assert device.held.chats[group.chat_id] == joined
    revoked = await group.chats.RevokeJoinLink(RevokeJoinLinkRequest(chat_id=group.chat_id))
    await group.seen(revoked.committed)
    assert code_of(await cast.caller("erin").chats.JoinByLink(JoinByLinkRequest(token=links[1]))) == "LINK_INVALID"


async def test_with_approval_an_admin_lets_people_in_or_declines(group: Group, cast: Cast) -> None:
    request = CreateJoinLinkRequest(chat_id=group.chat_id, approval_required=True)
    token = (await group.chats.CreateJoinLink(request)).join_link.token
    dave = await cast.online("dave")
    for name in ("dave", "erin"):
        assert await cast.caller(name).join(token) == "pending"
    await group.devices[0].until(
        lambda: list(group.devices[0].held.chats[group.chat_id].join_request_user_ids) == [cast.user("dave"), cast.user("erin")]
    )
    assert group.chat_id not in dave.held.events, "who waits sees nothing"
    yes = AnswerJoinRequestRequest(chat_id=group.chat_id, user_id=cast.user("dave"), approve=True)
    assert code_of(await cast.caller("bob").chats.AnswerJoinRequest(yes)) == "FORBIDDEN"
    let_in = (await group.chats.AnswerJoinRequest(yes)).committed
    assert list((await group.seen(let_in)).members_added.user_ids) == [cast.user("dave")]
    await dave.until_held(group.chat_id, let_in.seq)
    assert list(dave.held.events[group.chat_id]) == [let_in.seq]
    no = AnswerJoinRequestRequest(chat_id=group.chat_id, user_id=cast.user("erin"))
    assert (await group.seen((await group.chats.AnswerJoinRequest(no)).committed)).join_declined.user_id == cast.user("erin")
    assert not group.devices[0].held.chats[group.chat_id].join_request_user_ids
    assert code_of(await group.chats.AnswerJoinRequest(no)) == "NOT_FOUND"


async def test_whoever_was_removed_does_not_come_back_by_the_link(group: Group, cast: Cast) -> None:
    """Neither by the link they had, nor by a new one; by an admin they do, and may then leave and come back as others do."""
    dave = cast.caller("dave")
    made = await group.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=group.chat_id))
    assert await dave.join(made.join_link.token) == "joined"
    await group.chats.RemoveMember(RemoveMemberRequest(chat_id=group.chat_id, user_id=dave.user_id))
    newer = await group.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=group.chat_id))
    for token in (made.join_link.token, newer.join_link.token, newer.join_link.token):
        assert code_of(await dave.chats.JoinByLink(JoinByLinkRequest(token=token))) in {"LINK_INVALID", "FORBIDDEN"}
    approved = await group.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=group.chat_id, approval_required=True))
    assert await dave.join(approved.join_link.token) == "pending"
    answer = AnswerJoinRequestRequest(chat_id=group.chat_id, user_id=dave.user_id, approve=True)
    await group.seen((await group.chats.AnswerJoinRequest(answer)).committed)
    await dave.chats.LeaveGroup(LeaveGroupRequest(chat_id=group.chat_id))
    free = await group.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=group.chat_id))
    assert await dave.join(free.join_link.token) == "joined"


async def test_a_mute_is_not_shaken_off_by_leaving(group: Group, cast: Cast) -> None:
    dave = cast.caller("dave")
    made = await group.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=group.chat_id))
    assert await dave.join(made.join_link.token) == "joined"
    until_ms = time.time_ns() // 1_000_000 + 3_600_000
    await group.chats.MuteMember(MuteMemberRequest(chat_id=group.chat_id, user_id=dave.user_id, muted_until_ms=until_ms))
    for _ in range(2):
        await dave.chats.LeaveGroup(LeaveGroupRequest(chat_id=group.chat_id))
        assert await dave.join(made.join_link.token) == "joined"
        send = SendMessageRequest(chat_id=group.chat_id, content=text_content("here again"))
        assert code_of(await dave.messages.SendMessage(send)) == "MUTED"
    await group.chats.MuteMember(MuteMemberRequest(chat_id=group.chat_id, user_id=dave.user_id))
    await dave.send(group.chat_id, "thanks")
    state = (await dave.summary(group.chat_id)).chat
    for device in group.devices:
        await device.until_held(group.chat_id, state.as_of_seq)
        assert device.held.chats[group.chat_id] == state
