"""The healthy pair: two devices that chat at a steady pace beside an attack, in a process of their own.

In a process of their own, so that their clock is not delayed by the attacker's work in the test's process. The devices check
every frame; this checks every message: committed once, received once, in order. A pair whose stream ends is a pair harmed.
"""

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from chatgrpc.v1 import chat_pb2, session_pb2
from tests.support.device import Device
from tests.support.server import ServerProcess

ROOT = Path(__file__).parents[3]
INTERVAL_S = 0.03
CANARY = "canary-of-the-pair"
"""Stands in every text of the pair; so it must not stand in the server's log."""

USERS = ("healthy-ann", "healthy-ben")
_ARRIVAL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Message:
    """One message that was committed and received; times by the monotonic clock, which all processes share."""

    sender: str
    number: int
    sent_at_s: float
    committed_at_s: float
    received_at_s: float


class PairHarmedError(AssertionError):
    """The pair lost a message, got one twice or out of order, or was disconnected."""


class Pair:
    """The pair's process, seen from the test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.messages: list[Message] = []
        self._process = process
        self._changed = asyncio.Condition()
        self._harm = ""
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, server: ServerProcess, suffix: str = "") -> "Pair":
        """Starts the pair, users whose ids end in `suffix`; returns when both have received something."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__), cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        job = {"address": server.address, "tokens": [server.token(user_id + suffix) for user_id in USERS]}
        process.stdin.write(json.dumps(job).encode() + b"\n")
        pair = cls(process)
        await pair.arrived(time.monotonic())
        return pair

    @property
    def is_harmed(self) -> bool:
        """It lost a message, got one twice or out of order, or was disconnected."""
        return bool(self._harm)

    async def stop(self) -> None:
        """Lets the pair finish; raises if it was harmed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._reader
        status = await self._process.wait()
        if self._harm or status != 0:
            raise PairHarmedError(self._harm or f"the pair's process ended with {status}")

    async def arrived(self, sent_before_s: float) -> None:
        """Waits until everything that was sent before this moment has been committed and received.

        Raises:
            PairHarmedError: it was not.
        """

        def all_are_past() -> bool:
            last = {message.sender: message.sent_at_s for message in self.messages[-200:]}
            return len(last) == len(USERS) and min(last.values()) >= sent_before_s

        try:
            async with asyncio.timeout(_ARRIVAL_TIMEOUT_S), self._changed:
                await self._changed.wait_for(lambda: bool(self._harm) or all_are_past())
        except TimeoutError:
            raise PairHarmedError(f"what the pair sent has not arrived in {_ARRIVAL_TIMEOUT_S} s") from None
        if self._harm:
            raise PairHarmedError(self._harm)

    def latencies_s(self, since_s: float, until_s: float) -> list[float]:
        """Seconds from sending to receiving, of the messages sent in this time, sorted."""
        return sorted(
            message.received_at_s - message.sent_at_s for message in self.messages if since_s <= message.sent_at_s <= until_s
        )

    async def _read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while said := await self._process.stdout.read(1 << 16):  # not line by line: a pair whose pipe is full stands still
            *lines, rest = (rest + said).split(b"\n")
            async with self._changed:
                for line in map(json.loads, lines):
                    if "harm" in line:
                        self._harm = line["harm"]
                    else:
                        self.messages.append(Message(**line))
                self._changed.notify_all()
        async with self._changed:
            self._harm = self._harm or ("" if self._process.stdin is None or self._process.stdin.is_closing() else "it ended")
            self._changed.notify_all()


# The process.


class _Direction:
    """What one says to the other."""

    def __init__(self, sender: Device, receiver: Device, say: Callable[[object], None]) -> None:
        self._say = say
        self._sender = sender
        self._receiver = receiver
        self._under_way: dict[int, list[float]] = {}  # number -> sent, committed, received; 0 = not yet
        self._received = 0
        self._seqs: dict[int, int] = {}  # of answered messages before which one is not looked at yet
        self._judged = 0
        self._last_seq = 0

    async def speak(self, stop: asyncio.Event, committing: asyncio.TaskGroup) -> None:
        """Sends a message at each beat until told to stop, whether or not the last one has been answered."""
        number = 0
        while not stop.is_set():
            number += 1
            self._under_way[number] = [time.monotonic(), 0.0, 0.0]
            answer = await self._sender.post(self._sender.compose(self._receiver.user_id, f"{CANARY} {number}"))
            committing.create_task(self._commit(number, answer))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), INTERVAL_S)
        await self._receiver.until(lambda: self._received == number)

    def receive(self, event: chat_pb2.ChatEvent) -> None:
        """Takes what the receiver's device received."""
        if event.sender_user_id != self._sender.user_id or not event.content.HasField("text"):
            return
        number = int(event.content.text.text.removeprefix(f"{CANARY} "))
        if number != self._received + 1:
            raise PairHarmedError(f"number {number} of {self._sender.user_id} came after {self._received}")
        self._received = number
        self._under_way[number][2] = time.monotonic()
        self._report(number)

    async def _commit(self, number: int, answer: "asyncio.Future[session_pb2.ServerFrame]") -> None:
        result = await answer
        sent = result.sent
        if not sent.seq or sent.duplicate:
            raise PairHarmedError(f"number {number} of {self._sender.user_id} was answered by {result}")
        self._seqs[number] = sent.seq
        # In the order of the messages, which is not always that in which the tasks come to it that wait for the answers: where
        # several come at once, a task that has only begun goes before those that were waiting.
        while seq := self._seqs.pop(self._judged + 1, 0):
            self._judged += 1
            if seq <= self._last_seq:
                raise PairHarmedError(f"number {self._judged} of {self._sender.user_id} is seq {seq}, behind {self._last_seq}")
            self._last_seq = seq
        self._under_way[number][1] = time.monotonic()
        self._report(number)

    def _report(self, number: int) -> None:
        times = self._under_way[number]
        if all(times):
            del self._under_way[number]
            self._say(asdict(Message(self._sender.user_id, number, *times)))


