"""The unary calls against a server in a process of its own, or the nodes of a cluster, beside devices on their streams."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chatgrpc.core.fold import apply_event
from chatgrpc.core.ids import direct_chat_id
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from chatgrpc.v1.chat_service_pb2 import (
    AddMembersRequest,
    AnswerJoinRequestRequest,
    CreateGroupRequest,
    CreateJoinLinkRequest,
    GetChatRequest,
    ListChatsRequest,
    MuteMemberRequest,
    RemoveMemberRequest,
    SetMemberRoleRequest,
    UpdateGroupRequest,
)
from chatgrpc.v1.device_service_pb2 import ListDevicesRequest, RenameDeviceRequest, RevokeDeviceRequest
from chatgrpc.v1.message_service_pb2 import ListMessagesRequest, MarkReadRequest, SendMessageRequest
from chatgrpc.v1.user_service_pb2 import GetUserRequest, UpdateProfileRequest, User
from tests.support.callers import Caller, text_content
from tests.support.cast import Cast, Served
from tests.support.device import DisconnectedError
from tests.support.server import ServerProcess, channel

_numbers = itertools.count(1)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Served:
    """Where the people of a test are; with `--on-cluster`, on three nodes."""
    on_cluster = request.config.getoption("--on-cluster")
    place: Served = request.getfixturevalue("shared_cluster" if on_cluster else "mortal")
    return place


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of this test's own, that may be killed."""
    server = ServerProcess(tmp_path / "data")
    try:
        asyncio.run(server.start())
        yield server
    finally:
        server.close()


@pytest.fixture
async def cast(server: Served) -> AsyncIterator[Cast]:
    """The people of this test."""
    people = Cast(server, f"u{next(_numbers)}")
    yield people
    await people.close()


async def test_every_change_reaches_the_devices_as_an_event_that_folds_to_the_chat(cast: Cast) -> None:
    phone, alice, bob = await cast.online("alice"), cast.caller("alice"), cast.caller("bob")
    chat_id = await cast.group("alice", "bob", "carol")
    admin = content_pb2.MEMBER_ROLE_ADMIN
    await alice.chats.SetMemberRole(SetMemberRoleRequest(chat_id=chat_id, user_id=cast.user("bob"), role=admin))
    await bob.chats.UpdateGroup(UpdateGroupRequest(chat_id=chat_id, title="Renamed", picture_url="https://p.example/g"))
    await bob.chats.AddMembers(AddMembersRequest(chat_id=chat_id, user_ids=[cast.user("dave")]))
    await bob.chats.MuteMember(MuteMemberRequest(chat_id=chat_id, user_id=cast.user("carol"), muted_until_ms=1_000))
    await bob.chats.RemoveMember(RemoveMemberRequest(chat_id=chat_id, user_id=cast.user("dave")))
    link = await bob.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=chat_id, approval_required=True))
    for name in ("erin", "frank", "grace"):
        assert await cast.caller(name).join(link.join_link.token) == "pending"
    yes = AnswerJoinRequestRequest(chat_id=chat_id, user_id=cast.user("erin"), approve=True)
    await bob.chats.AnswerJoinRequest(yes)
    await bob.chats.AnswerJoinRequest(AnswerJoinRequestRequest(chat_id=chat_id, user_id=cast.user("frank")))
    last = await bob.send(chat_id, "done")
    await phone.until_held(chat_id, last.seq)

    folded = chat_pb2.Chat()
    for _, event in sorted(phone.held.events[chat_id].items()):
        apply_event(folded, event)
    summary = (await alice.chats.GetChat(GetChatRequest(chat_id=chat_id))).chat
    assert folded == summary.chat
    assert (summary.chat.title, list(summary.chat.join_request_user_ids)) == ("Renamed", [cast.user("grace")])
    listed = await alice.messages.ListMessages(ListMessagesRequest(chat_id=chat_id, page_size=100))
    assert {event.seq: event for event in listed.events} == phone.held.events[chat_id]


async def test_streams_and_calls_send_into_one_order_and_share_their_keys(cast: Cast) -> None:
    phone = await cast.online("alice")
    frame = phone.compose(cast.user("bob"), "by the stream", client_message_id=bytes(range(16)))
    sent = (await phone.request(frame)).sent
    by_call = SendMessageRequest(user_id=phone.user_id, content=text_content("by a call"))
    reply = await cast.caller("bob").messages.SendMessage(by_call)
    assert reply.sent.seq == sent.seq + 1
    request = SendMessageRequest(user_id=cast.user("bob"), key=frame.send.key, content=frame.send.content)
    again = (await cast.caller("alice").messages.SendMessage(request)).sent
    assert (again.seq, again.message_id, again.duplicate) == (sent.seq, sent.message_id, True)
    chat_id = direct_chat_id(cast.user("alice"), cast.user("bob"))
    await phone.until_held(chat_id, reply.sent.seq)
    assert phone.held.texts(chat_id) == ["by the stream", "by a call"]


