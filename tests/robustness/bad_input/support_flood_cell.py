"""One flood and what an innocent caller waits for meanwhile: server, flooder and caller are three processes."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tests.support.server import ServerProcess

BOUND_S = 0.25
"""99 of 100 innocent calls are to be answered by then, on a machine that has nothing else to do."""
MB = 1_000_000
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Waited:
    """What the caller saw from the flood's begin until a second after its end."""

    calls: int
    p50_s: float
    p99_s: float
    max_s: float
    cut: int
    """Connections of the flooder that the other side ended before all was sent."""

    def __str__(self) -> str:
        return f"p50 {self.p50_s * 1e3:.1f} p99 {self.p99_s * 1e3:.1f} max {self.max_s * 1e3:.1f} ms"


async def flooded(server: ServerProcess, port: int, kind: str, size: int, connections: int) -> Waited:
    """Floods the port, which need not be the server's, while the caller calls the server."""
    module = "tests.robustness.bad_input.support_"
    async with (
        _running(f"{module}prober", server.address, server.token("innocent")) as prober,
        _running(f"{module}flooder", str(port), kind, str(size), str(connections)) as flooder,
    ):
        assert prober.stdin is not None
        assert await _line(prober) == "ready"
        assert await _line(flooder) == "made"
        assert flooder.stdin is not None
        flooder.stdin.close()
        began_s = time.monotonic()
        outcome = json.loads(await _line(flooder))
        ended_s = time.monotonic()
        prober.stdin.close()
        seen: list[tuple[float, float]] = json.loads(await _line(prober))
    took_s = sorted(took for due_s, took in seen if began_s <= due_s <= ended_s)
    return Waited(len(took_s), _quantile(took_s, 0.5), _quantile(took_s, 0.99), took_s[-1], outcome["closed"])


@contextlib.asynccontextmanager
async def sink() -> AsyncIterator[int]:
    """A port of another process that takes and drops all it is sent: where a control's bytes go."""
    async with _running("tests.robustness.bad_input.support_sink") as process:
        yield int(await _line(process))


@contextlib.asynccontextmanager
async def _running(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=16 * MB,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(_TIMEOUT_S):
        return (await process.stdout.readline()).decode().strip()


def _quantile(ascending: list[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))]
