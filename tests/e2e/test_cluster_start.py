"""`chatgrpc serve` as a node of a cluster where something is not as it should be: it says what, and leaves nothing behind."""

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import pytest_asyncio

from chatgrpc.adapters.cassandra import CassandraStore, KeyspaceOwner, SchemaError
from chatgrpc.adapters.etcd import EtcdSettings
from chatgrpc.adapters.etcd.client import EtcdClient
from chatgrpc.adapters.etcd.wire_pb2 import DeleteRangeRequest, RequestOp, TxnRequest
from tests.contract.cassandra_stores import settings
from tests.support.ports import free_port
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer

CHATGRPC = Path(sys.executable).parent / "chatgrpc"
WAIT_S = 120.0

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("java") is None, reason="NOT TESTED: nodes that cannot start; there is no `java` here"),
]


class Surroundings:
    """What a node needs, all of it there."""

    def __init__(self, folder: Path, etcd: EtcdCluster, redis: RedisServer, cassandra: CassandraCluster) -> None:
        self.name = f"s{uuid.uuid4().hex[:12]}"
        self._etcd = etcd
        self._cassandra = cassandra
        kept = {variable: value for variable, value in os.environ.items() if not variable.startswith("CHATGRPC_")}
        self._environment = kept | {
            "CHATGRPC_DATA_DIR": str(folder / "data"),
            "CHATGRPC_SERVER__PORT": "0",
            "CHATGRPC_SERVER__METRICS_PORT": "0",
            "CHATGRPC_CLUSTER__ETCD": ",".join(etcd.endpoints),
            "CHATGRPC_CLUSTER__REDIS": redis.url,
            "CHATGRPC_CLUSTER__CASSANDRA": ",".join(node.address for node in cassandra.nodes),
            "CHATGRPC_CLUSTER__REPLICATION_FACTOR": "1",
            "CHATGRPC_CLUSTER__NAME": self.name,
            "CHATGRPC_CLUSTER__KEYSPACE": self.name,
        }

    async def serve(self, **settings: str) -> asyncio.subprocess.Process:
        """Starts a node whose surroundings differ in these variables."""
        environment = self._environment | {f"CHATGRPC_{name}": value for name, value in settings.items()}
        return await asyncio.create_subprocess_exec(CHATGRPC, "serve", stdout=PIPE, stderr=PIPE, env=environment)

    async def refusal(self, **settings: str) -> str:
        """What a node says that cannot start; it ends with the status for that."""
        process = await self.serve(**settings)
        try:
            async with asyncio.timeout(WAIT_S):
                said, errors = await process.communicate()
        finally:
            _end(process)
        assert (process.returncode, said) == (2, b""), errors.decode()
        (reason,) = [line for line in errors.decode().splitlines() if line.startswith("chatgrpc: ")]
        assert "Traceback" not in errors.decode()
        return reason

    async def keys(self) -> list[bytes]:
        """What nodes have left in etcd."""
        client = EtcdClient(EtcdSettings(self._etcd.endpoints))
        try:
            prefix = f"{self.name}/".encode()
            found = await client.range(prefix, prefix[:-1] + b"0")
        finally:
            await client.close()
        return [kv.key for kv in found.kvs if b"/nodes/" in kv.key or b"/shards/" in kv.key]

    async def forget_etcd(self) -> None:
        """Who starts from now on finds an etcd that is new to it: what lasts there is gone."""
        client = EtcdClient(EtcdSettings(self._etcd.endpoints))
        deletes = [
            RequestOp(delete_range=DeleteRangeRequest(key=f"{self.name}/{name}".encode()))
            for name in ("epoch_base", "keyspace")
        ]
        try:
            await client.transact(TxnRequest(success=deletes))
        finally:
            await client.close()

    async def give_keyspace_to_a_newer_etcd(self) -> None:
        """As if nodes with another etcd had come while this one's were cut off from theirs, and forgotten."""
        store = await CassandraStore.open(settings(self._cassandra, self.name), KeyspaceOwner(self.name))
        try:
            base = await store.use.base()
            claimed = False
            while not claimed:
                uses = await asyncio.to_thread(store._client.execute, "SELECT only FROM {keyspace}.owner")
                for only in {only for (only,) in uses} - {1}:
                    await asyncio.to_thread(store._client.execute, "DELETE FROM {keyspace}.owner WHERE only = %s", (only,))
                with suppress(SchemaError):  # a node has just said again that it uses it
                    await store.use.claim_base(base + 1)
                    claimed = True
        finally:
            await store.close()


