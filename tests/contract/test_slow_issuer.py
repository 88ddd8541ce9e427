"""Unary calls while the issuer of their tokens does not answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import wrappers_pb2

from chatgrpc.adapters.jwt import JwksFromUrl, JwtVerifier
from chatgrpc.edge.errors import error_info_of
from chatgrpc.edge.interceptors import UnaryInterceptor, UnaryLimits, current_claims
from chatgrpc.edge.server import GrpcServer, ServerOptions
from tests.contract.jwt_issuer import AUDIENCE, ISSUER, NOW_MS, Clock, claims, issuer_server, jwks, new_key, sign

SERVICE = "chatgrpc.test.Service"
FETCH_INTERVAL_S = 5.0
GIVE_UP_S = 30.0


async def who(_: object, __: object) -> wrappers_pb2.StringValue:
    return wrappers_pb2.StringValue(value=current_claims().user_id)


def register(server: grpc.aio.Server) -> None:
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        who,
        request_deserializer=wrappers_pb2.StringValue.FromString,
        response_serializer=wrappers_pb2.StringValue.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Who": handler}),))


@contextlib.asynccontextmanager
async def from_another_address(port: int) -> AsyncIterator[int]:
    """A port from which connections go on to the given one, and come from another address there."""
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        pumps.update(map(asyncio.ensure_future, (pump(reader, far_writer), pump(far_reader, writer))))

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*pumps)  # the channel is closed before


async def test_tokens_of_unknown_keys_take_places_of_their_address_only() -> None:
    """Each waits for the issuer, who may have made a new key."""
    known, unknown = new_key("ES256", "known"), new_key("ES256", "unknown")
    limits = UnaryLimits(calls_max=1, calls_per_user_max=1, calls_unchecked_per_address_max=3)
    with issuer_server() as (issuer, _):
        issuer.document = jwks(known)
        clock = Clock()
        tokens = JwtVerifier(
            JwksFromUrl(issuer.url, fetch_interval_s=FETCH_INTERVAL_S, fetch_timeout_s=GIVE_UP_S, monotonic=clock),
            issuer=ISSUER,
            audience=AUDIENCE,
            leeway_s=0.0,
        )
        server = GrpcServer(ServerOptions(), [UnaryInterceptor(tokens, lambda *_: None, limits, now_ms=lambda: NOW_MS)])
        server.register(SERVICE, register)
        port = await server.start()
        async with (
            from_another_address(port) as other_port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as here,
            grpc.aio.insecure_channel(f"127.0.0.1:{other_port}") as elsewhere,
        ):

            def call(channel: Any, token: str) -> Any:
                return channel.unary_unary(f"/{SERVICE}/Who")(
                    b"", metadata=(("authorization", f"Bearer {token}"),), timeout=GIVE_UP_S
                )

            of_alice = sign(known, "ES256", claims())
            answer = wrappers_pb2.StringValue(value="alice").SerializeToString()
            assert await call(here, of_alice) == answer  # the keys are known now
            clock.now_s += FETCH_INTERVAL_S
            issuer.open_gate.clear()
            waiting = [call(here, sign(unknown, "ES256", claims())) for _ in range(2)]
            async with asyncio.timeout(GIVE_UP_S):
                while issuer.requests < 2:
                    await asyncio.sleep(0.01)
            assert await call(here, of_alice) == answer
            waiting.append(call(here, sign(unknown, "ES256", claims())))
            refused: grpc.aio.AioRpcError | None = None
            async with asyncio.timeout(GIVE_UP_S):
                while refused is None:  # until the last of them is on its way
                    try:
                        assert await call(here, of_alice) == answer
                    except grpc.aio.AioRpcError as error:
                        refused = error
            info = error_info_of(refused.trailing_metadata())
            assert info is not None
            assert info.reason == "TOO_MANY_CALLS"
            assert await call(elsewhere, of_alice) == answer
            assert not any(one.done() for one in waiting)
            issuer.open_gate.set()
            assert [await one.code() for one in waiting] == [grpc.StatusCode.UNAUTHENTICATED] * len(waiting)
            assert await call(here, of_alice) == answer
        await server.stop(grace_s=0)
        await tokens.aclose()
