"""The deadline of a lease, against an etcd whose answers come when the test says so."""

import asyncio
import time
from collections.abc import Callable
from typing import cast

from chatgrpc.adapters.etcd.client import EtcdClient, EtcdError
from chatgrpc.adapters.etcd.lease import MARGIN_SHARE, Lease
from chatgrpc.adapters.etcd.wire_pb2 import LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse

TTL_S = 3
GOOD_FOR_S = TTL_S * (1 - MARGIN_SHARE)


class HeldEtcd:
    """Answers a grant at once or after `grant_takes_s`, and keepalives as `answer` says."""

    def __init__(self, answer: Callable[[int], int | None], grant_takes_s: float = 0.0) -> None:
        self.sent_at_s: list[float] = []
        self.streams = 0
        self._under_way = 0
        self._answer = answer
        self._grant_takes_s = grant_takes_s

    async def grant(self, ttl_s: int) -> LeaseGrantResponse:
        await asyncio.sleep(self._grant_takes_s)
        return LeaseGrantResponse(lease_id=1, ttl_s=ttl_s)

    async def revoke(self, lease_id: int) -> None:
        assert lease_id == 1

    def keep_alive(self) -> "HeldEtcd":
        self.streams += 1
        self._under_way = 0
        return self

    async def send(self, request: LeaseKeepAliveRequest) -> None:
        assert request.lease_id == 1
        self._under_way += 1
        assert self._under_way == 1, "which of two would an answer be to?"
        self.sent_at_s.append(time.monotonic())

    async def receive(self) -> LeaseKeepAliveResponse:
        await asyncio.sleep(0.3)
        ttl_s = self._answer(len(self.sent_at_s))
        if ttl_s is None:
            raise EtcdError("no leader")
        self._under_way -= 1
        return LeaseKeepAliveResponse(lease_id=1, ttl_s=ttl_s)

    def drop(self, failed: bool) -> None:
        """Nothing to let go."""


class Losses:
    """Counts."""

    def __init__(self) -> None:
        self.count = 0
        self.came = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.came.set()


async def _granted(etcd: HeldEtcd, losses: Losses) -> Lease:
    return await Lease.grant(cast("EtcdClient", etcd), TTL_S, losses)


async def test_it_counts_from_before_the_grant_was_asked_for() -> None:
    etcd, losses = HeldEtcd(lambda _sent: TTL_S, grant_takes_s=0.5), Losses()
    before_s = time.monotonic()
    lease = await _granted(etcd, losses)
    assert before_s < lease.deadline_s < before_s + 0.5 + GOOD_FOR_S
    assert lease.deadline_s - GOOD_FOR_S < before_s + 0.25
    await lease.end()
    assert (lease.deadline_s, losses.count) == (0, 0)


async def test_it_counts_from_before_the_keepalive_was_sent_not_from_its_answer() -> None:
    etcd, losses = HeldEtcd(lambda _sent: TTL_S), Losses()
    lease = await _granted(etcd, losses)
    first_s = lease.deadline_s
    async with asyncio.timeout(30):
        while lease.deadline_s == first_s:
            await asyncio.sleep(0.01)
    assert lease.deadline_s <= etcd.sent_at_s[-1] + GOOD_FOR_S
    await lease.end()


async def test_it_is_no_longer_than_etcd_says() -> None:
    etcd, losses = HeldEtcd(lambda _sent: 100 * TTL_S), Losses()
    lease = await _granted(etcd, losses)
    await asyncio.sleep(0.5)
    assert lease.deadline_s <= etcd.sent_at_s[-1] + GOOD_FOR_S
    await lease.end()


async def test_an_answer_that_says_it_has_ended_is_a_loss() -> None:
    etcd, losses = HeldEtcd(lambda _sent: 0), Losses()
    lease = await _granted(etcd, losses)
    await asyncio.wait_for(losses.came.wait(), 30)
    assert (lease.deadline_s, losses.count, len(etcd.sent_at_s)) == (0, 1, 1)
    lease.lose()
    assert losses.count == 1


async def test_failures_are_tried_again_until_the_deadline_and_then_it_is_lost() -> None:
    etcd, losses = HeldEtcd(lambda _sent: None), Losses()
    lease = await _granted(etcd, losses)
    deadline_s = lease.deadline_s
    await asyncio.wait_for(losses.came.wait(), 30)
    assert time.monotonic() >= deadline_s
    assert etcd.streams > 3
    assert max(etcd.sent_at_s) < deadline_s
    assert (lease.deadline_s, losses.count) == (0, 1)


async def test_failures_that_pass_are_no_loss() -> None:
    etcd, losses = HeldEtcd(lambda sent: None if sent % 2 else TTL_S), Losses()
    lease = await _granted(etcd, losses)
    await asyncio.sleep(1.2 * TTL_S)
    assert losses.count == 0
    assert lease.deadline_s > time.monotonic()
    await lease.end()


async def test_an_answer_that_comes_after_the_deadline_does_not_bring_it_back() -> None:
    def answers_after_we_stood_still(_sent: int) -> int:
        # The whole process stands still, as after SIGSTOP; the answer was there all the time, and counts from after the grant.
        time.sleep(1.7)
        return TTL_S

    etcd, losses = HeldEtcd(answers_after_we_stood_still, grant_takes_s=1.0), Losses()
    lease = await _granted(etcd, losses)
    await asyncio.wait_for(losses.came.wait(), 30)
    assert (lease.deadline_s, losses.count, len(etcd.sent_at_s)) == (0, 1, 1)
