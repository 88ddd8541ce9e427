"""No work beside ends unseen: what it raises is told, or it begins anew."""

import ast
import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import chatgrpc
from chatgrpc import background

AWAITED = {
    "closing.py": "waits for the part, and looks at what it raised",
    "edge/services/devices.py": "awaits it, shielded",
    "grpc_ports.py": "awaits it",
    "adapters/sqlite/store.py": "awaits it, shielded",
    "adapters/cassandra/store.py": "awaits it, shielded",
    "background.py": "is where they are started",
}
"""Whoever starts a task there awaits it."""


def test_every_task_is_started_where_its_end_is_seen() -> None:
    root = Path(chatgrpc.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        place = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                in_group = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "group"  # a TaskGroup
                if name in {"create_task", "ensure_future"} and not in_group:
                    found[place] = node.lineno
    assert found.keys() <= AWAITED.keys(), "start it by chatgrpc.background, or say here who awaits it"
    assert AWAITED.keys() <= found.keys(), "some are not needed any more"


async def test_what_work_raises_is_told_and_its_cancellation_is_not() -> None:
    told: list[BaseException] = []

    async def fail() -> None:
        raise KeyError("ours")

    async def wait() -> None:
        await asyncio.Event().wait()

    failing, waiting = background.start(fail(), told.append), background.start(wait(), told.append)
    await asyncio.wait([failing])
    waiting.cancel()
    await asyncio.wait([waiting])
    assert [type(defect) for defect in told] == [KeyError]


async def test_work_begins_anew_until_it_says_that_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RESTART_FIRST_S", 0.0)
    monkeypatch.setattr(background, "RESTART_MAX_S", 0.0)
    runs = 0

    async def work() -> bool:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise KeyError("ours")
        return runs == 3

    with capture_logs() as lines:
        async with asyncio.timeout(30):
            await background.again(work, "watch")
    assert [line["event"] for line in lines] == ["background_failed", "background_ended"]
    assert {line["work"] for line in lines} == {"watch"}


async def test_work_whose_cancellation_was_lost_over_a_failure_does_not_begin_anew() -> None:
    runs = 0
    begun = asyncio.Event()

    async def fails_as_it_is_cancelled() -> bool:
        nonlocal runs
        runs += 1
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ExceptionGroup("of a group", [KeyError("ours")]) from None
        return True

    task = asyncio.create_task(background.again(fails_as_it_is_cancelled, "lost"))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task], timeout=30)
    assert task.cancelled()
    assert runs == 1


async def test_work_whose_group_failed_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task in which a TaskGroup has failed looks as if it had been cancelled, before Python 3.13."""
    monkeypatch.setattr(background, "RESTART_FIRST_S", 0.0)
    runs = 0

    async def fail() -> None:
        raise KeyError("ours")

    async def work() -> bool:
        nonlocal runs
        runs += 1
        if runs < 3:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                group.create_task(asyncio.Event().wait())
        return True

    async with asyncio.timeout(30):
        await background.again(work, "in a group")
    assert runs == 3


async def test_what_a_callback_raises_is_logged_without_what_it_was_called_with() -> None:
    def fail(_secret: str) -> None:
        raise KeyError("ours")

    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    background.log_callbacks(loop)
    try:
        with capture_logs() as lines:
            loop.call_soon(fail, "of a peer")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(before)
    (line,) = lines
    assert line["event"] == "background_failed"
    assert line["work"].startswith("Exception in callback ")
    assert isinstance(line["exc_info"], KeyError)
    assert "of a peer" not in str(line)
