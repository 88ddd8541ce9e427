"""`chatgrpc chat`: a line-mode chat in the terminal."""

import asyncio
import os
import sys
from typing import Annotated

import typer

from ..client import Client
from ..exceptions import ChatError, DeviceRevokedError, UnauthenticatedError
from ..wording import messages
from .access import Access, DeviceOption, check_chat, check_user, takes_access
from .commands import COMMANDS, Commands
from .ending import advice, fail, run
from .rendering import explained
from .room import Room
from .screen import PlainScreen, Screen

LEAVE_TIMEOUT_S = 10.0
LEAVE_TIMEOUT_TERMINAL_S = 0.5
SHOW_TIMEOUT_S = 1.0
LINES_AHEAD = 1_000
REFUSED = 3


@takes_access(folder=True)
def chat(
    access: Access,
    with_user: Annotated[str, typer.Option("--with", metavar="USER", help="Whom to chat with.")] = "",
    group: Annotated[str, typer.Option("--group", metavar="CHAT", help="Which group to go into, by its chat id.")] = "",
    device: DeviceOption = "chat",
) -> None:
    """Chat in the terminal: /help lists the commands, Ctrl-D leaves.

    What you type is kept on disk until it is sent: once, in order, also if the server or this program stops in between. With
    standard input from a pipe or a file, each line is sent, or carried out if it begins with a slash, and the exit code tells
    what became of them: 0 all committed, 1 something still waits, 3 something was refused, or could not be understood.
    """
    if bool(with_user) == bool(group):
        raise typer.BadParameter("give either --with USER or --group CHAT")
    check_user("--with", with_user)
    check_chat("--group", group)
    client = access.client(device)
    screen: Screen
    if sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from .terminal import TerminalScreen  # noqa: PLC0415 (slow to load, and only people need it)

        screen = TerminalScreen([command.name for command in COMMANDS] + ["/quit"])
    else:
        screen = PlainScreen()

    async def work() -> int:
        try:
            async with client:
                room = Room(client, screen)
                return await _Visit(client, room, screen).run(group or client.direct_chat_id(with_user), with_user)
        except UnauthenticatedError as error:
            hint = "run `chatgrpc chat` again: it makes its own token" if access.makes_tokens else access.token_hint
            fail(f"the server refuses the token ({explained(error)}); {hint}", code=1)

    run(work, access.token_hint)


class _Visit:
    """From coming in to leaving."""

    def __init__(self, client: Client, room: Room, screen: Screen) -> None:
        self._client = client
        self._room = room
        self._screen = screen
        self._commands = Commands(room)
        self._lines: asyncio.Queue[str | None] = asyncio.Queue(LINES_AHEAD)

    async def run(self, chat_id: str, peer_user_id: str) -> int:
        self._room.chat_id, self._room.peer_user_id = chat_id, peer_user_id
        watching = asyncio.create_task(self._watch(chat_id, peer_user_id))
        reading = asyncio.create_task(self._read_lines())
        working = asyncio.create_task(self._carry_out_lines())
        try:
            await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                await watching
            await working
            code = await self._leave(watching)
            if watching.done() and not code:
                await watching  # what should have been shown was not
            return code
        finally:
            for task in (watching, reading, working):
                task.cancel()
            await asyncio.gather(watching, reading, working, return_exceptions=True)

    async def _watch(self, chat_id: str, peer_user_id: str) -> None:
        """Shows the chat, then what happens; ends with the error that stops the client."""
        stream = self._client.events()
        await self._room.enter(chat_id, peer_user_id)
        async for event in stream:
            await self._room.on_event(event)

    async def _read_lines(self) -> None:
        async for line in self._screen.lines(self._room):
            await self._lines.put(line)
        await self._lines.put(None)

    async def _carry_out_lines(self) -> None:
        """Line by line, apart from reading: while one takes its time, the next may be typed."""
        while (line := await self._lines.get()) is not None:
            if not await self._commands.line(line):
                return

    async def _leave(self, watching: "asyncio.Task[None]") -> int:
        """Gives what was typed last a moment to go out; the rest waits for the next time.

        `watching` shows the chat, until it cannot.
        """
        patience_s = LEAVE_TIMEOUT_TERMINAL_S if self._screen.shows_toolbar else LEAVE_TIMEOUT_S
        try:
            await self._client.wait_until_sent(patience_s)
        except ChatError as error:
            waiting = messages(len(await self._client.waiting_messages()))
            fate = "" if isinstance(error, DeviceRevokedError) else ", to go out with the next `chatgrpc chat`"
            self._screen.show(f"{waiting} kept on disk{fate}: {advice(error)}")
            return 1
        if self._screen.shows_toolbar:
            return 0
        if not self._room.was_live:
            entered = asyncio.create_task(self._room.entered.wait())  # which says so if there is no connection
            await asyncio.wait({entered, watching}, return_when=asyncio.FIRST_COMPLETED)
            entered.cancel()
        await self._room.until_up_to_date(SHOW_TIMEOUT_S)
        if self._room.refused:
            return REFUSED
        return 0 if self._room.was_live else 1
