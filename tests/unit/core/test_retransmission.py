"""What was not answered is said again, twice as late each time."""

from chatgrpc.core.retransmission import RetransmissionTimers


def due_at(timers: RetransmissionTimers[str], until_ms: int) -> list[tuple[int, str]]:
    return [(now_ms, key) for now_ms in range(until_ms) for key in timers.due(now_ms)]


def test_each_wait_is_twice_as_long_and_none_longer_than_the_longest() -> None:
    timers: RetransmissionTimers[str] = RetransmissionTimers(first_wait_ms=10)
    timers.start("a", 0)
    assert due_at(timers, 700) == [(at_ms, "a") for at_ms in (10, 30, 70, 150, 310, 470, 630)]


def test_what_is_heard_makes_the_wait_the_first_one_again() -> None:
    timers: RetransmissionTimers[str] = RetransmissionTimers(first_wait_ms=10)
    timers.start("a", 0)
    assert due_at(timers, 100) == [(10, "a"), (30, "a"), (70, "a")]
    timers.start("a", 100)
    assert due_at(timers, 140) == [(110, "a"), (130, "a")]


def test_each_has_its_own_and_what_is_stopped_has_none() -> None:
    timers: RetransmissionTimers[str] = RetransmissionTimers(first_wait_ms=10)
    for key, now_ms in (("a", 0), ("b", 3), ("c", 5)):
        timers.start(key, now_ms)
    timers.stop("b")
    timers.stop("b")
    assert due_at(timers, 40) == [(10, "a"), (15, "c"), (30, "a"), (35, "c")]
    assert sorted(timers) == ["a", "c"]
    timers.stop("a")
    timers.stop("c")
    assert not len(timers)
    assert due_at(timers, 100) == []


def test_a_late_look_finds_each_once() -> None:
    timers: RetransmissionTimers[str] = RetransmissionTimers(first_wait_ms=10)
    timers.start("a", 0)
    assert list(timers.due(1_000)) == ["a"]
    assert list(timers.due(1_000)) == []
