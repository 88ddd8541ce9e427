"""The end of a process: every part gets its turn, and none keeps the process."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from functools import partial

import pytest
from structlog.testing import capture_logs

from chatgrpc import closing as closing_module
from chatgrpc.closing import UNFINISHED_STATUS, Closing


class Parts:
    """Parts that note when they are closed."""

    def __init__(self, closing: Closing) -> None:
        self.closed: list[str] = []
        self._closing = closing

    def add(self, *names: str) -> None:
        """Parts that close at once."""
        for name in names:
            self._closing.add(name, partial(self._close, name))

    async def _close(self, name: str) -> None:
        self.closed.append(name)


async def hang() -> None:
    """Never ends by itself."""
    await asyncio.Event().wait()


async def hang_whatever_comes() -> None:
    """Does not even end when it is cancelled, the first time."""
    with contextlib.suppress(asyncio.CancelledError):
        await hang()
    await hang()


async def fail() -> None:
    """Raises."""
    raise OSError("no route")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can wait for."""
    monkeypatch.setattr(closing_module, "PART_TIMEOUT_S", 0.05)


async def test_parts_are_closed_once_each_the_last_opened_first() -> None:
    begun: list[str] = []
    closing = Closing(lambda: begun.append("now"))
    parts = Parts(closing)
    parts.add("store", "links", "work")
    await closing.close()
    await closing.close()
    assert parts.closed == ["work", "links", "store"]
    assert begun[0] == "now"
    assert closing.unfinished == []


@pytest.mark.usefixtures("impatient")
async def test_a_part_that_hangs_or_fails_is_named_and_the_others_are_closed() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="idle")
    thread.start()
    closing = Closing()
    parts = Parts(closing)
    parts.add("store")
    closing.add("stubborn", hang_whatever_comes)
    closing.add("links", fail)
    closing.add("lease", hang)
    parts.add("work")
    with capture_logs() as lines:
        await closing.close()
    over.set()
    thread.join()
    assert parts.closed == ["work", "store"]
    assert closing.unfinished == ["lease", "links", "stubborn"]
    assert [(line["event"], line["part"]) for line in lines] == [("left_unfinished", part) for part in closing.unfinished]
    assert "hang:" in lines[0]["waits_in"]
    assert "wait:" in lines[0]["threads"]["idle"]
    assert isinstance(lines[1]["exc_info"], OSError)
    await end_the_stubborn()


async def test_all_parts_share_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing_module, "CLOSE_TIMEOUT_S", 0.05)
    closing = Closing()
    names = [f"part {number}" for number in range(20)]
    for name in names:
        closing.add(name, hang)
    async with asyncio.timeout(closing_module.PART_TIMEOUT_S):  # of one part
        await closing.close()
    assert closing.unfinished == names[::-1]


def test_a_process_whose_event_loop_hangs_ends_and_tells_where() -> None:
    program = """
import asyncio, functools, time
from chatgrpc.closing import Closing, end_within
async def hang():
    time.sleep(60)
async def main():
    closing = Closing(functools.partial(end_within, 0.3))
    closing.add("part", hang)
    await closing.close()
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 1
    assert "in hang" in ended.stderr


def test_a_process_that_leaves_waits_for_no_thread() -> None:
    program = """
import threading, time
from chatgrpc.closing import UNFINISHED_STATUS, leave
threading.Thread(target=time.sleep, args=(60,)).start()
print("said")
leave(UNFINISHED_STATUS)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout) == (UNFINISHED_STATUS, "said\n")
    assert UNFINISHED_STATUS not in {0, 1, os.EX_SOFTWARE}


async def end_the_stubborn() -> None:
    """Cancels once more what did not end, so that the loop ends without it."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
