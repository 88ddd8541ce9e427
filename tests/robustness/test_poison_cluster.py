"""A cluster whose Cassandra and Redis hold what cannot be: that chat is refused by every node, and all else goes on."""

import asyncio
import json
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from chatgrpc.adapters.cassandra import CassandraStore
from chatgrpc.core.ids import shard_of
from chatgrpc.v1 import content_pb2
from chatgrpc.v1.chat_service_pb2 import ListChatsRequest
from chatgrpc.v1.device_service_pb2 import ListDevicesRequest
from chatgrpc.v1.message_service_pb2 import ListMessagesRequest, SendMessageRequest
from chatgrpc.v1.user_service_pb2 import GetUserRequest
from tests.cluster.support_people import People
from tests.contract.cassandra_stores import settings
from tests.support.callers import Caller, code_of, text_content
from tests.support.cluster import ClusterNode, RunningCluster
from tests.support.ports import free_port
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

CHATGRPC = Path(sys.executable).parent / "chatgrpc"
GARBAGE = "0xffffff0067617262616765"
PATIENCE = {"CHATGRPC_CLUSTER__LEASE_TTL_S": "20", "CHATGRPC_LOG__FORMAT": "json"}


class Scene:
    """A cluster with a node for each of its places, and where each shows its metrics."""

    def __init__(self, people: People, store: CassandraStore, redis: Redis, metrics_ports: dict[ClusterNode, int]) -> None:
        self.people = people
        self.cluster = people.cluster
        self.redis = redis
        self._store = store
        self._metrics_ports = metrics_ports

    async def poison(self, statement: str) -> None:
        """Does something to Cassandra behind the nodes' backs."""
        await asyncio.to_thread(self._store._client.execute, statement)

    async def metrics(self, node: ClusterNode) -> dict[str, float]:
        """What the node counts, by name and labels."""
        url = f"http://127.0.0.1:{self._metrics_ports[node]}/metrics"
        page = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())).decode()
        samples = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    async def refused_chats(self) -> set[str]:
        """Those that `chatgrpc cluster status` names."""
        command = (str(CHATGRPC), "cluster", "status", "--json", "--cluster-name", self.cluster.name)
        where = ("--cluster-etcd", ",".join(self.cluster.etcd.endpoints), "--data-dir", str(self.cluster.data_dir))
        ran = await asyncio.create_subprocess_exec(*command, *where, stdout=asyncio.subprocess.PIPE)
        told = json.loads((await ran.communicate())[0])
        return {chat["chat_id"] for node in told["nodes"] for chat in node["said"].get("damaged_chats", [])}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(
    shared_etcd: EtcdCluster,
    shared_cassandra: CassandraCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Scene]:
    """Two nodes with metrics."""
    server = RedisServer("redis-poison")
    server.start()
    folder = tmp_path_factory.mktemp("poison")
    cluster = RunningCluster(folder, shared_etcd, server, shared_cassandra, "poison", PATIENCE, proxied=False)
    ports = [free_port() for _ in range(2)]
    store: CassandraStore | None = None
    try:
        nodes = [await cluster.prepare(flags=("--metrics-port", str(port))) for port in ports]
        await asyncio.gather(*(node.start() for node in nodes))
        await cluster.settled()
        store = await CassandraStore.open(settings(shared_cassandra, "poison"))
        people = People(cluster, "p")
        async with Redis(host="127.0.0.1", port=server.port) as redis:
            yield Scene(people, store, redis, dict(zip(nodes, ports, strict=True)))
        await people.close()
    finally:
        if store is not None:
            await store.close()
        await cluster.close()
        server.close()


async def test_a_poisoned_chat_costs_that_chat(scene: Scene) -> None:
    people, cluster = scene.people, scene.cluster
    owner, other = cluster.nodes
    row, state, lost = [await people.group_owned_by(owner, "alice", "bob") for _ in range(3)]
    sound = [await people.group_owned_by(node, "alice", "bob") for node in (owner, other)]
    alice = people.caller("alice")
    for chat_id in (row, state, lost, *sound):
        for number in range(3):
            await alice.send(chat_id, f"message {number}")
    epoch = (await cluster.view()).owners[shard_of(row)].epoch
    of_row = f"chat_id = '{row}' AND bucket = 0 AND seq = 4 AND epoch = {epoch}"
    await scene.poison(f"UPDATE {{keyspace}}.log SET event = {GARBAGE} WHERE {of_row}")
    await scene.poison(f"UPDATE {{keyspace}}.chats SET chat = {GARBAGE} WHERE chat_id = '{state}'")
    await scene.poison(f"DELETE FROM {{keyspace}}.log WHERE chat_id = '{lost}' AND bucket = 0 AND seq = 4")

    # The owner has the chat in memory. Who reads the log meets the row.
    for node in cluster.nodes:
        async with people.caller_at(node, "alice") as caller:
            page = await caller.messages.ListMessages(ListMessagesRequest(chat_id=row, page_size=100))
            assert code_of(page) == "CHAT_DAMAGED"

    # Whoever owns the chats next reads all of it.
    pid = other.process.pid
    assert await owner.stop() == 0
    await owner.start()
    await cluster.settled()
    devices = [await people.online_at(node, "bob", f"phone-{node.port}") for node in cluster.nodes]
    for node in cluster.nodes:
        async with people.caller_at(node, "alice") as caller:
            for chat_id in (row, state, lost):
                assert await outcome_of(caller, chat_id) == "CHAT_DAMAGED", (chat_id, row, state, lost)
            for chat_id in sound:
                sent = await caller.send(chat_id, "to the sound ones")
                for device in devices:
                    await device.until_held(chat_id, sent.seq)
                assert await caller.seqs(chat_id) == list(range(1, sent.seq + 1))
    assert other.process.pid == pid
    assert owner.process.running

    metrics = [await scene.metrics(node) for node in cluster.nodes]
    assert max(each["chatgrpc_chats_damaged"] for each in metrics) == 3
    assert not [name for each in metrics for name, value in each.items() if name.startswith("chatgrpc_defects_total") and value]
    assert await scene.refused_chats() == {row, state, lost}
    assert not any("Traceback" in node.process.log_path.read_text() for node in cluster.nodes)


