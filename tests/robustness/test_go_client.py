"""Another language can talk to us: the Go client of `benchmarks/loadgen` against the real server, on stubs of the same protos.

On a cluster the two of a pair, and the members of a group, are at different nodes. The client checks every frame itself (one
order, no hole, nothing twice, no stranger's event) and fails on the first that is wrong; `benchmarks/loadgen/standin_test.go`
breaks each of these promises and shows that the client finds it.
"""

import asyncio
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.processes import echo_server
from tests.support.cluster import RunningCluster
from tests.support.native_edge import needs_native_edge
from tests.support.server import ServerProcess, running_server

Served = ServerProcess | RunningCluster

LOADGEN = Path(__file__).parents[2] / "benchmarks" / "loadgen"

pytestmark = pytest.mark.skipif(shutil.which("go") is None, reason="NOT TESTED: the Go client; there is no `go` here")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go client, built."""
    binary = tmp_path_factory.mktemp("go") / "loadgen"
    subprocess.run(("go", "build", "-o", str(binary), "."), cwd=LOADGEN, check=True)
    return binary


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with running_server(tmp_path / "data") as running:
        yield running


@pytest.fixture(params=["server", "shared_cluster"])
def served(request: pytest.FixtureRequest) -> Served:
    """A server, and a cluster that other tests use too."""
    place: Served = request.getfixturevalue(request.param)
    return place


async def test_two_by_two_they_chat(client: Path, served: Served, tmp_path: Path) -> None:
    flags = ("--streams", "10", "--window", "4", "--messages", "100")
    seen = await _load(client, served, tmp_path, "pairs", *flags, accounts=10)
    # The first message of a pair makes their chat, before anything is counted.
    assert seen["count"] == 5 * 99


async def test_groups_made_by_a_unary_call_deliver_to_every_member(client: Path, served: Served, tmp_path: Path) -> None:
    flags = ("--groups", "2", "--streams", "20", "--window", "4", "--messages", "50")
    seen = await _load(client, served, tmp_path, "fanout", *flags, accounts=20)
    assert seen["count"] == 2 * 9 * 49


async def test_a_device_that_was_away_gets_all_it_missed(client: Path, served: Served, tmp_path: Path) -> None:
    flags = ("--messages", "2500", "--devices", "2")
    seen = await _load(client, served, tmp_path, "replay", *flags, accounts=2)
    assert seen["count"] == 2 * 2500


@pytest.mark.parametrize(
    "edge",
    [
        "grpcio",
        pytest.param("native", marks=needs_native_edge),
    ],
)
async def test_the_echo_beside_which_servers_are_measured_echoes(client: Path, tmp_path: Path, edge: str) -> None:
    with echo_server(None, edge) as echo:
        flags = ("--targets", ",".join(echo.targets), "--streams", "10", "--window", "4", "--messages", "200")
        seen = json.loads(await _run(tmp_path, str(client), "echo", *flags))
    # The first message of a stream shows that it echoes, before anything is counted.
    assert seen["count"] == 10 * 199


async def test_a_forged_token_is_refused_with_a_reason(client: Path, server: ServerProcess, tmp_path: Path) -> None:
    header, claims, signature = server.token("alice").split(".")
    forged = ".".join((header, claims, signature[::-1]))
    (tmp_path / "tokens").write_text(f"alice {forged}\nbob {server.token('bob')}\n")
    flags = ("--targets", server.address, "--tokens", str(tmp_path / "tokens"), "--streams", "2", "--messages", "3")
    with pytest.raises(AssertionError, match="DISCONNECT_CODE_UNAUTHENTICATED"):
        await _run(tmp_path, str(client), "pairs", *flags)


async def test_the_clients_own_tests_pass() -> None:
    await _run(LOADGEN, "go", "vet", "./...")
    await _run(LOADGEN, "go", "test", "./...")


async def _load(client: Path, served: Served, folder: Path, mode: str, *flags: str, accounts: int) -> dict[str, float]:
    name = secrets.token_hex(4)
    users = [f"{name}-{number}" for number in range(accounts)]
    tokens = folder / "tokens"
    tokens.write_text("".join(f"{user} {served.token(user)}\n" for user in users))
    output = await _run(folder, str(client), mode, "--targets", ",".join(served.addresses), "--tokens", str(tokens), *flags)
    result: dict[str, float] = json.loads(output)
    return result


async def _run(folder: Path, *command: str) -> str:
    """Runs a command to its end; its failure fails the test and shows what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=os.environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, f"{' '.join(command)}\n{output.decode()}\n{errors.decode()}"
    return output.decode()
