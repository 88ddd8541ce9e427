"""A client that goes from node to node."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from chatgrpc.adapters.jwt.dev_keys import FILE_NAME
from chatgrpc.v1 import chat_pb2, session_pb2, session_pb2_grpc
from chatgrpc.v1.message_service_pb2 import ListMessagesRequest, ListMessagesResponse
from chatgrpc.v1.message_service_pb2_grpc import MessageServiceServicer, add_MessageServiceServicer_to_server
from chatgrpc.v1.node_service_pb2 import ListNodesRequest, ListNodesResponse, Node
from chatgrpc.v1.node_service_pb2_grpc import NodeServiceServicer, NodeServiceStub, add_NodeServiceServicer_to_server
from chatgrpc_client import Client, ClientConfig
from chatgrpc_client.nodes import Nodes
from tests.support.ports import free_port
from tests.support.server import ServerProcess, channel, running_server

from .conftest import Home, until
from .frames import frame
from .shell import TIMEOUT_S
from .test_engine import Script, ScriptedServer, Stream, answer, committing, result

Two = tuple[ServerProcess, ServerProcess]


@pytest.fixture
async def two_servers(tmp_path: Path) -> AsyncIterator[Two]:
    """Two embedded servers that take the same tokens. Their chats are not the same ones; a session is opened on either."""
    async with running_server(tmp_path / "one") as one:
        (tmp_path / "two").mkdir(mode=0o700)
        shutil.copy2(one.data_dir / FILE_NAME, tmp_path / "two" / FILE_NAME)
        async with running_server(tmp_path / "two") as two:
            yield one, two


async def streams_on(server: ServerProcess) -> int:
    """How many devices are connected there."""
    async with channel(server.address) as asking:
        (node,) = (await NodeServiceStub(asking).ListNodes(ListNodesRequest())).nodes
        return node.streams


async def settled_on(server: ServerProcess) -> None:
    """Returns when the device is connected there."""
    async with asyncio.timeout(TIMEOUT_S):
        while await streams_on(server) != 1:
            await asyncio.sleep(0.02)


def device(servers: Two, folder: Path) -> Client:
    """A device that knows both addresses."""
    home = Home(servers[0], folder)
    return home.device("alice", address=",".join(server.address for server in servers))


async def test_a_client_whose_server_is_killed_opens_its_session_on_the_other(two_servers: Two, tmp_path: Path) -> None:
    async with device(two_servers, tmp_path / "home") as alice:
        await alice.wait_until_live(TIMEOUT_S)
        one, two = two_servers
        here, there = (one, two) if await streams_on(one) else (two, one)
        for _ in range(2):
            here.kill()
            await settled_on(there)
            await alice.wait_until_live(TIMEOUT_S)
            assert (await alice.profiles.update(display_name=f"Alice at {there.port}")).display_name == f"Alice at {there.port}"
            await here.start()
            here, there = there, here


async def test_a_client_whose_server_drains_goes_to_the_other(two_servers: Two, tmp_path: Path) -> None:
    async with device(two_servers, tmp_path / "home") as alice:
        await alice.wait_until_live(TIMEOUT_S)
        one, two = two_servers
        here, there = (one, two) if await streams_on(one) else (two, one)
        assert await asyncio.to_thread(here.terminate) == 0
        await settled_on(there)
        await alice.wait_until_live(TIMEOUT_S)
        assert (await alice.profiles.get()).user_id == "alice"


class ListedNodes(NodeServiceServicer):
    """What one node of a scripted cluster lists: the nodes of all."""

    def __init__(self, name: str, cluster: "ScriptedCluster") -> None:
        self._name = name
        self._cluster = cluster

    async def ListNodes(self, request: ListNodesRequest, context: object) -> ListNodesResponse:
        """Lists them, and notes who was asked."""
        self._cluster.asked.append(self._name)
        return ListNodesResponse(nodes=self._cluster.nodes.values())


class ReachableOwners(MessageServiceServicer):
    """What one node of a scripted cluster says when it is asked where a chat's log ends."""

    def __init__(self, name: str, cluster: "ScriptedCluster") -> None:
        self._name = name
        self._cluster = cluster

    async def ListMessages(self, request: ListMessagesRequest, context: object) -> ListMessagesResponse:
        """Does not know if it does not reach the chat's owner; notes who was asked."""
        self._cluster.looked_at.append((self._name, request.chat_id))
        if self._name in self._cluster.cut_off:
            return ListMessagesResponse(error=chat_pb2.Error(code=chat_pb2.ERROR_CODE_UNAVAILABLE))
        return ListMessagesResponse(error=chat_pb2.Error(code=chat_pb2.ERROR_CODE_NOT_A_MEMBER))


