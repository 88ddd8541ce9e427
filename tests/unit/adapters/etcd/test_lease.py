"""The deadline of a lease that a thread keeps, against an etcd whose answers come when the test says so."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import cast

import pytest

from chatgrpc.adapters.etcd.client import EtcdClient, EtcdError
from chatgrpc.adapters.etcd.lease import MARGIN_SHARE, STANDSTILL_MAX_S, KeptLease
from chatgrpc.adapters.etcd.wire_pb2 import LeaseGrantResponse
from chatgrpc.ports.lease_clock import lease_clock_ms

TTL_S = 3
GOOD_FOR_MS = int(TTL_S * 1_000 * (1 - MARGIN_SHARE))
WAIT_S = 60.0


class HeldEtcd:
    """Grants at once or after `grant_takes_s`; renews as `answer` says, which is asked on the thread that renews."""

    def __init__(self, answer: Callable[[int], int | None], grant_takes_s: float = 0.0) -> None:
        self.sent_at_ms: list[int] = []
        self.closed = threading.Event()
        self.renewed_by: set[int] = set()
        self._answer = answer
        self._grant_takes_s = grant_takes_s

    async def grant(self, ttl_s: int) -> LeaseGrantResponse:
        await asyncio.sleep(self._grant_takes_s)
        return LeaseGrantResponse(lease_id=1, ttl_s=ttl_s)

    async def revoke(self, lease_id: int) -> None:
        assert lease_id == 1

    def renew(self, lease_id: int, timeout_s: float) -> int:
        assert lease_id == 1
        assert timeout_s > 0
        self.renewed_by.add(threading.get_ident())
        self.sent_at_ms.append(lease_clock_ms())
        time.sleep(0.1)
        ttl_s = self._answer(len(self.sent_at_ms))
        if ttl_s is None:
            raise EtcdError("no leader")
        return ttl_s

    def stop(self) -> None:
        """Nothing is under way for long."""

    def close(self) -> None:
        self.closed.set()


class Losses:
    """Counts."""

    def __init__(self) -> None:
        self.count = 0
        self.came = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.came.set()


@pytest.fixture
async def losses() -> Losses:
    return Losses()


async def _granted(etcd: HeldEtcd, losses: Losses, standstill_max_s: float = STANDSTILL_MAX_S) -> KeptLease:
    return await KeptLease.grant(cast("EtcdClient", etcd), etcd, TTL_S, losses, standstill_max_s=standstill_max_s)


async def test_it_counts_from_before_the_grant_was_asked_for(losses: Losses) -> None:
    etcd = HeldEtcd(lambda _sent: TTL_S, grant_takes_s=0.5)
    before_ms = lease_clock_ms()
    kept = await _granted(etcd, losses)
    assert before_ms < kept.lease.deadline_ms
    assert kept.lease.deadline_ms - GOOD_FOR_MS <= lease_clock_ms() - 500
    await kept.end()
    assert (kept.lease.deadline_ms, losses.count) == (0, 0)
    assert await asyncio.to_thread(etcd.closed.wait, WAIT_S), "the thread ends"


async def test_it_counts_from_before_the_keepalive_was_sent_not_from_its_answer(losses: Losses) -> None:
    etcd = HeldEtcd(lambda _sent: TTL_S)
    kept = await _granted(etcd, losses)
    first_ms = kept.lease.deadline_ms
    async with asyncio.timeout(WAIT_S):
        while kept.lease.deadline_ms == first_ms:
            await asyncio.sleep(0.01)
    assert kept.lease.deadline_ms <= etcd.sent_at_ms[-1] + GOOD_FOR_MS
    await kept.end()


async def test_a_busy_event_loop_does_not_lose_it(losses: Losses) -> None:
    etcd = HeldEtcd(lambda _sent: TTL_S)
    kept = await _granted(etcd, losses)
    busy_until_s = time.monotonic() + 3 * TTL_S
    while time.monotonic() < busy_until_s:
        """Busy, and never lets another task run."""
    assert kept.lease.holds(lease_clock_ms())
    assert etcd.renewed_by.isdisjoint({threading.get_ident()})
    await asyncio.sleep(0)
    assert losses.count == 0
    await kept.end()


async def test_an_event_loop_that_stands_still_for_good_loses_it(losses: Losses) -> None:
    etcd = HeldEtcd(lambda _sent: TTL_S)
    kept = await _granted(etcd, losses, standstill_max_s=1.5)
    assert etcd.closed.wait(WAIT_S), "it blocks the loop, and nobody renews any more"
    await asyncio.wait_for(losses.came.wait(), WAIT_S)
    assert not kept.lease.holds(lease_clock_ms())
    assert losses.count == 1


async def test_it_is_no_longer_than_was_asked_for(losses: Losses) -> None:
    etcd = HeldEtcd(lambda _sent: 100 * TTL_S)
    kept = await _granted(etcd, losses)
    async with asyncio.timeout(WAIT_S):
        while len(etcd.sent_at_ms) < 2:
            await asyncio.sleep(0.01)
    assert kept.lease.deadline_ms <= etcd.sent_at_ms[-1] + GOOD_FOR_MS
    await kept.end()


async def test_an_answer_that_says_it_has_ended_is_a_loss(losses: Losses) -> None:
    etcd = HeldEtcd(lambda _sent: 0)
    kept = await _granted(etcd, losses)
    await asyncio.wait_for(losses.came.wait(), WAIT_S)
    assert (kept.lease.deadline_ms, losses.count, len(etcd.sent_at_ms)) == (0, 1, 1)
    kept.lose()
    assert losses.count == 1


async def test_failures_are_tried_again_until_the_deadline_and_then_it_is_lost(losses: Losses) -> None:
    etcd = HeldEtcd(lambda _sent: None)
    kept = await _granted(etcd, losses)
    deadline_ms = kept.lease.deadline_ms
    await asyncio.wait_for(losses.came.wait(), WAIT_S)
    assert lease_clock_ms() >= deadline_ms
    assert len(etcd.sent_at_ms) > 3
    assert max(etcd.sent_at_ms) <= deadline_ms
    assert (kept.lease.deadline_ms, losses.count) == (0, 1)


async def test_failures_that_pass_are_no_loss(losses: Losses) -> None:
    etcd = HeldEtcd(lambda sent: None if sent % 2 else TTL_S)
    kept = await _granted(etcd, losses)
    async with asyncio.timeout(WAIT_S):
        while len(etcd.sent_at_ms) < 5:
            await asyncio.sleep(0.01)
    assert losses.count == 0
    assert kept.lease.holds(lease_clock_ms())
    await kept.end()


async def test_a_defect_of_the_thread_is_a_loss(losses: Losses) -> None:
    def defective(_sent: int) -> int:
        raise RuntimeError("not foreseen")

    kept = await _granted(HeldEtcd(defective), losses)
    await asyncio.wait_for(losses.came.wait(), WAIT_S)
    assert not kept.lease.holds(lease_clock_ms())


async def test_an_answer_that_comes_after_the_deadline_does_not_bring_it_back(losses: Losses) -> None:
    def answers_after_we_stood_still(_sent: int) -> int:
        # The whole process stands still, as after SIGSTOP; the answer was there all the time, and counts from after the grant.
        time.sleep(TTL_S)
        return TTL_S

    etcd = HeldEtcd(answers_after_we_stood_still)
    kept = await _granted(etcd, losses)
    await asyncio.wait_for(losses.came.wait(), WAIT_S)
    assert (kept.lease.deadline_ms, losses.count, len(etcd.sent_at_ms)) == (0, 1, 1)
