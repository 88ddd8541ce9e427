"""`chatgrpc tail`: prints events as they come, and acknowledges what it has printed."""

import sys
from typing import Annotated

import typer

from ..client import Client
from ..events import ConnectionChanged, ConnectionState, EncryptedMessage, LogEvent, Message
from .access import Access, DeviceOption, check_chat, check_user, takes_access
from .conversation import Conversation
from .ending import complain, run
from .rendering import as_json as event_as_json
from .rendering import safe

UNACKNOWLEDGED_MAX = 16
"""Events printed between two acknowledgements: as many may be repeated after a kill."""
QUOTABLE_LINES = 100


@takes_access(folder=True)
def tail(
    access: Access,
    chat: Annotated[str, typer.Option("--chat", metavar="CHAT", help="Print this chat only, by its id.")] = "",
    with_user: Annotated[str, typer.Option("--with", metavar="USER", help="Print the chat with this user only.")] = "",
    count: Annotated[int, typer.Option("--count", metavar="N", min=0, help="Stop after N messages; 0 = never.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    device: DeviceOption = "tail",
) -> None:
    """Print every event of your chats, one a line, from where the last `chatgrpc tail` stopped.

    The first run begins with the first event that you may see. An event is acknowledged when it is printed and flushed, so
    none is skipped, and after an orderly end none is repeated.
    """
    if chat and with_user:
        raise typer.BadParameter("give at most one of --chat and --with")
    check_user("--with", with_user)
    check_chat("--chat", chat)
    client = access.client(device, manual_ack=True, replay_all=True)

    async def work() -> int:
        async with client:
            wanted = client.direct_chat_id(with_user) if with_user else chat
            return await _print_events(client, _Printer(access.user_id, wanted, as_json), count)

    run(work, access.token_hint)


async def _print_events(client: Client, printer: "_Printer", count: int) -> int:
    stream = client.events()
    unacknowledged: list[LogEvent] = []
    try:
        async for event in stream:
            if isinstance(event, ConnectionChanged):
                _report(event)
            if not isinstance(event, LogEvent):
                continue
            printer.print(event)
            unacknowledged.append(event)
            done = bool(count) and printer.messages_printed >= count
            if done or not stream.has_more or len(unacknowledged) >= UNACKNOWLEDGED_MAX:
                await client.acknowledge(unacknowledged[-1])
                unacknowledged.clear()
            if done:
                return 0
    finally:
        if unacknowledged:
            await client.acknowledge(unacknowledged[-1])
    return 0


class _Printer:
    def __init__(self, user: str, chat_id: str, as_json: bool) -> None:
        self.messages_printed = 0
        self._user = user
        self._chat_id = chat_id
        self._as_json = as_json
        self._conversations: dict[str, Conversation] = {}

    def print(self, event: LogEvent) -> None:
        """Prints an event, unless it is of a chat that is not wanted; flushed when this returns."""
        if self._chat_id and event.chat_id != self._chat_id:
            return
        sys.stdout.write((event_as_json(event.event) if self._as_json else self._line(event)) + "\n")
        sys.stdout.flush()
        self.messages_printed += isinstance(event, Message | EncryptedMessage)

    def _line(self, event: LogEvent) -> str:
        conversation = self._conversations.setdefault(event.chat_id, Conversation(self._user, pending_max=0))
        shown = conversation.add(event.event) or f"{'#' + str(event.seq):>6} (settings)"
        conversation.lines.pop(event.seq - QUOTABLE_LINES, None)
        return f"{safe(event.chat_id)} {shown}"


def _report(event: ConnectionChanged) -> None:
    if event.state is ConnectionState.WAITING and event.message:
        complain(f"{event.message}; next try in {event.retry_in_s:.1f} s")
