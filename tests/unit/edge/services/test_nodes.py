"""NodeService."""

import asyncio
from collections.abc import Callable

import grpc
import pytest

from chatgrpc.adapters.memory import SoleNode
from chatgrpc.edge.services.nodes import NodeService
from chatgrpc.ports.node_directory import NodeStatus
from chatgrpc.v1.device_service_pb2 import ListDevicesRequest
from chatgrpc.v1.device_service_pb2_grpc import DeviceServiceStub
from chatgrpc.v1.node_service_pb2 import ListNodesRequest, Node
from chatgrpc.v1.node_service_pb2_grpc import NodeServiceStub
from tests.error_info import ErrorInfoRequired
from tests.support.device import Device


class ManyNodes:
    """A directory of as many nodes as the test says."""

    def __init__(self, count: int) -> None:
        self._nodes = [NodeStatus(f"n{n}", f"10.0.0.{n}:15551", n == 1, n * 10) for n in range(count)]

    def nodes(self) -> list[NodeStatus]:
        """See the port."""
        return list(self._nodes)


async def listed(address: str) -> list[Node]:
    """Asks without a token."""
    async with grpc.aio.insecure_channel(address, interceptors=[ErrorInfoRequired()]) as channel:
        return list((await NodeServiceStub(channel).ListNodes(ListNodesRequest())).nodes)


async def test_an_embedded_node_lists_itself_to_anyone(address: str, device_of: Callable[[str, str], Device]) -> None:
    (node,) = await listed(address)
    assert (node.address, node.draining, node.streams) == (address, False, 0)
    async with device_of("alice", "phone"), device_of("bob", "phone"):
        (with_devices,) = await listed(address)
        assert (with_devices.node_id, with_devices.streams) == (node.node_id, 2)
    while (await listed(address))[0].streams:  # the server learns of the end a moment later
        await asyncio.sleep(0.01)


async def test_the_token_is_not_even_looked_at(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        reply = await NodeServiceStub(channel).ListNodes(ListNodesRequest(), metadata=(("authorization", "Bearer no token"),))
        assert len(reply.nodes) == 1


async def test_the_other_services_still_demand_a_token(address: str) -> None:
    async with grpc.aio.insecure_channel(address, interceptors=[ErrorInfoRequired()]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await DeviceServiceStub(channel).ListDevices(ListDevicesRequest())
        assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_nodes_of_the_directory_are_told_as_they_are() -> None:
    reply = await NodeService(ManyNodes(3), nodes_max=3).ListNodes(ListNodesRequest(), None)
    assert [(node.node_id, node.address, node.draining, node.streams) for node in reply.nodes] == [
        ("n0", "10.0.0.0:15551", False, 0),
        ("n1", "10.0.0.1:15551", True, 10),
        ("n2", "10.0.0.2:15551", False, 20),
    ]


async def test_of_too_many_nodes_some_at_random_are_told() -> None:
    service = NodeService(ManyNodes(200), nodes_max=100)
    first, second = [[node.node_id for node in (await service.ListNodes(ListNodesRequest(), None)).nodes] for _ in range(2)]
    assert len(set(first)) == len(set(second)) == 100
    assert set(first) != set(second)


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1:7"), ("::1", "[::1]:7"), ("chat.example", "chat.example:7"), ("0.0.0.0", "")]
)
def test_the_address_of_an_embedded_node_is_one_that_can_be_dialed(host: str, address: str) -> None:
    directory = SoleNode(host, lambda: 0)
    directory.port = 7
    assert directory.nodes()[0].address == address


def test_an_embedded_node_that_stops_says_so() -> None:
    directory = SoleNode("127.0.0.1", lambda: 0)
    directory.draining = True
    assert directory.nodes()[0].draining
