"""Who is told what besides events: receipts, typing, presence. All of it is control traffic, never in an event's way."""

from collections.abc import Callable, Sequence
from typing import Protocol

from chatgrpc.core.clock import Now
from chatgrpc.core.disconnect import Code
from chatgrpc.core.effects import Watch
from chatgrpc.core.receipts import Mark, Raised
from chatgrpc.edge.connection import Connection
from chatgrpc.v1 import session_pb2

Touched = Callable[[Connection], None]
"""Called with each connection that has new control traffic to send."""


class Audience(Protocol):
    """Finds the sessions that something concerns, on this node or on others, and shows it to them."""

    def mark_raised(self, raised: Raised) -> None:
        """Shows a mark to those whose messages it covers, a read mark to the reader's own devices too."""
        ...

    def marks_saved(self, marks: Sequence[Mark]) -> None:
        """These marks are in the store by now: whoever comes from now on reads them there."""
        ...

    def typing(self, chat_id: str, typist: Connection, kind: session_pb2.TypingKind.ValueType) -> None:
        """Shows the other members of the chat that someone is typing."""
        ...

    async def connected(self, connection: Connection) -> None:
        """A session is known by its user and device from now on; returns when it can be found."""
        ...

    def disconnected(self, connection: Connection, at: Now) -> None:
        """A session that had been `connected` ended."""
        ...

    def pass_time(self, now_ms: int) -> bool:
        """To be called often, with the monotonic clock: shows who has gone; returns whether there are more to show at once."""
        ...

    def watch(self, watcher: Connection, watch: Watch) -> None:
        """The session watches the members of these chats, whoever they are; it is shown at once who is there.

        With users who are named without a chat it is shown to be looking at them, and when they look back (`core.looks`).
        """
        ...

    def members_changed(self, chat_id: str) -> None:
        """Those who have the chat on their screen watch who is in it now; who is in it no longer watches nobody of it (G6)."""
        ...

    async def online_devices(self, user_id: str) -> frozenset[str]:
        """Which of the user's devices have a live stream."""
        ...

    async def end_elsewhere(self, user_id: str, device_id: str, code: Code) -> None:
        """Ends the device's stream on another node, if it has one there."""
        ...
