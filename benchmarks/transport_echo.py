"""The smallest edge there can be, on any transport: each message comes back as a message of its own, and nothing else."""

import asyncio
from collections import defaultdict, deque

from chatgrpc.edge.transport import StreamId, Transport


def echo_on(transport: Transport) -> None:
    """Echoes whatever comes, for as long as the running loop does.

    It drains once per turn of the loop and writes each stream's oldest message as soon as the stream is writable.
    """
    loop = asyncio.get_running_loop()
    waiting: dict[StreamId, deque[bytes]] = defaultdict(deque)
    busy: set[StreamId] = set()

    def tick() -> None:
        inbound = transport.drain()
        for opened in inbound.opened:
            transport.let_in(opened.stream)
        busy.difference_update(inbound.writable, inbound.closed)
        for stream, messages in inbound.received:
            waiting[stream].extend(messages)
        for stream in inbound.closed:
            waiting.pop(stream, None)
        touched = {*inbound.writable, *(stream for stream, _ in inbound.received)}
        ready = [stream for stream in touched - busy if waiting.get(stream)]
        busy.update(ready)
        transport.write((stream, waiting[stream].popleft()) for stream in ready)
        if any(waiting.get(stream) for stream in busy):
            transport.wake_when_writable()

    def wake_up() -> None:
        loop.call_soon(tick)

    transport.on_input(wake_up)
