"""The order of a device's sends: what it sends to a chat is committed in the order in which it sent it first (M7).

A send that failed, and may succeed if it comes again, holds up all later ones to its chat until it comes again. They are to
come again too, and then hold up each other: their places are kept until they have their outcome.

`SendOrder` sees to it where sends come in. Some are under way by then, and the chat's owner must not commit those either:
`FailedSends` is the same rule there.
"""

from collections import OrderedDict

from chatgrpc.core.refusal import is_retryable
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2

_FAILED_MAX = 10_000


class _Chat:
    __slots__ = ("failed", "under_way")

    def __init__(self) -> None:
        self.under_way: dict[bytes, bool] = {}  # client message id -> under way, or to come again; in order of the first try
        self.failed = 0


class SendOrder:
    """What one device has sent and has no outcome for, by chat."""

    def __init__(self) -> None:
        self._chats: dict[str, _Chat] = {}
        self.count = 0
        """Sends that have a place."""

    def admit(self, chat_id: str, client_message_id: bytes) -> bool:
        """Takes a send; False if an earlier one must come again first. It then has its place behind that one."""
        chat = self._chats.get(chat_id)
        if chat is None:
            chat = self._chats[chat_id] = _Chat()
        before = chat.under_way.get(client_message_id)
        if before is None:
            self.count += 1
            chat.under_way[client_message_id] = not chat.failed
            chat.failed += bool(chat.failed)
            return chat.failed == 0
        if not before:
            if any(not under_way for under_way in _up_to(chat, client_message_id)):
                return False
            chat.under_way[client_message_id] = True
            chat.failed -= 1
        return True

    def fail(self, chat_id: str, client_message_id: bytes) -> None:
        """It failed, and is to come again."""
        chat = self._chats.get(chat_id)
        if chat is not None and chat.under_way.get(client_message_id):
            chat.under_way[client_message_id] = False
            chat.failed += 1

    def settle(self, chat_id: str, client_message_id: bytes) -> None:
        """It is committed, or refused for good."""
        chat = self._chats.get(chat_id)
        if chat is None:
            return
        under_way = chat.under_way.pop(client_message_id, None)
        if under_way is None:
            return
        self.count -= 1
        chat.failed -= not under_way
        if not chat.under_way:
            del self._chats[chat_id]


class FailedSends:
    """Of each stream and chat the first send that failed and has not come again; the longest unchanged are forgotten.

    The first by arrival, and not by when it failed: one that finds no room fails at once, while those before it wait.
    """

    def __init__(self) -> None:
        self._first: OrderedDict[tuple[str, str], tuple[int, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._first)

    def hold_up(self, write: Write) -> bool:
        """Whether an earlier send of the stream must come again first. If this is that one, it no longer holds up any."""
        lane = write.stream_id, write.chat_id
        first = self._first.get(lane)
        if first is None:
            return False
        arrival, client_message_id = first
        if client_message_id == write.client_message_id:
            del self._first[lane]
            return False
        return write.arrival > arrival

    def refused(self, write: Write, error: chat_pb2.Error) -> None:
        """Notes that a send, or one that it holds up, was refused: for good, or to come again."""
        lane = write.stream_id, write.chat_id
        first = self._first.get(lane)
        if is_retryable(error):
            if write.stream_id and (first is None or write.arrival < first[0]):
                self._first[lane] = write.arrival, write.client_message_id
                self._first.move_to_end(lane)
                if len(self._first) > _FAILED_MAX:
                    self._first.popitem(last=False)
        elif first is not None and first[1] == write.client_message_id:
            del self._first[lane]


def _up_to(chat: _Chat, client_message_id: bytes) -> list[bool]:
    """Whether each of the sends before this one is under way."""
    before = []
    for other, under_way in chat.under_way.items():
        if other == client_message_id:
            break
        before.append(under_way)
    return before
