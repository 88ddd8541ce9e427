"""What fails is told once when it begins, now and then while it lasts, and once when it works again."""

import asyncio
from collections.abc import Callable

from structlog.testing import capture_logs
from structlog.typing import EventDict

from chatgrpc.trouble import Trouble

AWAY = ConnectionError("away")
LONG_S = 3_600.0
GIVE_UP_S = 60.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GIVE_UP_S):
        while not condition():
            await asyncio.sleep(0.001)


def events(lines: list[EventDict]) -> list[str]:
    return [f"{line['log_level']} {line['event']}" for line in lines]


async def test_what_fails_a_thousand_times_is_told_once_with_what_waits() -> None:
    waiting = {"writes": 3, "reads": 0}
    trouble = Trouble("store_unavailable", lambda: waiting, interval_s=LONG_S)
    with capture_logs() as lines:
        for _ in range(1_000):
            trouble.failed(AWAY)
            await asyncio.sleep(0)
    assert lines == [
        {
            "event": "store_unavailable",
            "log_level": "warning",
            "error": "away",
            "failures": 1,
            "lasts_s": 0.0,
            "writes": 3,
            "reads": 0,
        }
    ]
    assert trouble.failures == 1_000
    trouble.stop()


async def test_as_long_as_something_fails_it_is_told_again_with_the_last_error() -> None:
    trouble = Trouble("store_unavailable", interval_s=0.001)
    with capture_logs() as lines:
        trouble.failed(AWAY)
        trouble.failed(TimeoutError())
        await until(lambda: len(lines) == 2)
    trouble.stop()
    assert events(lines) == ["warning store_unavailable"] * 2
    assert [(line["error"], line["failures"]) for line in lines] == [("away", 1), ("TimeoutError", 2)]


async def test_as_long_as_something_waits_it_is_told_again_though_nothing_fails() -> None:
    waiting = {"writes": 2}
    trouble = Trouble("store_unavailable", lambda: waiting, interval_s=0.001)
    with capture_logs() as lines:
        trouble.failed(AWAY)
        await until(lambda: len(lines) == 3)
        waiting["writes"] = 0
        told = len(lines)
        await asyncio.sleep(0.02)
        assert len(lines) == told, "nothing fails and nothing waits: there is nothing to tell"
    assert trouble.lasts, "nothing has worked either"


async def test_when_it_works_again_that_is_told_once() -> None:
    trouble = Trouble("store_unavailable", interval_s=LONG_S, calm_s=0.0)
    with capture_logs() as lines:
        trouble.worked()
        trouble.failed(AWAY)
        trouble.failed(AWAY)
        trouble.worked()
        trouble.worked()
        await until(lambda: not trouble.lasts)
        trouble.worked()
        await asyncio.sleep(0)
    assert events(lines) == ["warning store_unavailable", "info store_unavailable_over"]
    assert lines[1]["failures"] == 2


async def test_it_is_not_over_while_something_waits() -> None:
    waiting = {"writes": 1}
    trouble = Trouble("store_unavailable", lambda: waiting, interval_s=LONG_S, calm_s=0.0)
    with capture_logs() as lines:
        trouble.failed(AWAY)
        trouble.worked()
        await asyncio.sleep(0.01)
        assert trouble.lasts
        waiting["writes"] = 0
        trouble.worked()
        await until(lambda: not trouble.lasts)
    assert events(lines) == ["warning store_unavailable", "info store_unavailable_over"]


async def test_what_fails_now_and_then_is_one_trouble() -> None:
    trouble = Trouble("store_unavailable", interval_s=LONG_S, calm_s=LONG_S)
    with capture_logs() as lines:
        for _ in range(1_000):
            trouble.failed(AWAY)
            trouble.worked()
            await asyncio.sleep(0)
    assert events(lines) == ["warning store_unavailable"]
    trouble.stop()


async def test_a_failure_in_the_moment_of_calm_takes_back_that_it_is_over() -> None:
    loop = asyncio.get_running_loop()
    trouble = Trouble("store_unavailable", interval_s=LONG_S, calm_s=0.0)
    with capture_logs() as lines:
        trouble.failed(AWAY)
        trouble.worked()
        trouble.failed(AWAY)
        after = loop.create_future()
        loop.call_later(0.01, after.set_result, None)
        await after
        assert trouble.lasts
    assert events(lines) == ["warning store_unavailable"]
    trouble.stop()


async def test_a_second_trouble_is_told_like_the_first() -> None:
    trouble = Trouble("store_unavailable", interval_s=LONG_S, calm_s=0.0)
    with capture_logs() as lines:
        for _ in range(2):
            trouble.failed(AWAY)
            trouble.worked()
            await until(lambda: not trouble.lasts)
    assert events(lines) == ["warning store_unavailable", "info store_unavailable_over"] * 2
    assert [line["failures"] for line in lines] == [1] * 4
    assert trouble.failures == 2


async def test_who_stops_tells_nothing_more() -> None:
    trouble = Trouble("store_unavailable", lambda: {"writes": 1}, interval_s=0.001, calm_s=0.0)
    with capture_logs() as lines:
        trouble.failed(AWAY)
        trouble.stop()
        await asyncio.sleep(0.02)
    assert events(lines) == ["warning store_unavailable"]
