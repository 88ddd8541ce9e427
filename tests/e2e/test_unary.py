"""The unary calls against a server in a process of its own, beside devices on their streams."""

from collections.abc import AsyncIterator
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
from tests.support.device import Device, DisconnectedError
from tests.support.server import ServerProcess, channel, running_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with running_server(tmp_path / "data") as running:
        yield running


@pytest.fixture
async def alice(server: ServerProcess) -> AsyncIterator[Caller]:
    async with Caller(server.address, "alice", server.token("alice")) as caller:
        yield caller


@pytest.fixture
async def bob(server: ServerProcess) -> AsyncIterator[Caller]:
    async with Caller(server.address, "bob", server.token("bob")) as caller:
        yield caller


def device(server: ServerProcess, user_id: str, device_id: str) -> Device:
    return Device(server.address, server.token(user_id), device_id)


async def test_every_change_reaches_the_devices_as_an_event_that_folds_to_the_chat(
    server: ServerProcess, alice: Caller, bob: Caller
) -> None:
    async with device(server, "alice", "phone") as phone:
        chat_id = await alice.create_group("bob", "carol")
        admin = content_pb2.MEMBER_ROLE_ADMIN
        await alice.chats.SetMemberRole(SetMemberRoleRequest(chat_id=chat_id, user_id="bob", role=admin))
        await bob.chats.UpdateGroup(UpdateGroupRequest(chat_id=chat_id, title="Renamed", picture_url="https://p.example/g"))
        await bob.chats.AddMembers(AddMembersRequest(chat_id=chat_id, user_ids=["dave"]))
        await bob.chats.MuteMember(MuteMemberRequest(chat_id=chat_id, user_id="carol", muted_until_ms=2**50))
        await bob.chats.RemoveMember(RemoveMemberRequest(chat_id=chat_id, user_id="dave"))
        link = await bob.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=chat_id, approval_required=True))
        for user_id in ("erin", "frank", "grace"):
            async with Caller(server.address, user_id, server.token(user_id)) as asking:
                assert await asking.join(link.join_link.token) == "pending"
        await bob.chats.AnswerJoinRequest(AnswerJoinRequestRequest(chat_id=chat_id, user_id="erin", approve=True))
        await bob.chats.AnswerJoinRequest(AnswerJoinRequestRequest(chat_id=chat_id, user_id="frank"))
        last = await bob.send(chat_id, "done")
        await phone.until_held(chat_id, last.seq)

        folded = chat_pb2.Chat()
        for _, event in sorted(phone.held.events[chat_id].items()):
            apply_event(folded, event)
        summary = (await alice.chats.GetChat(GetChatRequest(chat_id=chat_id))).chat
        assert folded == summary.chat
        assert (summary.chat.title, list(summary.chat.join_request_user_ids)) == ("Renamed", ["grace"])
        listed = await alice.messages.ListMessages(ListMessagesRequest(chat_id=chat_id, page_size=100))
        assert {event.seq: event for event in listed.events} == phone.held.events[chat_id]


async def test_streams_and_calls_send_into_one_order_and_share_their_keys(server: ServerProcess, bob: Caller) -> None:
    chat_id = direct_chat_id("alice", "bob")
    async with device(server, "alice", "phone") as phone:
        frame = phone.compose("bob", "by the stream", client_message_id=bytes(range(16)))
        sent = (await phone.request(frame)).sent
        reply = await bob.messages.SendMessage(SendMessageRequest(user_id="alice", content=text_content("by a call")))
        assert reply.sent.seq == sent.seq + 1
        async with Caller(server.address, "alice", server.token("alice")) as alice:
            request = SendMessageRequest(user_id="bob", key=frame.send.key, content=frame.send.content)
            again = (await alice.messages.SendMessage(request)).sent
        assert (again.seq, again.message_id, again.duplicate) == (sent.seq, sent.message_id, True)
        await phone.until_held(chat_id, reply.sent.seq)
        assert phone.held.texts(chat_id) == ["by the stream", "by a call"]


async def test_a_mark_that_a_call_raises_reaches_the_sender(server: ServerProcess, alice: Caller, bob: Caller) -> None:
    async with device(server, "alice", "phone") as phone:
        sent = (await alice.messages.SendMessage(SendMessageRequest(user_id="bob", content=text_content("x")))).sent
        await bob.messages.MarkRead(MarkReadRequest(chat_id=sent.chat_id, seq=sent.seq))
        await phone.until(lambda: phone.receipts.get((sent.chat_id, "bob"), chat_pb2.Receipt()).read_seq == sent.seq)


async def test_what_was_answered_survives_a_kill(server: ServerProcess, alice: Caller) -> None:
    key = chat_pb2.WriteKey(client_message_id=bytes(range(16)))
    create = CreateGroupRequest(title="Friends", member_user_ids=["bob"], key=key)
    group = (await alice.chats.CreateGroup(create)).chat
    send = SendMessageRequest(chat_id=group.chat_id, key=key, content=text_content("x"))
    send.key.client_message_id = bytes(range(1, 17))
    sent = (await alice.messages.SendMessage(send)).sent
    await alice.users.UpdateProfile(UpdateProfileRequest(display_name="Alice"))
    async with device(server, "alice", "phone"), device(server, "alice", "laptop"):
        await alice.devices.RenameDevice(RenameDeviceRequest(device_id="laptop", name="Desk"))
        await alice.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
    server.kill()
    await server.start()
    async with Caller(server.address, "alice", server.token("alice")) as again:
        assert (await again.chats.CreateGroup(create)).chat == group
        resent = (await again.messages.SendMessage(send)).sent
        assert (resent.seq, resent.message_id, resent.duplicate) == (sent.seq, sent.message_id, True)
        assert [chat.chat for chat in (await again.chats.ListChats(ListChatsRequest())).chats] == [group]
        assert (await again.users.GetUser(GetUserRequest())).user == User(user_id="alice", display_name="Alice")
        devices = (await again.devices.ListDevices(ListDevicesRequest())).devices
        assert [(found.device_id, found.name) for found in devices] == [("laptop", "Desk")]
    with pytest.raises(DisconnectedError) as refused:
        await device(server, "alice", "phone").connect()
    assert refused.value.disconnect is not None
    assert refused.value.disconnect.code == session_pb2.DISCONNECT_CODE_DEVICE_REVOKED


async def test_health_and_reflection_need_no_token(server: ServerProcess) -> None:
    async with channel(server.address) as open_channel:
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
