"""What the edge needs of whoever orders chats: this process alone (`embedded`), or owners on many nodes (`cluster`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from chatgrpc.core.active_chat import Ticket
from chatgrpc.core.clock import Now
from chatgrpc.core.sequencer import Answer, Delivery
from chatgrpc.core.write import Write


@dataclass(frozen=True, slots=True)
class Progress:
    """What became known since the last pump."""

    answers: list[Answer]
    deliveries: list[Delivery]
    """Committed events for devices of this node."""
    heads: Mapping[str, int] = field(default_factory=dict)
    """Committed heads by chat, for sessions to find out whether a push was lost; newer than `deliveries`."""


class Ordering(Protocol):
    """Orders writes. Everything happens on the event loop's thread; when something became known the tick loop is woken."""

    def submit(self, ticket: Ticket, session_id: str, write: Write, now: Now) -> None:
        """Takes a write; its outcome comes out of a later `pump`, with the ticket.

        Writes of one session to one chat are ordered as they are submitted. `session_id` is of the stream, or any name of its
        own for a caller without one; the caller then closes it.
        """
        ...

    def session_closed(self, session_id: str) -> None:
        """Nobody waits for this session's writes any more; they may be committed all the same."""
        ...

    def pump(self, now: Now) -> Progress:
        """Goes on with all that can go on, and returns what became known."""
        ...

    def pass_time(self, now: Now) -> None:
        """To be called often: time may have come to ask again, or to give up."""
        ...

    async def settle(self) -> None:
        """Returns when nothing that was submitted is on its way any more; the ticks must go on meanwhile."""
        ...
