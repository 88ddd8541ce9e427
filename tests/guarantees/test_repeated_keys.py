"""A repeated `WriteKey` gets the first result (G3): for every call that takes one, whatever has happened to the chat since.

The calls are found by the descriptors, so a new one without a case here fails. Each is made, overtaken, made again, and once
more when its caller is no member any longer; through another node each time, where there are several.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.message import Message

from chatgrpc.core.ids import group_chat_id
from chatgrpc.v1 import chat_pb2, chat_service_pb2, content_pb2, device_service_pb2, message_service_pb2, user_service_pb2
from chatgrpc.v1.chat_service_pb2 import (
    AddMembersRequest,
    AnswerJoinRequestRequest,
    CreateGroupRequest,
    CreateJoinLinkRequest,
    LeaveGroupRequest,
    MuteMemberRequest,
    RemoveMemberRequest,
    RevokeJoinLinkRequest,
    SetMemberRoleRequest,
    UpdateGroupRequest,
)
from chatgrpc.v1.message_service_pb2 import SendMessageRequest
from tests.support.callers import Caller, code_of, text_content
from tests.support.cast import Cast
from tests.support.contents import delete, edit, reaction

MEMBER, ADMIN, OWNER = content_pb2.MEMBER_ROLE_MEMBER, content_pb2.MEMBER_ROLE_ADMIN, content_pb2.MEMBER_ROLE_OWNER
SERVICES = (chat_service_pb2, message_service_pb2, user_service_pb2, device_service_pb2)


@dataclass(frozen=True)
class Scene:
    """Alice and bob own a group with carol in it; it has a link with approval, by which dave waits to be let in."""

    cast: Cast
    chat_id: str
    link: str
    key: chat_pb2.WriteKey

    @property
    def alice(self) -> Caller:
        return self.cast.caller("alice")

    @property
    def bob(self) -> Caller:
        return self.cast.caller("bob")

    def user(self, name: str) -> str:
        return self.cast.user(name)

    @property
    def created(self) -> str:
        """The group that bob creates with the key."""
        return group_chat_id(self.bob.user_id, self.key.client_message_id)


@pytest.fixture
async def scene(cast: Cast) -> Scene:
    chat_id = await cast.group("alice", "bob", "carol")
    alice, bob = cast.caller("alice"), cast.caller("bob")
    await done(alice.chats.SetMemberRole(SetMemberRoleRequest(chat_id=chat_id, user_id=bob.user_id, role=OWNER)))
    made = await done(alice.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=chat_id, approval_required=True)))
    assert await cast.caller("dave").join(made.join_link.token) == "pending"
    await bob.send(chat_id, "bob's")  # seq 5
    head_seq = (await bob.summary(chat_id)).head_seq
    assert head_seq == TEXT_SEQ
    key = chat_pb2.WriteKey(client_message_id=os.urandom(16), seen_seq=head_seq)
    return Scene(cast, chat_id, made.join_link.token, key)


TEXT_SEQ = 5


async def done(call: Awaitable[Any]) -> Any:
    reply = await call
    assert not reply.HasField("error"), reply
    return reply


def call(service: str, method: str, request: Callable[[Scene], Message], who: str = "bob") -> Callable[[Scene], Awaitable[Any]]:
    async def make(it: Scene) -> Any:
        return await getattr(getattr(it.cast.caller(who), service), method)(request(it))

    return make


def by_alice(method: str, request: Callable[[Scene], Message]) -> Callable[[Scene], Awaitable[Any]]:
    return call("chats", method, request, who="alice")


async def asks_again(it: Scene) -> str:
    return await it.cast.caller("dave").join(it.link)


async def leave(it: Scene) -> None:
    for chat_id in (it.chat_id, it.created):
        reply = await it.bob.chats.LeaveGroup(LeaveGroupRequest(chat_id=chat_id))
        assert not reply.HasField("error") or code_of(reply) == "NOT_A_MEMBER"


def message(content: Callable[[], content_pb2.Content]) -> Callable[[Scene], Awaitable[Any]]:
    return call("messages", "SendMessage", lambda it: SendMessageRequest(chat_id=it.chat_id, key=it.key, content=content()))


def hour_ahead_ms() -> int:
    return time.time_ns() // 1_000_000 + 3_600_000


Step = Callable[[Scene], Awaitable[Any]]

CASES: list[tuple[str, Step, Step]] = [
    (
        "ChatService.CreateGroup",
        call(
            "chats", "CreateGroup", lambda it: CreateGroupRequest(title="New", member_user_ids=[it.user("carol")], key=it.key)
        ),
        call("chats", "UpdateGroup", lambda it: UpdateGroupRequest(chat_id=it.created, title="Newer")),
    ),
    (
        "ChatService.UpdateGroup",
        call("chats", "UpdateGroup", lambda it: UpdateGroupRequest(chat_id=it.chat_id, title="New", key=it.key)),
        by_alice("UpdateGroup", lambda it: UpdateGroupRequest(chat_id=it.chat_id, title="Newer")),
    ),
    (
        "ChatService.AddMembers",
        call("chats", "AddMembers", lambda it: AddMembersRequest(chat_id=it.chat_id, user_ids=[it.user("erin")], key=it.key)),
        by_alice("RemoveMember", lambda it: RemoveMemberRequest(chat_id=it.chat_id, user_id=it.user("erin"))),
    ),
    (
        "ChatService.RemoveMember",
        call("chats", "RemoveMember", lambda it: RemoveMemberRequest(chat_id=it.chat_id, user_id=it.user("carol"), key=it.key)),
        by_alice("AddMembers", lambda it: AddMembersRequest(chat_id=it.chat_id, user_ids=[it.user("carol")])),
    ),
    (
        "ChatService.LeaveGroup",
        call("chats", "LeaveGroup", lambda it: LeaveGroupRequest(chat_id=it.chat_id, key=it.key)),
        by_alice("AddMembers", lambda it: AddMembersRequest(chat_id=it.chat_id, user_ids=[it.bob.user_id])),
    ),
    (
        "ChatService.SetMemberRole",
        call(
            "chats",
            "SetMemberRole",
            lambda it: SetMemberRoleRequest(chat_id=it.chat_id, user_id=it.user("carol"), role=ADMIN, key=it.key),
        ),
        by_alice("RemoveMember", lambda it: RemoveMemberRequest(chat_id=it.chat_id, user_id=it.user("carol"))),
    ),
    (
        "ChatService.MuteMember",
        call(
            "chats",
            "MuteMember",
            lambda it: MuteMemberRequest(
                chat_id=it.chat_id, user_id=it.user("carol"), muted_until_ms=hour_ahead_ms(), key=it.key
            ),
        ),
        by_alice("MuteMember", lambda it: MuteMemberRequest(chat_id=it.chat_id, user_id=it.user("carol"))),
    ),
    (
        "ChatService.CreateJoinLink",
        call("chats", "CreateJoinLink", lambda it: CreateJoinLinkRequest(chat_id=it.chat_id, key=it.key)),
        by_alice("CreateJoinLink", lambda it: CreateJoinLinkRequest(chat_id=it.chat_id)),
    ),
    (
        "ChatService.CreateJoinLink",
        call("chats", "CreateJoinLink", lambda it: CreateJoinLinkRequest(chat_id=it.chat_id, key=it.key)),
        by_alice("RevokeJoinLink", lambda it: RevokeJoinLinkRequest(chat_id=it.chat_id)),
    ),
    (
        "ChatService.RevokeJoinLink",
        call("chats", "RevokeJoinLink", lambda it: RevokeJoinLinkRequest(chat_id=it.chat_id, key=it.key)),
        by_alice("CreateJoinLink", lambda it: CreateJoinLinkRequest(chat_id=it.chat_id)),
    ),
    (
        "ChatService.AnswerJoinRequest",
        call(
            "chats",
            "AnswerJoinRequest",
            lambda it: AnswerJoinRequestRequest(chat_id=it.chat_id, user_id=it.user("dave"), approve=True, key=it.key),
        ),
        by_alice("RemoveMember", lambda it: RemoveMemberRequest(chat_id=it.chat_id, user_id=it.user("dave"))),
    ),
    (
        "ChatService.AnswerJoinRequest",
        call(
            "chats",
            "AnswerJoinRequest",
            lambda it: AnswerJoinRequestRequest(chat_id=it.chat_id, user_id=it.user("dave"), key=it.key),
        ),
        asks_again,
    ),
    (
        "MessageService.SendMessage",
        message(lambda: text_content("hi")),
        call("messages", "SendMessage", lambda it: SendMessageRequest(chat_id=it.chat_id, content=delete(it.key.seen_seq + 1))),
    ),
    (
        "MessageService.SendMessage",
        message(lambda: delete(TEXT_SEQ)),
        call("messages", "SendMessage", lambda it: SendMessageRequest(chat_id=it.chat_id, content=text_content("next"))),
    ),
    (
        "MessageService.SendMessage",
        message(lambda: edit(TEXT_SEQ, "edited")),
        call("messages", "SendMessage", lambda it: SendMessageRequest(chat_id=it.chat_id, content=delete(TEXT_SEQ))),
    ),
    (
        "MessageService.SendMessage",
        message(lambda: reaction(TEXT_SEQ, "👍")),
        call("messages", "SendMessage", lambda it: SendMessageRequest(chat_id=it.chat_id, content=reaction(TEXT_SEQ, ""))),
    ),
]
"""Which call; the call, by bob, with the scene's key; what would make a second one fail, or end in something else."""


