"""`chatgrpc serve --workers N` as a whole: nodes of a real cluster on one port, one of them killed, all of them drained."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
import time
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from chatgrpc.adapters.jwt import DevIssuer
from chatgrpc.core.ids import direct_chat_id
from tests.support.device import Device, DisconnectedError
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer

CHATGRPC = Path(sys.executable).parent / "chatgrpc"
WAIT_S = 120.0
DEVICES_MAX = 64
"""The kernel spreads connections by a hash of their ports: that all of so many come to one of two is not to be expected."""

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="NOT TESTED: workers of a cluster; there is no `java` here"),
]


class Workers:
    """Two workers, and what runs beside them."""

    def __init__(self, folder: Path, etcd: EtcdCluster, redis: RedisServer, cassandra: CassandraCluster) -> None:
        name = f"w{uuid.uuid4().hex[:12]}"
        self.port = 0
        self._folder = folder
        self._issuer = DevIssuer.open(folder / "data")
        kept = {variable: value for variable, value in os.environ.items() if not variable.startswith("CHATGRPC_")}
        self._environment = kept | {
            "CHATGRPC_DATA_DIR": str(folder / "data"),
            "CHATGRPC_CLUSTER__ETCD": ",".join(etcd.endpoints),
            "CHATGRPC_CLUSTER__REDIS": redis.url,
            "CHATGRPC_CLUSTER__CASSANDRA": ",".join(node.address for node in cassandra.nodes),
            "CHATGRPC_CLUSTER__REPLICATION_FACTOR": "1",
            "CHATGRPC_CLUSTER__NAME": name,
            "CHATGRPC_CLUSTER__KEYSPACE": name,
        }
        self._process: asyncio.subprocess.Process | None = None
        self._devices: list[Device] = []

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The supervisor."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """What they and the supervisor wrote to standard error."""
        return (self._folder / "log").read_text()

    async def start(self) -> None:
        """Starts them; returns when they are greeted."""
        command = (CHATGRPC, "serve", "--workers", "2", "--port", "0", "--metrics-port", "0")
        with (self._folder / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=log, env=self._environment)
        assert self._process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            greeting = (await self._process.stdout.readline()).decode()
        told = re.match(r"chatgrpc listens on 127\.0\.0\.1:(\d+) with 2 workers ", greeting)
        assert told is not None, f"{greeting!r}\n{self.log}"
        self.port = int(told[1])

    async def status(self) -> dict[str, Any]:
        """What `chatgrpc cluster status` says."""
        process = await asyncio.create_subprocess_exec(
            *(CHATGRPC, "cluster", "status", "--json"), stdout=PIPE, env=self._environment
        )
        async with asyncio.timeout(WAIT_S):
            output, _ = await process.communicate()
        said: dict[str, Any] = json.loads(output)
        assert process.returncode == (0 if said["healthy"] else 1)
        return said

    async def whole(self) -> dict[str, Any]:
        """Waits until two nodes are linked and own all shards."""
        give_up_at_s = time.monotonic() + WAIT_S
        while True:
            said = await self.status()
            linked = [link["connected"] for node in said["nodes"] if node["said"] for link in node["said"]["links"]]
            if said["healthy"] and linked == [True, True]:
                return said
            assert time.monotonic() < give_up_at_s, f"{said}\n{self.log}"

    async def device(self, user_id: str) -> Device:
        """One more device, on whichever worker the kernel gives it to."""
        token = self._issuer.mint(user_id, 3600, time.time_ns() // 1_000_000)
        device = Device(f"127.0.0.1:{self.port}", token, "phone")
        await device.connect()
        await device.synced()
        self._devices.append(device)
        return device

    async def close(self) -> None:
        """Kills what still runs."""
        for device in self._devices:
            await device.close()
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = psutil.Process(self._process.pid).children()
            self._process.kill()
            for worker in workers:
                worker.kill()
        await self._process.wait()


@pytest.fixture
async def workers(
    tmp_path: Path, shared_etcd: EtcdCluster, shared_redis: RedisServer, shared_cassandra: CassandraCluster
) -> AsyncIterator[Workers]:
    """Started, on services of their own."""
    async with AsyncExitStack() as stack:
        workers = Workers(tmp_path, shared_etcd, shared_redis, shared_cassandra)
        stack.push_async_callback(workers.close)
        await workers.start()
        yield workers


async def devices_on_both(workers: Workers) -> list[Device]:
    """So many devices that both workers have some."""
    devices: list[Device] = []
    while len(devices) < DEVICES_MAX:
        devices += [await workers.device(f"user-{len(devices) + number}") for number in range(4)]
        streams = [node["said"]["streams"] for node in (await workers.status())["nodes"]]
        if min(streams) > 0:
            return devices
    raise AssertionError(f"all of {len(devices)} devices came to one worker")


async def tell_all(sender: Device, devices: Sequence[Device], text: str) -> None:
    """Everybody gets the text from the sender."""
    for device in devices:
        sent = await sender.send(device.user_id, text)
        await device.until_held(sent.chat_id, sent.seq)
        assert device.held.texts(sent.chat_id)[-1] == text


async def again(device: Device) -> None:
    """Connects again if its stream is gone."""
    if device.is_open:
        return
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await device.connect()
                await device.synced()
            except DisconnectedError:
                await asyncio.sleep(0.1)
            else:
                return


async def test_people_at_different_workers_of_one_port_chat_and_go_on_when_one_is_killed(workers: Workers) -> None:
    nodes = (await workers.whole())["nodes"]
    assert {node["public_address"] for node in nodes} == {f"127.0.0.1:{workers.port}"}
    sender, devices = await workers.device("sender"), await devices_on_both(workers)
    await tell_all(sender, devices, "good morning")

    supervisor = psutil.Process(workers.process.pid)
    first = {child.pid for child in supervisor.children()}
    assert len(first) == 2
    os.kill(min(first), 9)
    async with asyncio.timeout(WAIT_S):
        while len(await _nodes_besides(workers, nodes)) < 1:
            pass
    await workers.whole()
    assert max(first) in {child.pid for child in supervisor.children()}
    for device in (sender, *devices):
        await again(device)
    await tell_all(sender, devices, "still there?")
    assert sender.held.texts(direct_chat_id("sender", "user-0")) == ["good morning", "still there?"]

    workers.process.terminate()
    async with asyncio.timeout(WAIT_S):
        assert await workers.process.wait() == 0, workers.log
    left = await workers.status()
    assert (left["nodes"], left["shards"]["owned"]) == ([], 0)


async def _nodes_besides(workers: Workers, known: Sequence[dict[str, Any]]) -> set[str]:
    """Ids of nodes that have joined since."""
    return {node["node_id"] for node in (await workers.status())["nodes"]} - {node["node_id"] for node in known}
