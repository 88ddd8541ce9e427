"""Who is shown what where everyone is connected to this process, and what it costs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from chatgrpc.core.effects import Watch
from chatgrpc.core.limits import Limits
from chatgrpc.edge.connection import Connections
from chatgrpc.embedded.audience import LocalAudience
from chatgrpc.v1 import session_pb2
from tests.unit.cluster.streams import Streams


class Watcher:
    """A connection whose place in a set is looked for once for each user whom it begins or ends to watch."""

    def __init__(self, user_id: str) -> None:
        self.session = self
        self.user_id = user_id
        self.shown: list[str] = []
        self.looked_for = 0

    def show_presence(self, presence: session_pb2.Presence) -> None:
        """See the session."""
        self.shown.append(presence.user_id)

    def __hash__(self) -> int:
        self.looked_for += 1
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass
class _Chat:
    recipients: tuple[str, ...]

    @property
    def members(self) -> tuple[str, ...]:
        return self.recipients

    def may_type(self, user_id: str, wall_ms: int) -> bool:
        return user_id in self.recipients


class Chats:
    """An ordering in which all chats are loaded."""

    def __init__(self) -> None:
        self.members: dict[str, tuple[str, ...]] = {}

    def with_chat(self, chat_id: str, asker: object, callback: Callable[[Any], None]) -> None:
        """See the ordering."""
        callback(_Chat(self.members[chat_id]))


def test_a_change_of_members_costs_a_watcher_as_much_as_there_are_others_on_its_screen() -> None:
    chats = Chats()
    audience = LocalAudience(Connections(), cast("Any", chats), Limits())
    chats.members = {f"g.{number}": ("alice", *(f"member{number}-{m}" for m in range(25))) for number in range(20)}
    watcher = Watcher("alice")
    audience.watch(cast("Any", watcher), Watch(tuple(chats.members), ()))
    others = [user_id for members in chats.members.values() for user_id in members if user_id != "alice"]
    assert watcher.shown == others

    chats.members["g.0"] = (*chats.members["g.0"], "new", "member1-0")
    watcher.shown, watcher.looked_for = [], 0
    audience.members_changed("g.0")
    assert watcher.shown == ["new"]
    assert watcher.looked_for < 3 * len(others), "one look for each whom it forgets, and one for each whom it learns of"


def test_what_is_typed_is_serialized_once_for_all_who_are_shown_it() -> None:
    streams, chats = Streams(), Chats()
    audience = LocalAudience(streams.connections, cast("Any", chats), Limits())
    chats.members = {"g.1": ("alice", "bob", "carol")}
    typist = streams.open("alice")
    others = [streams.open("bob"), streams.open("bob", device_id="tablet"), streams.open("carol")]
    audience.typing("g.1", typist, session_pb2.TYPING_KIND_TEXT)
    chunks = [chunk for other in others for chunk in other.session.control.values()]
    assert len(chunks) == 3
    assert all(chunk is chunks[0] for chunk in chunks)
    typing = session_pb2.Typing(chat_id="g.1", user_id="alice", kind=session_pb2.TYPING_KIND_TEXT)
    assert [[frame.typing for frame in streams.frames(other)] for other in others] == [[typing]] * 3
    assert not streams.frames(typist)
