"""Replies that were given and not taken: what callers who do not read hold of a node's memory.

A reply waits in gRPC for as long as its caller likes, and the call with it, which is not the service's any more. So each call
keeps its place until its reply was taken, and whoever takes too long, or holds the most when all replies that wait are too
much, loses the connection.
"""

import asyncio
from collections.abc import Callable
from typing import Any


class UntakenReplies:
    """The replies of one node that wait to be taken."""

    def __init__(self, bytes_max: int, wait_s_max: float, cut: Callable[[str, str], None]) -> None:
        """
        Args:
            bytes_max: of all replies that wait; past it the peer whose replies are the largest part is cut.
            wait_s_max: how long a reply may wait.
            cut: ends the connection of a peer, soon; is told why.
        """
        self._bytes_max = bytes_max
        self._wait_s_max = wait_s_max
        self._cut = cut
        self._waiting: dict[str, _OfPeer] = {}
        self._bytes = 0

    def add(self, peer: str, size: int, call: asyncio.Task[Any]) -> None:
        """A reply of so many bytes is about to be given by this task, which is done once it was taken or cannot be."""
        held = self._waiting.get(peer)
        if held is None:
            held = self._waiting[peer] = _OfPeer()
        held.replies += 1
        held.size += size
        self._bytes += size
        overdue = asyncio.get_running_loop().call_later(self._wait_s_max, self._give_up, peer, held)

        def taken(_: object) -> None:
            overdue.cancel()
            held.replies -= 1
            held.size -= size
            if held.is_cut:
                return
            self._bytes -= size
            if not held.replies:
                del self._waiting[peer]

        call.add_done_callback(taken)
        while self._bytes > self._bytes_max:
            most = max(self._waiting, key=lambda waiting: self._waiting[waiting].size)
            self._give_up(most, self._waiting[most])

    def _give_up(self, peer: str, held: "_OfPeer") -> None:
        """What a peer holds is not counted any more once it is cut: it is as good as gone."""
        if not held.is_cut:
            held.is_cut = True
            self._bytes -= held.size
            del self._waiting[peer]
            self._cut(peer, "untaken replies")


class _OfPeer:
    """What waits for one connection."""

    __slots__ = ("is_cut", "replies", "size")

    def __init__(self) -> None:
        self.replies = 0
        self.size = 0
        self.is_cut = False
