"""Until when a node may count on what it has taken."""

from chatgrpc.core.lease import Lease


def taken_at(now_ms: int) -> Lease:
    lease = Lease(ttl_ms=5_000, margin_ms=500)
    lease.answered(lease.keepalive_sent(now_ms), now_ms + 10)
    return lease


def test_nothing_is_ours_before_the_first_answer() -> None:
    lease = Lease(ttl_ms=5_000, margin_ms=500)
    lease.keepalive_sent(1_000)
    assert lease.deadline_ms == 0


def test_the_time_counts_from_the_sending() -> None:
    lease = Lease(ttl_ms=5_000, margin_ms=500)
    lease.answered(lease.keepalive_sent(1_000), 4_000)
    assert lease.deadline_ms == 5_500
    assert lease.holds(5_499)
    assert not lease.holds(5_500)


def test_answers_out_of_order_lower_nothing() -> None:
    lease = taken_at(1_000)
    first, second = lease.keepalive_sent(2_000), lease.keepalive_sent(3_000)
    lease.answered(second, 3_100)
    lease.answered(first, 3_200)
    assert lease.deadline_ms == 7_500


def test_an_answer_that_comes_too_late_revives_nothing() -> None:
    lease = taken_at(1_000)
    late = lease.keepalive_sent(5_400)
    lease.answered(late, 5_500)
    assert not lease.holds(5_501)
    lease.answered(lease.keepalive_sent(5_600), 5_700)
    assert not lease.holds(5_701)


def test_the_coordinators_word_ends_it_early() -> None:
    lease = taken_at(1_000)
    lease.end()
    assert not lease.holds(1_100)
