"""The scene of every test of bad input: a real server, a healthy pair that chats beside the attack, and gauges on both.

`Scene.attack` is the frame of each test. It states the bounds, and when the block is left it holds the server to them: what the
pair sent arrived, in time; the memory it took, at its peak and for good; and that nothing is left of the attack: no stream, no
task, no thread, no file descriptor, and nothing in the log that should not be there.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.robustness.bad_input.support_pair import CANARY, Pair
from tests.support.ports import free_port
from tests.support.server import ServerProcess, running_server

MIB = 1024 * 1024

P99_BOUND_S = 2.0
"""Of the pair's messages during any attack, from sending to receiving. Generous, since machines are shared; a stall shows."""
SETTLE_TIMEOUT_S = 40.0
"""By then nothing is left of an attack. Long: a stream whose peer vanished is cut only after two timeouts."""
QUIET_S = 2.0
_SAMPLE_INTERVAL_S = 0.05
_SPARE_THREADS = 6
_SPARE_DESCRIPTORS = 4
"""gRPC starts and ends threads of its pool as it likes; the metrics endpoint closes connections when Python collects them."""
_LOOKS = 5
_WINDOW_S_MIN = 0.3
"""So long the pair is watched at least, however short the attack."""

SETTINGS = {
    "CHATGRPC_SESSION__HELLO_TIMEOUT_S": "5",
    "CHATGRPC_SESSION__HEARTBEAT_INTERVAL_S": "5",
    "CHATGRPC_SESSION__SLOW_READER_TIMEOUT_S": "3",
}
"""Short timeouts, so that a test sees their effect soon; and long enough for peers on a busy machine to keep them."""

_FORBIDDEN_IN_LOG = ("Traceback", "defect", "unexpectedly", "never retrieved", "never awaited", "Exception", "eyJ", CANARY)
"""What the server must not have logged: a failure of its own, a token (a JWT begins with eyJ), or what people write."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the server holds at a moment."""

    rss_bytes: int
    streams: int
    tasks: int
    threads: int
    descriptors: int

    def is_back_at(self, before: "Vitals") -> bool:
        """Whether no more is held than before; memory apart."""
        return (
            self.streams <= before.streams
            and self.tasks <= before.tasks
            and self.threads <= before.threads + _SPARE_THREADS
            and self.descriptors <= before.descriptors + _SPARE_DESCRIPTORS
        )


@dataclass(slots=True)
class Sighting:
    """What one attack did to the pair and the server; for the summary."""

    name: str
    quiet_p50_s: float
    quiet_p99_s: float
    messages: int = 0
    p50_s: float = 0.0
    p99_s: float = 0.0
    growth_bytes: int = 0
    peak_growth_bytes: int = 0
    settled_after_s: float = 0.0
    notes: dict[str, object] = field(default_factory=dict)
    """Figures of the attack itself: the rate reached, the answers counted."""


SIGHTINGS: list[Sighting] = []
"""Of all attacks of this run."""


