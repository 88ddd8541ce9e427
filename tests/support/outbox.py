"""An outbox as a client has one: what is not acknowledged goes out again on every stream, in order (go-back-N)."""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from chatgrpc.v1 import chat_pb2, session_pb2
from tests.support.device import Device

_RETRY_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A message that the server took."""

    message: session_pb2.SendMessage
    result: chat_pb2.SendResult


@dataclass(frozen=True, slots=True)
class Failed:
    """A try that the server answered by an error after which it may be made again."""

    error: chat_pb2.Error
    after_s: float
    """So long after it was sent."""


class _Try:
    """A message on its way, and how long it took until it was answered."""

    def __init__(self, answer: asyncio.Future[session_pb2.ServerFrame]) -> None:
        self.answer = answer
        self.after_s = 0.0
        self._sent_s = time.monotonic()
        answer.add_done_callback(self._answered)

    def _answered(self, _: object) -> None:
        self.after_s = time.monotonic() - self._sent_s


class Outbox:
    """The unacknowledged messages of one device."""

    def __init__(self, device: Device, window: int = 16) -> None:
        """At most `window` messages are in flight together."""
        self.device = device
        self.composed: list[session_pb2.SendMessage] = []
        self.acknowledged: list[Acknowledged] = []
        """Of each chat in the order of composing."""
        self.failed: dict[bytes, Failed] = {}
        """By client message id, of the tries that were answered by an error the one that was soonest; they are sent again."""
        self.on_acknowledged: Callable[[Acknowledged], None] = lambda acknowledged: None
        self._window = window
        self._numbers = itertools.count()
        self._waiting: dict[int, session_pb2.SendMessage] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def duplicates(self) -> int:
        """Acknowledged messages that had been committed by an earlier try."""
        return sum(1 for acknowledged in self.acknowledged if acknowledged.result.duplicate)

    def compose(self, to: str, text: str) -> session_pb2.SendMessage:
        """Puts a text to a chat id, or to a user id, behind the others."""
        message = self.device.compose(to, text).send
        self.composed.append(message)
        self._waiting[next(self._numbers)] = message
        return message

    async def flush(self) -> None:
        """Sends everything that waits; returns when all of it is acknowledged.

        Raises:
            DisconnectedError: the stream ended; what is not acknowledged waits for the next one.
        """
        while self._waiting:
            posted: dict[int, _Try] = {}
            try:
                for number, message in list(itertools.islice(self._waiting.items(), self._window)):
                    posted[number] = _Try(await self.device.post(session_pb2.ClientFrame(send=message)))
                await asyncio.gather(*(posted_try.answer for posted_try in posted.values()))
            finally:  # some may be answered though the stream ended
                await asyncio.sleep(0)  # how long they took is known
                for number, posted_try in posted.items():
                    if posted_try.answer.done() and posted_try.answer.exception() is None:
                        self._take(number, posted_try.answer.result(), posted_try.after_s)
            if posted.keys() & self._waiting.keys():
                await asyncio.sleep(_RETRY_PAUSE_S)

    def _take(self, number: int, answer: session_pb2.ServerFrame, after_s: float) -> None:
        if answer.HasField("sent"):
            acknowledged = Acknowledged(self._waiting.pop(number), answer.sent)
            self.acknowledged.append(acknowledged)
            self.on_acknowledged(acknowledged)
        else:  # what fails for good is a defect of the test
            assert answer.error.code >= chat_pb2.ERROR_CODE_UNAVAILABLE, answer.error
            key = self._waiting[number].key.client_message_id
            if key not in self.failed or self.failed[key].after_s > after_s:
                self.failed[key] = Failed(answer.error, after_s)
