"""The processes of a benchmark: the server under test, the echo server, and the load generator, pinned apart."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol, Self

from chatgrpc import compiled
from chatgrpc.adapters.jwt.dev_keys import DevIssuer
from tests.support.ports import accepts, free_port

ROOT = Path(__file__).resolve().parent.parent
LOADGEN_DIR = ROOT / "benchmarks" / "loadgen"
_START_TIMEOUT_S = 30
_STOP_TIMEOUT_S = 10
_TOKEN_TTL_S = 86_400


class BenchError(Exception):
    """The benchmark cannot run, or something that it checks is wrong. The message says what."""


@dataclass(frozen=True, slots=True)
class Cpus:
    """What runs on which CPU; None = wherever the system puts it."""

    server: int | None
    """The servers, all of them: the nodes of a cluster too, so that they have as much as one server has."""
    loadgen: int | None
    """The load generator, and the services that a cluster uses."""

    @classmethod
    def choose(cls) -> Self:
        """The first two CPUs that this process may use; neither if there is only one."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[1]) if len(usable) > 1 else cls(None, None)


def forget_settings() -> None:
    """Takes the settings of chatgrpc out of the environment: what is measured runs on the defaults."""
    for name in [name for name in os.environ if name.startswith("CHATGRPC_")]:
        del os.environ[name]


class Loaded(Protocol):
    """What the load generator loads: one server, or the nodes of a cluster."""

    @property
    def targets(self) -> Sequence[str]:
        """What devices dial."""

    @property
    def pids(self) -> Sequence[int]:
        """Processes whose CPU and memory are measured."""

    @property
    def service_pids(self) -> Mapping[str, Sequence[int]]:
        """By name, the processes that they in turn use, whose CPU is told beside it."""

    def log_tail(self) -> str:
        """The last lines that they wrote."""

    def check_alive(self) -> None:
        """Raises:
        BenchError: one has ended by itself.
        """


class Server:
    """A server process on a free port of the loopback address, pinned to its CPU. A context manager: leaving it stops it."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.name = name
        self.targets = [f"127.0.0.1:{port}"]
        self.pids = [process.pid]
        self.service_pids: Mapping[str, Sequence[int]] = {}
        self._process = process
        self._port = port
        self._log = log

    @classmethod
    def start(cls, name: str, command: Sequence[str], port: int, log: Path, env: dict[str, str], cpu: int | None) -> Self:
        """Starts it and waits until it listens.

        Raises:
            BenchError: it ended, or does not listen in time; with the end of what it wrote to its log.
        """
        with pinned(cpu), log.open("wb") as output:
            process = subprocess.Popen(command, cwd=log.parent, env=env, stdout=output, stderr=output)
        server = cls(name, process, port, log)
        give_up = time.monotonic() + _START_TIMEOUT_S
        while not accepts(port):
            if process.poll() is not None or time.monotonic() > give_up:
                server.__exit__()
                raise BenchError(f"{name} does not listen on port {port}:\n{server.log_tail()}")
            time.sleep(0.05)
        return server

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def check_alive(self) -> None:
        """Raises:
        BenchError: it has ended by itself.
        """
        if self._process.poll() is not None:
            raise BenchError(f"{self.name} ended with code {self._process.returncode}:\n{self.log_tail()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def echo_server(cpu: int | None, edge: str) -> Iterator[Server]:
    """The echo server on this edge, new."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.echo_server", "--port", str(port), "--edge", edge]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with (
        tempfile.TemporaryDirectory(prefix="chatgrpc-echo-") as folder,
        Server.start(f"the echo server ({edge})", command, port, Path(folder, "log"), env, cpu) as server,
    ):
        yield server


def code_that_runs() -> str:
    """What a server here consists of: `compiled`, as far as ADR 16 has it, or `sources`."""
    return "compiled" if compiled.is_to_run() else "sources"


