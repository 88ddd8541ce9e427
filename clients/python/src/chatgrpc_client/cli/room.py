"""The chat on the screen: what is shown of it, what is sent to it, and what goes on beside it."""

import asyncio
import contextlib
import time

from chatgrpc.core.fold import apply_event
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2

from ..client import Client, Outgoing
from ..events import (
    ChatOpened,
    ClientEvent,
    ConnectionChanged,
    ConnectionState,
    Hide,
    LogEvent,
    MessageCommitted,
    MessageDelayed,
    MessageFailed,
    PresenceChanged,
    ReceiptChanged,
    TypingChanged,
)
from ..exceptions import ChatError, DeviceRevokedError, DiskError, NotAMemberError, RequestError, TemporaryError
from ..store import HistoryPage
from .conversation import Conversation
from .ending import advice
from .keystrokes import Keystrokes
from .rendering import clock, explained, role_name, safe, until
from .screen import Screen, StyledText
from .ticks import Tick, Ticks

PAGE_EVENTS = 20
CONNECT_PATIENCE_S = 4.0
TYPING_SHOWN_S = 6.0
PENDING_SHOWN = 3
_CONNECTION_STYLES = {ConnectionState.LIVE: "class:good", ConnectionState.WAITING: "class:bad"}


class Room:
    """Shows one chat at a time."""

    def __init__(self, client: Client, screen: Screen) -> None:
        self.client = client
        self.screen = screen
        self.chat_id = ""
        self.peer_user_id = ""
        """The other one of a direct chat; empty for a group."""
        self.chat = chat_pb2.Chat()
        self.conversation = Conversation(client.user_id)
        self.was_live = False
        """There was a connection, so what is shown is not only what the disk held."""
        self.refused = False
        """Something that was asked for was refused for ever, or could not be understood or shown."""
        self.entered = asyncio.Event()
        """The chat is on the screen, as far as it could be had."""
        self._changing = asyncio.Lock()
        self._shown = asyncio.Event()
        self.presences: dict[str, session_pb2.Presence] = {}
        self._ticks = Ticks(client.user_id)
        self._told: Tick | None = None
        self._shown_seq = 0
        self._committed_seq = 0
        self._oldest_seq = 0
        self._more_before = False
        self._pending: dict[bytes, tuple[str, str]] = {}
        """Chat and text of the messages that are not committed yet."""
        self._delayed: set[bytes] = set()
        self._typing: dict[str, float] = {}
        self._keystrokes = Keystrokes()
        self._retry_at_s = 0.0
        self._unread: dict[str, set[int]] = {}
        """By chat that is not on the screen: the messages that came meanwhile and were read on no device."""
        self._numbers: list[str] = []
        """The chats that `/open N` knows, in order of N; a chat keeps its number as long as the program runs."""

    # --- going into a chat

    async def enter(self, chat_id: str, peer_user_id: str = "") -> None:
        """Puts a chat on the screen: its newest page, its marks, who is there."""
        async with self._changing:
            self.entered.clear()
            await self._enter(chat_id, peer_user_id)
            self.entered.set()
        self.screen.changed()

    async def _enter(self, chat_id: str, peer_user_id: str) -> None:
        self.chat_id, self.peer_user_id = chat_id, peer_user_id
        self.conversation = Conversation(self.client.user_id)
        self._ticks, self._told = Ticks(self.client.user_id), None
        self._typing.clear()
        self._keystrokes = Keystrokes()
        self._unread.pop(chat_id, None)
        self._shown_seq = self._committed_seq = self._oldest_seq = 0
        self._more_before = False
        self._watch()
        try:
            await self.client.wait_until_live(CONNECT_PATIENCE_S)
            self.was_live = True
        except DeviceRevokedError as error:
            self.note(f"not connected: {advice(error)}")
        except ChatError as error:
            kept = "what you type is kept and sent when the connection is back"
            self.note(f"not connected: {explained(error).removesuffix('.')}; {kept}")
        await self._load_state()
        self.conversation.hide(await self.client.hidden(chat_id))
        await self._show_newest()

    def _watch(self) -> None:
        self.client.watch([self.chat_id], [self.peer_user_id] if self.peer_user_id else [])

    async def _load_state(self) -> None:
        state = await self.client.chat(self.chat_id)
        self.chat = chat_pb2.Chat(chat_id=self.chat_id)
        if state is not None:
            self.chat = state.chat
            for receipt in state.receipts.values():
                self._ticks.receipt(receipt)
        others = [member.user_id for member in self.chat.members] or [self.peer_user_id]
        if self.chat.kind == content_pb2.CHAT_KIND_DIRECT and not self.peer_user_id:
            self.peer_user_id = next((user_id for user_id in others if user_id != self.client.user_id), "")
        self._ticks.members(others)
        for message in await self.client.waiting_messages():
            self._pending[message.client_message_id] = (message.chat_id, message.content.text.text)

    async def _show_newest(self) -> None:
        try:
            page: HistoryPage | None
            if self.client.connection.state is ConnectionState.LIVE:
                page = await self.client.history(self.chat_id, limit=PAGE_EVENTS)
            else:
                page = await self.client.held_history(self.chat_id, limit=PAGE_EVENTS)
        except NotAMemberError as error:
            if self.chat_id.startswith("g."):
                self.refused = True
                self.screen.show(f"     ✗ {explained(error)} (/chats lists yours)")
                return
            page = None
        except ChatError as error:
            self.refused |= isinstance(error, RequestError) and not isinstance(error, TemporaryError)
            self.note(f"no history: {explained(error)}")
            return
        if page is not None and page.more_before and not page.first_seq:
            self._more_before = True
            self.note(f"{self.title()}: nothing of this chat is on this device yet; /older shows it once there is a connection")
            return
        if page is None or not page.first_seq:
            if self.chat_id.startswith("g."):
                return  # its first event says who made it, and comes now
            self.note(f"nothing said yet in {self.title()}; type and press Enter (/help lists the commands)")
            return
        self.note(f"{self.title()}{' — /older shows what came before' if page.more_before else ''}")
        await self._show_page(page)

    async def _mark_read(self, seq: int) -> None:
        try:
            await self.client.mark_read(self.chat_id, seq)
        except DiskError:
            return  # the next one covers it, and what goes on is shown all the same

    async def older(self) -> None:
        """Shows the page before the oldest one shown, or the newest one if there was none to show."""
        page = None
        if self._more_before:
            page = await self.client.history(self.chat_id, before=self._oldest_seq, limit=PAGE_EVENTS)
        if page is None or not page.first_seq:
            self._more_before = False
            self.note("that is the beginning of the chat")
            return
        self.note(f"{'older' if self._oldest_seq else 'newest'} messages, #{page.first_seq} to #{page.last_seq}:")
        await self._show_page(page)

    async def _show_page(self, page: HistoryPage) -> None:
        self._oldest_seq, self._more_before = page.first_seq, page.more_before
        if not page.events:
            self.note(f"#{page.first_seq} to #{page.last_seq} are hidden for you")
        for line in self.conversation.add_page(page.events):
            self.screen.show(line)
        for event in page.events:
            if event.sender_user_id == self.client.user_id and event.content.HasField("text"):
                self._ticks.own(event.seq)
        if page.last_seq > self._shown_seq:
            self._shown_seq = page.last_seq
            await self._mark_read(self._shown_seq)

    # --- what happens

    async def on_event(self, event: ClientEvent) -> None:
        """Takes what the client reports."""
        async with self._changing:
            await self._on_event(event)
        self._shown.set()
        self.screen.changed()

    async def _on_event(self, event: ClientEvent) -> None:
        match event:
            case Hide() if event.hidden_chat_id == self.chat_id:
                self.conversation.hide(event.hidden_seqs)
                self.note(f"hidden for you: {', '.join(f'#{seq}' for seq in event.hidden_seqs)}")
            case LogEvent() if event.chat_id == self.chat_id:
                await self._show_event(event.event)
            case LogEvent():
                await self._elsewhere(event)
            case ChatOpened() if event.chat.chat_id == self.chat_id:
                self.chat.CopyFrom(event.chat)
                self._ticks.members(member.user_id for member in self.chat.members)
            case ReceiptChanged() if event.receipt.user_id == self.client.user_id and event.receipt.chat_id != self.chat_id:
                self._read_elsewhere(event.receipt)
            case ReceiptChanged() if event.receipt.chat_id == self.chat_id:
                self._ticks.receipt(event.receipt)
                self._tell_ticks()
            case PresenceChanged():
                self._presence(event.presence)
            case TypingChanged() if event.typing.chat_id == self.chat_id:
                self._other_typing(event.typing)
            case MessageCommitted():
                self._pending.pop(event.client_message_id, None)
                self._delayed.discard(event.client_message_id)
                if event.result.chat_id == self.chat_id:
                    self._committed_seq = max(self._committed_seq, event.result.seq)
            case MessageDelayed() if event.client_message_id not in self._delayed:
                self._delayed.add(event.client_message_id)
                self.note(f"waits, and is sent by itself: {explained(event.error)}")
            case MessageFailed():
                self.refused = True
                self._delayed.discard(event.client_message_id)
                _, text = self._pending.pop(event.client_message_id, ("", ""))
                self.screen.show(f"     ✗ refused: {explained(event.error)}{f' — {safe(text)}' if text else ''}")
            case ConnectionChanged():
                self._connection(event)

    async def _show_event(self, event: chat_pb2.ChatEvent) -> None:
        if event.seq <= self._shown_seq:
            return
        self._shown_seq = event.seq
        if apply_event(self.chat, event):
            self._ticks.members(member.user_id for member in self.chat.members)
        self._typing.pop(event.sender_user_id, None)
        line = self.conversation.add(event)
        if line is not None:
            self.screen.show(line)
        own = event.sender_user_id == self.client.user_id
        if own:
            self._pending.pop(event.client_message_id, None)
            if event.content.WhichOneof("body") in {"text", "encrypted"}:
                self._ticks.own(event.seq)
                self._tell_ticks()
        await self._mark_read(event.seq)

    async def _elsewhere(self, event: LogEvent) -> None:
        """Says that something happened in a chat that is not on the screen, and how to go there."""
        content, sender = event.event.content, event.sender_user_id
        if sender == self.client.user_id:
            return
        if content.chat_created.kind == content_pb2.CHAT_KIND_GROUP or self.client.user_id in content.members_added.user_ids:
            title, number = await self._group_title(event.chat_id), self.number(event.chat_id)
            self.note(f"✉ {safe(sender)} added you to “{title}”: /open {number}")
        if content.HasField("delete"):
            self._unread.get(event.chat_id, set()).discard(content.delete.target_seq)
        if content.WhichOneof("body") not in {"text", "encrypted"}:
            return
        unread = self._unread.setdefault(event.chat_id, set())
        unread.add(event.event.seq)
        if len(unread) > 1:
            return
        if event.chat_id == self.client.direct_chat_id(sender):
            self.note(f"✉ {safe(sender)} wrote to you: /open {'@' if sender.isdecimal() else ''}{safe(sender)}")
        else:
            title, number = await self._group_title(event.chat_id), self.number(event.chat_id)
            self.note(f"✉ {safe(sender)} wrote in “{title}”: /open {number}")

    def _read_elsewhere(self, receipt: chat_pb2.Receipt) -> None:
        """The user read a chat on another device."""
        unread = self._unread.get(receipt.chat_id, set())
        unread -= {seq for seq in unread if seq <= receipt.read_seq}

    async def _group_title(self, chat_id: str) -> str:
        state = await self.client.chat(chat_id)
        return safe(state.chat.title if state is not None else chat_id)

    def number(self, chat_id: str) -> int:
        """The number by which `/open` knows a chat."""
        if chat_id not in self._numbers:
            self._numbers.append(chat_id)
        return self._numbers.index(chat_id) + 1

    def numbered(self, number: int) -> str | None:
        """The chat with a number; None if it was never said."""
        return self._numbers[number - 1] if 0 < number <= len(self._numbers) else None

    def _tell_ticks(self) -> None:
        """Without a toolbar, says how far the newest own message has come."""
        ticks = self._ticks.now()
        if not self.screen.shows_toolbar and ticks and ticks[-1] != self._told:
            self._told = ticks[-1]
            self.note(ticks[-1].text)

    def _presence(self, presence: session_pb2.Presence) -> None:
        before = self.presences.get(presence.user_id)
        self.presences[presence.user_id] = presence
        if not self.screen.shows_toolbar and (before is None or before.online != presence.online):
            text = self.presence_text(presence.user_id)
            self.note(f"{safe(presence.user_id)} {'is not here any more' if text.startswith('is told') else f'is {text}'}")

    def _other_typing(self, typing: session_pb2.Typing) -> None:
        if typing.kind == session_pb2.TYPING_KIND_STOPPED:
            self._typing.pop(typing.user_id, None)
            return
        if not self.screen.shows_toolbar and typing.user_id not in self._typing:
            self.note(f"{safe(typing.user_id)} is typing…")
        self._typing[typing.user_id] = time.monotonic() + TYPING_SHOWN_S

    def _connection(self, change: ConnectionChanged) -> None:
        self.was_live |= change.state is ConnectionState.LIVE
        if change.state is ConnectionState.WAITING:
            self.presences.clear()
            self._typing.clear()
            self._retry_at_s = time.monotonic() + change.retry_in_s
        if not self.screen.shows_toolbar and change.state is ConnectionState.WAITING:
            self.note(f"not connected: {change.message}; next try in {change.retry_in_s:.1f} s")

    # --- what the user does

    async def say(self, text: str, *, reply_to_seq: int = 0) -> None:
        """Sends a text to the chat on the screen."""
        peer = self.peer_user_id
        self._keystrokes.sent()
        outgoing = await self.client.send(text, user_id=peer, chat_id="" if peer else self.chat_id, reply_to_seq=reply_to_seq)
        self.sending(outgoing, text)

    def sending(self, outgoing: Outgoing, text: str) -> None:
        """A message is on disk and on its way: it is shown as waiting until it is committed."""
        if not outgoing.settled:
            self._pending[outgoing.client_message_id] = (outgoing.chat_id, text)
        self.screen.changed()

    def typing(self) -> None:
        """See `screen.Source`."""
        if self._keystrokes.typed(time.monotonic()):
            self.client.typing(self.chat_id)

    def typing_stopped(self) -> None:
        """See `screen.Source`."""
        if self._keystrokes.cleared():
            self.client.typing(self.chat_id, session_pb2.TYPING_KIND_STOPPED)

    async def newest_seq(self) -> int:
        """The highest number that a message of the chat may have, those on their way counted, as far as this device knows."""
        on_their_way = sum(chat_id == self.chat_id for chat_id, _ in self._pending.values())
        state = await self.client.chat(self.chat_id)
        newest = max(self._shown_seq, self._committed_seq, state.seq if state is not None else 0)
        begins = bool(on_their_way and not newest)  # with an event that says so
        return newest + on_their_way + begins

    def note(self, text: str) -> None:
        """Says something that nobody in the chat said."""
        self.screen.show(f"       {text}", dim=True)

    async def until_up_to_date(self, timeout_s: float) -> None:
        """Waits until everything that was said here and is committed is on the screen."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._pending or self._shown_seq < self._committed_seq:
                    await self._shown.wait()
                    self._shown.clear()

    # --- what it looks like

    def title(self) -> str:
        """What people call the chat."""
        if self.chat.kind == content_pb2.CHAT_KIND_GROUP:
            return f"“{safe(self.chat.title)}”"
        return safe(self.peer_user_id) or "your notes"

    def prompt(self) -> str:
        """See `screen.Source`."""
        return f"{self.client.user_id} → {self.title()}{' (you are not in it)' if self.is_over else ''}> "

    @property
    def is_over(self) -> bool:
        """Whether it is a group that the user is not in any more."""
        return self.chat.kind == content_pb2.CHAT_KIND_GROUP and all(
            member.user_id != self.client.user_id for member in self.chat.members
        )

    def presence_text(self, user_id: str) -> str:
        """`online`, `last seen …` or `offline`; without a connection nobody can tell.

        Before the first message users are shown to each other while both have this chat on the screen, and not else.
        """
        if self.client.connection.state is not ConnectionState.LIVE:
            return "not known while not connected"
        presence = self.presences.get(user_id)
        if not self.chat.members and (presence is None or not presence.online):
            return "is told after the first message, or while both are here"
        if presence is None or (not presence.online and not presence.last_seen_ms):
            return "offline"
        return "online" if presence.online else f"last seen {clock(presence.last_seen_ms)}"

    def toolbar(self) -> StyledText:
        """See `screen.Source`."""
        parts: list[tuple[str, str]] = []
        waiting = [text for chat_id, text in self._pending.values() if chat_id == self.chat_id]
        lines: StyledText = [("", f"   ⌛ {safe(text) or 'a change'}\n") for text in waiting[:PENDING_SHOWN]]
        if len(waiting) > PENDING_SHOWN:
            lines.append(("", f"   ⌛ and {len(waiting) - PENDING_SHOWN} more\n"))
        parts += [(f"class:{tick.state.split(' ')[0]}", tick.text) for tick in self._ticks.now()]
        parts += self._who()
        connection = self.client.connection
        if connection.state is not ConnectionState.LIVE:
            text = f"{connection.state.value}: {connection.message}" if connection.message else connection.state.value
            if connection.state is ConnectionState.WAITING:
                text += f"; next try in {max(0.0, self._retry_at_s - time.monotonic()):.0f} s"
            parts.append((_CONNECTION_STYLES.get(connection.state, ""), text))
        if unread := sum(map(len, self._unread.values())):
            parts.append(("bold", f"✉ {unread} in other chats"))
        for style, text in parts:
            lines += [("", " · " if lines and not lines[-1][1].endswith("\n") else " "), (style, text)]
        return lines

    def _who(self) -> list[tuple[str, str]]:
        now_s = time.monotonic()
        self._typing = {user_id: until_s for user_id, until_s in self._typing.items() if until_s > now_s}
        if self._typing:
            names = ", ".join(map(safe, self._typing))
            return [("class:good", f"{names} {'is' if len(self._typing) == 1 else 'are'} typing…")]
        if self.client.connection.state is not ConnectionState.LIVE:
            return []
        if self.is_over:
            return [("", "you are not in this group any more: /open goes to another chat")]
        if self.peer_user_id:
            text = self.presence_text(self.peer_user_id)
            if text.startswith("is told"):
                return [("", f"whether {safe(self.peer_user_id)} is online {text}")]
            return [("class:good" if text == "online" else "", f"{safe(self.peer_user_id)} {text}")]
        others = [member.user_id for member in self.chat.members if member.user_id != self.client.user_id]
        online = [user_id for user_id in others if self.presence_text(user_id) == "online"]
        return [("class:good" if online else "", f"{len(online)} of {len(others)} online")] if others else []

    def members(self) -> list[str]:
        """The members of the chat, a line each."""
        lines = []
        if not self.chat.members and self.peer_user_id:
            lines.append(f"{safe(self.peer_user_id)}: {self.presence_text(self.peer_user_id)}")
        for member in self.chat.members:
            me = member.user_id == self.client.user_id
            role = "" if self.peer_user_id else f", {role_name(member.role)}"
            read_seq = self._ticks.read_seq(member.user_id)
            read = f"read up to #{read_seq}" if read_seq else "has not read yet"
            where = "you" if me else f"{self.presence_text(member.user_id)}, {read}"
            muted = f", muted {until(member.muted_until_ms)}" if member.muted_until_ms > time.time() * 1000 else ""
            lines.append(f"{safe(member.user_id)}: {where}{role}{muted}")
        lines += [f"{safe(user_id)}: asks to be let in" for user_id in self.chat.join_request_user_ids]
        return lines