class ScriptedCluster:
    """Scripted servers that list each other."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        """What each of them lists now, by name."""
        self.servers: dict[str, ScriptedServer] = {}
        self.asked: list[str] = []
        """Which node was asked for the list, in order."""
        self.cut_off: set[str] = set()
        """Nodes that do not reach the owners of chats."""
        self.looked_at: list[tuple[str, str]] = []
        """Which node was asked for the end of which chat, in order."""

    def client_at(self, name: str, folder: Path, **settings: Any) -> Client:
        """A client that is configured with one node."""

        async def token() -> str:
            return "token"

        address = self.nodes[name].address
        return Client(ClientConfig(address=address, user_id="alice", data_dir=folder, backoff_cap_s=0.1, **settings), token)


@contextlib.asynccontextmanager
async def cluster_of(**scripts: Sequence[Script]) -> AsyncIterator[ScriptedCluster]:
    """Nodes by name, each with the scripts of its streams."""
    cluster, running = ScriptedCluster(), []
    for name, of_streams in scripts.items():
        cluster.servers[name] = ScriptedServer(*of_streams)
        server = grpc.aio.server()
        session_pb2_grpc.add_SessionServiceServicer_to_server(cluster.servers[name], server)
        add_NodeServiceServicer_to_server(ListedNodes(name, cluster), server)
        add_MessageServiceServicer_to_server(ReachableOwners(name, cluster), server)  # type: ignore[abstract]  # all that is asked of it
        port = server.add_insecure_port("127.0.0.1:0")
        cluster.nodes[name] = Node(node_id=name, address=f"127.0.0.1:{port}")
        await server.start()
        running.append(server)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield cluster
    finally:
        for server in running:
            await server.stop(0)
    for scripted in cluster.servers.values():
        if scripted.failures:
            raise scripted.failures[0]


async def staying(stream: Stream) -> None:
    """Keeps the client."""
    await stream.welcome()
    await stream.stay()


async def test_what_waits_goes_out_in_order_on_a_node_that_the_client_learned_of(tmp_path: Path) -> None:
    async def draining(stream: Stream) -> None:
        await stream.welcome()
        await stream.read("send")
        await stream.write(frame(session_pb2.Drain(reconnect_after_ms=200)))
        await stream.stay()

    async with cluster_of(first=[draining], busy=[committing], free=[committing]) as cluster:
        cluster.nodes["busy"].streams = 1_000
        async with cluster.client_at("first", tmp_path) as client:
            await client.wait_until_live(TIMEOUT_S)
            await until(lambda: cluster.asked == ["first"])
            outgoing = [await client.send(text, user_id="bob") for text in ("one", "two", "three")]
            assert [(await each.sent).seq for each in outgoing] == [100, 101, 102]
            await until(lambda: cluster.asked[-1] == "free")
        assert {name: server.streams for name, server in cluster.servers.items()} == {"first": 1, "busy": 0, "free": 1}


class Refusing:
    """A node that cannot reach the owners of its devices' chats: it refuses every send as unavailable, at once."""

    def __init__(self) -> None:
        self.sends: list[session_pb2.SendMessage] = []

    async def __call__(self, stream: Stream) -> None:
        """Runs as the script of one stream."""
        await stream.welcome()
        while True:
            request = await stream.read("send")
            self.sends.append(request.send)
            await stream.write(answer(request, chat_pb2.Error(code=chat_pb2.ERROR_CODE_UNAVAILABLE)))