@contextmanager
def chat_server(parent: Path, cpu: int | None, edge: str) -> Iterator[tuple[Server, Path]]:
    """`chatgrpc serve` on this edge and otherwise its defaults, with an empty data folder below `parent`; yields both."""
    port = free_port()
    parent.mkdir(parents=True, exist_ok=True)
    env = os.environ | {
        "CHATGRPC_SERVER__PORT": str(port),
        "CHATGRPC_SERVER__EDGE": edge,
        "CHATGRPC_SERVER__METRICS_PORT": "0",
        "CHATGRPC_LOG__LEVEL": "warning",
        "CHATGRPC_LOG__FORMAT": "json",
    }
    command = [str(Path(sys.executable).with_name("chatgrpc")), "serve"]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as folder:
        data_dir = Path(folder, "data")
        env["CHATGRPC_DATA_DIR"] = str(data_dir)
        with Server.start("chatgrpc serve", command, port, Path(folder, "log"), env, cpu) as server:
            yield server, data_dir


class Loadgen:
    """The load generator, built from `benchmarks/loadgen`."""

    def __init__(self, cpu: int | None) -> None:
        """Builds it.

        Raises:
            BenchError: there is no Go, or it does not build.
        """
        go = shutil.which("go")
        if go is None:
            raise BenchError(
                "the load generator is written in Go, and there is no `go` here: "
                "install Go 1.26 or newer (https://go.dev/doc/install)"
            )
        built = subprocess.run(
            [go, "build", "-o", "loadgen", "."], cwd=LOADGEN_DIR, capture_output=True, text=True, check=False
        )
        if built.returncode != 0:
            raise BenchError(f"the load generator does not build:\n{built.stderr}")
        self._cpu = cpu

    def run(self, mode: str, server: Loaded, *flags: str, accounts: int = 0, data_dir: Path | None = None) -> dict[str, float]:
        """Runs one mode against a server and returns what it printed, with the CPU of a service as `<name>_cpu_s`.

        Args:
            mode: as `loadgen` names it.
            server: what it loads.
            flags: further flags.
            accounts: how many users it needs.
            data_dir: of the server; needed if there are accounts.

        Raises:
            BenchError: something that it checks is wrong.
        """
        command = [str(LOADGEN_DIR / "loadgen"), mode, "--targets", ",".join(server.targets)]
        command += ["--server-pids", ",".join(map(str, server.pids)), *flags]
        if services := [f"{name}={pid}" for name, pids in server.service_pids.items() for pid in pids]:
            command += ["--service-pids", ",".join(services)]
        with tempfile.TemporaryDirectory(prefix="chatgrpc-tokens-") as folder:
            if data_dir is not None:
                tokens = Path(folder, "tokens")
                _write_tokens(tokens, data_dir, accounts)
                command += ["--tokens", str(tokens)]
            with pinned(self._cpu):
                # Less collecting of garbage: the generator is not what is measured.
                process = subprocess.Popen(
                    command, env=os.environ | {"GOGC": "400"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            output, errors = process.communicate()
        server.check_alive()
        if process.returncode != 0:
            log = server.log_tail()
            raise BenchError(errors.strip() + (f"\nThe server's log ends so:\n{log}" if log else ""))
        result = json.loads(output)
        of_services: dict[str, float] = result.pop("services_cpu_s", {})
        return {**result, **{f"{name}_cpu_s": used_s for name, used_s in of_services.items()}}


@dataclass(frozen=True, slots=True)
class FsyncTimes:
    """What a durable write costs at least."""

    median_ms: float
    worst_ms: float


def fsync_times(folder: Path) -> FsyncTimes:
    """Appends 4 KiB to a file in the folder and flushes it to the disk, a hundred times."""
    folder.mkdir(parents=True, exist_ok=True)
    times_ms = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(100):
            start_s = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            times_ms.append((time.perf_counter() - start_s) * 1000)
    return FsyncTimes(median(times_ms), max(times_ms))


def _write_tokens(path: Path, data_dir: Path, accounts: int) -> None:
    issuer = DevIssuer.open(data_dir)
    now_ms = time.time_ns() // 1_000_000
    users = [f"bench-{number}" for number in range(accounts)]
    path.write_text("".join(f"{user} {issuer.mint(user, _TOKEN_TTL_S, now_ms)}\n" for user in users))


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """A process started meanwhile runs on this CPU only; it inherits that from the start, so a Go runtime sees one CPU."""
    if cpu is None:
        yield
        return
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)
