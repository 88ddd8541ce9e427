"""What stands around unary calls, on a real server."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf import wrappers_pb2

from chatgrpc.edge.errors import StatusError, error_info_of
from chatgrpc.edge.interceptors import UnaryInterceptor, UnaryLimits, bearer_token, current_claims
from chatgrpc.edge.server import GrpcServer, ServerOptions
from chatgrpc.ports.tokens import Claims, KeysUnavailableError, RevocationsUnavailableError, TokenRejectedError
from tests.contract.http2_peer import END_STREAM, HEADERS, PREFACE, RST_STREAM, SETTINGS, Http2Peer, frame, grpc_message
from tests.error_info import ErrorInfoRequired
from tests.robustness.bad_input.support_http2 import PING, data, headers

NOW_MS = 1_700_000_000_000
METHOD = "/chatgrpc.test.Service/Method"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
LIST_SERVICES = b"\x3a\x00"

Behaviour = Callable[[wrappers_pb2.StringValue, grpc.aio.ServicerContext[bytes, bytes]], Awaitable[wrappers_pb2.StringValue]]


def unary(channel: grpc.aio.Channel, method: str = METHOD) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary(method)


def stream(channel: grpc.aio.Channel, method: str) -> grpc.aio.StreamStreamCall[bytes, bytes]:
    stub: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
    return stub()


class KnownTokens:
    """Knows three tokens by heart."""

    async def verify(self, token: str, now_ms: int) -> Claims:
        assert now_ms == NOW_MS
        if token == "no-keys":
            raise KeysUnavailableError
        if token == "no-store":
            raise RevocationsUnavailableError
        if token != "of-alice":
            raise TokenRejectedError("TOKEN_EXPIRED", "The token has expired.")
        return Claims("alice", NOW_MS + 1)


def patient(tokenless_deadline_s: float = 60.0, **limits: Any) -> UnaryLimits:
    """Limits, but for whom a busy machine keeps waiting for a second."""
    return UnaryLimits(tokenless_deadline_s=tokenless_deadline_s, **limits)


@dataclass
class Rig:
    """A server with one method that does what the test says, and a channel to it."""

    channel: grpc.aio.Channel
    plain_channel: grpc.aio.Channel
    observed: list[tuple[str, str, float]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    behaviour: Behaviour | None = None
    port: int = 0

    async def call(self, text: str = "", token: str | None = "of-alice") -> str:
        """Calls the method; every failure must carry an ErrorInfo."""
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        request = wrappers_pb2.StringValue(value=text).SerializeToString()
        reply = await unary(self.channel)(request, metadata=metadata, timeout=30)
        return wrappers_pb2.StringValue.FromString(reply).value

    async def fail(self, token: str | None = "of-alice") -> tuple[grpc.StatusCode, str, str | None]:
        """Calls the method, which must fail; gives code, reason, details."""
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await self.call(token=token)
        info = error_info_of(failed.value.trailing_metadata())
        assert info is not None
        return failed.value.code(), info.reason, failed.value.details()


@pytest.fixture
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    limits = getattr(request, "param", patient())
    rig = Rig(None, None)  # type: ignore[arg-type]

    async def method(
        message: wrappers_pb2.StringValue, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> wrappers_pb2.StringValue:
        assert rig.behaviour is not None
        return await rig.behaviour(message, context)

    async def streamed(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.write(b"streamed")

    method_handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        method,
        request_deserializer=wrappers_pb2.StringValue.FromString,
        response_serializer=wrappers_pb2.StringValue.SerializeToString,
    )
    stream_handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(streamed)
    interceptor = UnaryInterceptor(
        KnownTokens(),
        lambda *observation: rig.observed.append(observation),
        limits,
        now_ms=lambda: NOW_MS,
        cut=rig.cut.append,
    )
    server = grpc.aio.server(interceptors=[interceptor])
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {
        "chatgrpc.test.Service": {"Method": method_handler, "Stream": stream_handler},
        "chatgrpc.v1.SessionService": {"Connect": stream_handler, "Other": method_handler},
        "chatgrpc.v1.NodeService": {"ListNodes": method_handler, "Other": method_handler},
        "grpc.health.v1.Health": {"Check": method_handler},
    }
    for service, handlers in services.items():
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    rig.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{rig.port}", interceptors=[ErrorInfoRequired()]) as rig.channel,
        grpc.aio.insecure_channel(f"127.0.0.1:{rig.port}") as rig.plain_channel,
    ):
        yield rig
    await server.stop(None)


async def echo_bearer(message: wrappers_pb2.StringValue, _: object) -> wrappers_pb2.StringValue:
    return wrappers_pb2.StringValue(value=f"{current_claims().user_id}: {message.value}")


async def test_a_service_sees_the_request_and_whose_it_is(rig: Rig) -> None:
    rig.behaviour = echo_bearer
    assert await rig.call("hello") == "alice: hello"
    (method, code, seconds) = rig.observed[0]
    assert (method, code) == (METHOD, "OK")
    assert seconds > 0


@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [
        (None, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"),
        ("", grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"),
        ("old", grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"),
        ("no-keys", grpc.StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE"),
        ("no-store", grpc.StatusCode.UNAVAILABLE, "REVOCATIONS_UNAVAILABLE"),
    ],
)
async def test_without_a_valid_token_no_service_is_called(
    rig: Rig, token: str | None, code: grpc.StatusCode, reason: str
) -> None:
    assert (await rig.fail(token))[:2] == (code, reason)
    assert [observation[:2] for observation in rig.observed] == [(METHOD, code.name)]


async def test_health_is_asked_and_a_session_opened_without_a_token(rig: Rig) -> None:
    async def answer(message: wrappers_pb2.StringValue, _: object) -> wrappers_pb2.StringValue:
        with pytest.raises(LookupError):
            current_claims()
        return message

    rig.behaviour = answer
    assert await unary(rig.channel, "/grpc.health.v1.Health/Check")(b"") == b""
    connect = stream(rig.channel, "/chatgrpc.v1.SessionService/Connect")
    assert await connect.read() == b"streamed"
    assert [observation[:2] for observation in rig.observed] == [("/grpc.health.v1.Health/Check", "OK")]


async def test_only_connect_of_the_session_service_is_exempt(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await unary(rig.channel, "/chatgrpc.v1.SessionService/Other")(b"")
    assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_method_for_everyone_needs_no_token_and_is_counted_as_all_others(rig: Rig) -> None:
    async def answer(message: wrappers_pb2.StringValue, _: object) -> wrappers_pb2.StringValue:
        with pytest.raises(LookupError):
            current_claims()
        return message

    rig.behaviour = answer
    assert await unary(rig.channel, "/chatgrpc.v1.NodeService/ListNodes")(b"") == b""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await unary(rig.channel, "/chatgrpc.v1.NodeService/Other")(b"")
    assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert [observation[:2] for observation in rig.observed] == [
        ("/chatgrpc.v1.NodeService/ListNodes", "OK"),
        ("/chatgrpc.v1.NodeService/Other", "UNAUTHENTICATED"),
    ]


async def test_a_status_error_is_told_in_full(rig: Rig) -> None:
    async def refuse(*_: object) -> wrappers_pb2.StringValue:
        raise StatusError(grpc.StatusCode.NOT_FOUND, "CHAT_UNKNOWN", "There is no chat “ä”.", {"chatId": "ä"})

    rig.behaviour = refuse
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await rig.call()
    info = error_info_of(failed.value.trailing_metadata())
    assert info is not None
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.NOT_FOUND, "There is no chat “ä”.")
    assert (info.reason, info.domain, dict(info.metadata)) == ("CHAT_UNKNOWN", "chatgrpc", {"chatId": "ä"})
    assert [observation[:2] for observation in rig.observed] == [(METHOD, "NOT_FOUND")]


async def test_an_unexpected_exception_is_found_in_the_log_by_its_id_and_its_text_nowhere(rig: Rig) -> None:
    async def break_down(*_: object) -> wrappers_pb2.StringValue:
        raise RuntimeError("what alice wrote to bob")

    rig.behaviour = break_down
    with structlog.testing.capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError) as failed:
        await rig.call()
    info = error_info_of(failed.value.trailing_metadata())
    assert info is not None
    assert (failed.value.code(), info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert [line["error_id"] for line in lines] == [info.metadata["errorId"]]
    assert lines[0]["error_type"] == "RuntimeError"
    assert "break_down" in lines[0]["frames"][-1]
    assert "alice" not in f"{lines} {failed.value.details()} {info}"
    assert [observation[:2] for observation in rig.observed] == [(METHOD, "INTERNAL")]


async def test_bytes_that_are_no_request_are_refused(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await unary(rig.channel)(b"\xff\xff\xff", metadata=(("authorization", "Bearer of-alice"),))
    info = error_info_of(failed.value.trailing_metadata())
    assert info is not None
    assert (failed.value.code(), info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")


@pytest.mark.parametrize("method", [METHOD, "/grpc.health.v1.Health/Check"])
async def test_a_call_that_ends_before_its_request_is_refused(rig: Rig, method: str) -> None:
    call: Any = rig.channel.stream_stream(method)(metadata=(("authorization", "Bearer of-alice"),))
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    info = error_info_of(await call.trailing_metadata())
    assert info is not None
    assert info.reason == "REQUEST_MISSING"


@pytest.mark.parametrize("rig", [patient(deadline_s=0.01)], indirect=True)
async def test_the_wait_for_a_request_is_part_of_the_time_that_a_call_has(rig: Rig) -> None:
    call: Any = rig.channel.stream_stream(METHOD)(metadata=(("authorization", "Bearer of-alice"),))
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("unary_unary", "/grpc.health.v1.Health/Check"),
        ("unary_stream", "/grpc.health.v1.Health/Watch"),
        ("stream_stream", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    ],
)
async def test_bytes_that_are_no_request_are_refused_by_public_methods_too(
    caplog: pytest.LogCaptureFixture, kind: str, method: str
) -> None:
    server = GrpcServer(ServerOptions(), [UnaryInterceptor(KnownTokens(), lambda *_: None, patient(), now_ms=lambda: NOW_MS)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        async def call(request: bytes) -> bytes:
            stub = getattr(channel, kind)(method)
            calling = stub(aiter_of(request)) if kind == "stream_stream" else stub(request)
            answer: bytes = await calling if kind == "unary_unary" else await calling.read()
            calling.cancel()
            return answer

        assert await call(b"\x3a\x00" if kind == "stream_stream" else b"")  # 7: list_services
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"\xff\xff\xff")
    await server.stop(0)
    info = error_info_of(failed.value.trailing_metadata())
    assert info is not None
    assert (failed.value.code(), info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")
    assert caplog.records == []


async def aiter_of(*requests: bytes) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


@pytest.mark.parametrize("method", ["/chatgrpc.test.Service/Missing", "/nowhere/to.be.found", "/chatgrpc.test.Service/Stream"])
async def test_an_unknown_method_is_told_without_waiting_for_a_request(rig: Rig, method: str) -> None:
    call = stream(rig.channel, method)
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
    info = error_info_of(await call.trailing_metadata())
    assert info is not None
    assert info.reason == "METHOD_UNKNOWN"
    assert [observation[:2] for observation in rig.observed] == [("unknown", "UNIMPLEMENTED")]


@pytest.mark.parametrize("method", [METHOD, "/chatgrpc.v1.SessionService/Connect", "/nowhere/to.be.found"])
async def test_a_call_with_very_many_header_fields_costs_its_connection(rig: Rig, method: str) -> None:
    fields = tuple((f"x-{number}", "y") for number in range(UnaryLimits().fields_max + 1))
    call: Any = rig.channel.stream_stream(method)(metadata=fields)
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info = error_info_of(await call.trailing_metadata())
    assert info is not None
    assert info.reason == "TOO_MANY_FIELDS"
    assert [peer.partition(":")[0] for peer in rig.cut] == ["ipv4"]


@pytest.mark.parametrize("rig", [patient(calls_max=2)], indirect=True)
async def test_calls_beyond_the_limit_are_refused_until_one_ends(rig: Rig) -> None:
    may_end, running = asyncio.Event(), asyncio.Semaphore(0)

    async def wait(message: wrappers_pb2.StringValue, _: object) -> wrappers_pb2.StringValue:
        running.release()
        await may_end.wait()
        return message

    rig.behaviour = wait
    calls = [asyncio.create_task(rig.call(text)) for text in ("one", "two")]
    for _ in calls:
        await running.acquire()
    assert (await rig.fail())[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    may_end.set()
    assert await asyncio.gather(*calls) == ["one", "two"]
    assert await rig.call("three") == "three"


@pytest.mark.parametrize("rig", [patient(calls_max=1)], indirect=True)
async def test_a_call_that_its_client_cancels_gives_its_place_back(rig: Rig) -> None:
    running, ended = asyncio.Event(), asyncio.Event()

    async def wait(message: wrappers_pb2.StringValue, _: object) -> wrappers_pb2.StringValue:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return message

    rig.behaviour = wait
    call = unary(rig.plain_channel)(b"", metadata=(("authorization", "Bearer of-alice"),))
    await running.wait()
    call.cancel()
    await ended.wait()
    rig.behaviour = echo_bearer
    assert await rig.call("next") == "alice: next"
    assert [observation[:2] for observation in rig.observed] == [(METHOD, "CANCELLED"), (METHOD, "OK")]


@pytest.mark.parametrize("rig", [patient(deadline_s=0.01)], indirect=True)
async def test_a_call_that_takes_too_long_ends(rig: Rig) -> None:
    async def wait(*_: object) -> wrappers_pb2.StringValue:
        await asyncio.Event().wait()
        raise AssertionError

    rig.behaviour = wait
    assert (await rig.fail())[:2] == (grpc.StatusCode.DEADLINE_EXCEEDED, "TOO_SLOW")


async def test_a_services_own_timeout_is_not_taken_for_ours(rig: Rig) -> None:
    async def give_up(*_: object) -> wrappers_pb2.StringValue:
        raise TimeoutError

    rig.behaviour = give_up
    assert (await rig.fail())[:2] == (grpc.StatusCode.INTERNAL, "INTERNAL")


async def test_the_helper_fails_a_test_whose_server_does_not_explain_itself(rig: Rig) -> None:
    async def abort(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> wrappers_pb2.StringValue:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no details")

    rig.behaviour = abort
    with pytest.raises(AssertionError, match="without an ErrorInfo"):
        await rig.call()


@pytest.mark.parametrize(
    ("metadata", "token"),
    [
        ([("authorization", "Bearer abc")], "abc"),
        ([("x", "y"), ("authorization", "bearer  abc ")], "abc"),
        ([("authorization", "Basic abc")], None),
        ([("authorization", b"Bearer abc")], None),
        ([("authorization", "Bearer ")], None),
        ([("authorization", "Bearer abc"), ("authorization", "Bearer def")], "abc, Bearer def"),
        ([("authorization", "Basic abc"), ("authorization", "Bearer def")], None),
        ((), None),
        (None, None),
    ],
)
def test_bearer_token(metadata: object, token: str | None) -> None:
    assert bearer_token(metadata) == token


@pytest.mark.parametrize("rig", [patient(calls_max=1, calls_per_user_max=2)], indirect=True)
async def test_calls_that_wait_for_their_request_take_no_place_from_others(rig: Rig) -> None:
    rig.behaviour = echo_bearer
    without_token: list[Any] = [rig.channel.stream_stream("/chatgrpc.v1.NodeService/ListNodes")() for _ in range(3)]
    own: Any = rig.channel.stream_stream(METHOD)(metadata=(("authorization", "Bearer of-alice"),))
    await own.write(b"")  # the call is on its way, its request not over
    assert await rig.call("hello") == "alice: hello"
    for call in (*without_token, own):
        call.cancel()


@pytest.mark.parametrize("rig", [patient(calls_per_user_max=1)], indirect=True)
async def test_a_user_has_a_share_of_the_calls(rig: Rig) -> None:
    running = asyncio.Event()

    async def wait(message: wrappers_pb2.StringValue, _: object) -> wrappers_pb2.StringValue:
        running.set()
        await asyncio.Event().wait()
        return message

    rig.behaviour = wait
    first = asyncio.create_task(rig.call("one"))
    await running.wait()
    assert (await rig.fail())[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    first.cancel()


@pytest.mark.parametrize("rig", [patient(tokenless_deadline_s=0.01)], indirect=True)
@pytest.mark.parametrize("method", ["/chatgrpc.v1.NodeService/ListNodes", "/grpc.health.v1.Health/Check"])
async def test_a_call_without_a_token_waits_for_its_request_only_shortly(rig: Rig, method: str) -> None:
    call: Any = rig.channel.stream_stream(method)()
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_who_watches_health_has_to_say_soon_what() -> None:
    limits = patient(tokenless_deadline_s=0.01)
    server = GrpcServer(ServerOptions(), [UnaryInterceptor(KnownTokens(), lambda *_: None, limits)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=[ErrorInfoRequired()]) as channel:
        call: Any = channel.stream_stream("/grpc.health.v1.Health/Watch")()
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await server.stop(0)


async def test_who_watches_health_keeps_nobody_from_checking_it() -> None:
    limits = patient(calls_public_per_address_max=1, calls_public_max=1)
    server = GrpcServer(ServerOptions(), [UnaryInterceptor(KnownTokens(), lambda *_: None, limits)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=[ErrorInfoRequired()]) as channel:
        watch_health: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        watch = watch_health(b"")
        assert await watch.read()
        assert await unary(channel, "/grpc.health.v1.Health/Check")(b"")
        watch.cancel()
    await server.stop(0)


async def test_watchers_of_health_have_places_by_address() -> None:
    limits = patient(calls_public_per_address_max=2)
    server = GrpcServer(ServerOptions(), [UnaryInterceptor(KnownTokens(), lambda *_: None, limits)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=[ErrorInfoRequired()]) as channel:
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        first, second = watch(b""), watch(b"")
        assert await first.read()
        assert await second.read()
        third = watch(b"")
        assert await third.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()
        async with asyncio.timeout(10):
            while (again := watch(b"")) and await again.read() is grpc.aio.EOF:
                pass
        again.cancel()
        second.cancel()
    await server.stop(0)


async def test_a_call_of_reflection_ends() -> None:
    limits = patient(reflection_s_max=0.01)
    server = GrpcServer(ServerOptions(), [UnaryInterceptor(KnownTokens(), lambda *_: None, limits)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")()
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await server.stop(0)


async def test_a_call_of_reflection_asks_so_much_and_no_more() -> None:
    limits = patient(reflection_requests_max=3)
    server = GrpcServer(ServerOptions(), [UnaryInterceptor(KnownTokens(), lambda *_: None, limits)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        reflect: Any = channel.stream_stream(REFLECTION)
        call = reflect(aiter_of(*[LIST_SERVICES] * 4))
        answers = [await call.read() for _ in range(3)]
        assert all(answers)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        info = error_info_of(refused.value.trailing_metadata())
        assert info is not None
        assert (refused.value.code(), info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
        assert await reflect(aiter_of(LIST_SERVICES)).read()
    await server.stop(0)


async def test_reflection_is_answered_one_request_after_the_other_however_many_calls_ask() -> None:
    limits = patient(reflection_interval_s=0.05)
    server = GrpcServer(ServerOptions(), [UnaryInterceptor(KnownTokens(), lambda *_: None, limits)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        reflect: Any = channel.stream_stream(REFLECTION)
        began_s = time.monotonic()
        calls = [reflect(aiter_of(LIST_SERVICES)) for _ in range(10)]
        for call in calls:
            assert await call.read()
        assert time.monotonic() - began_s >= 10 * 0.05, "they would take no longer together than one alone"
    await server.stop(0)


async def test_a_request_that_is_far_too_long_reaches_no_service(rig: Rig) -> None:
    """The rig's service has no behaviour, and would fail."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await rig.call("x" * 10_000)
    info = error_info_of(failed.value.trailing_metadata())
    assert info is not None
    assert (failed.value.code(), info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_TOO_LONG")
    assert dict(info.metadata) == {"field": "google.protobuf.StringValue.value", "max": "4096"}


async def calling_and_not_reading(rig: Rig) -> Http2Peer:
    """A peer whose call is answered, and that lets nothing of the reply be sent to it."""
    peer = await Http2Peer.connect(rig.port)
    await peer.send(PREFACE, frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))  # its streams have no window
    message = grpc_message(wrappers_pb2.StringValue(value="hello").SerializeToString())
    await peer.send(headers(1, path=METHOD, authorization="Bearer of-alice"), data(1, message, END_STREAM))
    while (await peer.frame())[0] != HEADERS:  # of the answer
        pass
    return peer


@pytest.mark.parametrize("rig", [patient(calls_per_user_max=1)], indirect=True)
async def test_a_call_keeps_its_place_until_its_reply_was_taken(rig: Rig) -> None:
    rig.behaviour = echo_bearer
    peer = await calling_and_not_reading(rig)
    assert (await rig.fail())[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    await peer.close()
    async with asyncio.timeout(10):
        while True:
            try:
                assert await rig.call("again") == "alice: again"
                break
            except grpc.aio.AioRpcError as refused:
                assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017  it is asked again
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("rig", [patient(reply_s_max=0.01), patient(replies_bytes_max=13)], indirect=True)
async def test_a_reply_that_is_not_taken_costs_its_call_and_not_the_connection(rig: Rig) -> None:
    """After a while, or as soon as too much waits. On the same connection a proxy may carry others."""
    rig.behaviour = echo_bearer
    await rig.call()  # grpc.aio refers to its very first call, and to each until the next one comes
    peer = await calling_and_not_reading(rig)
    await rig.call()
    async with asyncio.timeout(10):
        while (await peer.frame())[0] != RST_STREAM:
            pass
        await peer.send(frame(PING, 0, 0, b"12345678"))
        while (await peer.frame())[0] != PING:
            pass
    await peer.close()
