"""Several nodes on one port, as processes of one command (`chatgrpc serve --workers N`).

An asyncio gRPC server has one event loop and so one core; each worker is a node of its own, and the kernel spreads connections
over them (SO_REUSEPORT). The supervisor starts them, restarts one that crashed, and ends with them. It holds no chat and no
stream, so its own death loses nothing: the workers leave in order when it has gone (`supervisor_line.py`).
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

import structlog

from chatgrpc import background
from chatgrpc.addresses import join_address, split_address
from chatgrpc.config import ENV_PREFIX, Settings, environment_of
from chatgrpc.core.backoff import Backoff
from chatgrpc.process.greeting import farewell, greet
from chatgrpc.process.supervisor_line import FD_ENV, Said
from chatgrpc.start_error import StartError

_log = structlog.get_logger()

COMMAND: Final = (sys.executable, "-m", "chatgrpc.cli.main", "serve")
"""A worker is this, with all its settings in the environment."""

RESTART_DELAY_MIN_S: Final = 0.5
RESTART_DELAY_MAX_S: Final = 10.0
STARTS_MAX: Final = 3
"""A worker that has never served is started so often; one that has is restarted for ever."""
START_LATE_S: Final = 30.0
"""A worker that does not serve after this is told of, again and again; it serves in seconds where its services answer."""
START_TIMEOUT_S: Final = 600.0
"""One that does not serve after this is killed, and so started anew: it hangs, since what it waits for has shorter bounds."""


def run(settings: Settings) -> int:
    """Serves with `settings.server.workers` workers until SIGTERM or SIGINT, then lets them drain; a second signal kills them.

    Returns:
        The exit status: 0 if all workers ended in order.

    Raises:
        StartError: the port cannot be had, or a worker cannot start; the message says what to do.
    """
    return asyncio.run(Supervisor(settings, COMMAND).run())


class Supervisor:
    """Keeps the workers running."""

    def __init__(
        self,
        settings: Settings,
        command: Sequence[str],
        *,
        start_late_s: float = START_LATE_S,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._settings = settings
        self._command = command
        self._start_late_s = start_late_s
        self._start_timeout_s = start_timeout_s
        self._workers: list[_Worker] = []
        self._stopping = asyncio.Event()
        self._killed = False
        self._failure: StartError | None = None

    async def run(self) -> int:
        """See `run` of the module."""
        loop = asyncio.get_running_loop()
        with _held_port(self._settings) as holder:
            port = holder.getsockname()[1]
            numbers = range(self._settings.server.workers)
            self._workers = [self._worker(number, port) for number in numbers]
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._signalled)
            greeting = background.start(self._greet(port), background.logged("greeting"))
            statuses = await asyncio.gather(*(self._keep_running(worker) for worker in self._workers))
            greeting.cancel()
        if self._killed:
            return 128 + signal.SIGINT
        if self._failure is not None:
            raise self._failure
        # Who is told to stop before it serves has nothing to drain, and ends by the signal.
        return int(any(status not in {0, -signal.SIGTERM} for status in statuses))

    def _worker(self, number: int, port: int) -> "_Worker":
        settings = settings_of_worker(self._settings, number, port)
        return _Worker(number, self._command, settings, self._start_late_s, self._start_timeout_s)

    async def _greet(self, port: int) -> None:
        await asyncio.gather(*(worker.has_served.wait() for worker in self._workers))
        greet(self._settings, port)

    async def _keep_running(self, worker: "_Worker") -> int:
        """Runs a worker again and again; returns the last exit status when all is to stop."""
        loop = asyncio.get_running_loop()
        starts, backoff = 0, Backoff(RESTART_DELAY_MIN_S, RESTART_DELAY_MAX_S)
        while True:
            starts += 1
            started_at_s = loop.time()
            status = await worker.run(self._stopping)
            if self._stopping.is_set():
                return status
            if not worker.has_served.is_set() and starts == STARTS_MAX:
                self._fail(worker, status)
                return status
            if loop.time() - started_at_s > RESTART_DELAY_MAX_S:
                backoff.reset()
            delay_s = backoff.next_s()
            _log.warning("worker_ended", worker=worker.number, status=status, reason=worker.reason, restart_in_s=delay_s)
            if await self._stops_within(delay_s):
                return status

    async def _stops_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    def _fail(self, worker: "_Worker", status: int) -> None:
        unexplained = f"Worker {worker.number} ended with status {status} before it served, {STARTS_MAX} times in a row."
        self._failure = StartError(worker.reason or unexplained)
        self._stop()

    def _signalled(self) -> None:
        if self._stopping.is_set():
            self._killed = True
            for worker in self._workers:
                worker.signal(signal.SIGKILL)
            return
        farewell()
        self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        for worker in self._workers:
            worker.signal(signal.SIGTERM)


class _Worker:
    """One of them, whichever process it is at the moment."""

    def __init__(
        self, number: int, command: Sequence[str], settings: Settings, start_late_s: float, start_timeout_s: float
    ) -> None:
        self.number = number
        self.has_served = asyncio.Event()
        self.reason = ""
        """Why its last process could not serve, as it said itself."""
        self._command = command
        self._start_late_s = start_late_s
        self._start_timeout_s = start_timeout_s
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
        self._environment |= environment_of(settings)
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, stopping: asyncio.Event) -> int:
        """Runs one process to its end; returns its exit status, negative for a signal."""
        self.reason = ""
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            # A group of its own: Ctrl-C in a terminal goes to the supervisor, which sends on one signal, and not two.
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env=self._environment | {FD_ENV: str(fd)},
                pass_fds=[fd],
                process_group=0,
            )
        if stopping.is_set():
            self.signal(signal.SIGTERM)
        reader, writer = await asyncio.open_connection(sock=ours)
        start = background.start(self._bound_start(process), background.logged("start of a worker"))
        async for line in reader:
            start.cancel()
            said = Said.from_line(line)
            self.reason = said.reason
            if said.serving:
                self.has_served.set()
        status = await process.wait()
        start.cancel()
        writer.close()
        return status

    async def _bound_start(self, process: asyncio.subprocess.Process) -> None:
        """Tells of a process that says neither that it serves nor why not, and kills it in the end. Cancelled when it does."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._start_timeout_s
        await asyncio.sleep(self._start_late_s)
        while (left_s := give_up_s - loop.time()) > 0:
            _log.warning("worker_late", worker=self.number, pid=process.pid, waited_s=round(self._start_timeout_s - left_s))
            await asyncio.sleep(min(self._start_late_s, left_s))
        self.reason = f"Worker {self.number} did not serve within {self._start_timeout_s:g} s; its log says what it waits for."
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if one runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


