"""Many users leave a node at once, and those who watch them are told a few at a time."""

from collections.abc import Callable
from typing import cast

from chatgrpc.core.active_chat import ActiveChat
from chatgrpc.core.clock import Now
from chatgrpc.core.effects import Watch
from chatgrpc.core.limits import Limits
from chatgrpc.core.presence import LINGER_MS
from chatgrpc.embedded.audience import LocalAudience
from chatgrpc.embedded.ordering import LocalOrdering
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.cluster.streams import Streams
from tests.unit.edge.crowd import STEPS_PER_SLICE, Clock

AT = Now(1_000_000, 1_000_000)


class Chats:
    """Chats of Zoe and the user that they are named after, all of them loaded."""

    def with_chat(self, chat_id: str, asked: object, callback: Callable[[ActiveChat | None], None]) -> None:
        chat = ActiveChat(chat_id, 1, 1)
        chat.restore(
            chat_pb2.Chat(chat_id=chat_id, members=[content_pb2.Member(user_id=user_id) for user_id in ("zoe", chat_id)])
        )
        callback(chat)


async def test_many_who_left_at_once_are_shown_a_few_at_a_time() -> None:
    streams = Streams()
    audience = LocalAudience(streams.connections, cast("LocalOrdering", Chats()), Limits(), clock_s=Clock())
    others = [streams.open(f"u{number}") for number in range(5 * STEPS_PER_SLICE)]
    for connection in others:
        await audience.connected(connection)
    zoe = streams.open("zoe")
    audience.watch(zoe, Watch(tuple(connection.session.user_id for connection in others), ()))
    streams.frames(zoe)
    for connection in others:
        audience.disconnected(connection, AT)
    left, shown = True, list[str]()
    while left:
        left = audience.pass_time(AT.monotonic_ms + LINGER_MS)
        some = [frame.presence.user_id for frame in streams.frames(zoe)]
        assert len(some) <= STEPS_PER_SLICE + 1
        shown += some
    assert shown == [connection.session.user_id for connection in others]
