"""A mistake of the program in one session's work costs that stream, is counted, and nobody else notices."""

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chatgrpc.adapters.jwt import DevIssuer
from chatgrpc.config import ServerSettings, Settings
from chatgrpc.core.session import Session
from chatgrpc.embedded.audience import LocalAudience
from chatgrpc.process.run import serving
from chatgrpc.v1 import session_pb2
from tests.support.device import Device
from tests.support.ports import free_port


class Server:
    """A whole node in this process, with metrics."""

    def __init__(self, address: str, issuer: DevIssuer, metrics_port: int) -> None:
        self.address = address
        self._issuer = issuer
        self._metrics_port = metrics_port

    async def device(self, user_id: str) -> Device:
        """A device of the user that is connected."""
        device = Device(self.address, self._issuer.mint(user_id, 600, time.time_ns() // 1_000_000, "phone"), "phone")
        await device.connect()
        return device

    async def defects(self) -> float:
        """How many were counted."""
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        page = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())).decode()
        counted = [line for line in page.splitlines() if line.startswith('chatgrpc_defects_total{part="session"}')]
        return float(counted[0].split()[1]) if counted else 0.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    metrics_port = free_port()
    async with serving(Settings(data_dir=tmp_path, server=ServerSettings(port=0, metrics_port=metrics_port))) as port:
        yield Server(f"127.0.0.1:{port}", DevIssuer.open(tmp_path), metrics_port)


@pytest.mark.parametrize("where", ["deliver", "next_read", "take_output", "answered"])
async def test_a_defect_costs_one_stream(server: Server, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    working = getattr(Session, where)

    def tripping(session: Session, *args: Any) -> object:
        if trips and session.user_id == "bob":
            raise RuntimeError("injected")
        result: object = working(session, *args)
        return result

    trips = False
    monkeypatch.setattr(Session, where, tripping)
    alice, bob, carol = [await server.device(user_id) for user_id in ("alice", "bob", "carol")]
    to_bob = await alice.send("bob", "one")
    to_carol = await alice.send("carol", "one")
    await bob.until_held(to_bob.chat_id, to_bob.seq)

    trips = True
    if where == "answered":
        await bob.post(bob.compose(to_bob.chat_id, "of bob's own"))
    else:
        await alice.send(to_bob.chat_id, "two")
    ended = await bob.until_ended()
    if where != "take_output":  # of which the last words come too
        assert ended.disconnect is not None
        assert ended.disconnect.code == session_pb2.DISCONNECT_CODE_INTERNAL
    assert await server.defects() >= 1
    sent = await alice.send(to_carol.chat_id, "two")
    await carol.until_held(sent.chat_id, sent.seq)

    trips = False
    again = await server.device("bob")
    sent = await alice.send(to_bob.chat_id, "three")
    await again.until_held(sent.chat_id, sent.seq)
    for device in (alice, carol, again):
        await device.close()


async def test_a_defect_in_what_time_does_for_all_ends_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or deadlines, and marks to store, would be passed over every 50 ms, and nobody would know."""
    told: list[BaseException] = []

    def tripping(*_: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr("chatgrpc.edge.node.crash", told.append)
    monkeypatch.setattr(LocalAudience, "pass_time", tripping)
    settings = Settings(data_dir=tmp_path, server=ServerSettings(port=0, metrics_port=0))
    async with serving(settings), asyncio.timeout(60):
        while not told:
            await asyncio.sleep(0.01)
    assert str(told[0]) == "injected"
