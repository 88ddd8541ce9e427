"""Links between two processes, one of which stands still for a while, or dies."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from chatgrpc.core.links import Deliver, Message
from chatgrpc.ports.cluster import NodeInfo
from tests.robustness.support_relay import LinkedNode, event, started, until

PROGRAM = Path(__file__).parent / "support_relay_process.py"


@asynccontextmanager
async def process_linked_with(node: LinkedNode, node_id: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process, linked with the node."""
    command = (sys.executable, str(PROGRAM), node_id, node.node_id, node.info.relay_address)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        node.see(NodeInfo(node_id, "", f"127.0.0.1:{port}"))
        await until(lambda: node.relay.linked() == {node_id})
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def connections_of(process: asyncio.subprocess.Process) -> int:
    """How many TCP connections the process has."""
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in psutil.Process(process.pid).net_connections())


@pytest.mark.parametrize("other", ["a", "z"], ids=["it dials", "it is dialled"])
async def test_what_another_process_sends_back_comes_in_order(other: str) -> None:
    async with started("node") as (node,), process_linked_with(node, other) as process:
        for seq in range(3000):
            node.relay.send(other, event(seq, chat_id=f"chat-{seq % 10}"))
        await until(lambda: len(node.received[other]) == 3000)
        assert node.received[other] == [event(seq, chat_id=f"chat-{seq % 10}") for seq in range(3000)]
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0
        await until(lambda: node.changes[other] == [True, False])


async def test_a_process_that_stands_still_is_dropped_and_linked_again_when_it_goes_on() -> None:
    async with started("node") as (node,), process_linked_with(node, "z") as process:
        os.kill(process.pid, signal.SIGSTOP)
        await until(lambda: not node.relay.linked())
        os.kill(process.pid, signal.SIGCONT)
        await until(lambda: node.changes["z"] == [True, False, True])
        node.relay.send("z", event(5))
        await until(lambda: node.received["z"] == [event(5)])


async def test_a_process_that_dials_and_stands_still_again_and_again_keeps_one_connection() -> None:
    async with started("node") as (node,), process_linked_with(node, "a") as process:
        assert connections_of(process) == 1
        for times in (1, 2):
            os.kill(process.pid, signal.SIGSTOP)
            while node.relay.linked():
                node.relay.send("a", event(5))  # what it has not read yet, when it learns that its call is over
                await asyncio.sleep(0.1)
            os.kill(process.pid, signal.SIGCONT)
            await until(lambda: node.changes["a"] == [True, *[False, True] * times])  # noqa: B023  called within this turn
        await until(lambda: connections_of(process) == 1)


async def test_a_process_that_stands_still_for_a_moment_stays_linked_and_gets_everything() -> None:
    async with started("node") as (node,), process_linked_with(node, "z") as process:
        os.kill(process.pid, signal.SIGSTOP)
        sent: list[Message] = []
        for seq in range(1000):
            sent.append(event(seq, length=2000))
            node.relay.send("z", sent[-1])
        await until(lambda: node.status("z").queued_bytes > 0)
        os.kill(process.pid, signal.SIGCONT)
        await until(lambda: len(node.received["z"]) == len(sent))
        assert node.received["z"] == sent
        assert node.changes["z"] == [True]


async def test_a_process_that_dies_is_dropped() -> None:
    async with started("node") as (node,), process_linked_with(node, "a") as process:
        process.kill()
        await until(lambda: node.changes["a"] == [True, False])
        assert not node.relay.send("a", Deliver("chat", 1, b"", (), "", False))
