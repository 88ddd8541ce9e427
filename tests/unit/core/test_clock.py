"""What changed since a device was here is found, whatever the wall clock did meanwhile."""

from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.clock import Now, SyncClock

MINUTE_MS = 60_000
STEPS = st.sampled_from([0, 0, 0, -5_000, -3_600_000, 120_000, 7_200_000, -7_200_000])


def test_without_a_step_both_stamps_are_the_wall_clock() -> None:
    clock = SyncClock()
    for passed_ms in (0, 1, MINUTE_MS, 3 * 24 * 60 * MINUTE_MS):
        now = Now(wall_ms=1_700_000_000_000 + passed_ms, monotonic_ms=5 + passed_ms)
        assert clock.change_ms(now) == clock.told_ms(now) == now.wall_ms


@given(st.lists(st.tuples(STEPS, st.integers(0, 30 * MINUTE_MS), st.booleans()), max_size=30))
def test_no_change_is_stamped_below_what_a_device_was_told_before_it(moments: list[tuple[int, int, bool]]) -> None:
    clock, wall_ms, monotonic_ms, told_ms = SyncClock(), 1_700_000_000_000, 5, 0
    for step_ms, passed_ms, tells in moments:
        wall_ms += passed_ms + step_ms
        monotonic_ms += passed_ms
        now = Now(wall_ms, monotonic_ms)
        if tells:
            told_ms = max(told_ms, clock.told_ms(now))
        else:
            assert clock.change_ms(now) >= told_ms


def test_a_step_is_forgotten_in_the_end() -> None:
    clock = SyncClock()
    clock.change_ms(Now(1_700_000_000_000 + 7_200_000, 0))
    for day in (1, 2, 3):
        now = Now(1_700_000_000_000 + day * 24 * 60 * MINUTE_MS, day * 24 * 60 * MINUTE_MS)
        clock.change_ms(now)
    assert clock.change_ms(now) == clock.told_ms(now) == now.wall_ms