def settings_of_worker(settings: Settings, number: int, port: int) -> Settings:
    """What a worker serves with: the same, but for the ports that are each worker's own, which count up from the first's."""
    server, cluster = settings.server, settings.cluster
    own_server: dict[str, Any] = {"workers": 1, "reuse_port": True, "port": port}
    own_cluster: dict[str, Any] = {}
    if server.metrics_port:
        own_server["metrics_port"] = server.metrics_port + number
    if cluster.relay_port:
        own_cluster["relay_port"] = cluster.relay_port + number
    if cluster.relay_advertise is not None:
        host, advertised = split_address(cluster.relay_advertise)
        own_cluster["relay_advertise"] = join_address(host, advertised + number)
    return settings.model_copy(
        update={"server": server.model_copy(update=own_server), "cluster": cluster.model_copy(update=own_cluster)}
    )


def _held_port(settings: Settings) -> socket.socket:
    """A socket that keeps the port from other programs while no worker listens on it; picks one if any will do.

    Raises:
        StartError: the port cannot be had.
    """
    host, wanted = settings.server.host, settings.server.port
    holder: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), wanted, type=socket.SOCK_STREAM)[0]
        if not settings.server.reuse_port:
            # Tried without SO_REUSEPORT, or we would join whoever listens there with it.
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        holder = socket.socket(family, kind, protocol)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
        return holder
    except OSError as error:
        if holder is not None:
            holder.close()
        where = f"{host} port {wanted}"
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"{where} is in use. Stop the program that listens there, or choose another port.") from error
        raise StartError(f"Cannot listen on {where}: {error.strerror}.") from error
