"""A server as others would run it: TLS, tokens of an identity provider, settings from a file; used by the command line."""

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from joserfc.jwk import Key

from tests.contract.jwt_issuer import AUDIENCE, ISSUER, jwks, new_key, sign
from tests.support.certificate import write_certificate
from tests.support.ports import free_port
from tests.support.server import ServerProcess, running_server

CHATGRPC = Path(sys.executable).parent / "chatgrpc"
SECRET_TEXT = "the-quarterly-figures"


class Provider:
    """An identity provider whose keys stand in a file."""

    def __init__(self, folder: Path) -> None:
        self.jwks_file = folder / "jwks.json"
        self.key = new_key("ES256", "first")
        self.publish(self.key)

    def publish(self, *keys: Key) -> None:
        """Publishes these keys and no others."""
        self.jwks_file.write_bytes(jwks(*keys))

    def token(self, user_id: str, key: Key | None = None, algorithm: str = "ES256") -> str:
        """A token for ten minutes from now."""
        now_s = int(time.time())
        payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": user_id, "iat": now_s, "exp": now_s + 600}
        return sign(key or self.key, algorithm, payload)


@pytest.fixture
def provider(tmp_path: Path) -> Provider:
    return Provider(tmp_path)


@pytest.fixture
async def server(tmp_path: Path, provider: Provider) -> AsyncIterator[ServerProcess]:
    cert_file, key_file = write_certificate(tmp_path)
    settings = tmp_path / "chatgrpc.toml"
    settings.write_text(
        f"""
        [server]
        tls_cert_file = "{cert_file}"
        tls_key_file = "{key_file}"

        [auth]
        mode = "jwks"
        issuer = "{ISSUER}"
        audience = "{AUDIENCE}"
        jwks_file = "{provider.jwks_file}"

        [log]
        level = "debug"
        format = "json"
        """
    )
    environment = {"CHATGRPC_CONFIG": str(settings), "CHATGRPC_LOG__LEVEL": "debug"}
    async with running_server(tmp_path / "data", environment) as server:
        yield server


async def chatgrpc(server: ServerProcess, folder: Path, token: str, command: str, *arguments: str) -> "Ran":
    """Runs a client command against the server."""
    access = ["--server", f"localhost:{server.port}", "--tls-ca", str(folder / "cert.pem"), "--token", token]
    return await run(command, *access, *arguments)


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    status: int
    stdout: str
    stderr: str


async def run(command: str, *arguments: str) -> Ran:
    """Runs a command of chatgrpc."""
    process = await asyncio.create_subprocess_exec(CHATGRPC, command, *arguments, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(60):
        stdout, stderr = await process.communicate()
    return Ran(process.returncode or 0, stdout.decode(), stderr.decode())


async def test_two_people_over_tls_by_tokens_of_a_provider(server: ServerProcess, provider: Provider, tmp_path: Path) -> None:
    state = ("--data-dir", str(tmp_path / "clients"))
    alice, bob = provider.token("alice"), provider.token("bob")
    sent = await chatgrpc(server, tmp_path, alice, "send", "--as", "alice", "--to", "bob", *state, SECRET_TEXT)
    assert sent.status == 0, sent.stderr
    tail = await chatgrpc(server, tmp_path, bob, "tail", "--as", "bob", "--json", "--count", "1", *state)
    assert tail.status == 0, tail.stderr
    assert SECRET_TEXT in tail.stdout
    history = await chatgrpc(server, tmp_path, bob, "history", "--as", "bob", "--with", "alice", "--json")
    texts = [json.loads(line).get("text") for line in history.stdout.splitlines()]
    assert SECRET_TEXT in texts, history.stdout

    logged = server.log_path.read_text()
    assert logged
    assert SECRET_TEXT not in logged, "the log holds what people write"
    assert alice.split(".")[1] not in logged, "the log holds a token"


async def send_as_alice(server: ServerProcess, folder: Path, token: str) -> Ran:
    """Sends a message, and gives up soon."""
    to_bob = ("--as", "alice", "--to", "bob", "--timeout", "10", "--data-dir", str(folder / "clients"))
    return await chatgrpc(server, folder, token, "send", *to_bob, "hello")


async def test_a_token_of_someone_else_is_refused_with_a_reason(
    server: ServerProcess, provider: Provider, tmp_path: Path
) -> None:
    forged = await send_as_alice(server, tmp_path, provider.token("alice", new_key("ES256", "first")))
    assert forged.status != 0
    assert "token" in forged.stderr.lower()
    development = await send_as_alice(server, tmp_path, server.token("alice"))
    assert development.status != 0, "a development key in the data folder counts for nothing here"


async def test_keys_rotate_without_a_restart(server: ServerProcess, provider: Provider, tmp_path: Path) -> None:
    async def until(token: str, accepted: bool) -> None:
        """The file is looked at every two seconds."""
        async with asyncio.timeout(30):
            while ((await send_as_alice(server, tmp_path, token)).status == 0) is not accepted:
                pass

    await until(provider.token("alice"), accepted=True)
    second = new_key("EdDSA", "second")
    provider.publish(provider.key, second)
    await until(provider.token("alice", second, "EdDSA"), accepted=True)
    assert (await send_as_alice(server, tmp_path, provider.token("alice"))).status == 0
    provider.publish(second)
    await until(provider.token("alice"), accepted=False)
    assert (await send_as_alice(server, tmp_path, provider.token("alice", second, "EdDSA"))).status == 0


async def test_prometheus_reads_what_happened(tmp_path: Path) -> None:
    port = free_port()
    async with running_server(tmp_path / "data", {"CHATGRPC_SERVER__METRICS_PORT": str(port)}) as server:
        access = ("--server", server.address, "--token", server.token("alice"), "--data-dir", str(tmp_path / "clients"))
        sent = await run("send", *access, "--as", "alice", "--to", "bob", "hello")
        assert sent.status == 0, sent.stderr
        async with httpx.AsyncClient() as client:
            read = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in read.splitlines() if not line.startswith("#"))
    assert float(values["chatgrpc_events_committed_total"]) == 2, "the chat's creation and its first message"
    assert float(values['chatgrpc_frames_in_total{kind="send"}']) == 1
    assert float(values["chatgrpc_send_seconds_count"]) == 1
