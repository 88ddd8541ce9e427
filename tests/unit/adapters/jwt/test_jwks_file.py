"""Keys from a file."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chatgrpc.adapters.jwt import JwksFromFile
from chatgrpc.ports.tokens import KeysUnavailableError
from tests.contract.jwt_issuer import Clock, jwks, new_key

KEY = new_key("EdDSA", "a")
OTHER = new_key("ES256", "b")


async def test_without_a_file_nothing_can_be_said(tmp_path: Path) -> None:
    clock = Clock()
    keys = JwksFromFile(tmp_path / "jwks.json", monotonic=clock)
    with pytest.raises(KeysUnavailableError):
        await keys.find("a")
    (tmp_path / "jwks.json").write_bytes(jwks(KEY))
    with pytest.raises(KeysUnavailableError):
        await keys.find("a")  # not looked at again so soon
    clock.now_s += 2
    assert await keys.find("a") is not None


async def test_keys_stay_when_the_file_vanishes(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(KEY))
    keys = JwksFromFile(path, monotonic=clock)
    assert await keys.find("a") is not None
    path.unlink()
    clock.now_s += 2
    assert await keys.find("a") is not None


async def test_the_file_is_looked_at_once_an_interval_however_many_ask(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(KEY))
    keys = JwksFromFile(path, check_interval_s=2, monotonic=clock)
    assert await keys.find("b") is None
    path.write_bytes(jwks(KEY, OTHER))
    clock.now_s += 1.9
    assert await keys.find("b") is None
    clock.now_s += 0.1
    assert None not in await asyncio.gather(*(keys.find("b") for _ in range(20)))


async def test_keys_of_a_file_that_cannot_be_read_for_long_are_not_trusted(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(KEY))
    keys = JwksFromFile(path, stale_max_s=60, monotonic=clock)
    for _ in range(3):  # a file that nobody changes is looked at, and good
        clock.now_s += 60
        assert await keys.find("a") is not None
    path.rename(tmp_path / "away")
    clock.now_s += 60
    assert await keys.find("a") is not None
    clock.now_s += 2
    with pytest.raises(KeysUnavailableError):
        await keys.find("a")
    (tmp_path / "away").rename(path)
    clock.now_s += 2
    assert await keys.find("a") is not None
    path.write_bytes(b"{}")
    clock.now_s += 61
    with pytest.raises(KeysUnavailableError):
        await keys.find("a")


async def test_a_set_that_turns_empty_is_told_and_does_not_lock_everybody_out(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(KEY))
    keys = JwksFromFile(path, stale_max_s=60, monotonic=clock)
    assert await keys.find("a") is not None
    path.write_bytes(jwks())
    clock.now_s += 2
    with capture_logs() as logs:
        assert await keys.find("a") is not None
    [told] = [entry for entry in logs if entry["event"] == "jwks_file_not_read"]
    assert (str(told["error"]), told["keys_kept"], told["log_level"]) == ("it holds no key that serves", 1, "error")
    clock.now_s += 61
    with pytest.raises(KeysUnavailableError):
        await keys.find("a")  # nobody is let in for ever by what the issuer does not say any more
    path.write_bytes(jwks(OTHER))
    clock.now_s += 2
    assert await keys.find("a") is None
    assert await keys.find("b") is not None
