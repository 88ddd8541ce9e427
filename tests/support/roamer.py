"""A device that stays on some node: when its stream ends, falls silent or is sent away, it connects to another one."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from chatgrpc.v1 import session_pb2
from tests.support.device import Device, DisconnectedError, ProtocolError

CONNECT_TIMEOUT_S = 5.0
SILENCE_MAX_S = 4.0
"""The device asks for a heartbeat every second; a node that says nothing for so long is taken for gone."""
_HEARTBEAT_INTERVAL_S = 1.0
_PAUSE_MAX_S = 0.3
"""Between one try to connect and the next; random, so that devices do not all come at once."""


class Roamer:
    """Keeps a device connected, until it is cancelled."""

    def __init__(self, device: Device, addresses: Callable[[], Sequence[str]], rng: random.Random) -> None:
        """Begins at the device's own address; goes on to any of `addresses`, be a node there or not."""
        self.device = device
        self.streams = 0
        """How many it has had."""
        self._addresses = addresses
        self._rng = rng
        self._online = asyncio.Event()

    async def online(self) -> None:
        """Waits until the device is connected, as far as it knows."""
        await self._online.wait()

    async def run(self) -> None:
        """Connects, over and over.

        Raises:
            ProtocolError: a node broke a promise of the protocol.
        """
        while True:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await self.device.connect()
                self.streams += 1
                self._online.set()
                await self._stay()
            except (DisconnectedError, TimeoutError):
                pass  # elsewhere, then
            finally:
                self._online.clear()
            await self.device.close()
            if self.device.failure is not None:
                raise ProtocolError(f"{self.device.user_id}/{self.device.device_id}") from self.device.failure
            others = [address for address in self._addresses() if address != self.device.address]
            self.device.address = self._rng.choice(others or [self.device.address])
            await asyncio.sleep(self._rng.uniform(0, _PAUSE_MAX_S))

    async def _stay(self) -> None:
        """Returns when it is better to go."""
        leave_at_s = float("inf")
        while time.monotonic() < min(leave_at_s, self.device.heard_at_s + SILENCE_MAX_S):
            async with asyncio.timeout(SILENCE_MAX_S):
                await self.device.post(session_pb2.ClientFrame(heartbeat=session_pb2.Heartbeat()))
            try:
                await self.device.until_ended(min(_HEARTBEAT_INTERVAL_S, max(0.0, leave_at_s - time.monotonic())))
            except TimeoutError:
                pass
            else:
                return
            for frame in self.device.taken():
                if frame.HasField("drain"):
                    leave_at_s = time.monotonic() + frame.drain.reconnect_after_ms / 1000
