"""A lease that a thread keeps alive, and the time until which it is ours for certain (`core.lease`).

The event loop may be busy for seconds, with repairs after a fault, say. If the lease were renewed there, the node would lose
it, others would take its shards, and have more to repair: one fault would become many. So a thread renews it, and reads the
clock for it. A process that stands still as a whole loses it as before, since the thread stands still too; and so does one
whose event loop has stood still for so long that it will hardly come back (`STANDSTILL_MAX_S`), for nobody else could serve
its chats.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from chatgrpc.adapters.etcd.client import EtcdClient, EtcdError
from chatgrpc.core.lease import Lease
from chatgrpc.ports.lease_clock import lease_clock_ms

MARGIN_SHARE: Final = 0.1
"""Share of the time to live that is kept as a margin: our clock may be slower than etcd's."""
STANDSTILL_MAX_S: Final = 30.0
"""Once the event loop has run nothing for this long, the lease is left to end, so that others can take the shards."""
_RENEWALS_PER_TTL: Final = 3
_TRIES_PER_TTL: Final = 5
_PAUSE_S: Final = 0.05
_BEAT_S: Final = 1.0

_log = structlog.get_logger(__name__)


class Renewals(Protocol):
    """How the thread renews: see `renewals.EtcdRenewals`."""

    def renew(self, lease_id: int, timeout_s: float) -> int:
        """Asks once; how many seconds the lease lives from then, 0 if it is over."""
        ...

    def stop(self) -> None:
        """From any thread: ends what is under way."""
        ...

    def close(self) -> None:
        """At the end of the thread."""
        ...


class KeptLease:
    """One lease, from its grant to its end."""

    def __init__(self, client: EtcdClient, lease_id: int, lease: Lease, keeper: "_Keeper", on_lost: Callable[[], None]) -> None:
        """Use `grant`."""
        self.lease_id = lease_id
        self.lease = lease
        """Whether it holds."""
        self._client = client
        self._keeper = keeper
        self._on_lost = on_lost
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self._beat()
        keeper.start(lambda: self._call(self.lose))

    @classmethod
    async def grant(
        cls,
        client: EtcdClient,
        renewals: Renewals,
        ttl_s: int,
        on_lost: Callable[[], None],
        *,
        standstill_max_s: float = STANDSTILL_MAX_S,
    ) -> "KeptLease":
        """Makes a lease and keeps it alive.

        Args:
            client: of etcd.
            renewals: for the thread that keeps it alive, which closes them at its end.
            ttl_s: how long it lasts without a sign of life.
            on_lost: called once, on the event loop, when it has ended, or may have, against our will.
            standstill_max_s: how long the event loop may stand still before the lease is left to others.

        Raises:
            EtcdError: etcd does not answer.
        """
        lease = Lease(ttl_s * 1_000, int(ttl_s * 1_000 * MARGIN_SHARE))
        asked = lease.keepalive_sent(lease_clock_ms())
        granted = await client.grant(ttl_s)
        lease.answered(asked, lease_clock_ms())
        keeper = _Keeper(lease, granted.lease_id, renewals, ttl_s, standstill_max_s)
        return cls(client, granted.lease_id, lease, keeper, on_lost)

    def lose(self) -> None:
        """Somebody learnt that the lease has ended."""
        if not self._stopped:
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
        self._stopped = True
        self._timer.cancel()
        self.lease.end()
        self._keeper.stop()

    def _beat(self) -> None:
        """The event loop runs."""
        self._keeper.beat_at_ms = lease_clock_ms()
        self._timer = self._loop.call_later(_BEAT_S, self._beat)

    def _call(self, action: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            self._loop.call_soon_threadsafe(action)


class _Keeper:
    """The thread."""

    def __init__(self, lease: Lease, lease_id: int, renewals: Renewals, ttl_s: float, standstill_max_s: float) -> None:
        self.beat_at_ms = 0
        """When the event loop last said that it runs."""
        self._lease = lease
        self._lease_id = lease_id
        self._renewals = renewals
        self._ttl_ms = int(ttl_s * 1_000)
        self._standstill_max_ms = int(standstill_max_s * 1_000)
        self._stopped = threading.Event()

    def start(self, lost: Callable[[], None]) -> None:
        """Calls `lost`, on the thread, when the lease has ended though nobody stopped this."""

        def keep() -> None:
            try:
                why = self._keep()
            except Exception as defect:
                why = f"a defect: {defect!r}"
            self._lease.end()
            if not self._stopped.is_set():
                _log.warning("lease_lost", why=why)
                lost()
            self._renewals.close()

        # A daemon: it waits for etcd, and must not keep a process from its end.
        threading.Thread(target=keep, name="etcd-lease", daemon=True).start()

    def stop(self) -> None:
        """Renews no more."""
        self._stopped.set()
        self._renewals.stop()

    def _keep(self) -> str:
        """Renews again and again, until it is over; returns why."""
        while not self._stopped.is_set():
            sent = self._lease.keepalive_sent(lease_clock_ms())
            left_ms = self._lease.deadline_ms - sent.sent_at_ms
            if left_ms <= 0:
                return "etcd did not answer in time, this process stood still, or the node let go of it"
            if sent.sent_at_ms - self.beat_at_ms > self._standstill_max_ms:
                return "the event loop stands still"
            try:
                ttl_s = self._renewals.renew(self._lease_id, min(left_ms, self._ttl_ms / _TRIES_PER_TTL) / 1_000)
            except EtcdError:
                self._stopped.wait(_PAUSE_S)
                continue
            if ttl_s <= 0:
                return "etcd has ended it"
            self._lease.answered(sent, lease_clock_ms(), ttl_s * 1_000)
            if not self._lease.holds(lease_clock_ms()):
                return "the answer came too late"
            self._stopped.wait(max(0, sent.sent_at_ms + self._ttl_ms / _RENEWALS_PER_TTL - lease_clock_ms()) / 1_000)
        return ""