async def test_what_a_node_cannot_pass_on_goes_out_in_order_and_unchanged_through_another(tmp_path: Path) -> None:
    refusing, passed_on = Refusing(), list[session_pb2.SendMessage]()

    async def passing_on(stream: Stream) -> None:
        await stream.welcome()
        for seq in range(100, 103):
            request = await stream.read("send")
            passed_on.append(request.send)
            await stream.write(answer(request, result(seq)))
        await stream.stay()

    async with cluster_of(first=[refusing], other=[passing_on]) as cluster:
        async with cluster.client_at("first", tmp_path, refused_send_max_s=0.1) as client:
            await client.wait_until_live(TIMEOUT_S)
            await until(lambda: cluster.asked == ["first"])
            outgoing = [await client.send(text, user_id="bob") for text in ("one", "two", "three")]
            assert [(await each.sent).seq for each in outgoing] == [100, 101, 102]
        assert {name: server.streams for name, server in cluster.servers.items()} == {"first": 1, "other": 1}
        assert cluster.looked_at == [("other", outgoing[0].chat_id)]
    assert [send.content.text.text for send in passed_on] == ["one", "two", "three"]
    assert all(send == passed_on[0] for send in refusing.sends), "the first goes alone until it is committed"


async def test_who_knows_no_other_node_stays(tmp_path: Path) -> None:
    refusing = Refusing()
    async with cluster_of(first=[refusing]) as cluster:
        async with cluster.client_at("first", tmp_path, refused_send_max_s=0.0) as client:
            await client.wait_until_live(TIMEOUT_S)
            await until(lambda: cluster.asked == ["first"])
            await client.send("one", user_id="bob")
            await until(lambda: len(refusing.sends) >= 4)
        assert cluster.servers["first"].streams == 1


async def test_a_node_is_given_time_before_it_is_left(tmp_path: Path) -> None:
    refusing = Refusing()
    async with cluster_of(first=[refusing], other=[committing]) as cluster:
        async with cluster.client_at("first", tmp_path, refused_send_max_s=3_600.0) as client:
            await client.wait_until_live(TIMEOUT_S)
            await until(lambda: cluster.asked == ["first"])
            await client.send("one", user_id="bob")
            await until(lambda: len(refusing.sends) >= 4)
        assert {name: server.streams for name, server in cluster.servers.items()} == {"first": 1, "other": 0}


async def test_where_no_node_can_pass_on_the_client_stays(tmp_path: Path) -> None:
    """Without a store, say, no node takes a session, and what the client has would be lost for nothing."""
    refusing = Refusing()
    async with cluster_of(first=[refusing], other=[committing], third=[committing]) as cluster:
        cluster.cut_off = {"first", "other", "third"}
        async with cluster.client_at("first", tmp_path, refused_send_max_s=0.0, move_interval_s=0.1) as client:
            await client.wait_until_live(TIMEOUT_S)
            await until(lambda: cluster.asked == ["first"])
            await client.send("one", user_id="bob")
            await until(lambda: len(cluster.looked_at) >= 4)
        assert {name: server.streams for name, server in cluster.servers.items()} == {"first": 1, "other": 0, "third": 0}
    assert {name for name, _ in cluster.looked_at} == {"other", "third"}, "it asks one after the other"


async def test_it_does_not_ask_more_often_than_the_interval(tmp_path: Path) -> None:
    refusing = Refusing()
    async with cluster_of(first=[refusing], other=[committing]) as cluster:
        cluster.cut_off = {"other"}
        async with cluster.client_at("first", tmp_path, refused_send_max_s=0.0, move_interval_s=3_600.0) as client:
            await client.wait_until_live(TIMEOUT_S)
            await until(lambda: cluster.asked == ["first"])
            await client.send("one", user_id="bob")
            await until(lambda: bool(cluster.looked_at))
            tries = len(refusing.sends)
            await until(lambda: len(refusing.sends) >= tries + 3)
    assert len(cluster.looked_at) == 1


async def test_what_comes_of_the_cut_later_is_found_at_the_next_look(tmp_path: Path) -> None:
    refusing = Refusing()
    async with cluster_of(first=[refusing], other=[committing]) as cluster:
        cluster.cut_off = {"other"}
        async with cluster.client_at("first", tmp_path, refused_send_max_s=0.0, move_interval_s=0.1) as client:
            await client.wait_until_live(TIMEOUT_S)
            await until(lambda: cluster.asked == ["first"])
            outgoing = await client.send("one", user_id="bob")
            await until(lambda: bool(cluster.looked_at))
            cluster.cut_off.clear()
            assert (await outgoing.sent).seq == 100
        assert {name: server.streams for name, server in cluster.servers.items()} == {"first": 1, "other": 1}


