"""`chatgrpc send`: sends texts and waits until they are committed."""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from chatgrpc.v1 import chat_pb2

from ..client import Client, Outgoing
from ..events import ConnectionState
from ..exceptions import (
    ChatError,
    DataDirError,
    DataDirLockedError,
    DeviceRevokedError,
    DiskError,
    OutboxFullError,
    RequestError,
    RequestTimeoutError,
    TooManyDevicesError,
    request_error,
)
from ..store import QueuedMessage
from ..to_its_end import to_its_end
from ..wording import messages
from .access import Access, DeviceOption, check_chat, check_user, takes_access
from .ending import advice, complain, run, silence
from .lines import stdin_lines
from .rendering import dump, explained, safe

LOCK_POLL_S = 0.1
NOT_SENT = 1
REFUSED = 3
EARLIER = "a message that waited from earlier"


@takes_access(folder=True)
def send(
    access: Access,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="What to say; `-` sends each line of standard input that is not empty.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="USER", help="Whom to send it to.")] = "",
    chat: Annotated[str, typer.Option("--chat", metavar="CHAT", help="Which chat to send it to, by its id.")] = "",
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long to wait.")] = 15.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each message.")] = False,
    device: DeviceOption = "send",
) -> None:
    """Send a message and wait until it is committed.

    What cannot be sent in time stays on disk and goes out, once and in order, with the next `chatgrpc send` of this user. Exit
    code: 0 all committed, 1 something still waits, or was not kept (standard error, and --json, say which), 3 something was
    refused.
    """
    if bool(to) == bool(chat):
        raise typer.BadParameter("give either --to USER or --chat CHAT")
    check_user("--to", to)
    check_chat("--chat", chat)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("the text is not UTF-8", param_hint="'TEXT'") from None
    sender = _Sender(access.client(device, ephemeral=True), to, chat, timeout_s, as_json, access.token_hint)
    run(lambda: sender.run(text), access.token_hint)