@pytest_asyncio.fixture(loop_scope="function")
async def surroundings(
    tmp_path: Path, shared_etcd: EtcdCluster, shared_redis: RedisServer, shared_cassandra: CassandraCluster
) -> AsyncIterator[Surroundings]:
    yield Surroundings(tmp_path, shared_etcd, shared_redis, shared_cassandra)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """Somebody else listens there."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        yield taken.getsockname()[1]


async def test_who_cannot_start_says_why_and_leaves_nothing_behind(surroundings: Surroundings, taken_port: int) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    port = str(free_port())
    # Some wait for what may still come: so all at the same time.
    no_cassandra, no_etcd, no_port, no_relay_port = await asyncio.gather(
        surroundings.refusal(CLUSTER__CASSANDRA=nobody),
        surroundings.refusal(CLUSTER__ETCD=nobody, SERVER__PORT=port),
        surroundings.refusal(SERVER__PORT=str(taken_port)),
        surroundings.refusal(CLUSTER__RELAY_PORT=str(taken_port)),
    )
    assert no_cassandra.startswith(f"chatgrpc: Cassandra ({nobody}): ")
    assert no_etcd.startswith(f"chatgrpc: Cannot join the cluster by etcd ({nobody}): ")
    assert "connect" in no_etcd.lower(), "what the connection met with"
    assert str(taken_port) in no_port
    assert "in use" in no_port
    assert str(taken_port) in no_relay_port
    assert "in use" in no_relay_port
    assert "--cluster-relay-port" in no_relay_port, "it is told from the public port"
    assert await surroundings.keys() == []
    with closing(socket.create_server(("127.0.0.1", int(port)))):
        pass


async def test_a_node_whose_keyspace_and_etcd_do_not_belong_together_does_not_start(surroundings: Surroundings) -> None:
    """Else each chat would have two owners, or an owner that does not have its log."""
    process = await surroundings.serve(CLUSTER__LEASE_TTL_S="60")  # it stays in etcd while the others take their time
    try:
        assert process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            await process.stdout.readline()
        another_keyspace = await surroundings.refusal(CLUSTER__KEYSPACE=f"{surroundings.name}_2")
        assert f"use the keyspace {surroundings.name} of " in another_keyspace
        assert f"this node would use {surroundings.name}_2 of " in another_keyspace
        assert f"{surroundings.name}/keyspace" in another_keyspace, "which key to delete, if it is meant"
        await surroundings.forget_etcd()
        another_etcd = await surroundings.refusal()
        assert "by another etcd" in another_etcd
        assert "--cluster-etcd" in another_etcd
    finally:
        _end(process)
        await process.communicate()


async def _says(output: asyncio.StreamReader, text: bytes) -> bytes:
    """The line with this text."""
    while text not in (line := await output.readline()):
        assert line, f"it ended without {text!r}"
    return line


async def test_a_running_node_whose_keyspace_went_to_another_etcd_owns_nothing_any_more(surroundings: Surroundings) -> None:
    process = await surroundings.serve()
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            await process.stdout.readline()
            await surroundings.give_keyspace_to_a_newer_etcd()
            await _says(process.stderr, b"keyspace_lost")
            said = await _says(process.stderr, b"was used with an etcd that counts epochs from")
        assert b"join_failed" in said
        assert await surroundings.keys() == []
        assert process.returncode is None, "it waits for an operator, with its devices"
    finally:
        _end(process)
        await process.communicate()


async def test_a_node_starts_and_stops_without_redis(surroundings: Surroundings) -> None:
    process = await surroundings.serve(CLUSTER__REDIS=f"redis://127.0.0.1:{free_port()}/0")
    try:
        assert process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            greeting = (await process.stdout.readline()).decode()
            assert re.match(r"chatgrpc listens on 127\.0\.0\.1:\d+ ", greeting), greeting
            assert await surroundings.keys()
            process.send_signal(signal.SIGTERM)
            _, errors = await process.communicate()
    finally:
        _end(process)
    assert process.returncode == 0, errors.decode()
    assert "session_map_unavailable" in errors.decode()
    assert await surroundings.keys() == []


def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
