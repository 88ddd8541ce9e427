"""A lease that is kept alive, and the time until which it is ours for certain."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from chatgrpc.adapters.etcd.client import EtcdClient, EtcdError
from chatgrpc.adapters.etcd.wire_pb2 import LeaseKeepAliveRequest
from chatgrpc.ports.lease_clock import lease_clock_s

MARGIN_SHARE: Final = 0.1
"""Of the time to live: as much may our clock be slower than etcd's, or lose in a step."""
_RENEWALS_PER_TTL: Final = 3
_TRIES_PER_TTL: Final = 5
_PAUSE_S: Final = 0.05

_log = structlog.get_logger(__name__)


class Lease:
    """One lease, from its grant to its end.

    Its deadline only rises while it lives, and once passed it never comes back: an answer that comes after it is not used.
    """

    def __init__(self, client: EtcdClient, lease_id: int, deadline_s: float, ttl_s: float, on_lost: Callable[[], None]) -> None:
        """Use `grant`."""
        self.lease_id = lease_id
        self._client = client
        self._deadline_s = deadline_s
        self._ttl_s = ttl_s
        self._on_lost = on_lost
        self._keeper = asyncio.create_task(self._keep(), name="etcd-lease")

    @classmethod
    async def grant(cls, client: EtcdClient, ttl_s: int, on_lost: Callable[[], None]) -> "Lease":
        """Makes a lease and keeps it alive.

        Args:
            client: of etcd.
            ttl_s: how long it lasts without a sign of life.
            on_lost: called once when it has ended, or may have, against our will.

        Raises:
            EtcdError: etcd does not answer.
        """
        asked_at_s = lease_clock_s()
        granted = await client.grant(ttl_s)
        return cls(client, granted.lease_id, _deadline_s(asked_at_s, ttl_s), ttl_s, on_lost)

    @property
    def deadline_s(self) -> float:
        """`lease_clock_s()` until which it is ours; 0 when it has ended."""
        return self._deadline_s

    def lose(self) -> None:
        """Somebody learnt that the lease has ended."""
        if self._deadline_s == 0:
            return
        self._stop()
        self._on_lost()

    async def end(self) -> None:
        """Gives it up; etcd forgets it at once, or after its time to live if etcd does not answer.

        Raises:
            EtcdError: etcd does not answer.
        """
        self._stop()
        await self._client.revoke(self.lease_id)

    def _stop(self) -> None:
        self._deadline_s = 0.0
        self._keeper.cancel()

    async def _keep(self) -> None:
        """Renews it again and again, one request under way at a time: so each answer is that to the last request."""
        stream = self._client.keep_alive()
        try:
            while True:
                sent_at_s = lease_clock_s()
                left_s = self._deadline_s - sent_at_s
                if left_s <= 0:
                    _log.warning("lease_lost", why="etcd did not answer in time")
                    break
                try:
                    async with asyncio.timeout(min(left_s, self._ttl_s / _TRIES_PER_TTL)):
                        await stream.send(LeaseKeepAliveRequest(lease_id=self.lease_id))
                        answer = await stream.receive()
                except (EtcdError, TimeoutError):
                    stream.drop(failed=True)
                    stream = self._client.keep_alive()
                    await asyncio.sleep(_PAUSE_S)
                    continue
                if answer.ttl_s <= 0:
                    _log.warning("lease_lost", why="etcd has ended it")
                    break
                if lease_clock_s() >= self._deadline_s:
                    # Others were told that nothing is ours any more.
                    _log.warning("lease_lost", why="the answer came too late")
                    break
                self._deadline_s = max(self._deadline_s, _deadline_s(sent_at_s, min(answer.ttl_s, self._ttl_s)))
                await asyncio.sleep(max(0, sent_at_s + self._ttl_s / _RENEWALS_PER_TTL - lease_clock_s()))
        finally:
            stream.drop(failed=False)
        self.lose()


def _deadline_s(sent_at_s: float, ttl_s: float) -> float:
    """etcd cannot have begun to count before we sent."""
    return sent_at_s + ttl_s * (1 - MARGIN_SHARE)
