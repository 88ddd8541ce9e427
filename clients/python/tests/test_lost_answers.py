"""A call whose answer is lost, or is none, may have done what it was for: nobody is told otherwise."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from chatgrpc.v1 import (
    chat_pb2,
    device_service_pb2,
    device_service_pb2_grpc,
    message_service_pb2_grpc,
)
from chatgrpc_client import ChatError, ClientConfig
from chatgrpc_client.exceptions import NotFoundError, UnauthenticatedError
from chatgrpc_client.node_channel import NodeChannel
from chatgrpc_client.one_by_one import send_one_by_one
from chatgrpc_client.store import QueuedMessage, Store
from chatgrpc_client.store_thread import StoreThread
from chatgrpc_client.unary import Caller, Devices

from .frames import CHAT, text
from .known_tokens import know_tokens


class ServerWhoseAnswersAreLost(
    device_service_pb2_grpc.DeviceServiceServicer,
    message_service_pb2_grpc.MessageServiceServicer,
):
    """Revokes a phone, and loses the answer to that; fails whenever a message is sent."""

    def __init__(self, *, voids_token: bool) -> None:
        self._voids_token = voids_token
        self._is_revoked = False

    async def ListDevices(self, request: Any, context: Any) -> device_service_pb2.ListDevicesResponse:
        """Lists the phone, until it is revoked."""
        phones = [] if self._is_revoked else [device_service_pb2.Device(device_id="phone", name="of a thief")]
        return device_service_pb2.ListDevicesResponse(devices=phones)

    async def RevokeDevice(self, request: Any, context: Any) -> device_service_pb2.RevokeDeviceResponse:
        """Revokes it, or says that there is none."""
        if request.device_id == "phone" and not self._is_revoked:
            self._is_revoked = True
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        if self._is_revoked and self._voids_token:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The token was revoked.")
        not_found = chat_pb2.Error(code=chat_pb2.ERROR_CODE_NOT_FOUND, message="You have no such device, or it is revoked.")
        return device_service_pb2.RevokeDeviceResponse(error=not_found)

    async def SendMessage(self, request: Any, context: Any) -> Any:
        """Fails, perhaps after the commit."""
        await context.abort(grpc.StatusCode.INTERNAL, "Something went wrong.")


@contextlib.asynccontextmanager
async def calling(tmp_path: Path, *, voids_token: bool = False) -> AsyncIterator[Caller]:
    server = grpc.aio.server()
    servicer = ServerWhoseAnswersAreLost(voids_token=voids_token)  # type: ignore[abstract]  # all that is asked of it
    device_service_pb2_grpc.add_DeviceServiceServicer_to_server(servicer, server)
    message_service_pb2_grpc.add_MessageServiceServicer_to_server(servicer, server)
    know_tokens(server, "alice")
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def token() -> str:
        return "token"

    config = ClientConfig(address=f"127.0.0.1:{port}", user_id="alice", data_dir=tmp_path, backoff_cap_s=0.1)
    node = NodeChannel(config)
    try:
        yield Caller(node, config, token)
    finally:
        await node.close()
        await server.stop(0)


async def test_a_device_whose_revocation_was_not_answered_is_revoked(tmp_path: Path) -> None:
    async with calling(tmp_path) as caller:
        devices = Devices(caller)
        with pytest.raises(NotFoundError):
            await devices.revoke("misspelled")
        assert (await devices.revoke("phone")).name == "of a thief"
        with pytest.raises(NotFoundError):
            await devices.revoke("phone")


async def test_whether_a_device_is_revoked_is_not_known_when_the_token_is_void_suddenly(tmp_path: Path) -> None:
    async with calling(tmp_path, voids_token=True) as caller:
        with pytest.raises(UnauthenticatedError, match="revoked; whether the device is revoked"):
            await Devices(caller).revoke("phone")


async def test_a_message_whose_call_failed_is_not_refused_and_waits(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite3", "alice", "laptop")
    thread = StoreThread(store)
    store.queue(QueuedMessage(b"m" * 16, CHAT, "", text("hello"), 1))
    store.set_seen_seq([(b"m" * 16, 0)])
    async with calling(tmp_path) as caller:
        with pytest.raises(ChatError, match="INTERNAL"):
            [outcome async for outcome in send_one_by_one(caller, thread)]
    assert [message.content.text.text for message in await thread.call(Store.outbox_messages, failed=False)] == ["hello"]
    await thread.close()