class Scene:
    """The server and the pair of all tests of bad input."""

    def __init__(self, server: ServerProcess, metrics_port: int, pair: Pair) -> None:
        self.server = server
        self.pair = pair
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self._process = psutil.Process(server.pid)
        self._quiet_s: list[float] = []
        self._lines_checked = 0

    @property
    def address(self) -> str:
        """What clients dial."""
        return self.server.address

    def token(self, user_id: str, ttl_s: int = 3600) -> str:
        """A valid token."""
        return self.server.token(user_id, ttl_s)

    async def metrics(self) -> Mapping[str, float]:
        """The server's metrics: a counter by its name, with labels as `name{value}`."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(self._metrics_url, timeout=30)).text
        return {
            sample.name + ("{" + ",".join(sample.labels.values()) + "}" if sample.labels else ""): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def vitals(self) -> Vitals:
        """What the server holds now."""
        metrics = await self.metrics()
        await asyncio.sleep(0.02)  # the endpoint's own connection and thread are gone
        return Vitals(
            rss_bytes=self._process.memory_info().rss,
            streams=int(metrics["chatgrpc_streams_live"]),
            tasks=int(metrics["chatgrpc_tasks"]),
            threads=self._process.num_threads(),
            descriptors=self._process.num_fds(),
        )

    @contextlib.asynccontextmanager
    async def attack(
        self, name: str, *, growth_max_mib: int = 24, peak_growth_max_mib: int = 96, p99_max_s: float = P99_BOUND_S
    ) -> AsyncIterator[Sighting]:
        """Stands around an attack and checks, when it is over, what it did. A pair that was harmed is replaced for the next.

        Args:
            name: for the summary.
            growth_max_mib: memory that the server may hold for good once nothing is left of the attack.
            peak_growth_max_mib: memory that it may take meanwhile.
            p99_max_s: 99 of 100 messages of the pair arrive as fast.
        """
        if self.pair.is_harmed:
            self.pair = await Pair.start(self.server, suffix=f"-{len(SIGHTINGS)}")
        sighting = Sighting(name, _quantile(self._quiet_s, 0.5), _quantile(self._quiet_s, 0.99))
        before = await self._at_rest()
        peak = _Peak(self._process)
        started_s = time.monotonic()
        async with peak:
            yield sighting
            await asyncio.sleep(max(0.0, started_s + _WINDOW_S_MIN - time.monotonic()))
            ended_s = time.monotonic()
            await self.pair.arrived(ended_s)
        after = await self._settled(before)
        latencies_s = self.pair.latencies_s(started_s, ended_s)
        sighting.messages = len(latencies_s)
        sighting.p50_s, sighting.p99_s = _quantile(latencies_s, 0.5), _quantile(latencies_s, 0.99)
        sighting.growth_bytes = after.rss_bytes - before.rss_bytes
        sighting.peak_growth_bytes = peak.rss_bytes - before.rss_bytes
        sighting.settled_after_s = time.monotonic() - ended_s
        SIGHTINGS.append(sighting)
        assert after.is_back_at(before), f"something is left of the attack: before {before}, after {after}"
        assert sighting.p99_s <= p99_max_s, f"the pair waited {sighting.p99_s:.3f} s (p99), not {p99_max_s} s"
        assert sighting.growth_bytes <= growth_max_mib * MIB, f"{sighting.growth_bytes / MIB:.1f} MiB stay taken"
        assert sighting.peak_growth_bytes <= peak_growth_max_mib * MIB, (
            f"{sighting.peak_growth_bytes / MIB:.1f} MiB at the peak"
        )
        self.check_log()

    def check_log(self) -> None:
        """What the server has logged since the last look is no failure of its own, no token and no text of the pair."""
        lines = self.server.log_path.read_text(errors="replace").splitlines()
        new, self._lines_checked = lines[self._lines_checked :], len(lines)
        for line in new:
            found = [word for word in _FORBIDDEN_IN_LOG if word in line]
            assert not found, f"{found} in the server's log: {line[:2000]}"
            assert '"level": "error"' not in line, f"the server logged an error: {line[:2000]}"

    async def observe_quiet(self) -> None:
        """Takes the pair's latency while nothing else happens, to compare with."""
        started_s = time.monotonic()
        await asyncio.sleep(QUIET_S)
        ended_s = time.monotonic()
        await self.pair.arrived(ended_s)
        self._quiet_s = self.pair.latencies_s(started_s, ended_s)
        await self.vitals()  # the endpoint has been used once before anything is counted

    async def _at_rest(self) -> Vitals:
        # One look may meet the server between the end of one task and the beginning of the next (33 where it is 34 for all of
        # the following 40 seconds): it would never be "back" at that.
        return sorted([await self.vitals() for _ in range(_LOOKS)], key=lambda vitals: vitals.tasks)[_LOOKS // 2]

    async def _settled(self, before: Vitals) -> Vitals:
        give_up_at_s = time.monotonic() + SETTLE_TIMEOUT_S
        while not (vitals := await self.vitals()).is_back_at(before) and time.monotonic() < give_up_at_s:
            await asyncio.sleep(0.1)
        return vitals


@contextlib.asynccontextmanager
async def scene_of(data_dir: Path, settings: Mapping[str, str] = SETTINGS) -> AsyncIterator[Scene]:
    """The scene for the length of the block."""
    metrics_port = free_port()
    environment = {"CHATGRPC_SERVER__METRICS_PORT": str(metrics_port), **settings}
    async with running_server(data_dir, environment) as server:
        pair = await Pair.start(server)
        scene = Scene(server, metrics_port, pair)
        await scene.observe_quiet()
        try:
            yield scene
        finally:
            await scene.pair.stop()
        scene.check_log()
        assert server.terminate() == 0
        scene.check_log()


class _Peak:
    """Watches the resident memory of a process."""

    def __init__(self, process: psutil.Process) -> None:
        self.rss_bytes = 0
        self._process = process
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self.rss_bytes = max(self.rss_bytes, self._process.memory_info().rss)
            await asyncio.sleep(_SAMPLE_INTERVAL_S)


def _quantile(ascending: list[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))] if ascending else 0.0
