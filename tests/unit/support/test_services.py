"""Services end with whoever started them, however that one ends."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.ports import accepts
from tests.support.services import CassandraCluster, RedisServer, ServiceError
from tests.support.services.folder import FOLDER, fetched
from tests.support.services.process import ServiceProcess, end_orphans
from tests.support.services.redis import fetch

ROOT = FOLDER.parents[1]


def test_ctrl_c_ends_what_was_started() -> None:
    with _starter_of_redis() as (starter, server):
        starter.send_signal(signal.SIGINT)
        assert starter.wait(timeout=30) == 0
        assert not server.is_running()
        assert not (FOLDER / "run" / str(starter.pid)).exists()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="NOT TESTED: the kernel's help; there is no `setpriv` here")
def test_the_kernel_ends_what_a_killed_starter_started() -> None:
    with _starter_of_redis() as (starter, server):
        starter.kill()
        starter.wait()
        psutil.wait_procs([server], timeout=30)
        assert not _runs(server)


def test_without_the_kernels_help_the_next_start_ends_it(tmp_path: Path) -> None:
    with _starter_of_redis({"PATH": _path_without("setpriv", tmp_path)}) as (starter, server):
        starter.kill()
        starter.wait()
        assert _runs(server)
        end_orphans()
        assert not _runs(server)
        assert not (FOLDER / "run" / str(starter.pid)).exists()


def test_a_path_without_a_program_has_what_else_lies_beside_it(tmp_path: Path) -> None:
    """Where redis-server is installed for all, it lies in the folder that holds `setpriv` too."""
    both = tmp_path / "bin"
    both.mkdir()
    for name in ("setpriv", "redis-server"):
        (both / name).write_text("#!/bin/sh\n")
        (both / name).chmod(0o755)
    path = _path_without("setpriv", tmp_path / "shadows", str(both))
    assert shutil.which("setpriv", path=path) is None
    assert shutil.which("redis-server", path=path) is not None


def test_what_others_run_is_left_alone(own_redis: RedisServer) -> None:
    end_orphans()
    assert accepts(own_redis.port)


@pytest.mark.long
def test_cassandras_of_one_cluster_start_at_once_and_come_back_after_a_crash() -> None:
    cluster = CassandraCluster(nodes=3, name="cassandra-tried")
    try:
        cluster.start()
        for node in cluster.nodes:
            assert accepts(node.port, node.host)
        cluster.nodes[1].kill()
        assert not accepts(cluster.nodes[1].port, cluster.nodes[1].host)
        cluster.nodes[1].start()
        assert accepts(cluster.nodes[1].port, cluster.nodes[1].host)
    finally:
        cluster.close()


def test_a_service_that_cannot_start_says_why() -> None:
    process = ServiceProcess("broken", lambda _data: (sys.executable, "-c", "raise SystemExit('no disk')"), {})
    try:
        process.launch()
        with pytest.raises(ServiceError, match="no disk"):
            process.wait_until(lambda: False, 30)
    finally:
        process.close()


def test_a_service_that_never_answers_is_given_up() -> None:
    process = ServiceProcess("mute", lambda _data: (sys.executable, "-c", "import time; time.sleep(100)"), {})
    try:
        process.launch()
        with pytest.raises(ServiceError, match=r"did not answer within 0\.1 s"):
            process.wait_until(lambda: False, 0.1)
    finally:
        process.close()
    assert not process.running


def test_a_fetch_that_fails_leaves_nothing_that_looks_whole() -> None:
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise ServiceError("the line is dead")

    def succeeds(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "whole").touch()

    name = f"tried-{os.getpid()}"
    with pytest.raises(ServiceError, match="the line is dead"):
        fetched(name, fails)
    try:
        assert (fetched(name, succeeds) / "whole").exists()
        assert (fetched(name, fails) / "whole").exists()
    finally:
        shutil.rmtree(FOLDER / name)


@contextlib.contextmanager
def _starter_of_redis(environment: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Somebody who started a Redis, and that Redis; of both nothing is left, however the test ends."""
    fetch()
    starter = subprocess.Popen(
        (sys.executable, "-m", "tests.support.services", "run", "redis"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )
    try:
        assert starter.stdout is not None
        with starter.stdout as printed:
            name, url = printed.readline().split()
        assert (name, url.partition(":")[0]) == ("redis", "redis")
        (server,) = psutil.Process(starter.pid).children()
        yield starter, server
    finally:
        starter.kill()
        starter.wait()
        end_orphans()


def _path_without(program: str, shadows: Path, path: str = os.environ["PATH"]) -> str:
    """A search path on which everything is but one program: links to all else, in the place of each folder that holds it."""
    folders = []
    for number, folder in enumerate(map(Path, path.split(":"))):
        if (folder / program).exists():
            shadow = shadows / str(number)
            shadow.mkdir(parents=True)
            for entry in folder.iterdir():
                if entry.name != program:
                    (shadow / entry.name).symlink_to(entry)
            folder = shadow  # noqa: PLW2901
        folders.append(str(folder))
    return ":".join(folders)


def _runs(process: psutil.Process) -> bool:
    """Whether it runs: an orphan that has ended stays in the list until somebody else takes note."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
