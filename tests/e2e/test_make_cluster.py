"""`make cluster`, as a person uses it: two people chat through two nodes, and go on after all of it was stopped and started.

Where a node cannot start, it says so and ends.
"""

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.support.ports import free_port
from tests.support.services.folder import FOLDER

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 150.0
END_TIMEOUT_S = 90.0
"""For all that runs to stop, on a machine that is busy; less than the time in which a node must start."""
_CHATGRPC = str(Path(sys.executable).parent / "chatgrpc")

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="NOT TESTED: make cluster; there is no `java` here"),
]


class Started:
    """A cluster that somebody started, and what it printed."""

    def __init__(self, folder: Path, command: Sequence[str] = (str(ROOT / "scripts" / "cluster"),)) -> None:
        command = (*command, "--folder", str(folder))
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.printed = ""

    def until(self, text: str) -> None:
        """Reads on until it has printed this."""
        assert self.process.stdout is not None
        give_up_at_s = time.monotonic() + START_TIMEOUT_S
        while text not in self.printed:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, give_up_at_s - time.monotonic()))
            assert ready, f"it has not printed {text!r}:\n{self.printed}"
            read = os.read(self.process.stdout.fileno(), 65_536)
            assert read, f"it ended before it printed {text!r}:\n{self.printed}"
            self.printed += read.decode()

    def stop(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.until("stopped; what was said is kept")
        assert self.process.wait(timeout=60) == 0


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Started]:
    """A cluster that has printed what to type next."""
    cluster = Started(folder)
    try:
        cluster.until("What they log:")
        yield cluster
        cluster.stop()
    finally:
        cluster.process.kill()
        cluster.process.communicate()


def test_two_people_chat_through_two_nodes_and_go_on_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    with started(folder) as cluster:
        alice, bob = _servers(cluster)
        assert alice != bob
        _run(folder, "send", "--as", "alice", "--to", "bob", "--server", alice, "hello from one node")
        _run(folder, "send", "--as", "bob", "--to", "alice", "--server", bob, "hello from the other")
        assert _history(folder, "alice", "bob", bob) == ["hello from one node", "hello from the other"]
        (status,) = re.findall(r"chatgrpc (cluster status .*)", cluster.printed)
        assert "1024" in _run(folder, *status.split(" "))
    with started(folder) as cluster:
        alice, bob = _servers(cluster)
        _run(folder, "send", "--as", "bob", "--to", "alice", "--server", bob, "hello again")
        expected = ["hello from one node", "hello from the other", "hello again"]
        assert _history(folder, "alice", "bob", alice) == expected


def test_a_node_that_cannot_start_is_named_with_the_reason_and_nothing_is_left_behind(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[1]))  # and does not listen yet: whoever looks at the port finds nobody
        cluster = Started(tmp_path / "cluster", (sys.executable, "-c", _ON_PORTS, ",".join(map(str, ports))))
        try:
            cluster.until("starting three nodes")
            assert _processes_of(cluster), "it runs services by now"
            cluster.until("chatgrpc-node-2 ended as it started; its log ends with:\n")
            cluster.until(f"127.0.0.1 port {ports[1]} is in use")
            assert cluster.process.wait(END_TIMEOUT_S) == 1
            assert _processes_of(cluster) == []
        finally:
            cluster.process.kill()
            cluster.process.communicate()
    assert "runs as a cluster" not in cluster.printed


_ON_PORTS = """
import sys
from scripts import cluster_of_three

cluster_of_three.PORTS = tuple(map(int, sys.argv.pop(1).split(",")))
sys.exit(cluster_of_three.main())
"""
"""`scripts/cluster` on other ports than its own, which somebody may use."""


def _processes_of(cluster: Started) -> list[psutil.Process]:
    """The services and nodes that it runs: each works in a folder of its own, which may be gone by now."""
    folder = f"{FOLDER / 'run' / str(cluster.process.pid)}/"
    return [process for process in psutil.process_iter(["cwd"]) if (process.info["cwd"] or "").startswith(folder)]


def _servers(cluster: Started) -> list[str]:
    """The nodes of the two lines that are to be typed."""
    return re.findall(r"chatgrpc chat --as \w+ --with \w+ --server (\S+)", cluster.printed)


def _history(folder: Path, user: str, other: str, server: str) -> list[str]:
    printed = _run(folder, "history", "--as", user, "--with", other, "--server", server)
    return re.findall(r"hello \w+(?: \w+)*", printed)


def _run(folder: Path, *command: str) -> str:
    """What a command prints; it must succeed."""
    environment = os.environ | {"CHATGRPC_DATA_DIR": str(folder), "XDG_DATA_HOME": str(folder / "devices")}
    done = subprocess.run(
        (_CHATGRPC, *command), cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
