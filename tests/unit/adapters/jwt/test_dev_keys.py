"""The development issuer."""

import asyncio
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from chatgrpc.adapters.jwt import DevIssuer, JwtVerifier, open_verifier
from chatgrpc.config import Settings
from chatgrpc.ports.tokens import TokenRejectedError
from chatgrpc.secret_files import create_secret_file
from chatgrpc.start_error import StartError

NOW_MS = 1_800_000_000_123


def dev_verifier(data_dir: Path) -> JwtVerifier:
    return open_verifier(Settings(data_dir=data_dir))


async def test_its_tokens_are_accepted_until_they_expire(tmp_path: Path) -> None:
    verifier = dev_verifier(tmp_path)
    token = DevIssuer.open(tmp_path).mint("alice", 60, NOW_MS)
    claims = await verifier.verify(token, NOW_MS)
    assert (claims.user_id, claims.expires_at_ms) == ("alice", 1_800_000_060_000)
    with pytest.raises(TokenRejectedError) as rejected:
        await verifier.verify(token, NOW_MS + 91_000)
    assert rejected.value.reason == "TOKEN_EXPIRED"
    await verifier.aclose()


async def test_a_token_of_another_folder_is_not_accepted(tmp_path: Path) -> None:
    token = DevIssuer.open(tmp_path / "other").mint("alice", 60, NOW_MS)
    verifier = dev_verifier(tmp_path)
    with pytest.raises(TokenRejectedError) as rejected:
        await verifier.verify(token, NOW_MS)
    assert rejected.value.reason == "TOKEN_KEY_UNKNOWN"
    await verifier.aclose()


def test_only_the_owner_can_read_the_key_and_nothing_else_is_left_behind(tmp_path: Path) -> None:
    issuer = DevIssuer.open(tmp_path / "deep" / "data")
    assert issuer.path == tmp_path / "deep" / "data" / "dev_issuer.json"
    assert stat.S_IMODE(issuer.path.stat().st_mode) == 0o600
    assert [path.name for path in issuer.path.parent.iterdir()] == ["dev_issuer.json"]
    before = issuer.path.read_bytes()
    DevIssuer.open(tmp_path / "deep" / "data")
    assert issuer.path.read_bytes() == before


def test_processes_that_race_end_with_the_same_key(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from chatgrpc.adapters.jwt import DevIssuer\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"print(DevIssuer.open(pathlib.Path({str(tmp_path)!r})).mint('alice', 60, {NOW_MS}))"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        racer.stdout.readline()
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    tokens = [racer.communicate()[0].strip() for racer in racers]
    for token in tokens:
        assert asyncio.run(dev_verifier(tmp_path).verify(token, NOW_MS)).user_id == "alice"
    assert [path.name for path in tmp_path.iterdir()] == ["dev_issuer.json"]


def test_who_loses_the_race_takes_the_winners_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    winner = DevIssuer.open(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda _: False)  # the loser looked before the winner was done
    loser = DevIssuer.open(tmp_path)
    assert loser.mint("alice", 60, NOW_MS) == winner.mint("alice", 60, NOW_MS)


@pytest.mark.parametrize("user_id", ["", "al ice", "_x", "a" * 65])
def test_it_mints_for_user_ids_only(tmp_path: Path, user_id: str) -> None:
    issuer = DevIssuer.open(tmp_path)
    with pytest.raises(ValueError, match="user id"):
        issuer.mint(user_id, 60, NOW_MS)
    with pytest.raises(ValueError, match="one second"):
        issuer.mint("alice", 0, NOW_MS)


@pytest.mark.parametrize("content", ["", "{}", '{"keys": []}', '{"keys": [{"kty": "OKP"}]}', "[1]"])
def test_a_broken_key_file_is_named(tmp_path: Path, content: str) -> None:
    create_secret_file(tmp_path / "dev_issuer.json", content.encode())
    with pytest.raises(StartError, match=r"dev_issuer\.json: not a development key"):
        DevIssuer.open(tmp_path)


def test_a_key_that_others_may_read_is_none(tmp_path: Path) -> None:
    DevIssuer.open(tmp_path).path.chmod(0o644)
    with pytest.raises(StartError, match="others may read it: `chmod 600 "):
        DevIssuer.open(tmp_path)


def test_a_public_key_cannot_sign(tmp_path: Path) -> None:
    path = DevIssuer.open(tmp_path).path
    (key,) = json.loads(path.read_bytes())["keys"]
    del key["d"]
    path.write_text(json.dumps({"keys": [key]}))
    with pytest.raises(StartError):
        DevIssuer.open(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="file"):
        DevIssuer.open(tmp_path / "file" / "data")


async def test_a_token_can_be_one_devices_and_says_to_the_millisecond_when_it_was_made(tmp_path: Path) -> None:
    issuer = DevIssuer.open(tmp_path)
    verifier = open_verifier(Settings(data_dir=tmp_path))
    now_ms = 1_800_000_000_123
    claims = await verifier.verify(issuer.mint("alice", 60, now_ms, "phone"), now_ms)
    assert (claims.issued_at_ms, claims.device_id) == (now_ms, "phone")
    assert (await verifier.verify(issuer.mint("alice", 60, now_ms), now_ms)).device_id is None
    with pytest.raises(ValueError, match="device id"):
        issuer.mint("alice", 60, now_ms, "my phone")
