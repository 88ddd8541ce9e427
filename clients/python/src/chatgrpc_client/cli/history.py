"""`chatgrpc history`: prints what was said, page after page."""

import sys
from collections.abc import AsyncIterator
from typing import Annotated

import typer

from chatgrpc.core.ids import direct_chat_id, self_chat_id
from chatgrpc.v1 import chat_pb2

from ..exceptions import NotAMemberError
from ..store import SEQ_MAX
from ..unary import Caller
from .access import Access, check_chat, check_user, takes_access
from .conversation import Conversation
from .ending import complain, run
from .rendering import as_json as event_as_json

PAGE_EVENTS = 100
AMENDMENTS_LOOKED_AT_MAX = 10_000


@takes_access(folder=False)
def history(
    access: Access,
    with_user: Annotated[str, typer.Option("--with", metavar="USER", help="The chat with this user.")] = "",
    chat: Annotated[str, typer.Option("--chat", metavar="CHAT", help="This chat, by its id.")] = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many events.")] = 20,
    before: Annotated[int, typer.Option("--before", metavar="SEQ", min=0, help="The events just below this one.")] = 0,
    after: Annotated[int, typer.Option("--after", metavar="SEQ", min=0, help="The events just above this one.")] = 0,
    everything: Annotated[bool, typer.Option("--all", help="All of it, oldest first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Print a chat's history, oldest line first: the newest 20 events, or those that the options name.

    Each message is shown as it stands now, with later edits, reactions and deletions; those of a message that is not among the
    lines are lines of their own. Messages that you hid from yourself are left out. With --json each event of the log is printed
    as it is: edits and reactions are events of their own, further on.
    """
    if bool(with_user) == bool(chat):
        raise typer.BadParameter("give either --with USER or --chat CHAT")
    if sum(map(bool, (before, after, everything))) > 1:
        raise typer.BadParameter("give at most one of --before, --after, --all")
    check_user("--with", with_user)
    check_chat("--chat", chat)
    chat_id = chat or direct_chat_id(access.user_id, with_user)

    async def work() -> int:
        async with access.caller() as caller:
            hidden = await _hidden(caller, access.user_id, chat_id)
            if everything or after:
                events = caller.list_events(chat_id, newest_first=False, start_seq=min(after, SEQ_MAX), page_size=PAGE_EVENTS)
                shown = _first(events, hidden, None if everything else limit)
            else:
                page_size = min(limit + len(hidden), PAGE_EVENTS)
                newest = caller.list_events(chat_id, newest_first=True, start_seq=min(before, SEQ_MAX), page_size=page_size)
                shown = _backwards([event async for event in _first(newest, hidden, limit)])
            if as_json:
                async for event in shown:
                    sys.stdout.write(event_as_json(event) + "\n")
            else:
                page = [event async for event in shown]
                later = await _amendments(caller, chat_id, page) if before or after else []
                conversation = Conversation(access.user_id)
                conversation.hide(hidden)
                for line in conversation.add_page(page, later):
                    sys.stdout.write(line + "\n")
                if len(later) == AMENDMENTS_LOOKED_AT_MAX:
                    complain(f"edits and reactions above #{later[-1].seq} are not looked at")
            sys.stdout.flush()
        return 0

    run(work, access.token_hint)


async def _amendments(caller: Caller, chat_id: str, page: list[chat_pb2.ChatEvent]) -> list[chat_pb2.ChatEvent]:
    """What came after a page, up to a bound: among it stands what became of the page's messages."""
    if not page:
        return []
    events = caller.list_events(chat_id, newest_first=False, start_seq=page[-1].seq, page_size=PAGE_EVENTS)
    return [event async for event in _first(events, set(), AMENDMENTS_LOOKED_AT_MAX)]


async def _hidden(caller: Caller, user: str, chat_id: str) -> set[int]:
    """Seqs of the messages of this chat that the user hid: their self chat says so."""
    hidden: set[int] = set()
    try:
        async for event in caller.list_events(self_chat_id(user), newest_first=False, page_size=PAGE_EVENTS):
            if event.content.HasField("hide") and event.content.hide.chat_id == chat_id:
                hidden.update(event.content.hide.seqs)
    except NotAMemberError:
        return hidden  # nothing was ever hidden, so there is no self chat
    return hidden


async def _first(
    events: AsyncIterator[chat_pb2.ChatEvent], hidden: set[int], limit: int | None
) -> AsyncIterator[chat_pb2.ChatEvent]:
    left = limit
    async for event in events:
        if event.seq in hidden:
            continue
        yield event
        if left is not None:
            left -= 1
            if not left:
                return


async def _backwards(events: list[chat_pb2.ChatEvent]) -> AsyncIterator[chat_pb2.ChatEvent]:
    for event in reversed(events):
        yield event
