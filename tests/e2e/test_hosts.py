"""`chatgrpc serve --host` with other addresses than the loopback's: what it prints is typed as it stands, and works."""

import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.ports import free_port

TIMEOUT_S = 100.0
_CHATGRPC = str(Path(sys.executable).parent / "chatgrpc")


def _own_address(family: socket.AddressFamily) -> str:
    """An address of this machine that others may dial; empty if it has none."""
    for address in (each for interface in psutil.net_if_addrs().values() for each in interface):
        if address.family == family:
            at = ipaddress.ip_address(address.address.partition("%")[0])
            if not at.is_loopback and not at.is_link_local:
                return str(at)
    return ""


@pytest.mark.parametrize(
    "host",
    [
        pytest.param(_own_address(socket.AF_INET), id="IPv4"),
        pytest.param(_own_address(socket.AF_INET6), id="IPv6"),
        pytest.param("0.0.0.0", id="any"),
    ],
)
def test_two_people_type_the_lines_of_a_server_that_others_reach(host: str, tmp_path: Path) -> None:
    if not host:
        pytest.skip("NOT TESTED: --host with an address that others may dial; this machine has none of this kind")
    environment = {variable: value for variable, value in os.environ.items() if not variable.startswith("CHATGRPC_")}
    environment |= {"XDG_DATA_HOME": str(tmp_path / "home"), "CHATGRPC_SERVER__METRICS_PORT": "0"}
    command = (_CHATGRPC, "serve", "--host", host, "--port", str(free_port()), "--data-dir", str(tmp_path / "its data"))
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (refused.returncode, "or accept it with --allow-dev-auth" in refused.stderr) == (2, True), refused.stderr
    server = subprocess.Popen((*command, "--allow-dev-auth"), env=environment, stdout=subprocess.PIPE, text=True)
    try:
        alice, bob = _lines_to_type(server)
        _type(alice, environment, typed="hello\n/quit\n")
        assert re.search(r"#2 .* alice: hello$", _type(bob, environment), re.MULTILINE)
        token = _type(f"{bob.partition(' chat --as ')[0]} token bob", environment).strip()
        options = bob.partition("--with alice")[2]
        send = f"{_CHATGRPC} send --as bob --to alice 'hello to you' --token {token}{options}"
        assert "sent to alice as #3" in _type(send, environment)
        server.send_signal(signal.SIGTERM)
        assert server.wait(TIMEOUT_S) == 0
    finally:
        server.kill()
        server.communicate()


def _lines_to_type(server: "subprocess.Popen[str]") -> Iterator[str]:
    assert server.stdout is not None
    for line in server.stdout:
        if " chat --as " in line:
            yield line.strip()
            if "--as bob" in line:
                return


def _type(line: str, environment: dict[str, str], typed: str = "") -> str:
    """What a line prints in a shell that, as zsh does, refuses brackets which no file's name fits; it must succeed."""
    shell = ("bash", "-O", "failglob", "-c", line)
    done = subprocess.run(shell, env=environment, input=typed, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout
