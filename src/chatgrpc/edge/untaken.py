"""Replies that were given and not taken: what callers who do not read hold of a node's memory.

A reply waits in gRPC for as long as its caller likes, and the call with it, which is not the service's any more. So each call
keeps its place until its reply was taken. One that waits too long is cut, and when all that wait are too much, those are of the
user, or the address, for whom the most waits.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

_log = structlog.get_logger(__name__)


class UntakenReplies:
    """The replies of one node that wait to be taken."""

    def __init__(self, bytes_max: int, wait_s_max: float, cut: Callable[[asyncio.Task[Any]], None]) -> None:
        """
        Args:
            bytes_max: of all replies that wait; past it those of the holder of the most are cut.
            wait_s_max: how long a reply may wait.
            cut: ends a call, soon.
        """
        self._bytes_max = bytes_max
        self._wait_s_max = wait_s_max
        self._cut = cut
        self._waiting: dict[str, dict[asyncio.Task[Any], int]] = {}
        self._held_bytes: dict[str, int] = {}
        self._bytes = 0

    def add(self, holder: str, size: int, call: asyncio.Task[Any]) -> None:
        """A reply of so many bytes is about to be given by this task, which is done once it was taken or cannot be."""
        self._waiting.setdefault(holder, {})[call] = size
        self._held_bytes[holder] = self._held_bytes.get(holder, 0) + size
        self._bytes += size
        overdue = asyncio.get_running_loop().call_later(self._wait_s_max, self._give_up, holder, [call], "for too long")

        def taken(_: object) -> None:
            overdue.cancel()
            self._forget(holder, call)

        call.add_done_callback(taken)
        while self._bytes > self._bytes_max:
            most = max(self._held_bytes, key=self._held_bytes.__getitem__)
            self._give_up(most, list(self._waiting[most]), "too much")

    def _give_up(self, holder: str, calls: list[asyncio.Task[Any]], why: str) -> None:
        """What was cut is not counted any more: it is as good as gone."""
        _log.warning("replies_not_taken", why=why, calls=len(calls), bytes=sum(self._waiting[holder][call] for call in calls))
        for call in calls:
            self._forget(holder, call)
            self._cut(call)

    def _forget(self, holder: str, call: asyncio.Task[Any]) -> None:
        size = self._waiting.get(holder, {}).pop(call, None)
        if size is None:
            return
        self._bytes -= size
        self._held_bytes[holder] -= size
        if not self._waiting[holder]:
            del self._waiting[holder], self._held_bytes[holder]