class _Pauses:
    """How long this process itself stood still; what the server says of its silence then is not the server's doing."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def watch(self) -> None:
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(INTERVAL_S)
            self.longest_s = max(self.longest_s, time.monotonic() - before_s - INTERVAL_S)


class _Reports:
    """What this process says, a line each, by a thread of its own: the pipe may be full for as long as the test is busy."""

    def __init__(self) -> None:
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._thread = threading.Thread(target=self._print)
        self._thread.start()

    def say(self, what: object) -> None:
        self._lines.put(json.dumps(what))

    def end(self) -> None:
        """Returns when all is said."""
        self._lines.put("")
        self._thread.join()

    def _print(self) -> None:
        while line := self._lines.get():
            print(line, flush=True)


async def _chat(address: str, tokens: list[str], pauses: _Pauses, say: Callable[[object], None]) -> None:
    stop = asyncio.Event()
    watching = asyncio.create_task(pauses.watch())
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    ann, ben = (Device(address, token, f"healthy-{number}") for number, token in enumerate(tokens))
    async with ann, ben:
        there, back = _Direction(ann, ben, say), _Direction(ben, ann, say)
        ann.on_event, ben.on_event = back.receive, there.receive
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(_fail_when_it_ends(device)) for device in (ann, ben)]
            async with asyncio.TaskGroup() as committing:
                speaking = [committing.create_task(direction.speak(stop, committing)) for direction in (there, back)]
                await asyncio.wait(speaking, return_when=asyncio.FIRST_EXCEPTION)
            for end in ends:
                end.cancel()
    watching.cancel()


async def _fail_when_it_ends(device: Device) -> None:
    ended = await device.until_ended(timeout_s=86_400)
    raise PairHarmedError(f"{device.device_id} was disconnected: {ended} {ended.__cause__ or ''}")


def _main() -> int:
    job = json.loads(sys.stdin.readline())
    pauses, reports = _Pauses(), _Reports()
    try:
        asyncio.run(_chat(job["address"], job["tokens"], pauses, reports.say))
    except (Exception, BaseExceptionGroup) as error:
        harm = "; ".join(map(repr, _leaves(error)))
        reports.say({"harm": f"{harm}; its own process stood still for {pauses.longest_s:.1f} s at most"})
        return 1
    finally:
        reports.end()
    return 0


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


if __name__ == "__main__":
    sys.exit(_main())
