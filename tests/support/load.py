"""A load of chats over many nodes that goes on through faults, and what became of each message.

Everybody has a phone that sends and a tablet that listens, each on some node. Two by two and in groups they chat all the time,
every pair of phone and chat with an outbox of its own, so that a chat that stands still holds up no other one.
"""

import asyncio
import contextlib
import random
import statistics
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from chatgrpc.core.ids import direct_chat_id
from chatgrpc.v1 import chat_pb2
from tests.support.callers import Caller
from tests.support.checker import held_problems, log_problems, outbox_problems, stranger_problems
from tests.support.device import Device, DisconnectedError
from tests.support.outbox import Acknowledged, Outbox
from tests.support.roamer import Roamer

PEOPLE = 8
GROUP_SIZE = 5
GROUPS = 3
INTERVAL_S = 1.6
"""Between one message of a phone to a chat and its next, on average: not so many that two cores, on which three nodes, three
Cassandras and the devices run, have nothing left for a node that starts."""
_WAITING_MAX = 32
"""A phone whose chat stands still composes no more than this."""
_SETTLE_TIMEOUT_S = 90.0
_PHONE, _TABLET = "phone", "tablet"


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long after a moment each chat was at work again."""

    chats_s: Sequence[float]
    """From the moment until a message composed after it was acknowledged and on every device; one figure a chat, ascending."""

    @property
    def p50_s(self) -> float:
        """Of half the chats, no longer."""
        return statistics.median(self.chats_s)

    @property
    def max_s(self) -> float:
        """Of the last chat."""
        return self.chats_s[-1]


@dataclass(slots=True)
class _Trace:
    """A message on its way to everyone."""

    composed_at_s: float
    waits_for: set[str]
    """Devices that do not hold it yet, and `_ANSWER`."""


_ANSWER = "the answer"


@dataclass
class _Chat:
    chat_id: str
    user_ids: list[str]
    under_way: dict[bytes, _Trace] = field(default_factory=dict)
    done: list[tuple[float, float]] = field(default_factory=list)
    """Of each message that is acknowledged and on every device: when it was composed, and when the last of it happened; in the
    order of the latter."""

    def compose(self, client_message_id: bytes) -> None:
        devices = {_name(user_id, device_id) for user_id in self.user_ids for device_id in (_PHONE, _TABLET)}
        self.under_way[client_message_id] = _Trace(time.monotonic(), {_ANSWER, *devices})

    def happened(self, client_message_id: bytes, what: str) -> None:
        trace = self.under_way.get(client_message_id)
        if trace is None:
            return
        trace.waits_for.discard(what)
        if not trace.waits_for:
            del self.under_way[client_message_id]
            self.done.append((trace.composed_at_s, time.monotonic()))

    def recovered_s(self, since_s: float) -> float | None:
        """Seconds from `since_s` until a message composed after it was done; None if there is none yet."""
        for composed_at_s, done_at_s in self.done[bisect_left(self.done, since_s, key=itemgetter(1)) :]:
            if composed_at_s >= since_s:
                return done_at_s - since_s
        return None


class Load:
    """People of their own, who chat for the length of `going_on`."""

    def __init__(
        self,
        addresses: Callable[[], Sequence[str]],
        token: Callable[[str], str],
        suffix: str,
        seed: int,
        people: int = PEOPLE,
    ) -> None:
        """Connects nothing yet.

        Args:
            addresses: of all nodes that there are now, those that do not answer too.
            token: makes the token of a user id.
            suffix: makes these people other ones than those of other loads.
            seed: who begins where, and who speaks when.
            people: how many.
        """
        self.suffix = suffix
        self._addresses = addresses
        self._token = token
        self._rng = random.Random(seed)
        self._user_ids = [f"p{number}.{suffix}" for number in range(people)]
        self._roamers: dict[str, Roamer] = {}
        self._chats: dict[str, _Chat] = {}
        self._outboxes: list[tuple[Roamer, _Chat, Outbox]] = []
        self._finished = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []

    @property
    def acknowledged(self) -> int:
        """Messages that were acknowledged so far."""
        return sum(len(outbox.acknowledged) for _, _, outbox in self._outboxes)

    @property
    def failed(self) -> int:
        """Messages of which a try was answered by an error so far; they are sent again."""
        return sum(len(outbox.failed) for _, _, outbox in self._outboxes)

    def why_failed(self) -> str:
        """By which errors, how often each."""
        errors = (failed.error for _, _, outbox in self._outboxes for failed in outbox.failed.values())
        return str(Counter(f"{chat_pb2.ErrorCode.Name(error.code)}: {error.message}" for error in errors))

    @property
    def duplicates(self) -> int:
        """Acknowledged messages that an earlier try had committed, whose answer was lost."""
        return sum(outbox.duplicates for _, _, outbox in self._outboxes)

    @property
    def chat_ids(self) -> list[str]:
        """All chats."""
        return list(self._chats)

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """They chat for the length of the block; at its end everything is acknowledged and has arrived, or never will."""
        await self._begin()
        try:
            yield
            self._finished.set()
            await self._settle()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            for roamer in self._roamers.values():
                await roamer.device.close()
            self._raise_failed()

    async def recovered(self, since_s: float, timeout_s: float) -> Recovery:
        """Waits until every chat has been at work since that moment.

        Raises:
            AssertionError: some chats have not.
        """
        give_up_at_s = time.monotonic() + timeout_s
        while (waiting := [chat for chat in self._chats.values() if chat.recovered_s(since_s) is None]) and (
            time.monotonic() < give_up_at_s
        ):
            self._raise_failed()
            await asyncio.sleep(0.02)
        assert not waiting, self._describe(waiting, since_s)
        return Recovery(sorted(chat.recovered_s(since_s) or 0.0 for chat in self._chats.values()))

    async def problems(self) -> list[str]:
        """What is wrong, once they no longer chat: with the logs as each node shows them, and with what the devices hold."""
        logs = await self._logs()
        found = [problem for log in logs.values() for problem in log_problems(log)]
        for _, chat, outbox in self._outboxes:
            found += outbox_problems(outbox, [logs[chat.chat_id]])
        for name, roamer in self._roamers.items():
            for chat in self._chats_of(roamer.device.user_id):
                found += held_problems(name, roamer.device.held, logs[chat.chat_id])
        found += stranger_problems([outbox for _, _, outbox in self._outboxes], logs.values())
        return found

    async def _begin(self) -> None:
        addresses = self._addresses()
        people = len(self._user_ids)
        for number, user_id in enumerate(self._user_ids):
            for shift in (1, 3):
                other = self._user_ids[(number + shift) % people]
                self._add_chat(direct_chat_id(user_id, other), [user_id, other])
        for number in range(GROUPS):
            members = self._rng.sample(self._user_ids, min(GROUP_SIZE, people))
            async with self._caller(members[0], addresses[number % len(addresses)]) as caller:
                self._add_chat(await caller.create_group(*members[1:], title=f"Group {number}"), members)
        for number, user_id in enumerate(self._user_ids):
            for device_id, shift in ((_PHONE, 0), (_TABLET, 1)):
                address = addresses[(number + shift) % len(addresses)]
                self._add_device(user_id, device_id, address)
        for user_id in self._user_ids:
            for chat in self._chats_of(user_id):
                self._add_outbox(self._roamers[_name(user_id, _PHONE)], chat)
        for roamer in self._roamers.values():
            self._running.append(asyncio.create_task(roamer.run()))
        for roamer, chat, outbox in self._outboxes:
            self._running.append(asyncio.create_task(self._speak(roamer, chat, outbox)))

    def _add_chat(self, chat_id: str, user_ids: list[str]) -> None:
        self._chats[chat_id] = _Chat(chat_id, user_ids)

    def _add_device(self, user_id: str, device_id: str, address: str) -> None:
        device = Device(address, self._token(user_id), device_id)
        device.user_id = user_id
        name = _name(user_id, device_id)

        def arrived(event: chat_pb2.ChatEvent) -> None:
            chat = self._chats.get(event.chat_id)
            if chat is not None:
                chat.happened(event.client_message_id, name)

        device.on_event = arrived
        self._roamers[name] = Roamer(device, self._addresses, random.Random(self._rng.getrandbits(32)))

    def _add_outbox(self, roamer: Roamer, chat: _Chat) -> None:
        outbox = Outbox(roamer.device)

        def acknowledged(message: Acknowledged) -> None:
            chat.happened(message.message.key.client_message_id, _ANSWER)

        outbox.on_acknowledged = acknowledged
        self._outboxes.append((roamer, chat, outbox))

    async def _speak(self, roamer: Roamer, chat: _Chat, outbox: Outbox) -> None:
        """Composes all the time, whether what was composed before has been sent or not."""
        composing = asyncio.create_task(self._compose(chat, outbox))
        try:
            while not (composing.done() and len(outbox) == 0):
                await roamer.online()
                with contextlib.suppress(DisconnectedError):
                    await outbox.flush()
                await asyncio.sleep(0.02)
        finally:
            composing.cancel()
            await asyncio.gather(composing, return_exceptions=True)

    async def _compose(self, chat: _Chat, outbox: Outbox) -> None:
        to = chat.chat_id
        if to.startswith("d."):
            (to,) = set(chat.user_ids) - {outbox.device.user_id}
        while not self._finished.is_set():
            if len(outbox) < _WAITING_MAX:
                message = outbox.compose(to, f"{outbox.device.user_id} {len(outbox.composed) + 1}")
                chat.compose(message.key.client_message_id)
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * INTERVAL_S)

    async def _settle(self) -> None:
        """Waits until nothing is under way any more; if that takes too long, the checker will say what is missing."""
        give_up_at_s = time.monotonic() + _SETTLE_TIMEOUT_S
        while any(chat.under_way for chat in self._chats.values()) and time.monotonic() < give_up_at_s:
            self._raise_failed()
            await asyncio.sleep(0.02)

    async def _logs(self) -> dict[str, list[chat_pb2.ChatEvent]]:
        """Every chat's log by pages; each node shows the same."""
        logs: dict[str, list[chat_pb2.ChatEvent]] = {}
        for user_id in self._user_ids:
            mine = [chat for chat in self._chats_of(user_id) if chat.chat_id not in logs]
            for address in self._addresses():
                async with self._caller(user_id, address) as caller:
                    for chat in mine:
                        log = await caller.log(chat.chat_id)
                        assert logs.setdefault(chat.chat_id, log) == log, f"{address} shows another log of {chat.chat_id}"
        return logs

    def _caller(self, user_id: str, address: str) -> Caller:
        return Caller(address, user_id, self._token(user_id))

    def _chats_of(self, user_id: str) -> list[_Chat]:
        return [chat for chat in self._chats.values() if user_id in chat.user_ids]

    def _raise_failed(self) -> None:
        """What stopped a device or a sender, which nothing should."""
        for task in self._running:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _describe(self, waiting: Sequence[_Chat], since_s: float) -> str:
        lines = [f"{len(waiting)} of {len(self._chats)} chats are not at work again"]
        for chat in waiting[:5]:
            traces = [trace for trace in chat.under_way.values() if trace.composed_at_s >= since_s]
            waits_for: Mapping[str, object] = dict.fromkeys(name for trace in traces for name in sorted(trace.waits_for))
            lines.append(f"{chat.chat_id}: {len(traces)} messages wait for {list(waits_for)}")
        return "\n".join(lines)


def _name(user_id: str, device_id: str) -> str:
    return f"{user_id}/{device_id}"
