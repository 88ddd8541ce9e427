"""What waits to be sent to one peer: bounded, and dropping first what is missed least.

Messages are encoded when they come, so that what waits is counted as it is. The batch being filled is cut at `BATCH_BYTES`;
whoever writes takes the oldest one, full or not.
"""

import asyncio
from collections import deque
from typing import Final

from chatgrpc.core.links import CONTROL, Message
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.relay.codec import Encoder

BATCH_BYTES: Final = 256 * 1024
"""A batch takes no more messages once it is this long."""


class Outbox:
    """One link's messages on their way out."""

    def __init__(self, bytes_max: int) -> None:
        """Above half of `bytes_max` nothing of `CONTROL` is taken any more, above all of it nothing at all.

        That loses nothing: the log is the buffer of events, and all else that matters is sent again by whoever sends it.
        """
        self.sent_messages = 0
        self.messages = 0
        self.bytes = 0
        self._bytes_max = bytes_max
        self._encoder = Encoder()
        self._batches: deque[_Batch] = deque()
        self._beat_at_us: int | None = None
        self._echo_at_us: int | None = None
        self._closed = False
        self._filled = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Nothing is taken now."""
        return self.bytes > self._bytes_max

    def put(self, message: Message) -> bool:
        """Takes a message; False if it was dropped instead."""
        if self.is_full or (self.bytes > self._bytes_max // 2 and isinstance(message, CONTROL)):
            return False
        if not self._batches or self._batches[-1].sealed is not None:
            self._batches.append(_Batch())
        batch = self._batches[-1]
        added = self._encoder.add(batch.frames, message)
        batch.messages += 1
        batch.bytes += added
        if batch.bytes >= BATCH_BYTES:
            batch.seal()
        self.messages += 1
        self.bytes += added
        self._filled.set()
        return True

    def put_beat(self, at_us: int) -> None:
        """Sends a beat before anything that waits."""
        self._beat_at_us = at_us
        self._filled.set()

    def put_echo(self, at_us: int) -> None:
        """Sends a beat back before anything that waits; of several it is the last."""
        self._echo_at_us = at_us
        self._filled.set()

    def close(self) -> None:
        """Lets `take` end once nothing waits any more."""
        self._closed = True
        self._filled.set()

    async def take(self) -> bytes | None:
        """Waits for something, and takes the next batch; None at the end."""
        while not (self._batches or self._has_beats()):
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()
        if self._has_beats():
            return self._take_beats()
        batch = self._batches.popleft()
        self.messages -= batch.messages
        self.bytes -= batch.bytes
        self.sent_messages += batch.messages
        return batch.sealed or batch.frames.SerializeToString()

    def _has_beats(self) -> bool:
        return self._beat_at_us is not None or self._echo_at_us is not None

    def _take_beats(self) -> bytes:
        batch = relay_pb2.LinkBatch()
        if self._beat_at_us is not None:
            batch.frames.add().beat.at_us = self._beat_at_us
        if self._echo_at_us is not None:
            batch.frames.add(beat=relay_pb2.Beat(at_us=self._echo_at_us, echo=True))
        self._beat_at_us = self._echo_at_us = None
        return batch.SerializeToString()


class _Batch:
    """Messages that will be sent together."""

    __slots__ = ("bytes", "frames", "messages", "sealed")

    def __init__(self) -> None:
        self.frames = relay_pb2.LinkBatch()
        self.messages = 0
        self.bytes = 0
        self.sealed: bytes | None = None

    def seal(self) -> None:
        """Serializes it, since parsed frames take several times their bytes."""
        self.sealed = self.frames.SerializeToString()
        self.frames = relay_pb2.LinkBatch()
