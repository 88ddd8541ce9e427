"""Replies that are not taken: counted, and cut when they are too much or take too long."""

import asyncio

from chatgrpc.edge.untaken import UntakenReplies


class Replies:
    """The replies of a node, and whom they cost the connection."""

    def __init__(self, bytes_max: int = 1_000, wait_s_max: float = 60.0) -> None:
        self.cut: list[str] = []
        self.untaken = UntakenReplies(bytes_max, wait_s_max, lambda peer, _: self.cut.append(peer))

    def reply(self, peer: str, size: int) -> "asyncio.Task[None]":
        """Gives a reply, which is taken when the task ends."""
        call = asyncio.get_running_loop().create_task(until_cancelled())
        self.untaken.add(peer, size, call)
        return call


async def until_cancelled() -> None:
    await asyncio.Event().wait()


async def take(*calls: "asyncio.Task[None]") -> None:
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await asyncio.sleep(0)


async def test_whose_replies_are_the_largest_part_of_too_much_is_cut() -> None:
    replies = Replies()
    small, large = replies.reply("small", 300), [replies.reply("large", 200) for _ in range(3)]
    assert replies.cut == []
    other = replies.reply("other", 101)
    assert replies.cut == ["large"]
    await take(small, *large, other)


async def test_what_was_taken_counts_no_more() -> None:
    replies = Replies()
    for _ in range(5):
        await take(replies.reply("a", 900))
    again = replies.reply("b", 900)
    assert replies.cut == []
    await take(again)


async def test_who_was_cut_counts_no_more_and_may_come_again() -> None:
    """What it held is let go of some time later, also after new replies for a connection of the same name."""
    replies = Replies()
    before = replies.reply("a", 1_001)
    assert replies.cut == ["a"]
    after = replies.reply("a", 900)
    await take(before)
    assert replies.cut == ["a"]
    more = replies.reply("b", 101)
    assert replies.cut == ["a", "a"]
    await take(after, more)


async def test_a_reply_that_nobody_takes_costs_the_connection() -> None:
    replies = Replies(wait_s_max=0.01)
    taken, untaken = replies.reply("takes", 1), replies.reply("leaves", 1)
    await take(taken)
    async with asyncio.timeout(10):
        while not replies.cut:
            await asyncio.sleep(0.01)
    assert replies.cut == ["leaves"]
    await take(untaken)
