"""A whole node in this process, on a free port, and its callers."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from chatgrpc.adapters.jwt import DevIssuer
from chatgrpc.config import ServerSettings, Settings
from chatgrpc.process.run import serving
from tests.support.callers import Caller
from tests.support.device import Device

TOKEN_TTL_S = 600


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    settings = Settings(data_dir=tmp_path, server=ServerSettings(port=0, metrics_port=0))
    async with serving(settings) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def token_of(address: str, tmp_path: Path) -> Callable[[str, str], str]:
    """Makes a token of a user, by user id and device id: it goes with that device, and with no other."""
    issuer = DevIssuer.open(tmp_path)
    return lambda user_id, device_id: issuer.mint(user_id, TOKEN_TTL_S, time.time_ns() // 1_000_000, device_id)


@pytest.fixture
def device_of(address: str, token_of: Callable[[str, str], str]) -> Callable[[str, str], Device]:
    """Makes a device of a user, by user id and device id; `async with` connects it."""
    return lambda user_id, device_id: Device(address, token_of(user_id, device_id), device_id)


@pytest.fixture
async def alice(address: str, token_of: Callable[[str, str], str]) -> AsyncIterator[Caller]:
    async with Caller(address, "alice", token_of("alice", "caller")) as caller:
        yield caller


@pytest.fixture
async def bob(address: str, token_of: Callable[[str, str], str]) -> AsyncIterator[Caller]:
    async with Caller(address, "bob", token_of("bob", "caller")) as caller:
        yield caller


@pytest.fixture
async def carol(address: str, token_of: Callable[[str, str], str]) -> AsyncIterator[Caller]:
    async with Caller(address, "carol", token_of("carol", "caller")) as caller:
        yield caller
