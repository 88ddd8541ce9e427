"""`chatgrpc send`: sends texts and waits until they are committed."""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..client import Client, Outgoing
from ..exceptions import ChatError, DataDirLockedError, RequestError, RequestTimeoutError, request_error
from ..store import QueuedMessage
from ..wording import messages
from .access import (
    DEFAULT_ADDRESS,
    Access,
    AsOption,
    CaOption,
    DataDirOption,
    DeviceOption,
    ServerOption,
    TokenOption,
    advice,
    check_chat,
    check_user,
    run,
)
from .lines import stdin_lines
from .rendering import dump, explained, safe

LOCK_POLL_S = 0.1
NOT_SENT = 1
REFUSED = 3


def send(
    user: AsOption,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say; `-` sends each line of standard input.")],
    to: Annotated[str, typer.Option("--to", metavar="USER", help="Whom to send it to.")] = "",
    chat: Annotated[str, typer.Option("--chat", metavar="CHAT", help="Which chat to send it to, by its id.")] = "",
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long to wait.")] = 15.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each message.")] = False,
    server: ServerOption = DEFAULT_ADDRESS,
    token: TokenOption = None,
    tls_ca: CaOption = None,
    data_dir: DataDirOption = None,
    device: DeviceOption = "send",
) -> None:
    """Send a message and wait until it is committed.

    What cannot be sent in time stays on disk and goes out, once and in order, with the next `chatgrpc send` of this user. Exit
    code: 0 all committed, 1 something still waits, 3 something was refused.
    """
    if bool(to) == bool(chat):
        raise typer.BadParameter("give either --to USER or --chat CHAT")
    check_user("--to", to)
    check_chat("--chat", chat)
    access = Access(user, server, token, tls_ca, data_dir)
    sender = _Sender(access.client(device), to, chat, timeout_s, as_json)
    run(lambda: sender.run(text))


class _Sender:
    def __init__(self, client: Client, to: str, chat: str, timeout_s: float, as_json: bool) -> None:
        self._client = client
        self._to = to
        self._chat = chat
        self._timeout_s = timeout_s
        self._as_json = as_json
        self._deadline_s = time.monotonic() + timeout_s
        self._refused = False
        self._unsettled: list[Outgoing] = []
        """Messages of this run of which it was not known in time what became of them."""

    async def run(self, text: str) -> int:
        await self._open()
        client = self._client
        try:
            earlier = await client.waiting_messages()
            if text == "-":
                await self._send_lines()
            else:
                await self._report(await client.send(text, chat_id=self._chat, user_id=self._to))
            await client.wait_until_sent(max(0.1, self._deadline_s - time.monotonic()))
            unsettled, self._unsettled = self._unsettled, []
            for outgoing in unsettled:
                await self._report(outgoing)
            if self._unsettled:  # an outbox in which nothing waits is not yet a message that was sent
                return await self._waits(client.connection.message or "the server did not say what became of it")
            await self._report_earlier(earlier)
        except RequestTimeoutError:
            return await self._waits(client.connection.message or "the server did not answer in time")
        except ChatError as error:
            return await self._waits(advice(error))
        finally:
            await client.__aexit__(None, None, None)
        return REFUSED if self._refused else 0

    async def _open(self) -> None:
        """Opens the device; if another `send` uses it, waits for that one to end."""
        while True:
            try:
                await self._client.__aenter__()
                return
            except DataDirLockedError:
                if time.monotonic() > self._deadline_s:
                    raise
                await asyncio.sleep(LOCK_POLL_S)

    async def _send_lines(self) -> None:
        """Sends line after line, as many at a time as the client has on its way."""
        window = asyncio.Semaphore(self._client.config.sends_in_flight_max)
        async with asyncio.TaskGroup() as reports:
            async for line in stdin_lines():
                await window.acquire()
                outgoing = await self._client.send(line, chat_id=self._chat, user_id=self._to)
                report = reports.create_task(self._report(outgoing))
                report.add_done_callback(lambda _: window.release())

    async def _report_earlier(self, earlier: Sequence[QueuedMessage]) -> None:
        """Says what became of the messages that waited from earlier runs."""
        refused = {message.client_message_id: message for message in await self._client.failed_messages()}
        for message in earlier:
            failed = refused.get(message.client_message_id)
            if failed is not None and failed.error is not None:
                self._refused = True
                facts = {"chat_id": failed.chat_id, "client_message_id": failed.client_message_id.hex()}
                self._say_refused(facts, request_error(failed.error), "a message that waited from earlier was refused")
        sent = sum(message.client_message_id not in refused for message in earlier)
        if sent and not self._as_json:
            typer.echo(f"{messages(sent)} that waited from earlier: sent too")

    def _say_refused(self, facts: dict[str, Any], error: RequestError, said: str) -> None:
        if self._as_json:
            typer.echo(dump(facts | {"status": "refused", "code": int(error.code), "error": str(error)}))
        else:
            typer.echo(f"chatgrpc: {said}: {explained(error)}", err=True)

    async def _report(self, outgoing: Outgoing) -> None:
        """Waits for the outcome of a message and prints it."""
        facts: dict[str, Any] = {"chat_id": outgoing.chat_id, "client_message_id": outgoing.client_message_id.hex()}
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await outgoing.sent
        except RequestError as error:
            self._refused = True
            self._say_refused(facts, error, "refused")
            return
        except (ChatError, TimeoutError):
            self._unsettled.append(outgoing)  # it waits on disk; `run` says so for all that do
            return
        if self._as_json:
            typer.echo(dump(facts | {"status": "sent", "seq": result.seq, "sent_at_ms": result.sent_at_ms}))
        else:
            typer.echo(f"✓ sent to {safe(self._to or self._chat)} as #{result.seq} (chat {outgoing.chat_id})")

    async def _waits(self, reason: str) -> int:
        waiting = await self._client.waiting_messages()
        if self._as_json:
            for message in waiting:
                facts = {"chat_id": message.chat_id, "client_message_id": message.client_message_id.hex()}
                typer.echo(dump(facts | {"status": "queued", "error": reason}))
        typer.echo(
            f"chatgrpc: not sent yet: {reason}\n{messages(len(waiting))} kept on disk, to go out with the next `chatgrpc send"
            f" --as {self._client.user_id}`; do not send the text again",
            err=True,
        )
        return NOT_SENT
