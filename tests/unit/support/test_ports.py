"""Ports for tests: none is given twice, none can be met by a connect to itself, and such a meeting is no listener."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import accepts, free_port, met_itself

ROOT = Path(__file__).parents[3]


def test_ports_are_below_the_ephemeral_ones_and_given_once() -> None:
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert max(ports) < max(first_ephemeral, 32_768)
    for port in ports:
        assert not accepts(port)


def test_a_port_is_given_to_no_other_process_while_this_one_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = free_port()
    script = f"from tests.support import ports; print(ports._reserve({mine}))"
    asked = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "False"


def test_a_connection_that_met_itself_is_no_listener_and_blocks_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()

    def connect_from_the_same_port(address: tuple[str, int], timeout: float) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(address)
        connection.connect(address)
        assert connection.getsockname() == connection.getpeername()
        return connection

    monkeypatch.setattr(socket, "create_connection", connect_from_the_same_port)
    assert not accepts(port)
    with socket.socket() as listener:  # without SO_REUSEADDR: what is left of a connection would be in the way
        listener.bind(("127.0.0.1", port))
        listener.listen()


def test_a_listener_is_one() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", free_port()))) as listener:
        assert accepts(listener.getsockname()[1])
        with socket.create_connection(listener.getsockname()) as connection:
            assert not met_itself(connection)
