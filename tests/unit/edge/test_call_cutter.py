"""Calls are cut a few at a time: what refers to them is looked for among all tasks of the node."""

import asyncio
import weakref
from typing import Any

from chatgrpc.edge.call_cutter import CallCutter
from tests.unit.edge.crowd import STEPS_PER_SLICE, Clock

CALLS = 3 * STEPS_PER_SLICE


def accepted() -> tuple[asyncio.Task[None], asyncio.Task[None]]:
    """A handler's task, and the one in which grpc.aio waits for its peer to cancel it: its coroutine refers to it."""

    async def waits(_scope: list[asyncio.Task[None]]) -> None:
        await asyncio.Event().wait()

    call = asyncio.create_task(waits([]))
    return call, asyncio.create_task(waits([call]), name="rpc_task")


async def ended(tasks: list[asyncio.Task[Any]]) -> None:
    async with asyncio.timeout(60):
        await asyncio.wait(tasks)


async def test_all_that_are_cut_end_and_no_others() -> None:
    calls = [accepted() for _ in range(CALLS)]
    cut, kept = calls[::2], calls[1::2]
    cutter = CallCutter()
    for call, _ in cut:
        cutter.cut(call, call.cancel)
    await ended([task for pair in cut for task in pair])
    assert not any(task.done() for pair in kept for task in pair)
    late = kept.pop()
    cutter.cut(late[0], late[0].cancel)
    await ended(list(late))
    for pair in kept:
        for task in pair:
            task.cancel()


async def test_the_search_makes_way_for_other_work() -> None:
    calls, clock = [accepted() for _ in range(CALLS)], Clock()
    cutter = CallCutter(clock_s=clock)
    (call, watcher), *others = calls
    stretches: list[int] = []
    before = clock.steps

    def count() -> None:
        nonlocal before
        stretches.append(clock.steps - before)
        before = clock.steps
        if not watcher.done():
            asyncio.get_running_loop().call_soon(count)

    cutter.cut(call, call.cancel)
    count()
    await ended([call, watcher])
    assert sum(stretches) >= 2 * CALLS, "it looked at all tasks"
    assert max(stretches) <= STEPS_PER_SLICE + 2
    for pair in others:
        for task in pair:
            task.cancel()


async def test_nothing_refers_to_a_call_that_was_cut() -> None:
    """Else the core would not reset it."""
    call, watcher = accepted()
    cutter = CallCutter()
    cutter.cut(call, call.cancel)
    await ended([call, watcher])
    refers = weakref.ref(call)
    del call, watcher
    await asyncio.sleep(0)
    assert refers() is None