async def test_cells_that_are_missing_cost_what_they_are_of(scene: Scene) -> None:
    people, cluster = scene.people, scene.cluster
    owner, other = cluster.nodes
    row, early, sound = [await people.group_owned_by(owner, "dora", "emil") for _ in range(3)]
    dora = people.caller("dora")
    for chat_id in (row, early, sound):
        for number in range(3):
            await dora.send(chat_id, f"message {number}")
    device = await people.online_at(other, "dora", "phone")
    await device.close()
    epoch = (await cluster.view()).owners[shard_of(row)].epoch
    of_row = f"chat_id = '{row}' AND bucket = 0 AND seq = 4 AND epoch = {epoch}"
    epoch = (await cluster.view()).owners[shard_of(early)].epoch
    of_early = f"chat_id = '{early}' AND bucket = 0 AND seq = 2 AND epoch = {epoch}"
    user_id = device.user_id
    for statement in (
        f"DELETE event FROM {{keyspace}}.log WHERE {of_row}",
        f"DELETE event FROM {{keyspace}}.log WHERE {of_early}",
        f"INSERT INTO {{keyspace}}.token_bounds (user_id) VALUES ('{user_id}')",
        f"INSERT INTO {{keyspace}}.profiles (user_id) VALUES ('{user_id}')",
        f"INSERT INTO {{keyspace}}.members (user_id, chat_id, joined_seq) VALUES ('{user_id}', 'g.x', 3)",
        f"INSERT INTO {{keyspace}}.members (user_id, chat_id, joined_seq, left_seq) VALUES ('{user_id}', 'garbage', -5, 0)",
        f"INSERT INTO {{keyspace}}.members (user_id, chat_id, joined_seq, left_seq) VALUES ('{user_id}', '', 1, 0)",
        f"INSERT INTO {{keyspace}}.receipts (chat_id, user_id) VALUES ('{sound}', 'nobody')",
        f"INSERT INTO {{keyspace}}.cursors (user_id, device_id, chat_id) VALUES ('{user_id}', 'phone', '{sound}')",
        f"DELETE name, connected_at_ms FROM {{keyspace}}.devices WHERE user_id = '{user_id}' AND device_id = 'phone'",
    ):
        await scene.poison(statement)
    pid = other.process.pid
    assert await owner.stop() == 0
    await owner.start()
    await cluster.settled()
    for node in cluster.nodes:
        async with people.caller_at(node, "dora") as caller:
            device = await people.online_at(node, "dora", "phone")
            await device.synced()
            sent = await caller.send(sound, "to the sound one")
            await device.until_held(sound, sent.seq)
            assert (await caller.users.GetUser(GetUserRequest())).user.user_id == user_id
            assert [shown.device_id for shown in (await caller.devices.ListDevices(ListDevicesRequest())).devices] == ["phone"]
            listed = await caller.chats.ListChats(ListChatsRequest())
            assert sound in {summary.chat.chat_id for summary in listed.chats}
            assert await outcome_of(caller, row) == "CHAT_DAMAGED"
            delete = content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=2))
            await caller.messages.SendMessage(SendMessageRequest(chat_id=early, content=delete))
            assert await outcome_of(caller, early) == "", "what is written after the deletion of what is lost"
    assert other.process.pid == pid
    assert not any("Traceback" in node.process.log_path.read_text() for node in cluster.nodes)


async def test_garbage_in_the_session_map_costs_nobody_an_event(scene: Scene) -> None:
    people = scene.people
    here, there = people.nodes
    for number, poison in enumerate(("garbage", "[]", '{"phone": 7}', "list")):
        alice = await people.online_at(here, f"alice{number}")
        bob = await people.online_at(there, f"bob{number}")
        sent = await alice.send(bob.user_id, "before")
        await bob.until_held(sent.chat_id, sent.seq)
        key = f"{scene.cluster.name}:session:{bob.user_id}"
        assert await scene.redis.exists(key)
        await scene.redis.delete(key)
        if poison == "list":
            await scene.redis.rpush(key, "garbage")
        else:
            await scene.redis.set(key, poison)
        sent = await alice.send(sent.chat_id, "while his places cannot be read")
        again = await people.online_at(there, f"bob{number}", held=bob.held)  # writes over it
        await again.until_held(sent.chat_id, sent.seq)
        sent = await alice.send(sent.chat_id, "after")
        await again.until_held(sent.chat_id, sent.seq)
        assert again.held.texts(sent.chat_id) == ["before", "while his places cannot be read", "after"]
    assert not any("Traceback" in node.process.log_path.read_text() for node in people.nodes)


async def outcome_of(caller: Caller, chat_id: str) -> str:
    """What a message to the chat is refused with; "" if it is not."""
    reply = await caller.messages.SendMessage(SendMessageRequest(chat_id=chat_id, content=text_content("to a sick one")))
    return code_of(reply) if reply.HasField("error") else ""
