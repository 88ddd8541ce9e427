"""What the link between two nodes costs, beside a raw grpc.aio stream: `python -m benchmarks.relay`.

Two processes, each on a CPU of its own. The sender never lets more wait than the link can queue, so nothing is dropped; a run
ends when the receiver has said that it has everything. The raw stream carries one event a write and does nothing else. With one
event a batch the sender looks all the time whether it may go on, so its CPU is the time that a batch takes.
"""

import argparse
import asyncio
import gc
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

from chatgrpc.edge.engine import serve_by_polling

serve_by_polling()  # chosen when grpc is imported

import grpc  # noqa: E402
import psutil  # noqa: E402
import structlog  # noqa: E402
import uvloop  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.processes import ROOT, Cpus  # noqa: E402
from chatgrpc.core.lanes import Forward, Forwarded, Lane  # noqa: E402
from chatgrpc.core.links import AskHead, Deliver, HeadIs, Message  # noqa: E402
from chatgrpc.core.write import Write  # noqa: E402
from chatgrpc.internal.v1 import relay_pb2  # noqa: E402
from chatgrpc.metrics import Metrics  # noqa: E402
from chatgrpc.ports.cluster import NodeInfo  # noqa: E402
from chatgrpc.relay import Relay, RelayOptions  # noqa: E402
from chatgrpc.v1 import chat_pb2, content_pb2  # noqa: E402

SENDER, RECEIVER = "a-sender", "b-receiver"
RAW = "/chatgrpc.bench.Raw/Link"
EVENT = os.urandom(100)
CHATS = [f"chat-{number:021}" for number in range(500)]
PAIRS = [(f"user-{number:021}", f"peer-{number:021}") for number in range(500)]
GROUP = tuple(f"user-{number:021}" for number in range(100))
QUEUE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Figure:
    """One run."""

    per_s: float
    sender_us: float
    """CPU a message."""
    receiver_us: float


class Sender:
    """This process, linked with the other."""

    def __init__(self, receiver: psutil.Process, raw_port: int) -> None:
        self.linked = asyncio.Event()
        self.relay = Relay(
            RelayOptions(SENDER), self._receive, lambda _, __: self.linked.set(), relay_pb2.DescribeResponse, Metrics()
        )
        self.raw_port = raw_port
        self._receiver = receiver
        self._answered = asyncio.Event()
        self._outcomes = 0

    async def measure(self, send: Callable[["Sender", float], Awaitable[int]], duration_s: float) -> Figure:
        """Sends for a while and waits until all of it has come."""
        await send(self, duration_s / 5)
        await self.all_received()
        start_s, sender_s, receiver_s = time.monotonic(), time.process_time(), _cpu_s(self._receiver)
        count = await send(self, start_s + duration_s - time.monotonic())
        await self.all_received()
        elapsed_s = time.monotonic() - start_s
        sender_us, receiver_us = time.process_time() - sender_s, _cpu_s(self._receiver) - receiver_s
        assert all(status.dropped_messages == 0 for status in self.relay.status())
        return Figure(count / elapsed_s, sender_us / count * 1e6, receiver_us / count * 1e6)

    async def all_received(self) -> None:
        """Asks, and is answered after everything that was sent before."""
        self._answered.clear()
        assert self.relay.send(RECEIVER, AskHead("", 0))
        await self._answered.wait()

    async def room(self, bytes_max: int) -> None:
        """Waits until no more than this waits to be sent."""
        await asyncio.sleep(0)
        while self.relay.status()[0].queued_bytes > bytes_max:  # noqa: ASYNC110  # a node does not wait, so nothing tells it
            await asyncio.sleep(0)

    async def outcomes(self, wanted: int) -> None:
        """Waits for so many outcomes of writes, and counts anew."""
        while self._outcomes < wanted:
            self._answered.clear()
            await self._answered.wait()
        self._outcomes -= wanted

    def _receive(self, _: str, messages: list[Message]) -> None:
        self._outcomes += sum(type(message) is Forwarded for message in messages)
        self._answered.set()


def deliver(number: int, user_ids: tuple[str, ...] | None = None) -> Deliver:
    """The next event of one of the chats."""
    chat = number % 500
    return Deliver(CHATS[chat], number, EVENT, user_ids or PAIRS[chat], "", False)


async def send_in_ticks(
    sender: Sender, duration_s: float, a_tick: int, audience: Callable[[int], tuple[str, ...] | None]
) -> int:
    """Sends so many events in each turn of the loop."""
    send, number = sender.relay.send, 0
    for _ in _until(duration_s):
        for _ in range(a_tick):
            send(RECEIVER, deliver(number, audience(number)))
            number += 1
        await sender.room(QUEUE_BYTES if a_tick > 1 else 0)
    return number