@pytest.mark.parametrize("given", ["one\ntwo", "tökön", "a\udc80"])
async def test_a_provider_that_gives_what_can_be_no_token_ends_no_session_that_looks_for_another_node(
    tmp_path: Path, given: str
) -> None:
    """gRPC raises errors of its own for these, and not as for a call that failed."""
    tokens = [given, given, "token"]

    async def token() -> str:
        return tokens.pop(0) if len(tokens) > 1 else tokens[0]

    async with cluster_of(first=[Refusing()], other=[committing]) as cluster:
        async with cluster.client_at("first", tmp_path, refused_send_max_s=0.0, move_interval_s=0.1) as client:
            client._engine._scout._token = token
            await client.wait_until_live(TIMEOUT_S)
            await until(lambda: cluster.asked == ["first"])
            assert (await (await client.send("one", user_id="bob")).sent).seq == 100
            assert tokens == ["token"]
        assert {name: server.streams for name, server in cluster.servers.items()} == {"first": 1, "other": 1}


async def test_a_list_of_nodes_over_which_the_client_trips_ends_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tripped = asyncio.Event()

    def trip(nodes: Nodes, listed: object) -> None:
        tripped.set()
        raise ValueError

    monkeypatch.setattr(Nodes, "listed", trip)
    async with cluster_of(first=[committing]) as cluster, cluster.client_at("first", tmp_path) as client:
        await tripped.wait()
        assert (await (await client.send("one", user_id="bob")).sent).seq == 100
        assert cluster.servers["first"].streams == 1


async def test_who_is_sent_away_asks_once_more_where_to_go(tmp_path: Path) -> None:
    may_drain = asyncio.Event()

    async def draining(stream: Stream) -> None:
        await stream.welcome()
        await may_drain.wait()
        await stream.write(frame(session_pb2.Drain(reconnect_after_ms=1_500)))
        await stream.stay()

    async with cluster_of(first=[draining], old=[staying], new=[staying]) as cluster:
        new = cluster.nodes.pop("new")
        async with cluster.client_at("first", tmp_path) as client:
            await client.wait_until_live(TIMEOUT_S)
            await until(lambda: cluster.asked == ["first"])
            cluster.nodes["new"] = new
            cluster.nodes["first"].draining = cluster.nodes["old"].draining = True
            may_drain.set()
            await until(lambda: cluster.servers["new"].streams == 1)
        assert cluster.asked[:2] == ["first", "first"]
        assert cluster.servers["old"].streams == 0


async def test_a_client_goes_back_to_where_it_began_when_the_nodes_it_learned_of_are_gone(tmp_path: Path) -> None:
    may_end = asyncio.Event()

    async def ending(stream: Stream) -> None:
        await stream.welcome()
        await may_end.wait()

    async with cluster_of(first=[ending, staying]) as cluster:
        for number in range(19):
            cluster.nodes[f"gone{number}"] = Node(node_id=f"gone{number}", address=f"127.0.0.1:{free_port()}")
        async with cluster.client_at("first", tmp_path) as client:
            await client.wait_until_live(TIMEOUT_S)
            await until(lambda: cluster.asked == ["first"])
            may_end.set()
            await until(lambda: cluster.asked == ["first", "first"])
            await client.wait_until_live(TIMEOUT_S)


async def test_a_connection_may_take_its_time(shared_server: ServerProcess, tmp_path: Path) -> None:
    """On a bad link the handshakes alone take longer than gRPC, told to try again soon, would wait."""
    links: list[asyncio.Task[None]] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await asyncio.sleep(0.8)
            writer.write(data)

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", shared_server.port)
        try:
            await asyncio.gather(pass_on(reader, to_server), pass_on(from_server, writer))
        finally:
            for end in (writer, to_server):
                end.close()

    listener = await asyncio.start_server(lambda *ends: links.append(asyncio.create_task(link(*ends))), "127.0.0.1", 0)
    try:
        address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with Home(shared_server, tmp_path).device("slow.link", address=address) as client:
            await client.wait_until_live(TIMEOUT_S)
    finally:
        listener.close()
        for each in links:
            each.cancel()
        await asyncio.gather(*links, return_exceptions=True)
