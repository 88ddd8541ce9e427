"""Requests of any shape, to every method: an outcome that the protos name, never an unexpected error (X6)."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from chatgrpc.core.ids import direct_chat_id, self_chat_id
from chatgrpc.edge.errors import error_info_of
from chatgrpc.v1 import chat_service_pb2, device_service_pb2, message_service_pb2, user_service_pb2
from tests.support.callers import Caller

REQUESTS_PER_METHOD = 80
SERVICES = (
    user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
    device_service_pb2.DESCRIPTOR.services_by_name["DeviceService"],
    chat_service_pb2.DESCRIPTOR.services_by_name["ChatService"],
    message_service_pb2.DESCRIPTOR.services_by_name["MessageService"],
)
METHODS = [method for service in SERVICES for method in service.methods]

INTEGERS = (0, 1, 2, 3, 7, 100, 2**31 - 1, 2**53, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63))
INTEGER_BITS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


def raw_call(address: str, method: MethodDescriptor) -> tuple[grpc.aio.Channel, Callable[..., Any]]:
    """A channel, and the method on bytes."""
    channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
    path = f"/{method.containing_service.full_name}/{method.name}"
    return channel, channel.unary_unary(path)


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status code, and the reason of its ErrorInfo."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    info = error_info_of(failed.value.trailing_metadata())
    assert info is not None
    return failed.value.code(), info.reason


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
async def test_without_a_token_nothing_is_answered(address: str, method: MethodDescriptor) -> None:
    channel, call = raw_call(address, method)
    async with channel:
        for metadata in ((), (("authorization", "Bearer not-a-token"),)):
            code, reason = await status_of(call(b"", metadata=metadata))
            assert code == grpc.StatusCode.UNAUTHENTICATED
            assert reason.startswith("TOKEN_")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
async def test_any_request_gets_a_typed_answer(
    address: str, alice: Caller, bob: Caller, token_of: Callable[[str, str], str], method: MethodDescriptor
) -> None:
    group = await alice.create_group("bob", "carol")
    link = await alice.chats.CreateJoinLink(chat_service_pb2.CreateJoinLinkRequest(chat_id=group))
    words = [group, link.join_link.token, direct_chat_id("alice", "bob"), self_chat_id("alice"), "alice", "bob", "zoe", "phone"]
    reply_class = GetMessageClass(method.output_type)
    dice = random.Random(method.full_name)
    channel, call = raw_call(address, method)
    metadata = [(("authorization", f"Bearer {token_of(user_id, 'caller')}"),) for user_id in ("alice", "bob", "zoe")]
    async with channel:
        for request in _requests(method, dice, words):
            try:
                reply = reply_class.FromString(await call(request, metadata=dice.choice(metadata)))
            except grpc.aio.AioRpcError as failed:
                assert failed.code() == grpc.StatusCode.INVALID_ARGUMENT, (failed, request)  # noqa: PT017
                assert error_info_of(failed.trailing_metadata()) is not None  # noqa: PT017
            else:
                _check_reply(reply)


def _requests(method: MethodDescriptor, dice: random.Random, words: list[str]) -> Iterator[bytes]:
    """Requests from nearly sensible to noise."""
    request_class = GetMessageClass(method.input_type)
    yield b""
    for _ in range(REQUESTS_PER_METHOD):
        request = request_class()
        _fill(request, dice, words)
        wire = request.SerializeToString()
        yield wire
        if wire:
            noise = bytearray(wire)
            noise[dice.randrange(len(noise))] = dice.randrange(256)
            yield bytes(noise)


def _fill(message: Message, dice: random.Random, words: list[str], depth: int = 0) -> None:
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.25 or depth > 4:
            continue
        if field.is_repeated:
            values = getattr(message, field.name)
            for _ in range(dice.choice((0, 1, 2, 5))):
                if field.message_type is not None:
                    _fill(values.add(), dice, words, depth + 1)
                else:
                    values.append(_value(field, dice, words))
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            _fill(inner, dice, words, depth + 1)
        else:
            setattr(message, field.name, _value(field, dice, words))


def _value(field: Any, dice: random.Random, words: list[str]) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        noise = "".join(chr(dice.randrange(1, 0xD7FF)) for _ in range(dice.choice((0, 1, 60, 3_000))))
        return dice.choice((*words, *words, noise, "\0"))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return dice.randbytes(dice.choice((16, 16, 16, 0, 15, 5_000)))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return dice.random() < 0.5
    if field.type == FieldDescriptor.TYPE_ENUM:
        return dice.choice((0, 1, 2, 3, 99))
    lowest, highest = INTEGER_BITS[field.type]
    return dice.choice([number for number in INTEGERS if lowest <= number <= highest])


def _check_reply(reply: Message) -> None:
    """Something is set, and an error says which and why."""
    oneofs = reply.DESCRIPTOR.oneofs
    if oneofs:
        assert reply.WhichOneof(oneofs[0].name) is not None
    error = getattr(reply, "error", None)
    if error is not None and reply.HasField("error"):
        assert error.code != 0
        assert error.message
        assert error.retry_after_ms == 0, error  # nothing was wrong with the server