async def raw(sender: Sender, duration_s: float) -> int:
    """Writes events of the same length on a raw stream."""
    message = bytes(130)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{sender.raw_port}") as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(RAW)()
        number = 0
        for _ in _until(duration_s):
            for _ in range(100):
                await call.write(message)
                number += 1
        await call.done_writing()
        await call.read()
    return number


async def forward(sender: Sender, duration_s: float, window: int) -> int:
    """Sends writes, so many at a time, and has the outcome of each."""
    content = content_pb2.Content(text=content_pb2.TextContent(text="x" * 60))
    number = 0
    for _ in _until(duration_s):
        for _ in range(window):
            number += 1
            chat_id = CHATS[number % 500]
            write = Write(chat_id, "user-000000000000000000001", content, EVENT[:16], number, "device-00000001")
            sender.relay.send(RECEIVER, Forward(Lane(SENDER, "session-0000000000001", chat_id), number, number, write))
        await sender.outcomes(window)
    return number


LOADS: dict[str, Callable[[Sender, float], Awaitable[int]]] = {
    "raw stream, 130 B a write": raw,
    "events to 2 users, 1 a batch": lambda sender, s: send_in_ticks(sender, s, 1, lambda _: None),
    "events to 2 users, 100 a tick": lambda sender, s: send_in_ticks(sender, s, 100, lambda _: None),
    "events to 100 users, 100 a tick": lambda sender, s: send_in_ticks(sender, s, 100, lambda _: GROUP),
    "events to 100 users, never the same": lambda sender, s: send_in_ticks(
        sender, s, 100, lambda number: (*GROUP[:-1], str(number))
    ),
    "writes and outcomes, 1 at a time": lambda sender, s: forward(sender, s, 1),
    "writes and outcomes, 256 at a time": lambda sender, s: forward(sender, s, 256),
}


async def receive() -> None:
    """Is the other process: takes what comes, and answers what is asked, until it is ended."""
    outcome = chat_pb2.SendResult(chat_id=CHATS[0], seq=1, message_id=EVENT[:16], sent_at_ms=1_700_000_000_000)

    def take(node_id: str, messages: list[Message]) -> None:
        for message in messages:
            if type(message) is Forward:
                relay.send(node_id, Forwarded(message.lane, message.number, outcome))
            elif type(message) is AskHead:
                relay.send(node_id, HeadIs("", 0, 0))

    async def drain(_: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        end: object = grpc.aio.EOF
        while await context.read() is not end:
            pass

    relay = Relay(RelayOptions(RECEIVER), take, lambda _, __: None, relay_pb2.DescribeResponse, Metrics())
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(drain)
    service, method = RAW.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    print(await relay.start(), server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    relay.see({SENDER: NodeInfo(SENDER, "", "")})  # which has the smaller id, and dials
    gc.freeze()
    await server.wait_for_termination()


@asynccontextmanager
async def two_processes(cpus: Cpus) -> AsyncIterator[Sender]:
    """This one and another, linked."""
    command = [sys.executable, "-m", "benchmarks.relay", "--receive"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        for pid, cpu in ((process.pid, cpus.server), (0, cpus.loadgen)):
            if cpu is not None:
                os.sched_setaffinity(pid, {cpu})
        assert process.stdout is not None
        port, raw_port = map(int, (await process.stdout.readline()).split())
        sender = Sender(psutil.Process(process.pid), raw_port)
        await sender.relay.start()
        sender.relay.see({RECEIVER: NodeInfo(RECEIVER, "", f"127.0.0.1:{port}")})
        await sender.linked.wait()
        gc.freeze()
        yield sender
        await sender.relay.stop()
    finally:
        process.terminate()
        await process.wait()


async def run(rounds: int, duration_s: float) -> None:
    """Measures each load in turns and prints medians."""
    figures: dict[str, list[Figure]] = {load: [] for load in LOADS}
    async with two_processes(Cpus.choose()) as sender:
        for _ in range(rounds):
            for load, send in LOADS.items():
                figures[load].append(await sender.measure(send, duration_s))
    table = Table("load", "a second", "sender µs", "receiver µs")
    for load, runs in figures.items():
        per_s, sender_us, receiver_us = (
            median(getattr(each, name) for each in runs) for name in ("per_s", "sender_us", "receiver_us")
        )
        table.add_row(load, f"{per_s:,.0f}", f"{sender_us:.2f}", f"{receiver_us:.2f}")
    Console().print(table, "CPU a message, by process; medians.")


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times that each figure is measured, in turns")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--receive", action="store_true", help="be the other process")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    if arguments.receive:
        uvloop.run(receive())
    else:
        uvloop.run(run(arguments.rounds, arguments.seconds))


def _until(duration_s: float) -> Iterator[None]:
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        yield


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
