"""Clients on other gRPC libraries, against a real server on each edge, with and without TLS.

`go/`, `java/`, `js/` and `python/` hold the same program on grpc-go, grpc-java, @grpc/grpc-js and grpcio's blocking API. It
takes an address and accounts, runs the cases that are named below, and prints what it saw of each as a line of JSON: facts, of
which the tests here say what they must be. The cases follow gRPC's own interoperability tests as far as they make sense for
this API. A case that a library cannot do is left out by name, with the reason.

Statuses and codes of Disconnect are numbers, as they are on the wire.
"""

import asyncio
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from chatgrpc.v1 import session_pb2
from tests.support.certificate import write_certificate
from tests.support.native_edge import needs_native_edge
from tests.support.server import ServerProcess

_HERE = Path(__file__).parent
_TEXT = "Grüße, 世界 👋"
_ACCOUNTS = 120
"""More than the cases use."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the first time the clients are fetched and built
]


@dataclass(frozen=True)
class Client:
    """The program in one language."""

    language: str
    tool: str
    """Command without which it cannot be built."""
    build: tuple[str, ...]
    """Run in its folder."""
    run: tuple[str, ...]

    @functools.cached_property
    def command(self) -> list[str]:
        """Runs it; it is built when this is first asked for."""
        folder = _HERE / self.language
        if self.build:
            built = subprocess.run(self.build, cwd=folder, capture_output=True, text=True, check=False)
            assert built.returncode == 0, built.stdout + built.stderr
        return [part.format(folder=folder) for part in self.run]


_CLIENTS = (
    Client("python", sys.executable, (), (sys.executable, "{folder}/interop.py")),
    Client("go", "go", ("go", "build", "-o", "target/interop", "."), ("{folder}/target/interop",)),
    Client(
        "java",
        "mvn",
        ("mvn", "--quiet", "--batch-mode", "process-classes"),
        (
            *("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"),  # it lives for seconds
            *("-cp", "{folder}/target/classes:{folder}/target/lib/*", "dev.chatgrpc.interop.Interop"),
        ),
    ),
    Client(
        "js",
        "npm",
        ("npm", "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund"),
        ("node", "{folder}/interop.js"),
    ),
)


@dataclass(frozen=True)
class Served:
    """A server, and the certificate that it shows."""

    server: ServerProcess
    ca_file: Path | None


@pytest.fixture(
    scope="module",
    params=[
        "grpcio",
        pytest.param("native", marks=needs_native_edge),
        "grpcio-tls",
        pytest.param("native-tls", marks=needs_native_edge),
    ],
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server on one of the edges, in clear and by TLS."""
    edge, _, tls = request.param.partition("-")
    folder = tmp_path_factory.mktemp(request.param)
    environment, ca_file = {"CHATGRPC_SERVER__EDGE": edge}, None
    if tls:
        ca_file, key_file = write_certificate(folder)
        environment |= {"CHATGRPC_SERVER__TLS_CERT_FILE": str(ca_file), "CHATGRPC_SERVER__TLS_KEY_FILE": str(key_file)}
    server = ServerProcess(folder / "data", environment)
    try:
        asyncio.run(server.start())
        yield Served(server, ca_file)
    finally:
        server.close()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            client,
            id=client.language,
            marks=pytest.mark.skipif(
                shutil.which(client.tool) is None,
                reason=f"NOT TESTED: the {client.language} client; there is no {client.tool} here",
            ),
        )
        for client in _CLIENTS
    ],
)
def seen(request: pytest.FixtureRequest, served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a client saw, by case."""
    client: Client = request.param
    users = [f"{client.language}{number}" for number in range(_ACCOUNTS)]
    accounts = tmp_path_factory.mktemp("accounts") / "accounts"
    accounts.write_text("".join(f"{user} {served.server.token(user)}\n" for user in users))
    # By name, since that is what the certificate is for.
    arguments = [f"localhost:{served.server.port}", str(accounts), *([str(served.ca_file)] if served.ca_file else [])]
    ran = subprocess.run([*client.command, *arguments], capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    return {line.pop("case"): line for line in lines}


def _of(seen: dict[str, Any], case: str) -> dict[str, Any]:
    facts: dict[str, Any] = seen[case]
    if "left_out" in facts:
        pytest.skip(f"NOT TESTED: {facts['left_out']}")
    assert "failed" not in facts, facts["failed"]
    return facts


def _status(code: grpc.StatusCode, reason: str | None = None) -> dict[str, Any]:
    number, _ = code.value
    return {"status": number} if reason is None else {"status": number, "error_reason": reason, "domain": "chatgrpc"}


def test_a_message_is_answered_and_comes_as_an_event(seen: dict[str, Any]) -> None:
    expected = {"is_mine": True, "answers": 2, "sent": 2, "event": 2, "text": _TEXT}
    assert _of(seen, "conversation") == expected


def test_a_hundred_messages_go_to_and_fro(seen: dict[str, Any]) -> None:
    texts = [f"{word} {number}" for number in range(50) for word in ("ping", "pong")]
    assert _of(seen, "ping_pong") == {"texts": [text for text in texts for _ in ("one device", "the other")]}


def test_a_half_closed_stream_is_answered_and_ends_well(seen: dict[str, Any]) -> None:
    ending = {"disconnect": session_pb2.DISCONNECT_CODE_INPUT_ENDED} | _status(grpc.StatusCode.OK)
    assert _of(seen, "half_close") == {"answers": ["welcome", "sent"]} | ending


def test_a_stream_of_nothing_ends_well(seen: dict[str, Any]) -> None:
    ending = {"disconnects": [session_pb2.DISCONNECT_CODE_INPUT_ENDED]} | _status(grpc.StatusCode.OK)
    assert _of(seen, "empty_stream") == ending


def test_a_cancelled_stream_is_forgotten(seen: dict[str, Any]) -> None:
    expected = {"streams": [0, 1, 0], "text": _TEXT} | _status(grpc.StatusCode.CANCELLED)
    assert _of(seen, "cancellation") == expected


def test_a_stream_lasts_until_its_deadline(seen: dict[str, Any]) -> None:
    facts = _of(seen, "deadline")
    assert 0.9 < facts.pop("took_s") < 10
    assert facts == _status(grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize(("case", "reason"), [("without_token", "TOKEN_MISSING"), ("with_bad_token", "TOKEN_SIGNATURE")])
def test_who_has_no_token_learns_why_by_a_frame_and_by_the_status(seen: dict[str, Any], case: str, reason: str) -> None:
    disconnect = {"disconnect": session_pb2.DISCONNECT_CODE_UNAUTHENTICATED, "reason": reason}
    refusal = _status(grpc.StatusCode.UNAUTHENTICATED, reason)
    assert _of(seen, f"stream_{case}") == disconnect | refusal
    assert _of(seen, f"call_{case}") == refusal


@pytest.mark.parametrize("case", ["unknown_method", "unknown_service"])
def test_what_is_not_there_is_unimplemented(seen: dict[str, Any], case: str) -> None:
    assert _of(seen, case) == _status(grpc.StatusCode.UNIMPLEMENTED, "METHOD_UNKNOWN")


def test_the_largest_batch_is_taken_and_a_large_reply_comes_back(seen: dict[str, Any]) -> None:
    facts = _of(seen, "largest_batch")
    assert facts.pop("page_bytes") > 512 * 1024
    assert facts == {"bytes": 1024 * 1024, "sent": 18, "texts": 18}


def test_a_longer_batch_ends_its_stream_and_no_other(seen: dict[str, Any]) -> None:
    assert _of(seen, "longer_batch") == {"neighbour": _TEXT} | _status(grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize("case", ["compressed_stream", "compressed_call"])
def test_compressed_messages_are_understood(seen: dict[str, Any], case: str) -> None:
    assert _of(seen, case) == {"is_right": True}


def test_fifty_streams_share_a_connection(seen: dict[str, Any]) -> None:
    facts = _of(seen, "many_streams")
    assert facts.pop("connections", 1) == 1  # grpc-go counts them
    assert facts == {"streams": 50, "is_right": True, "endings": [0] * 50}


def test_calls_share_the_connection_of_a_stream(seen: dict[str, Any]) -> None:
    expected = {"told": [f"call {number}" for number in range(10)], "listed": list(range(11, 0, -1))}
    assert _of(seen, "calls_beside_a_stream") == expected


def test_health_is_told(seen: dict[str, Any]) -> None:
    assert _of(seen, "health") == {"statuses": [1, 1]} | _status(grpc.StatusCode.NOT_FOUND, "SERVICE_UNKNOWN")


def test_reflection_tells_what_is_served(seen: dict[str, Any]) -> None:
    facts = _of(seen, "reflection")
    assert facts["file"] == "chatgrpc/v1/session.proto"
    assert {"chatgrpc.v1.SessionService", "chatgrpc.v1.MessageService", "grpc.health.v1.Health"} <= set(facts["services"])


def test_metadata_of_the_clients_own_disturbs_nobody(seen: dict[str, Any]) -> None:
    assert _of(seen, "metadata") == {"text": _TEXT}


def test_tls_agrees_on_http2(seen: dict[str, Any]) -> None:
    assert _of(seen, "negotiated_protocol") == {"protocol": "h2"}