async def test_a_mark_that_a_call_raises_reaches_the_sender(cast: Cast) -> None:
    phone, bob = await cast.online("alice"), cast.user("bob")
    by_call = SendMessageRequest(user_id=bob, content=text_content("x"))
    sent = (await cast.caller("alice").messages.SendMessage(by_call)).sent
    await cast.caller("bob").messages.MarkRead(MarkReadRequest(chat_id=sent.chat_id, seq=sent.seq))
    await phone.until(lambda: phone.receipts.get((sent.chat_id, bob), chat_pb2.Receipt()).read_seq == sent.seq)


@pytest.mark.embedded_only("it kills the one process on its data folder")
async def test_what_was_answered_survives_a_kill(mortal: ServerProcess, cast: Cast) -> None:
    alice, user_id = cast.caller("alice"), cast.user("alice")
    key = chat_pb2.WriteKey(client_message_id=bytes(range(16)))
    create = CreateGroupRequest(title="Friends", member_user_ids=[cast.user("bob")], key=key)
    group = (await alice.chats.CreateGroup(create)).chat
    send = SendMessageRequest(chat_id=group.chat_id, key=key, content=text_content("x"))
    send.key.client_message_id = bytes(range(1, 17))
    sent = (await alice.messages.SendMessage(send)).sent
    await alice.users.UpdateProfile(UpdateProfileRequest(display_name="Alice"))
    for device_id in ("phone", "laptop"):
        await cast.online("alice", device_id)
    await alice.devices.RenameDevice(RenameDeviceRequest(device_id="laptop", name="Desk"))
    await alice.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
    mortal.kill()
    await mortal.start()
    async with Caller(mortal.address, user_id, mortal.token(user_id)) as again:
        assert (await again.chats.CreateGroup(create)).chat == group
        resent = (await again.messages.SendMessage(send)).sent
        assert (resent.seq, resent.message_id, resent.duplicate) == (sent.seq, sent.message_id, True)
        assert [chat.chat for chat in (await again.chats.ListChats(ListChatsRequest())).chats] == [group]
        assert (await again.users.GetUser(GetUserRequest())).user == User(user_id=user_id, display_name="Alice")
        devices = (await again.devices.ListDevices(ListDevicesRequest())).devices
        assert [(found.device_id, found.name) for found in devices] == [("laptop", "Desk")]
    with pytest.raises(DisconnectedError) as refused:
        await cast.device("alice", "phone").connect()
    assert refused.value.disconnect is not None
    assert refused.value.disconnect.code == session_pb2.DISCONNECT_CODE_DEVICE_REVOKED


async def test_profiles_and_devices_are_the_same_wherever_they_are_asked_for(cast: Cast) -> None:
    alice, bob = cast.caller("alice"), cast.caller("bob")
    for number in range(3):
        await alice.users.UpdateProfile(UpdateProfileRequest(display_name=f"Alice {number}"))
        user = (await bob.users.GetUser(GetUserRequest(user_id=alice.user_id))).user
        assert user.display_name == f"Alice {number}"
        await cast.online("alice", f"device-{number}")
        await alice.devices.RenameDevice(RenameDeviceRequest(device_id=f"device-{number}", name=f"Desk {number}"))
        devices = (await alice.devices.ListDevices(ListDevicesRequest())).devices
        assert [found.name for found in devices] == [f"Desk {found}" for found in range(number + 1)]


async def test_health_and_reflection_need_no_token(server: Served) -> None:
    async with channel(server.addresses[0]) as open_channel:
        health = health_pb2_grpc.HealthStub(open_channel)
        for service in ("", "chatgrpc.v1.ChatService", "chatgrpc.v1.SessionService"):
            reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(open_channel)
        [answer] = [
            answer
            async for answer in reflection.ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            )
        ]
        assert {service.name for service in answer.list_services_response.service} == {
            "chatgrpc.v1.ChatService",
            "chatgrpc.v1.DeviceService",
            "chatgrpc.v1.MessageService",
            "chatgrpc.v1.NodeService",
            "chatgrpc.v1.SessionService",
            "chatgrpc.v1.UserService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
