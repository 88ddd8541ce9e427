"""`chatgrpc cluster status` against a real etcd, and nodes that are real as far as it looks: registered, linked, describing."""

import asyncio
import json
import os
import signal
import sys
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from chatgrpc.adapters.etcd import EtcdCluster, EtcdSettings
from chatgrpc.core.ids import SHARD_COUNT
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.metrics import Metrics
from chatgrpc.ports.cluster import ClusterView, NodeInfo
from chatgrpc.relay import Relay, RelayOptions
from tests.support.certificate import write_certificate
from tests.support.ports import free_port
from tests.support.services.etcd import EtcdCluster as EtcdServers

CHATGRPC = Path(sys.executable).parent / "chatgrpc"
WAIT_S = 60.0


class Member:
    """A node's place in the cluster and its port for other nodes, without any chat."""

    def __init__(self, etcd: EtcdSettings, pem: tuple[bytes, bytes] | None) -> None:
        self.node_id = uuid.uuid4().hex
        self.cluster = EtcdCluster(etcd)
        self.held: dict[int, int] = {}
        self._pem = pem
        self._relay: Relay | None = None

    @property
    def relay(self) -> Relay:
        """Its links."""
        assert self._relay is not None
        return self._relay

    async def join(self, host: str) -> None:
        """Becomes a node."""
        cert, key = self._pem or (None, None)
        options = RelayOptions(self.node_id, ca_pem=cert, cert_pem=cert, key_pem=key)
        self._relay = Relay(options, lambda _id, _messages: None, lambda _id, _up: None, self._describe, Metrics())
        port = await self._relay.start()
        info = NodeInfo(self.node_id, f"{host}:15551", f"localhost:{port}")
        await self.cluster.join(info, self._see, lambda: None)

    async def take(self, *shards: int) -> None:
        """Takes shards."""
        for owner, shard in zip(await asyncio.gather(*(self.cluster.take(shard) for shard in shards)), shards, strict=True):
            assert owner is not None
            self.held[shard] = owner.epoch

    async def stop_answering(self) -> None:
        """Its port is closed, its lease goes on."""
        await self.relay.stop()

    async def close(self) -> None:
        """Leaves."""
        await self.cluster.close()
        if self._relay is not None:
            await self._relay.stop()

    def _see(self, view: ClusterView) -> None:
        self.relay.see(view.nodes)

    def _describe(self) -> relay_pb2.DescribeResponse:
        shards = [relay_pb2.HeldShard(shard=shard, epoch=epoch) for shard, epoch in sorted(self.held.items())]
        return relay_pb2.DescribeResponse(version="1.2.3", uptime_ms=61_000, streams=5, shards=shards)


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    status: int
    stdout: str
    stderr: str


class Scene:
    """An etcd and the nodes that have joined."""

    def __init__(self, etcd: EtcdServers, stack: AsyncExitStack, folder: Path, with_tls: bool) -> None:
        self.endpoints = ",".join(etcd.endpoints)
        self.name = f"test-{uuid.uuid4().hex}"
        self.flags = ["--cluster-etcd", self.endpoints, "--cluster-name", self.name]
        self._etcd = EtcdSettings(etcd.endpoints, f"{self.name}/")
        self._stack = stack
        self._pem: tuple[bytes, bytes] | None = None
        if with_tls:
            cert_file, key_file = write_certificate(folder)
            self._pem = (cert_file.read_bytes(), key_file.read_bytes())
            self.flags += ["--cluster-tls-ca-file", str(cert_file)]
            self.flags += ["--cluster-tls-cert-file", str(cert_file), "--cluster-tls-key-file", str(key_file)]

    async def node(self, host: str) -> Member:
        """One more."""
        member = Member(self._etcd, self._pem)
        self._stack.push_async_callback(member.close)
        await member.join(host)
        return member

    async def status(self, *arguments: str) -> Ran:
        """What the command says."""
        return await run(*self.flags, *arguments)


