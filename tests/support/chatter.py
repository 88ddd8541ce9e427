"""Someone who chats on, whatever happens to the server."""

import asyncio
import random
import time

from tests.support.device import Device, DisconnectedError
from tests.support.outbox import Outbox

_BURST_MAX = 16
_RETRY_MAX_S = 0.05


class Chatter:
    """A device that stays connected, sends bursts of numbered texts to its targets, and loses nothing that it composed."""

    def __init__(self, device: Device, seed: int) -> None:
        self.device = device
        self.outbox = Outbox(device, window=_BURST_MAX)
        self.targets: list[str] = []
        """Chat ids and user ids; without any it only listens."""
        self.acknowledged_at_s: list[float] = []
        """When each message was acknowledged, by the monotonic clock."""
        self._random = random.Random(seed)
        self._finished = asyncio.Event()
        self._composed = 0

    def finish(self) -> None:
        """Lets `run` return once everything composed is acknowledged."""
        self._finished.set()

    async def run(self) -> None:
        """Chats until `finish`."""
        while not (self._finished.is_set() and len(self.outbox) == 0):
            try:
                if not self.device.is_open:
                    await self.device.connect()
                if self.targets:
                    await self._chat()
                else:
                    await self._listen()
            except DisconnectedError:
                await asyncio.sleep(self._random.uniform(0, _RETRY_MAX_S))

    async def _chat(self) -> None:
        if not self._finished.is_set() and len(self.outbox) == 0:
            for _ in range(self._random.randint(1, _BURST_MAX)):
                self._composed += 1
                self.outbox.compose(self._random.choice(self.targets), f"{self.device.user_id} {self._composed}")
        acknowledged = len(self.outbox.acknowledged)
        try:
            await self.outbox.flush()
        finally:
            self.acknowledged_at_s += [time.monotonic()] * (len(self.outbox.acknowledged) - acknowledged)

    async def _listen(self) -> None:
        ended = asyncio.create_task(self.device.until_ended(timeout_s=3600))
        finished = asyncio.create_task(self._finished.wait())
        await asyncio.wait({ended, finished}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, finished):
            task.cancel()
        await asyncio.gather(ended, finished, return_exceptions=True)
