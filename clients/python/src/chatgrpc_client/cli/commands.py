"""What may be typed besides messages: the lines that begin with a slash."""

import shlex
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chatgrpc.core.ids import is_chat_id, is_user_id
from chatgrpc.v1 import content_pb2

from ..exceptions import ChatError
from ..wording import USER_ID_RULE
from .rendering import explained, safe
from .room import Room

MINUTE_MS = 60_000
MINUTES_DIGITS_MAX = 7
NUMBER_DIGITS_MAX = 5
"""What `/open` takes for the number of a chat; more digits are a user's, and so are fewer behind an `@`."""
ROLES = {
    "member": content_pb2.MEMBER_ROLE_MEMBER,
    "admin": content_pb2.MEMBER_ROLE_ADMIN,
    "owner": content_pb2.MEMBER_ROLE_OWNER,
}


class UsageError(Exception):
    """The line cannot be understood; the message says how it should be."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: how it is written, what it does."""

    usage: str
    does: str
    run: Callable[["Commands", str], Awaitable[None]]

    @property
    def name(self) -> str:
        """Its first words."""
        words = self.usage.split(" ")
        return " ".join(words[:2]) if words[0] == "/group" else words[0]


class Commands:
    """Carries out typed lines in a room."""

    def __init__(self, room: Room) -> None:
        self.room = room

    async def line(self, line: str) -> bool:
        """Carries out a typed line; returns False when the user wants to leave."""
        text = line.strip()
        if not text:
            return True
        if not text.startswith("/") or text.startswith("//"):
            said = text.removeprefix("/") if text.startswith("//") else text
            return await self._guarded(self.room.say(said), said)
        if text in {"/quit", "/q", "/exit"}:
            return False
        await self.room.entered.wait()
        command = _find(text)
        if text == "/group":
            for command in COMMANDS:
                if command.name.startswith("/group "):
                    self.room.note(f"{command.usage:<34} {command.does}")
            return True
        if command is None:
            typed = " ".join(text.split()[: 2 if text.startswith("/group ") else 1])
            self.room.refused = True
            self.room.note(f"there is no command {safe(typed)}; /help lists them (// sends a text that begins so)")
            return True
        return await self._guarded(command.run(self, text[len(command.name) :].strip()), text)

    async def _guarded(self, work: Awaitable[None], text: str) -> bool:
        """Does it, and says what went wrong; then `text` is shown too, since it was typed and is kept nowhere."""
        try:
            await work
        except UsageError as error:
            self.room.refused = True
            self.room.note(f"like this: {error}")
        except (ChatError, ValueError) as error:
            self.room.refused = True
            self.room.screen.show(f"     ✗ {explained(error)} — {safe(text)}")
        return True

    # --- messages

    async def edit(self, rest: str) -> None:
        """/edit"""
        seq, text = _number_and_text(rest, "/edit N TEXT")
        await self._exists(seq, "/edit N TEXT")
        self.room.sending(await self.room.client.edit(self.room.chat_id, seq, text), f"edit of #{seq}")

    async def react(self, rest: str) -> None:
        """/react"""
        number, _, emoji = rest.partition(" ")
        seq = _number(number, "/react N EMOJI (without an emoji: take it back)")
        await self._exists(seq, "/react N EMOJI")
        self.room.sending(await self.room.client.react(self.room.chat_id, seq, emoji.strip()), f"reaction to #{seq}")

    async def reply(self, rest: str) -> None:
        """/reply"""
        seq, text = _number_and_text(rest, "/reply N TEXT")
        await self._exists(seq, "/reply N TEXT")
        await self.room.say(text, reply_to_seq=seq)

    async def delete(self, rest: str) -> None:
        """/delete"""
        seq = _number(rest, "/delete N")
        await self._exists(seq, "/delete N")
        self.room.sending(await self.room.client.delete(self.room.chat_id, seq), f"deletion of #{seq}")

    async def _exists(self, seq: int, usage: str) -> None:
        if seq > await self.room.newest_seq():
            raise UsageError(f"{usage}, where N is the number before a message; there is no #{seq} yet")

    async def hide(self, rest: str) -> None:
        """/hide"""
        seqs = [_number(number, "/hide N…") for number in rest.split() or [""]]
        for seq in seqs:
            await self._exists(seq, "/hide N…")
        self.room.sending(await self.room.client.hide(self.room.chat_id, seqs), "hiding")

    async def forward(self, rest: str) -> None:
        """/forward"""
        number, _, to = rest.partition(" ")
        usage = "/forward N USER (or a chat id)"
        seq, to = _number(number, usage), to.strip()
        line = self.room.conversation.lines.get(seq)
        if line is None or not line.is_message or line.deleted:
            raise UsageError(f"{usage}; #{seq} is no message that is shown here")
        event = line.event
        if line.edited:
            event = type(event)()
            event.CopyFrom(line.event)
            event.content.text.text = line.text
        if is_chat_id(to):
            outgoing = await self.room.client.forward(event, chat_id=to)
        elif is_user_id(to):
            outgoing = await self.room.client.forward(event, user_id=to)
        else:
            raise UsageError(usage)
        self.room.sending(outgoing, line.text)
        self.room.note(f"forwarding #{seq} to {to}")

    # --- looking around

    async def older(self, _: str) -> None:
        """/older"""
        await self.room.older()

    async def who(self, _: str) -> None:
        """/who"""
        for line in self.room.members():
            self.room.note(line)

    async def chats(self, _: str) -> None:
        """/chats"""
        client = self.room.client
        states = [state for state in await client.chats() if state.chat.kind != content_pb2.CHAT_KIND_SELF]
        states.sort(key=lambda state: self.room.number(state.chat.chat_id))
        for state in states:
            chat = state.chat
            others = [member.user_id for member in chat.members if member.user_id != client.user_id]
            group = chat.kind == content_pb2.CHAT_KIND_GROUP
            name = f"“{safe(chat.title)}” ({len(chat.members)} members)" if group else safe(", ".join(others))
            unread = await client.unread(chat.chat_id)
            news = f", {unread} new" if unread and chat.chat_id != self.room.chat_id else ""
            self.room.note(f"{self.room.number(chat.chat_id):>3}  {name}{news}  {chat.chat_id}")
        self.room.note("/open N goes there" if states else "no chats yet; /open USER begins one")

    async def open(self, rest: str) -> None:
        """/open"""
        user_id = rest.removeprefix("@")
        if rest.isdecimal() and len(rest) <= NUMBER_DIGITS_MAX:
            chat_id = self.room.numbered(int(rest))
            if chat_id is None:
                raise UsageError(f"/open N with a number that /chats lists; {rest} is none (/open @{rest} is the user {rest})")
            await self.room.enter(chat_id)
        elif is_chat_id(rest):
            await self.room.enter(rest)
        elif is_user_id(user_id):
            await self.room.enter(self.room.client.direct_chat_id(user_id), user_id)
        else:
            raise UsageError(f"/open N (of /chats), /open CHAT, or /open USER ({USER_ID_RULE})")

    async def help(self, _: str) -> None:
        """/help"""
        for command in COMMANDS:
            self.room.note(f"{command.usage:<34} {command.does}")
        self.room.note(f"{'/quit, Ctrl-D':<34} leave; what waits goes out the next time")

    # --- groups

    async def group_new(self, rest: str) -> None:
        """/group new"""
        words = _words(rest)
        if not words:
            raise UsageError('/group new "TITLE" USER…')
        chat = await self.room.client.groups.create(words[0], words[1:])
        await self.room.enter(chat.chat_id)

    async def group_add(self, rest: str) -> None:
        """/group add"""
        if not rest:
            raise UsageError("/group add USER…")
        await self.room.client.groups.add(self._group(), rest.split())

    async def group_remove(self, rest: str) -> None:
        """/group remove"""
        await self.room.client.groups.remove(self._group(), _user(rest, "/group remove USER"))

    async def group_leave(self, _: str) -> None:
        """/group leave"""
        await self.room.client.groups.leave(self._group())

    async def group_rename(self, rest: str) -> None:
        """/group rename"""
        if not rest:
            raise UsageError("/group rename TITLE")
        await self.room.client.groups.update(self._group(), title=" ".join(_words(rest)))

    async def group_role(self, rest: str) -> None:
        """/group role"""
        user_id, _, role = rest.partition(" ")
        if role not in ROLES:
            raise UsageError("/group role USER owner|admin|member")
        await self.room.client.groups.set_role(self._group(), user_id, ROLES[role])

    async def group_mute(self, rest: str) -> None:
        """/group mute"""
        user_id, _, minutes = rest.partition(" ")
        if not user_id or not minutes.isdecimal() or len(minutes) > MINUTES_DIGITS_MAX:
            raise UsageError(f"/group mute USER MINUTES (0: may write again; at most {'9' * MINUTES_DIGITS_MAX})")
        until_ms = int(time.time() * 1000) + int(minutes) * MINUTE_MS if int(minutes) else 0
        await self.room.client.groups.mute(self._group(), user_id, until_ms)

    async def group_link(self, rest: str) -> None:
        """/group link"""
        if rest == "off":
            await self.room.client.groups.revoke_link(self._group())
            return
        if rest not in {"", "ask"}:
            raise UsageError("/group link, /group link ask (you approve each), or /group link off")
        link = await self.room.client.groups.create_link(self._group(), approval_required=rest == "ask")
        self.room.note(f"pass this on: /group join {link.token}")

    async def group_join(self, rest: str) -> None:
        """/group join"""
        if not rest:
            raise UsageError("/group join TOKEN")
        answer = await self.room.client.groups.join(rest)
        if answer.HasField("joined"):
            await self.room.enter(answer.joined.chat_id)
        else:
            self.room.note("asked; an admin of the group must let you in")

    async def group_approve(self, rest: str) -> None:
        """/group approve"""
        await self.room.client.groups.answer_request(self._group(), _user(rest, "/group approve USER"), approve=True)

    async def group_decline(self, rest: str) -> None:
        """/group decline"""
        await self.room.client.groups.answer_request(self._group(), _user(rest, "/group decline USER"), approve=False)

    def _group(self) -> str:
        if not self.room.chat_id.startswith("g."):
            raise UsageError('go into a group first: /open, or /group new "TITLE" USER…')
        return self.room.chat_id


