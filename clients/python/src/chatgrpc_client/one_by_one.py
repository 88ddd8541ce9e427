"""Sends what waits by one call each, where no session can be had: a user has so many devices, and a job needs none.

Each message keeps its key through all tries, also those of earlier sessions and of later runs, so it is committed once. What is
not known of a chat (how far it goes) is asked, and stored before the first try.
"""

from collections.abc import AsyncIterator

from chatgrpc.v1 import chat_pb2, message_service_pb2

from .exceptions import RequestError, TemporaryError
from .outbox import OutboxEntry
from .store import QueuedMessage, Store
from .store_thread import StoreThread
from .unary import Caller

Outcome = tuple[QueuedMessage, chat_pb2.SendResult | RequestError]

_NO_ANSWER = frozenset(
    {
        chat_pb2.ERROR_CODE_UNSPECIFIED,  # the call failed, perhaps after the message was committed
        chat_pb2.ERROR_CODE_SEEN_SEQ_TOO_OLD,  # only a session can find out whether it was
        chat_pb2.ERROR_CODE_SEEN_SEQ_AHEAD,
    }
)


async def send_one_by_one(caller: Caller, store: StoreThread) -> AsyncIterator[Outcome]:
    """Sends the messages of the outbox in order; yields what became of each, when that is on disk.

    Raises:
        ChatError: one got no answer; it and those behind it wait.
    """
    for entry in await store.call(Store.outbox_entries):
        message = (await store.call(Store.queued, [entry.client_message_id]))[entry.client_message_id]
        if entry.seen_seq is None:
            entry.seen_seq = await caller.head_of(entry.chat_id)
            await store.call(Store.set_seen_seq, [(entry.client_message_id, entry.seen_seq)])
        try:
            result = await _send(caller, entry, message)
        except TemporaryError:
            raise
        except RequestError as error:
            if error.code in _NO_ANSWER:
                raise
            refusal = chat_pb2.Error(code=error.code, message=str(error))
            await store.call(Store.settle, [], [(entry.client_message_id, refusal)])
            yield message, error
            continue
        await store.call(Store.settle, [entry.client_message_id], [])
        yield message, result


async def _send(caller: Caller, entry: OutboxEntry, message: QueuedMessage) -> chat_pb2.SendResult:
    assert entry.seen_seq is not None
    key = chat_pb2.WriteKey(client_message_id=entry.client_message_id, seen_seq=entry.seen_seq)
    request = message_service_pb2.SendMessageRequest(key=key, content=message.content)
    if message.to_user_id:
        request.user_id = message.to_user_id
    else:
        request.chat_id = message.chat_id
    return (await caller.call(lambda on: on.messages.SendMessage, request)).sent