async def start(*arguments: str) -> asyncio.subprocess.Process:
    """Starts `chatgrpc cluster status`, as a terminal does: also where this run was started with Ctrl-C turned off."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHATGRPC_")}
    command = ("--default-signal=INT", str(CHATGRPC), "cluster", "status", *arguments)
    return await asyncio.create_subprocess_exec("env", *command, stdout=PIPE, stderr=PIPE, env=environment)


async def run(*arguments: str) -> Ran:
    """Runs it to its end."""
    process = await start(*arguments)
    async with asyncio.timeout(WAIT_S):
        stdout, stderr = await process.communicate()
    return Ran(process.returncode or 0, stdout.decode(), stderr.decode())


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
async def scene(request: pytest.FixtureRequest, shared_etcd: EtcdServers, tmp_path: Path) -> AsyncIterator[Scene]:
    """Without nodes as yet."""
    async with AsyncExitStack() as stack:
        yield Scene(shared_etcd, stack, tmp_path, request.param)


async def test_a_script_can_wait_until_the_cluster_is_whole(scene: Scene) -> None:
    empty = await scene.status()
    assert empty.status == 1
    assert "1024 shards have no owner: 0-1023" in empty.stdout

    first, second = await scene.node("10.0.0.1"), await scene.node("10.0.0.2")
    await first.take(*range(SHARD_COUNT - 1))
    missing = await scene.status()
    assert missing.status == 1
    assert "1 shard has no owner: 1023" in missing.stdout

    await second.take(SHARD_COUNT - 1)
    async with asyncio.timeout(WAIT_S):
        while second.node_id not in first.relay.linked() or first.node_id not in second.relay.linked():
            await asyncio.sleep(0.02)
    whole = await scene.status()
    assert (whole.status, whole.stderr) == (0, "")
    for member, host, shards, line in zip((first, second), "12", ("1023", "1"), whole.stdout.splitlines()[1:3], strict=True):
        queued = 6  # Beats come and go.
        cells = line.split()
        assert cells[:queued] == [member.node_id[:8], f"10.0.0.{host}:15551", "live", "5", shards, "1/1"]
        assert cells[queued + 1 :] == ["0", "1m", "1s", "0.0", "ms", "1.2.3"]
    assert "2 nodes, 10 streams, 1024 of 1024 shards owned, epochs " in whole.stdout

    told = json.loads((await scene.status("--json")).stdout)
    assert told["healthy"] is True
    epochs = {owner["shard"]: (owner["node_id"], owner["epoch"]) for owner in told["owners"]}
    assert epochs == {shard: (member.node_id, epoch) for member in (first, second) for shard, epoch in member.held.items()}
    assert told["nodes"][0]["said"]["links"][0]["node_id"] == second.node_id
    listed = (await scene.status("--shards")).stdout.splitlines()
    assert listed[-1].split() == ["1023", str(second.held[1023]), "0", second.node_id[:8]]

    await second.stop_answering()
    silent = await scene.status()
    assert silent.status == 1
    assert f"{second.node_id[:8]} does not answer at localhost:" in silent.stdout


async def test_watching_goes_on_until_it_is_interrupted(scene: Scene) -> None:
    member = await scene.node("10.0.0.1")
    process = await start(*scene.flags, "--watch", "--json")
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        # A line is longer than the buffer of a reader, once shards are owned.
        first = json.loads(await process.stdout.readline())
        await member.take(5)
        while (seen := json.loads(await process.stdout.readline()))["owners"] == []:
            pass
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    assert first["shards"]["owned"] == 0
    assert seen["owners"][0]["shard"] == 5
    assert (process.returncode, errors) == (0, b"")


async def test_another_node_at_the_address_is_not_taken_for_it(scene: Scene) -> None:
    left, other = await scene.node("10.0.0.1"), await scene.node("10.0.0.2")
    there = next(info for info in (await _nodes(scene)) if info["node_id"] == other.node_id)["relay_address"]
    await left.cluster.update(NodeInfo(left.node_id, "10.0.0.1:15551", there))
    by_id = {info["node_id"]: info for info in await _nodes(scene)}
    assert by_id[left.node_id]["state"] == "unreachable"
    assert other.node_id in by_id[left.node_id]["why_unreachable"]
    assert by_id[other.node_id]["state"] == "live"


async def _nodes(scene: Scene) -> list[dict[str, str]]:
    nodes: list[dict[str, str]] = json.loads((await scene.status("--json")).stdout)["nodes"]
    return nodes


async def test_without_etcd_it_says_where_it_looked() -> None:
    address = f"127.0.0.1:{free_port()}"
    ran = await run("--cluster-etcd", address)
    assert ran.status == 2
    assert ran.stdout == ""
    assert f"chatgrpc: No answer from {address}, without which nothing is known of the cluster." in ran.stderr
    assert "Traceback" not in ran.stderr
    unnamed = await run()
    assert unnamed.status == 2
    assert "--cluster-etcd HOST:PORT" in unnamed.stderr
