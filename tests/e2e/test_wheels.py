"""Each of the three distributions, from its wheel in an empty environment, brings all it needs, nothing more, and works."""

import contextlib
import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatgrpc import compiled
from tests.support.ports import free_port

_ROOT = Path(__file__).parents[2]
_UV = _ROOT / ".tools" / "bin" / "uv"
_CLUSTER_DRIVERS = {"cassandra-driver", "redis", "hiredis"}
_START_TIMEOUT_S = 60.0
_API = "dist/chatgrpc_api-*.whl"
_SERVER, _NODE, _CLIENT = (
    line.split("pip install ")[1].split("  #")[0].strip()
    for line in (_ROOT / "docs" / "operations.md").read_text().splitlines()
    if "pip install " in line and "dist/" in line
)
"""What the documentation installs: of files, since any index may hold something of our names."""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three wheels."""
    folder = tmp_path_factory.mktemp("wheels")
    _run(_ROOT / "scripts" / "wheels", folder)
    return folder


@pytest.fixture(scope="module")
def client(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> "Environment":
    """The client alone."""
    return Environment(tmp_path_factory.mktemp("client"), wheels, _CLIENT)


_OF_THE_CHECKOUT = ("CHATGRPC_", "PYTHON", "VIRTUAL_ENV", compiled.SWITCH)
"""Names of variables that must not reach an environment of its own begin so."""


class Environment:
    """An environment of its own, with what was asked for."""

    def __init__(self, folder: Path, wheels: Path, requirements: str) -> None:
        """`requirements`: as a shell takes them, where the wheels lie in `dist`."""
        python = _ROOT / ".venv" / "bin" / "python"
        self._home = folder / "home"
        self._home.mkdir(parents=True)
        _run(_UV, "venv", "--quiet", "--clear", "--python", python, folder / "env")
        self._bin = folder / "env" / "bin"
        # The versions of the lock file, so that a release of somebody else's fails no test of ours.
        pinned = folder / "pinned.txt"
        pinned.write_text(
            "\n".join(line for line in (_ROOT / "requirements.lock").read_text().splitlines() if "==" in line).replace(
                " \\", ""
            )
        )
        (folder / "dist").symlink_to(wheels)
        install = f'"$0" pip install --quiet --python "$1" --constraint "$2" {requirements}'
        _run("/bin/sh", "-c", install, _UV, self._bin / "python", pinned, cwd=folder)

    def installed(self) -> set[str]:
        """Names of the distributions in it."""
        listed = _run(_UV, "pip", "list", "--python", self._bin / "python", "--format", "freeze")
        return {line.partition("==")[0] for line in listed.splitlines()}

    def run(self, *command: str, status: int = 0) -> str:
        """What the command says, on both outputs."""
        program, *arguments = command
        return _run(self._bin / program, *arguments, status=status, environment=self._environment(), cwd=self._home)

    def python(self, code: str) -> str:
        """What the code prints."""
        return self.run("python", "-W", "error", "-c", code)

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """A server for the length of the block; gives its address."""
        address = f"127.0.0.1:{free_port()}"
        process = subprocess.Popen(
            [self._bin / "chatgrpc", "serve", "--port", address.partition(":")[2], "--metrics-port", "0"],
            cwd=self._home,
            env=self._environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith(f"chatgrpc listens on {address}"), first
            yield address
        finally:
            process.terminate()
            said = process.communicate(timeout=_START_TIMEOUT_S)[0]
            assert process.returncode == 0, said

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_CHECKOUT)}
        return {**kept, "HOME": str(self._home), "XDG_DATA_HOME": str(self._home / "share"), "NO_COLOR": "1"}


def _run(*command: Path | str, status: int = 0, environment: dict[str, str] | None = None, cwd: Path = _ROOT) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd, timeout=240)
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + (done.stderr if command[0] != _UV else "")


_IMPORT_ALL = """
import importlib, pkgutil
import {package} as package
found = [module.name for module in pkgutil.walk_packages(package.__path__, "{package}.")]
for name in found:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(found))
"""


def test_the_api_is_stubs_ids_and_the_fold_and_needs_grpc_only(wheels: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheels, _API)
    assert environment.installed() == {"chatgrpc-api", "grpcio", "protobuf", "typing-extensions"}
    assert int(environment.python(_IMPORT_ALL.format(package="chatgrpc"))) > 10
    code = """
from chatgrpc.core.fold import apply_event
from chatgrpc.core.ids import direct_chat_id
from chatgrpc.v1 import chat_pb2, session_pb2_grpc
assert direct_chat_id("alice", "bob") == direct_chat_id("bob", "alice")
print(session_pb2_grpc.SessionServiceStub.__name__)
"""
    assert environment.python(code) == "SessionServiceStub\n"


def test_the_client_brings_nothing_of_the_server(client: Environment) -> None:
    assert "chatgrpc" not in client.installed()
    assert not client.installed() & {*_CLUSTER_DRIVERS, "structlog", "prometheus-client", "uvloop", "joserfc"}
    assert int(client.python(_IMPORT_ALL.format(package="chatgrpc_client"))) > 20
    assert "tail" in client.run("chatgrpc-client", "--help")
    refused = client.run("chatgrpc-client", "send", "--as", "alice", "--to", "bob", "hello", status=2)
    assert "no token" in refused
    assert "Traceback" not in refused


def test_the_server_alone_needs_no_drivers_and_serves_a_client_from_its_own_environment(
    wheels: Path, client: Environment, tmp_path: Path
) -> None:
    server = Environment(tmp_path / "server", wheels, _SERVER)
    assert not server.installed() & {*_CLUSTER_DRIVERS, "chatgrpc-client"}
    assert "chatgrpc chat" not in server.run("chatgrpc", "--help")
    clustered = server.run("chatgrpc", "serve", "--cluster-etcd", "127.0.0.1:1", "--metrics-port", "0", status=2)
    assert "extra `cluster`" in clustered
    with server.serving() as address:
        token = {user: server.run("chatgrpc", "token", user).strip() for user in ("alice", "bob")}
        client.run(
            "chatgrpc-client", "send", "--as", "alice", "--to", "bob", "--server", address, "--token", token["alice"], "hello"
        )
        history = client.run(
            *("chatgrpc-client", "history", "--as", "bob", "--with", "alice", "--server", address, "--token", token["bob"])
        )
    assert "hello" in history


def test_all_together_are_one_command_and_the_extra_brings_the_drivers(wheels: Path, tmp_path: Path) -> None:
    both = Environment(tmp_path, wheels, f"{_NODE} {_CLIENT}")
    assert both.installed() >= {*_CLUSTER_DRIVERS, "chatgrpc", "chatgrpc-client", "chatgrpc-api"}
    assert "chatgrpc chat" in both.run("chatgrpc", "--help")
    assert int(both.python(_IMPORT_ALL.format(package="chatgrpc"))) > 100


def test_the_three_have_one_version() -> None:
    """They share packages' folders, so a mixture of versions would be a program that nobody tried."""
    projects = {
        path: tomllib.loads((_ROOT / path / "pyproject.toml").read_text())["project"] for path in ("api", "clients/python", ".")
    }
    (released,) = {project["version"] for project in projects.values()}
    for path in ("clients/python", "."):
        assert f"chatgrpc-api=={released}" in projects[path]["dependencies"]