def keyed_calls() -> Iterator[str]:
    """The names of all calls whose request has a `WriteKey`."""
    for module in SERVICES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if any(field.message_type is chat_pb2.WriteKey.DESCRIPTOR for field in method.input_type.fields):
                    yield method.full_name.removeprefix("chatgrpc.v1.")


def test_each_call_with_a_key_has_its_case() -> None:
    assert {name for name, _, _ in CASES} == set(keyed_calls())


def as_first(reply: Any) -> Any:
    """The reply without the mark of a repetition; a refusal is none."""
    assert not reply.HasField("error"), reply
    told = type(reply)()
    told.CopyFrom(reply)
    for arm in ("committed", "sent"):
        if arm in told.DESCRIPTOR.fields_by_name:
            getattr(told, arm).duplicate = False
    return told


@pytest.mark.parametrize(
    ("make", "overtake"), [case[1:] for case in CASES], ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
async def test_g3_a_repeated_key_gets_its_first_result(scene: Scene, make: Step, overtake: Step) -> None:
    first = as_first(await make(scene))
    assert as_first(await make(scene)) == first
    overtaken = await overtake(scene)
    assert isinstance(overtaken, str) or not overtaken.HasField("error"), overtaken
    events = len(await scene.alice.log(scene.chat_id))
    assert as_first(await make(scene)) == first
    await leave(scene)
    assert as_first(await make(scene)) == first
    assert len(await scene.alice.log(scene.chat_id)) <= events + 1, "nothing was committed again; bob left, if he had not"


async def test_g3_also_far_behind_and_for_who_is_gone(scene: Scene) -> None:
    """Further back than the owner remembers, so that the log must be looked through for somebody who is no member."""
    request = LeaveGroupRequest(chat_id=scene.chat_id, key=scene.key)
    first = as_first(await scene.bob.chats.LeaveGroup(request))
    for _ in range(10):
        await asyncio.gather(*(scene.alice.send(scene.chat_id, "on and on") for _ in range(30)))
    assert as_first(await scene.bob.chats.LeaveGroup(request)) == first


async def test_a_key_of_another_call_is_refused(scene: Scene) -> None:
    await done(scene.bob.chats.UpdateGroup(UpdateGroupRequest(chat_id=scene.chat_id, title="New", key=scene.key)))
    reply = await scene.bob.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=scene.chat_id, key=scene.key))
    assert code_of(reply) == "INVALID_ARGUMENT"
