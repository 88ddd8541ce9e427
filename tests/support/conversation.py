"""A conversation under load: pairs that chat both ways, a group of all of them, and a device that only listens."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from chatgrpc.v1 import chat_pb2
from tests.support.cast import Cast
from tests.support.chatter import Chatter
from tests.support.checker import check_held, check_log, check_outbox


class Conversation:
    """Chats on through whatever happens to the server; at the end everything must be as it was acknowledged."""

    def __init__(self, cast: Cast, pairs: int, seed: int) -> None:
        self.chatters: dict[str, Chatter] = {}
        """By name; the one that only listens, a device of `left0`, is called `tablet`."""
        self._cast = cast
        self._pairs = pairs
        self._random = random.Random(seed)

    @property
    def acknowledged(self) -> int:
        """How many messages were acknowledged so far."""
        return sum(len(chatter.outbox.acknowledged) for chatter in self.chatters.values())

    @property
    def duplicates(self) -> int:
        """How many of them had been committed by an earlier try, whose answer was lost."""
        return sum(chatter.outbox.duplicates for chatter in self.chatters.values())

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """They chat for the length of the block; when it is left, everything that they composed is acknowledged."""
        names = [f"{side}{number}" for number in range(self._pairs) for side in ("left", "right")]
        group = await self._cast.group(*names)
        for number in range(self._pairs):
            for name, other in ((f"left{number}", f"right{number}"), (f"right{number}", f"left{number}")):
                chatter = self.chatters[name] = Chatter(self._cast.device(name), self._random.getrandbits(32))
                chatter.targets = [self._cast.user(other), group]
        self.chatters["tablet"] = Chatter(self._cast.device("left0", "tablet"), self._random.getrandbits(32))
        async with asyncio.TaskGroup() as running:
            for chatter in self.chatters.values():
                running.create_task(chatter.run())
            yield
            for chatter in self.chatters.values():
                chatter.finish()

    async def check(self, clock_falls: bool = False) -> None:
        """Every acknowledged message is there once, in order, and every device holds exactly the logs of its chats.

        Args:
            clock_falls: the test has set the clock back meanwhile.
        """
        logs: dict[str, list[chat_pb2.ChatEvent]] = {}
        for name, chatter in self.chatters.items():
            for chat_id in chatter.device.held.cursors.keys() - logs.keys():
                logs[chat_id] = await self._cast.caller(name).log(chat_id)
        assert len(logs) == self._pairs + 1
        for log in logs.values():
            check_log(log, clock_falls)
        for chatter in self.chatters.values():
            held = chatter.device.held
            await chatter.device.connect()
            for chat_id in held.cursors:
                await chatter.device.until_held(chat_id, len(logs[chat_id]))
                check_held(held, logs[chat_id])
            check_outbox(chatter.outbox, [logs[chat_id] for chat_id in held.cursors])
        written = sum(len(log) - 1 for log in logs.values())  # each begins with the creation of its chat
        assert written == self.acknowledged > 0
