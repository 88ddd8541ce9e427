"""A real `chatgrpc serve` in a process of its own, which tests start, kill and start again on the same data."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import grpc
import psutil

from chatgrpc.adapters.jwt import DevIssuer
from tests.support.ports import accepts, free_port

START_TIMEOUT_S = 120.0


class ServerProcess:
    """One server on one data folder; the address stays the same across restarts."""

    def __init__(self, data_dir: Path, environment: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.log_path = data_dir.parent / f"{data_dir.name}.log"

    @property
    def address(self) -> str:
        """What clients dial."""
        return f"127.0.0.1:{self.port}"

    @property
    def addresses(self) -> list[str]:
        """The only one."""
        return [self.address]

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def token(self, user_id: str, ttl_s: int = 3600, device_id: str | None = None) -> str:
        """A development token that this server accepts."""
        return DevIssuer.open(self.data_dir).mint(user_id, ttl_s, time.time_ns() // 1_000_000, device_id)

    def rss_bytes(self) -> int:
        """Resident memory of the server."""
        return int(psutil.Process(self.pid).memory_info().rss)

    async def start(self) -> None:
        """Starts the server; returns when it accepts connections."""
        defaults = {
            "CHATGRPC_LOG__FORMAT": "json",
            "CHATGRPC_LOG__LEVEL": "warning",
            "CHATGRPC_SERVER__METRICS_PORT": "0",
        }
        environment = os.environ | defaults | self._environment
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(Path(sys.executable).parent / "chatgrpc"),
                    *("serve", "--port", str(self.port), "--data-dir", str(self.data_dir)),
                ],
                stdout=log,
                stderr=log,
                env=environment,
            )
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not accepts(self.port):
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError(f"the server did not start:\n{self.log_path.read_text()}")
            await asyncio.sleep(0.02)

    def kill(self) -> None:
        """Ends it as a crash does (SIGKILL)."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> int:
        """Ends it orderly (SIGTERM); returns its exit status."""
        return self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> int:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(number)
        status = self._process.wait(timeout=60)
        self._process = None
        return status

    def close(self) -> None:
        """Kills the server if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self.kill()


@contextlib.asynccontextmanager
async def running_server(data_dir: Path, environment: Mapping[str, str] | None = None) -> AsyncIterator[ServerProcess]:
    """A server that runs for the length of the block."""
    server = ServerProcess(data_dir, environment)
    try:
        await server.start()
        yield server
    finally:
        server.close()


def channel(address: str) -> grpc.aio.Channel:
    """A channel of its own connection, so that tests do not share one by accident.

    It reads no further ahead than a flow-control window of 64 KiB, so a device that stops reading is soon felt by the server.
    """
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)])
