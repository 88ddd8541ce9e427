"""Sizes: what a peer can make long has a limit, whatever call or frame it stands in."""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import RefusedError
from chatgrpc.core.shape import check_shape
from chatgrpc.edge.errors import StatusError
from chatgrpc.edge.sizes import CONTENT, LONG, Sizes
from chatgrpc.v1 import (
    chat_service_pb2,
    content_pb2,
    device_service_pb2,
    message_service_pb2,
    node_service_pb2,
    session_pb2,
    user_service_pb2,
)

FILES = (chat_service_pb2, device_service_pb2, message_service_pb2, node_service_pb2, session_pb2, user_service_pb2)
METHODS = [method for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods]
UNARY = [method.input_type for method in METHODS if not method.client_streaming]
STREAMED = [method.input_type for method in METHODS if method.client_streaming]

Path = tuple[FieldDescriptor, ...]

SIZES = Sizes(Limits())


def paths(message: Descriptor | None, before: Path = ()) -> Iterator[Path]:
    """Ways to every field of a request, through messages within, but not into contents."""
    for field in message.fields if message is not None else ():
        path = (*before, field)
        yield path
        if field.message_type not in (None, CONTENT, *(outer.message_type for outer in before)):
            yield from paths(field.message_type, path)


def request(path: Path, count: int, length: int) -> Message:
    """A request in which nothing but the last field of the path is set: so many entries, or one, each so long."""
    outermost = path[0].containing_type
    assert outermost is not None
    top = whole = GetMessageClass(outermost)()
    *through, last = path
    for field in through:
        inner = getattr(whole, field.name)
        whole = inner.add() if field.is_repeated else inner
        whole.SetInParent()
    entry: object = "x" * length if last.type == FieldDescriptor.TYPE_STRING else b"x" * length
    if not last.is_repeated:
        setattr(whole, last.name, entry)
    elif last.message_type is not None:
        getattr(whole, last.name).extend([GetMessageClass(last.message_type)()] * count)
    else:
        getattr(whole, last.name).extend([entry if last.type in LONG else 1] * count)
    return top


def name(path: Path) -> str:
    return ".".join((path[0].full_name, *(field.name for field in path[1:]))).removeprefix("chatgrpc.v1.")


COUNTED = [path for message in UNARY for path in paths(message) if path[-1].is_repeated]
LONG_ONES = [path for message in UNARY for path in paths(message) if path[-1].type in LONG]
COUNTED_ON_STREAMS = [path for message in STREAMED for path in paths(message) if path[-1].is_repeated]
COUNTED_IN_CONTENTS = [path for path in paths(CONTENT) if path[-1].is_repeated]


def test_every_method_is_looked_at() -> None:
    """An empty list would pass everything below."""
    assert len(UNARY) > 20
    assert [message.name for message in STREAMED] == ["ConnectRequest"]
    assert {name(path) for path in COUNTED} == {"CreateGroupRequest.member_user_ids", "AddMembersRequest.user_ids"}
    assert len(LONG_ONES) > 40
    assert len(COUNTED_ON_STREAMS) == 6


def refused_field(message: Message) -> str:
    with pytest.raises(StatusError) as refused:
        SIZES.check_request(message)
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_TOO_LONG")
    return refused.value.metadata["field"]


@pytest.mark.parametrize("path", COUNTED, ids=name)
def test_each_repeated_field_of_a_call_has_a_limit(path: Path) -> None:
    """A KeyError here: name the field's limit in `Sizes`."""
    count_max = SIZES.of_count(path[-1])
    assert count_max <= 10_000
    SIZES.check_request(request(path, count_max, 1))
    assert refused_field(request(path, count_max + 1, 1)) == path[-1].full_name


@pytest.mark.parametrize("path", LONG_ONES, ids=name)
def test_each_text_of_a_call_has_a_limit(path: Path) -> None:
    """A KeyError here: name the field's limit in `Sizes`."""
    length_max = SIZES.of_text(path[-1])
    assert length_max <= 64 * 1024
    SIZES.check_request(request(path, 1, length_max))
    assert refused_field(request(path, 1, length_max + 1)) == path[-1].full_name


@pytest.mark.parametrize("path", COUNTED_ON_STREAMS, ids=name)
def test_each_repeated_field_of_a_frame_has_a_limit(path: Path) -> None:
    """A KeyError here: name the field's limit in `Sizes`."""
    count_max = SIZES.of_count(path[-1])
    assert SIZES.too_many(request(path, count_max, 0)) is None
    said = SIZES.too_many(request(path, count_max + 1, 0))
    assert said is not None
    assert path[-1].name in said


@pytest.mark.parametrize("path", COUNTED_IN_CONTENTS, ids=name)
def test_each_repeated_field_of_a_content_has_a_limit(path: Path) -> None:
    """They are the core's, which answers in the words of the rules."""
    content = request(path, 10_000, 1)
    assert isinstance(content, content_pb2.Content)
    with pytest.raises(RefusedError):
        check_shape(content, Limits())


def test_limits_leave_what_rules_refuse_to_the_rules() -> None:
    """With the rules' own codes, which programs know."""
    limits = Limits()
    SIZES.check_request(
        chat_service_pb2.CreateGroupRequest(
            title="x" * (limits.title_chars_max + 1), member_user_ids=["user"] * (limits.group_members_max + 1)
        )
    )


def test_fields_of_other_packages_have_one_limit() -> None:
    """Health and reflection."""
    SIZES.check_request(health_pb2.HealthCheckRequest(service="x" * 1_000))
    assert refused_field(health_pb2.HealthCheckRequest(service="x" * 10_000)) == "grpc.health.v1.HealthCheckRequest.service"