class _Sender:
    def __init__(self, client: Client, to: str, chat: str, timeout_s: float, as_json: bool, token_hint: str = "") -> None:
        self._client = client
        self._to = to
        self._chat = chat
        self._timeout_s = timeout_s
        self._as_json = as_json
        self._token_hint = token_hint
        self._deadline_s = time.monotonic() + timeout_s
        self._refused = False
        self._left_out = False
        """What there was to send is not all kept: the disk or the outbox is full, or it was interrupted."""
        self._next_line = 0
        """The first line of standard input that is neither kept nor refused; 0 = what is sent is no line of it."""
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
                await self._send(text)
            await client.wait_until_sent(max(0.1, self._deadline_s - time.monotonic()))
            await self._report_unsettled()
            if self._unsettled:  # an outbox in which nothing waits is not yet a message that was sent
                return await self._waits(client.why_waiting or "the server did not say what became of it")
            await self._report_earlier(earlier)
            return self._code
        except RequestTimeoutError:
            return await self._waits(client.why_waiting or "the server did not answer in time")
        except DiskError as error:
            complain(f"not sent: {advice(error)}")
            return NOT_SENT
        except TooManyDevicesError:
            return await self._send_without_device(earlier)
        except DeviceRevokedError as error:
            return await self._waits(advice(error), "and never sent from this device: send it again with --device NAME")
        except ChatError as error:
            return await self._waits(advice(error, self._token_hint))
        except asyncio.CancelledError:
            if await client.waiting_messages():  # whoever interrupts it must know whether to send it again
                await self._waits("interrupted")
            raise
        finally:
            await client.__aexit__(None, None, None)

    @property
    def _code(self) -> int:
        """The exit code, where nothing waits."""
        if self._left_out:
            return NOT_SENT
        return REFUSED if self._refused else 0

    async def _send_without_device(self, earlier: Sequence[QueuedMessage]) -> int:
        """The user has as many devices as allowed, and a home that is not kept needs none: what waits goes out by itself."""
        earlier_ids = {message.client_message_id for message in earlier}
        try:
            async for message, outcome in self._client.send_without_session():
                which = f"{EARLIER} was " if message.client_message_id in earlier_ids else ""
                if isinstance(outcome, RequestError):
                    facts = {"chat_id": message.chat_id, "client_message_id": message.client_message_id.hex()}
                    self._refused = True
                    self._say_refused(facts, outcome, f"{which}refused")
                else:
                    to = message.to_user_id or message.chat_id
                    self._say_sent(to, message.chat_id, message.client_message_id, outcome, f"{which}sent")
        except ChatError as error:
            return await self._waits(advice(error, self._token_hint))
        return self._code

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

    @property
    def _chat_id(self) -> str:
        return self._chat or self._client.direct_chat_id(self._to)

    async def _send(self, text: str) -> None:
        outgoing = await self._keep(text)
        if outgoing is not None:
            await self._report(outgoing)

    async def _keep(self, text: str) -> Outgoing | None:
        """Puts a text into the outbox; None if it is not there, which is said."""
        try:
            return await self._client.send(text, chat_id=self._chat, user_id=self._to)
        except RequestError as error:  # it can never be sent; others may
            self._refused = True
            self._say_refused({"chat_id": self._chat_id}, error, "refused")
        except (DataDirError, OutboxFullError) as error:
            self._leave_out(advice(error))
        return None

    async def _keep_line(self, number: int, line: str) -> Outgoing | None:
        self._next_line = number
        outgoing = await self._keep(line)
        if not self._left_out:
            self._next_line = number + 1
        return outgoing

    def _leave_out(self, reason: str) -> None:
        """Says that the text, or this line and what is behind it, is not kept."""
        self._left_out = True
        if self._as_json:
            line = {"line": self._next_line} if self._next_line else {}
            self._say(dump({"chat_id": self._chat_id, **line, "status": "not kept", "error": reason}))
        what = f"line {self._next_line} of standard input and those behind it are " if self._next_line else ""
        complain(f"{what}not sent, and not kept: {reason}")

    async def _send_lines(self) -> None:
        """Sends line after line, as many at a time as the client has on its way.

        What does not go out in time is kept, and then the lines behind it are, without a wait for each, until it has gone out.
        """
        self._next_line = 1
        reports: set[asyncio.Task[None]] = set()
        try:
            await self._keep_lines(reports)
        except asyncio.CancelledError:
            if not self._left_out:
                self._leave_out("interrupted")
            for report in reports:  # whoever interrupts it waits for none of them
                report.cancel()
            raise
        finally:
            await asyncio.gather(*reports)

    async def _keep_lines(self, reports: set[asyncio.Task[None]]) -> None:
        window = asyncio.Semaphore(self._client.config.sends_in_flight_max)
        number = 0
        async for line in stdin_lines():
            number += 1
            if not line:
                continue
            await window.acquire()
            if self._unsettled and not self._is_late:
                await self._report_unsettled()
            outgoing = await to_its_end(self._keep_line(number, line))  # so that it is known whether it is kept
            if self._left_out:
                return
            if outgoing is None:
                window.release()
                continue
            report = asyncio.create_task(self._report(outgoing))
            reports.add(report)
            report.add_done_callback(reports.discard)
            report.add_done_callback(lambda _: window.release())

    @property
    def _is_late(self) -> bool:
        """Whether a line did not go out in time, and has not since: those behind it will not go out before it."""
        if self._client.connection.state is ConnectionState.STOPPED:
            return True
        return bool(self._unsettled) and not self._unsettled[-1].settled

    async def _report_unsettled(self) -> None:
        """Prints what became of the messages that were late."""
        unsettled, self._unsettled = self._unsettled, []
        for outgoing in unsettled:
            await self._report(outgoing)

    async def _report_earlier(self, earlier: Sequence[QueuedMessage]) -> None:
        """Says what became of the messages that waited from earlier runs."""
        refused = {message.client_message_id: message for message in await self._client.failed_messages()}
        for message in earlier:
            failed = refused.get(message.client_message_id)
            if failed is not None and failed.error is not None:
                self._refused = True
                facts = {"chat_id": failed.chat_id, "client_message_id": failed.client_message_id.hex()}
                self._say_refused(facts, request_error(failed.error), f"{EARLIER} was refused")
        sent = sum(message.client_message_id not in refused for message in earlier)
        if sent and not self._as_json:
            self._say(f"{messages(sent)} that waited from earlier: sent too")

    def _say_refused(self, facts: dict[str, Any], error: RequestError, said: str) -> None:
        if self._as_json:
            self._say(dump(facts | {"status": "refused", "code": int(error.code), "error": str(error)}))
        else:
            complain(f"{said}: {explained(error)}")

    async def _report(self, outgoing: Outgoing) -> None:
        """Waits for the outcome of a message and prints it."""
        facts: dict[str, Any] = {"chat_id": outgoing.chat_id, "client_message_id": outgoing.client_message_id.hex()}
        try:
            async with asyncio.timeout(0 if self._is_late else self._timeout_s):
                result = await outgoing.sent
        except RequestError as error:
            self._refused = True
            self._say_refused(facts, error, "refused")
            return
        except (ChatError, TimeoutError):
            self._unsettled.append(outgoing)  # it waits on disk; `run` says so for all that do
            return
        self._say_sent(self._to or self._chat, outgoing.chat_id, outgoing.client_message_id, result)

    def _say_sent(
        self, to: str, chat_id: str, client_message_id: bytes, result: chat_pb2.SendResult, said: str = "sent"
    ) -> None:
        facts = {"chat_id": chat_id, "client_message_id": client_message_id.hex()}
        if self._as_json:
            self._say(dump(facts | {"status": "sent", "seq": result.seq, "sent_at_ms": result.sent_at_ms}))
        else:
            self._say(f"✓ {said} to {safe(to)} as #{result.seq} (chat {chat_id})")

    async def _waits(self, reason: str, fate: str = "") -> int:
        """Says that messages are kept, why, and what becomes of them: by default the next run sends them."""
        fate = fate or (
            f"to go out with the next `chatgrpc send --as {self._client.user_id}` to {self._client.config.address}; do not send"
            f" {'these' if self._left_out else 'the text'} again (`chatgrpc queue` lists and drops what waits)"
        )
        waiting = await self._client.waiting_messages()
        if not waiting:
            complain(f"not sent: {reason}")
            return NOT_SENT
        if self._as_json:
            for message in waiting:
                facts = {"chat_id": message.chat_id, "client_message_id": message.client_message_id.hex()}
                self._say(dump(facts | {"status": "queued", "error": reason}))
        complain(f"not sent yet: {reason}\n{messages(len(waiting))} kept on disk, {fate}")
        return NOT_SENT

    def _say(self, line: str) -> None:
        """Prints a line. If it cannot be written, what is committed is committed all the same, and the exit code says so."""
        try:
            typer.echo(line)
        except OSError as error:
            silence()
            complain(f"the output cannot be written: {error.strerror}")
