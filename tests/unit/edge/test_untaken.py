"""Replies that are not taken: counted, and cut when they are too much or take too long."""

import asyncio
from typing import Any

from chatgrpc.edge.untaken import UntakenReplies


class Replies:
    """The replies of a node, and whose were cut."""

    def __init__(self, bytes_max: int = 1_000, wait_s_max: float = 60.0) -> None:
        self.cut: list[str] = []
        self.untaken = UntakenReplies(bytes_max, wait_s_max, lambda call: self.cut.append(call.get_name()))

    def reply(self, holder: str, size: int) -> asyncio.Task[Any]:
        """Gives a reply, which is taken when the task ends."""
        call = asyncio.get_running_loop().create_task(until_cancelled(), name=holder)
        self.untaken.add(holder, size, call)
        return call


async def until_cancelled() -> None:
    await asyncio.Event().wait()


async def take(*calls: asyncio.Task[Any]) -> None:
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await asyncio.sleep(0)


async def test_the_replies_of_whom_the_largest_part_of_too_much_is_are_cut() -> None:
    replies = Replies()
    small, large = replies.reply("small", 300), [replies.reply("large", 200) for _ in range(3)]
    assert replies.cut == []
    other = replies.reply("other", 101)
    assert replies.cut == ["large"] * 3
    await take(small, *large, other)


async def test_what_was_taken_counts_no_more() -> None:
    replies = Replies()
    for _ in range(5):
        await take(replies.reply("a", 900))
    again = replies.reply("b", 900)
    assert replies.cut == []
    await take(again)


async def test_what_was_cut_counts_no_more() -> None:
    """Nor when it is let go of, some time later."""
    replies = Replies()
    before = replies.reply("a", 1_001)
    assert replies.cut == ["a"]
    after = replies.reply("a", 900)
    await take(before)
    assert replies.cut == ["a"]
    more = replies.reply("b", 101)
    assert replies.cut == ["a", "a"]
    await take(after, more)


async def test_a_reply_that_nobody_takes_is_cut_alone() -> None:
    replies = Replies(wait_s_max=0.5)
    taken, untaken = replies.reply("takes", 1), replies.reply("leaves", 1)
    await take(taken)
    waited_in_vain = replies.cut[:]  # by a machine that took half a second to take it
    async with asyncio.timeout(60):
        while "leaves" not in replies.cut:
            await asyncio.sleep(0.01)
    assert replies.cut == [*waited_in_vain, "leaves"]
    await take(untaken)
