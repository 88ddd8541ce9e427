"""Bad input: tokens that must not be accepted, and calls about what is not the caller's. Nothing is told, nothing is done."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from chatgrpc.core.ids import direct_chat_id, self_chat_id
from chatgrpc.edge.errors import error_info_of
from chatgrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    content_pb2,
    device_service_pb2,
    message_service_pb2,
    session_pb2,
    user_service_pb2,
)
from tests.robustness.bad_input.support_scene import Scene
from tests.robustness.bad_input.support_stream import BareStream, hello
from tests.robustness.bad_input.support_tokens import bad_tokens
from tests.support.callers import Caller
from tests.support.cast import BRIEF_LIVES_S
from tests.support.server import channel

pytestmark = pytest.mark.asyncio(loop_scope="session")

METHODS: list[MethodDescriptor] = [
    method
    for service in (
        user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
        device_service_pb2.DESCRIPTOR.services_by_name["DeviceService"],
        chat_service_pb2.DESCRIPTOR.services_by_name["ChatService"],
        message_service_pb2.DESCRIPTOR.services_by_name["MessageService"],
    )
    for method in service.methods
]
PAIRS_CHAT = direct_chat_id("healthy-ann", "healthy-ben")


@pytest.mark.parametrize("place", ["Hello", "metadata"])
async def test_a_stream_is_not_opened_with_a_bad_token(scene: Scene, place: str) -> None:
    async def knock(token: str) -> tuple[grpc.StatusCode, str, int]:
        metadata = [("authorization", f"Bearer {token}")] if place == "metadata" else []
        async with BareStream(scene.address, metadata) as stream:
            await stream.send_frames(hello(token if place == "Hello" else "", "bad-token"))
            outcome = await stream.outcome()
            assert outcome.kinds() == ["disconnect"], "something was said before the token was known to be good"
            assert outcome.disconnect is not None
            assert token not in outcome.disconnect.message
            return outcome.status, outcome.reason, outcome.disconnect.code

    tokens = bad_tokens(scene.server, "mallory")
    async with scene.attack(f"bad tokens in the {place}"):
        seen = {name: await knock(token) for name, (_, token) in tokens.items()}
    unauthenticated = (grpc.StatusCode.UNAUTHENTICATED, session_pb2.DISCONNECT_CODE_UNAUTHENTICATED)
    assert {name: (status, code) for name, (status, _, code) in seen.items()} == dict.fromkeys(tokens, unauthenticated)
    assert {name: reason for name, (_, reason, _) in seen.items()} == {name: reason for name, (reason, _) in tokens.items()}


async def test_a_session_does_not_take_a_bad_token_for_a_newer_one(scene: Scene) -> None:
    tokens = bad_tokens(scene.server, "mallory") | {"another user's": ("", scene.token("eve"))}
    async with scene.attack("bad tokens in RefreshToken"), BareStream(scene.address) as stream:
        await stream.open(scene.token("mallory"))
        for request_id, (name, (_, token)) in enumerate(tokens.items(), 2):
            refresh = session_pb2.RefreshToken(token=token)
            await stream.send_frames(session_pb2.ClientFrame(request_id=request_id, refresh_token=refresh))
            answer = await stream.answer(request_id)
            assert answer.error.code == chat_pb2.ERROR_CODE_TOKEN_INVALID, f"{name}: {answer}"
            assert token not in answer.error.message
        refresh = session_pb2.RefreshToken(token=scene.token("mallory", ttl_s=7_200))
        await stream.send_frames(session_pb2.ClientFrame(request_id=1_000, refresh_token=refresh))
        assert (await stream.answer(1_000)).HasField("token_refreshed")


async def test_a_session_ends_when_its_token_does(scene: Scene) -> None:
    async with scene.attack("a token that runs out"):
        for ttl_s in BRIEF_LIVES_S:
            async with BareStream(scene.address) as stream:
                await stream.send_frames(hello(scene.server.token("brief", ttl_s)))
                outcome = await stream.outcome()
            assert outcome.status == grpc.StatusCode.UNAUTHENTICATED
            assert outcome.reason == "TOKEN_EXPIRED"
            if "welcome" in outcome.kinds():
                break
    assert "welcome" in outcome.kinds()


async def test_no_method_is_called_with_a_bad_token(scene: Scene) -> None:
    tokens = bad_tokens(scene.server, "healthy-ann")
    for_every_method = {name: tokens[name] for name in ("expired", "alg none", "another user put in", "a stranger's key")}
    async with scene.attack("bad tokens in unary calls"), channel(scene.address) as shared:
        for method in METHODS:
            call = _call(shared, method)
            assert await _reason(call(b"")) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
            chosen = tokens if method.name == "ListChats" else for_every_method
            for name, (reason, token) in chosen.items():
                seen = await _reason(call(b"", metadata=(("authorization", f"Bearer {token}"),)))
                assert seen == (grpc.StatusCode.UNAUTHENTICATED, reason), f"{method.name}, {name}"


async def test_no_method_serves_someone_elses_chat(scene: Scene) -> None:
    """Every method that names a chat, on the pair's chat, on a group and on a self chat: refused, and nothing has changed."""
    async with Caller(scene.address, "owner", scene.token("owner")) as owner:
        group = await owner.create_group("member", title="Private")
        await owner.send(group, "between us")
        async with scene.attack("unary calls about someone else's chat"), channel(scene.address) as shared:
            metadata = (("authorization", f"Bearer {scene.token('stranger')}"),)
            seen: dict[str, set[str]] = {}
            for method, request in _requests_about(PAIRS_CHAT, group, self_chat_id("owner"), "g." + "A" * 22):
                call = _call(shared, method)
                reply = GetMessageClass(method.output_type).FromString(
                    await call(request.SerializeToString(), metadata=metadata)
                )
                assert reply.ByteSize() == reply.error.ByteSize() + 2 + (reply.error.ByteSize() > 127), "more than an error"  # type: ignore[attr-defined]
                seen.setdefault(method.name, set()).add(chat_pb2.ErrorCode.Name(reply.error.code))  # type: ignore[attr-defined]
        refusals = {name: {"ERROR_CODE_NOT_A_MEMBER"} for name in seen} | {"JoinByLink": {"ERROR_CODE_LINK_INVALID"}}
        assert seen == refusals
        assert len(seen) > 12
        assert await owner.seqs(group) == [1, 2]