COMMANDS = (
    Command("/older", "the page before", Commands.older),
    Command("/reply N TEXT", "answer message #N", Commands.reply),
    Command("/edit N TEXT", "give your message #N another text", Commands.edit),
    Command("/react N EMOJI", "react to #N; without an emoji, take it back", Commands.react),
    Command("/delete N", "delete #N for everyone", Commands.delete),
    Command("/hide N…", "hide messages from yourself, on the devices that you have now", Commands.hide),
    Command("/forward N USER", "pass #N on", Commands.forward),
    Command("/who", "who is in this chat, and how far they have read", Commands.who),
    Command("/chats", "your chats", Commands.chats),
    Command("/open USER|N|CHAT", "go to another chat", Commands.open),
    Command('/group new "TITLE" USER…', "make a group and go there", Commands.group_new),
    Command("/group add USER…", "add members", Commands.group_add),
    Command("/group remove USER", "remove a member", Commands.group_remove),
    Command("/group leave", "leave", Commands.group_leave),
    Command("/group rename TITLE", "rename", Commands.group_rename),
    Command("/group role USER ROLE", "owner, admin or member", Commands.group_role),
    Command("/group mute USER MINUTES", "0: may write again", Commands.group_mute),
    Command("/group link [ask|off]", "make a join link (ask: you approve each)", Commands.group_link),
    Command("/group join TOKEN", "join by a link", Commands.group_join),
    Command("/group approve USER", "let someone in who asked", Commands.group_approve),
    Command("/group decline USER", "or not", Commands.group_decline),
    Command("/help", "this list", Commands.help),
)


def _find(text: str) -> Command | None:
    words = text.split()
    name = " ".join(words[:2]) if words[0] == "/group" else words[0]
    return next((command for command in COMMANDS if command.name == name), None)


def _number(text: str, usage: str) -> int:
    digits = text.strip().removeprefix("#")
    if not digits.isdecimal() or not int(digits):
        raise UsageError(f"{usage}, where N is the number before a message")
    return int(digits)


def _number_and_text(rest: str, usage: str) -> tuple[int, str]:
    number, _, text = rest.partition(" ")
    seq = _number(number, usage)
    if not text.strip():
        raise UsageError(usage)
    return seq, text.strip()


def _user(rest: str, usage: str) -> str:
    if not is_user_id(rest):
        raise UsageError(usage)
    return rest


def _words(rest: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError:
        raise UsageError('close the quotation mark: "TITLE"') from None
