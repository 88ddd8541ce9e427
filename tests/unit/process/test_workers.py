"""The supervisor of `chatgrpc serve --workers N`, with real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from chatgrpc.config import ClusterSettings, ServerSettings, Settings
from chatgrpc.process.workers import settings_of_worker
from tests.support.ports import free_port

WAIT_S = 60.0
"""Far above any bound; without one, a test that fails would hang."""


class Supervised:
    """A supervisor in a process of its own, and its workers."""

    def __init__(self, folder: Path, mode: str, **environment: str) -> None:
        self._folder = folder / "workers"
        self._folder.mkdir()
        self._output = folder / "stdout"
        self._errors = folder / "stderr"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CHATGRPC_")}
        settings = {
            "CHATGRPC_CLUSTER__ETCD": "127.0.0.1:1",
            "CHATGRPC_SERVER__PORT": "0",
            "CHATGRPC_SERVER__METRICS_PORT": "0",
            **environment,
        }
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.unit.process.supervised_worker", "supervise", str(self._folder), mode],
                stdout=output,
                stderr=errors,
                env=kept | settings,
                start_new_session=True,
            )

    @property
    def notes(self) -> dict[int, dict[str, Any]]:
        """What each process of a worker wrote, by process id, those that ended too."""
        return {int(file.name): json.loads(file.read_text()) for file in self._folder.iterdir() if not file.suffix}

    @property
    def live(self) -> set[int]:
        """Process ids of workers that run."""
        return {pid for pid in self.notes if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE}

    @property
    def greeting(self) -> str:
        """What stands on standard output."""
        return self._output.read_text()

    @property
    def errors(self) -> str:
        """What stands on standard error."""
        return self._errors.read_text()

    def until(self, holds: Callable[[], object]) -> None:
        """Waits until it is so."""
        give_up_at_s = time.monotonic() + WAIT_S
        while not holds():
            assert time.monotonic() < give_up_at_s, f"not so in time; standard error:\n{self.errors}"
            time.sleep(0.02)

    def until_greeted(self) -> None:
        """Waits until all serve."""
        self.until(lambda: "listens on" in self.greeting)

    def ended(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(WAIT_S)

    def close(self) -> None:
        """Kills what still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.live:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Starts one."""
    supervised: list[Supervised] = []

    def start(mode: str, workers: int = 3, **environment: str) -> Supervised:
        supervised.append(Supervised(tmp_path, mode, CHATGRPC_SERVER__WORKERS=str(workers), **environment))
        return supervised[-1]

    yield start
    for one in supervised:
        one.close()


def test_all_serve_on_one_port_and_one_greeting_tells(started: Callable[..., Supervised]) -> None:
    supervised = started("serves", CHATGRPC_SERVER__PORT="0", CHATGRPC_CLUSTER__RELAY_PORT="7000", CHATGRPC_CLUSTER__NAME="n")
    supervised.until_greeted()
    notes = supervised.notes.values()
    (port,) = {note["server"]["port"] for note in notes}
    assert supervised.greeting.count("listens on") == 1
    assert f"127.0.0.1:{port} with 3 workers" in supervised.greeting
    assert sorted(note["cluster"]["relay_port"] for note in notes) == [7000, 7001, 7002]
    assert {(note["cluster"]["name"], note["server"]["workers"]) for note in notes} == {("n", 1)}
    socket.create_connection(("127.0.0.1", port)).close()
    assert "worker_late" not in supervised.errors


def test_told_to_stop_it_ends_when_all_have_drained(started: Callable[..., Supervised]) -> None:
    supervised = started("serves")
    supervised.until_greeted()
    # As Ctrl-C in a terminal does: every process of the group gets it.
    os.killpg(supervised.process.pid, signal.SIGINT)
    assert supervised.ended() == 0
    assert supervised.live == set()
    assert [note["signals"] for note in supervised.notes.values()] == [[signal.SIGTERM]] * 3, (
        "told twice, a node does not drain"
    )
    assert "Ctrl-C again ends it at once" in supervised.greeting


def test_told_twice_it_ends_at_once(started: Callable[..., Supervised]) -> None:
    supervised = started("stubborn")
    supervised.until_greeted()
    supervised.process.terminate()
    supervised.until(lambda: all(note["signals"] for note in supervised.notes.values()))
    assert supervised.process.poll() is None
    supervised.process.terminate()
    assert supervised.ended() == 130
    assert supervised.live == set()


def test_a_worker_that_crashed_is_replaced_and_the_others_stay(started: Callable[..., Supervised]) -> None:
    supervised = started("serves")
    supervised.until_greeted()
    first = supervised.live
    killed = min(first)
    for round_ in (1, 2):
        os.kill(killed, signal.SIGKILL)
        supervised.until(lambda: killed not in supervised.live and len(supervised.live) == 3)  # noqa: B023  called at once
        (new,) = supervised.live - first
        assert len(supervised.notes) == 3 + round_
        assert supervised.notes[new]["server"] in [supervised.notes[pid]["server"] for pid in first]
        killed = new
    assert first - {min(first)} <= supervised.live
    assert '"status": -9' in supervised.errors
    assert supervised.greeting.count("listens on") == 1


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("refuses", "StartError: no etcd here;\nstart one\n"),
        ("crashes", "ended with status 7 before it served, 3 times in a row"),
        ("hangs", "did not serve within 2 s; its log says what it waits for"),
    ],
)
def test_workers_that_cannot_start_end_it_with_their_reason(started: Callable[..., Supervised], mode: str, words: str) -> None:
    supervised = started(mode, workers=2)
    assert supervised.ended() == 2
    assert supervised.live == set()
    assert words in supervised.errors
    assert "listens on" not in supervised.greeting


def test_a_worker_that_is_late_is_told_of_again_and_again(started: Callable[..., Supervised]) -> None:
    supervised = started("hangs", workers=1)
    supervised.until(lambda: supervised.errors.count('"worker_late"') > 1)
    supervised.process.terminate()
    supervised.until(lambda: supervised.live == set())
    late = [json.loads(line) for line in supervised.errors.splitlines() if "worker_late" in line]
    assert {said["worker"] for said in late} == {0}
    assert late[0]["waited_s"] <= late[1]["waited_s"]


def test_workers_drain_when_the_supervisor_is_gone(started: Callable[..., Supervised]) -> None:
    supervised = started("serves")
    supervised.until_greeted()
    supervised.process.kill()
    supervised.until(lambda: not supervised.live)
    assert [note["signals"] for note in supervised.notes.values()] == [[signal.SIGTERM]] * 3


def test_a_port_that_another_program_has_is_not_shared(started: Callable[..., Supervised]) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        supervised = started("serves", CHATGRPC_SERVER__PORT=str(port))
        assert supervised.ended() == 2
    assert f"127.0.0.1 port {port} is in use" in supervised.errors
    assert supervised.notes == {}


def test_a_port_that_is_shared_on_purpose_is(started: Callable[..., Supervised]) -> None:
    port = str(free_port())
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", int(port)))
        other.listen()
        supervised = started("serves", workers=2, CHATGRPC_SERVER__PORT=port, CHATGRPC_SERVER__REUSE_PORT="true")
        supervised.until_greeted()


def test_each_worker_has_ports_of_its_own() -> None:
    cluster = ClusterSettings(etcd="e:1", relay_port=7000, relay_advertise="[fd00::7]:8000", advertise="chat.example:443")
    settings = Settings(server=ServerSettings(workers=3, metrics_port=9000), cluster=cluster)
    second = settings_of_worker(settings, 2, 15_551)
    assert (second.server.port, second.server.metrics_port, second.server.workers) == (15_551, 9002, 1)
    assert second.server.reuse_port
    assert (second.cluster.relay_port, second.cluster.relay_advertise) == (7002, "[fd00::7]:8002")
    assert second.cluster.advertise == "chat.example:443"
    plain = Settings(server=ServerSettings(workers=3, metrics_port=0), cluster=ClusterSettings(etcd="e:1"))
    second = settings_of_worker(plain, 2, 15_551)
    assert (second.server.metrics_port, second.cluster.relay_port, second.cluster.relay_advertise) == (0, 0, None)