async def test_no_method_serves_someone_elses_device(scene: Scene) -> None:
    async with (
        scene.attack("unary calls about someone else's device"),
        BareStream(scene.address) as stream,
        Caller(scene.address, "thief", scene.token("thief")) as thief,
    ):
        await stream.open(scene.token("victim"), "telephone")
        revoked = await thief.devices.RevokeDevice(device_service_pb2.RevokeDeviceRequest(device_id="telephone"))
        renamed = await thief.devices.RenameDevice(device_service_pb2.RenameDeviceRequest(device_id="telephone", name="x"))
        listed = await thief.devices.ListDevices(device_service_pb2.ListDevicesRequest())
        assert revoked.error.code == renamed.error.code == chat_pb2.ERROR_CODE_NOT_FOUND
        assert not listed.devices
        await stream.send_frames(session_pb2.ClientFrame(request_id=2, heartbeat=session_pb2.Heartbeat()))
        assert (await stream.answer(2)).HasField("heartbeat"), "the victim's stream goes on"


async def test_requests_of_random_bytes(scene: Scene) -> None:
    """To every method, with a good token: refused as malformed, or answered as what they happen to say."""
    noise = random.Random(5)
    metadata = (("authorization", f"Bearer {scene.token('noisy')}"),)
    seen = set()

    async def call(shared: grpc.aio.Channel, method: MethodDescriptor, request: bytes) -> None:
        calling = _call(shared, method)(request, metadata=metadata)
        try:
            GetMessageClass(method.output_type).FromString(await calling)
        except grpc.aio.AioRpcError:
            seen.add(await _reason(calling))

    async with scene.attack("random bytes to every unary method"), channel(scene.address) as shared:
        for method in METHODS:
            requests = [noise.randbytes(noise.choice((1, 3, 10, 100, 10_000))) for _ in range(20)]
            await asyncio.gather(*(call(shared, method, request) for request in requests))
        too_long = _call(shared, METHODS[0])(b"\0" * (1024 * 1024 + 1), metadata=metadata)
        assert await _reason(too_long) == (grpc.StatusCode.RESOURCE_EXHAUSTED, ""), "gRPC itself refuses what is too long"
    assert (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED") in seen
    assert {status for status, _ in seen} == {grpc.StatusCode.INVALID_ARGUMENT}


def _call(shared: grpc.aio.Channel, method: MethodDescriptor) -> Any:
    """The method, on bytes."""
    return shared.unary_unary(f"/{method.containing_service.full_name}/{method.name}")


async def _reason(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status of a call that must fail, and the reason of its ErrorInfo, if it has one."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    info = error_info_of(failed.value.trailing_metadata())
    return failed.value.code(), info.reason if info is not None else ""


def _requests_about(*chat_ids: str) -> Iterator[tuple[MethodDescriptor, Message]]:
    """For every method that names a chat a request that its owner could make."""
    fields: dict[str, Any] = {
        "user_id": "owner",
        "seq": 1,
        "role": content_pb2.MEMBER_ROLE_OWNER,
        "title": "Taken over",
        "content": content_pb2.Content(text=content_pb2.TextContent(text="let me in")),
        "muted_until_ms": 1,
        "approve": True,
    }
    for method in METHODS:
        names = {field.name for field in method.input_type.fields}
        for chat_id in chat_ids:
            known = {name: value for name, value in fields.items() if name in names}
            if method.name == "SendMessage":
                del known["user_id"]
            if "user_ids" in names:
                known["user_ids"] = ["stranger"]
            if method.name == "JoinByLink":
                yield method, GetMessageClass(method.input_type)(token=f"{chat_id}.{'A' * 22}")
            elif "chat_id" in names:
                yield method, GetMessageClass(method.input_type)(chat_id=chat_id, **known)
