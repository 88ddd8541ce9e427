"""A chat as it is shown: messages with their edits, reactions and deletions folded in. No I/O."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from chatgrpc.v1 import chat_pb2

from .rendering import clock, safe, safe_lines, sentence

LINES_MAX = 2_000
QUOTE_CHARS = 40


@dataclass(slots=True)
class Line:
    """A message, or a change of the chat."""

    event: chat_pb2.ChatEvent
    text: str
    """What it says now, as it was received; empty once deleted."""
    edited: bool = False
    deleted: bool = False
    reactions: dict[str, str] = field(default_factory=dict)
    """Emoji by user id."""
    applied: dict[str, int] = field(default_factory=dict)
    """The seq of the last change of it: of each user's reaction by user id, of the text by the empty one."""

    @property
    def seq(self) -> int:
        """Its place in the log: the number by which people refer to it."""
        return self.event.seq

    @property
    def is_message(self) -> bool:
        """Whether someone said it."""
        return self.event.content.WhichOneof("body") in {"text", "encrypted", "erased"}


class Conversation:
    """The newest lines of a chat, as its reader sees them."""

    def __init__(self, me: str, *, pending_max: int = LINES_MAX) -> None:
        """`pending_max`: how many changes to keep of messages that are not held; 0 where no older page will bring them."""
        self.me = me
        self.lines: dict[int, Line] = {}
        self._hidden: set[int] = set()
        self._pending: dict[tuple[int, str], chat_pb2.ChatEvent] = {}
        """What later events say of messages that are not held, for when an older page brings them: of each message the last
        edit or deletion, and the last reaction of each user. By message and user, who is empty but for a reaction."""
        self._pending_max = pending_max

    def add(self, event: chat_pb2.ChatEvent) -> str | None:
        """Takes an event; returns what to print for it, None for nothing."""
        shown = self._take(event)
        self._trim()
        return shown

    def _take(self, event: chat_pb2.ChatEvent) -> str | None:
        content = event.content
        target_seq = _amended(event)
        if event.seq in self._hidden or target_seq in self._hidden:
            return None
        if target_seq is not None:
            return self._amend(event, target_seq)
        if content.WhichOneof("body") in {"hide", "chat_settings"}:
            return None
        line = Line(event, content.text.text)
        line.deleted = content.HasField("erased")
        self.lines[event.seq] = line
        for later in self._take_pending(event.seq):
            self._apply(line, later)
        return self.show(line)

    def _trim(self) -> None:
        if len(self.lines) > LINES_MAX:
            for seq in sorted(self.lines)[:-LINES_MAX]:
                del self.lines[seq]

    def add_page(self, events: Iterable[chat_pb2.ChatEvent], later: Iterable[chat_pb2.ChatEvent] = ()) -> list[str]:
        """Takes a page of history, whole; returns the lines to print, each as it stands after all of them.

        What became of a message that is not held, since it stands further up, is a line of its own. A page that is older than
        all that is held may be shown and not kept.

        `later`: events that came after the page. They are not shown, but what they say of its messages is.
        """
        events = list(events)
        for event in events:
            self._take(event)
        for event in later:
            if _amended(event) is not None:
                self._take(event)
        shown = [text for event in events if (text := self._show_of_page(event)) is not None]
        self._trim()
        return shown

    def _show_of_page(self, event: chat_pb2.ChatEvent) -> str | None:
        line, target_seq = self.lines.get(event.seq), _amended(event)
        if line is not None:
            return self.show(line)
        if target_seq is None or target_seq in self.lines or target_seq in self._hidden:
            return None
        return self._say(event, None)

    def hide(self, seqs: Iterable[int]) -> None:
        """The reader does not want to see these, nor what became of them."""
        for seq in seqs:
            self._hidden.add(seq)
            self.lines.pop(seq, None)
            self._take_pending(seq)

    def _is_own(self, event: chat_pb2.ChatEvent) -> bool:
        return event.sender_user_id == self.me

    def _amend(self, event: chat_pb2.ChatEvent, target_seq: int) -> str | None:
        line = self.lines.get(target_seq)
        if line is None:
            self._keep_pending(event, target_seq)
        elif self._apply(line, event):
            return self._say(event, line)
        return self._say(event, None) if line is None else None

    def _keep_pending(self, event: chat_pb2.ChatEvent, target_seq: int) -> None:
        key = (target_seq, _changed_by(event))
        known = self._pending.get(key)
        if known is None or known.seq < event.seq:  # an older page may say what was so before
            self._pending.pop(key, None)
            self._pending[key] = event
        while len(self._pending) > self._pending_max:
            del self._pending[next(iter(self._pending))]

    def _take_pending(self, target_seq: int) -> list[chat_pb2.ChatEvent]:
        """What is kept of a message, in order; it is not kept any more."""
        keys = [key for key in self._pending if key[0] == target_seq]
        return sorted((self._pending.pop(key) for key in keys), key=lambda event: event.seq)

    def _apply(self, line: Line, event: chat_pb2.ChatEvent) -> bool:
        content, changed_by = event.content, _changed_by(event)
        if line.deleted or event.seq < line.applied.get(changed_by, 0):  # the page of an older message has older changes too
            return False
        line.applied[changed_by] = event.seq
        match content.WhichOneof("body"):
            case "edit":
                line.text, line.edited = content.edit.text, True
            case "delete":
                line.text, line.deleted = "", True
                line.reactions.clear()
            case "reaction" if content.reaction.emoji:
                line.reactions[event.sender_user_id] = content.reaction.emoji
            case "reaction":
                line.reactions.pop(event.sender_user_id, None)
        return True

    def _say(self, event: chat_pb2.ChatEvent, line: Line | None) -> str:
        who = "you" if self._is_own(event) else safe(event.sender_user_id)
        content = event.content
        match content.WhichOneof("body"):
            case "edit":
                number = content.edit.target_seq
                return f"       ✎ {who} edited #{number}: {safe_lines(content.edit.text, ' ' * 9)}"
            case "delete":
                return f"       ⊘ {who} deleted #{content.delete.target_seq}"
        reaction = content.reaction
        if not reaction.emoji:
            return f"       {who} took back the reaction to #{reaction.target_seq}"
        return f"       {safe(reaction.emoji)} {who} reacted to #{reaction.target_seq}{self._quote(line)}"

    def show(self, line: Line) -> str:
        """A line as it stands."""
        event = line.event
        head = f"{'#' + str(line.seq):>6} {clock(event.sent_at_ms)}"
        if not line.is_message:
            return f"{head} — {sentence(event, self.me)}"
        who = "you" if self._is_own(event) else safe(event.sender_user_id)
        return f"{head} {who}: {self._body(line)}{self._marks(line)}"

    def _body(self, line: Line) -> str:
        if line.deleted:
            return "(deleted)"
        if line.event.content.HasField("encrypted"):
            return "(encrypted: this version cannot read it)"
        reply_to_seq = line.event.content.reply_to_seq
        reply = f"↳#{reply_to_seq}{self._quote(self.lines.get(reply_to_seq))} " if reply_to_seq else ""
        return reply + safe_lines(line.text, " " * 9)

    def _marks(self, line: Line) -> str:
        marks = []
        if line.edited and not line.deleted:
            marks.append("edited")
        if line.event.content.forward_count:
            marks.append("forwarded")
        said = f"  ({', '.join(marks)})" if marks else ""
        counts: dict[str, int] = {}
        for emoji in line.reactions.values():
            counts[emoji] = counts.get(emoji, 0) + 1
        shown = " ".join(safe(emoji) + (f" {count}" if count > 1 else "") for emoji, count in counts.items())
        return f"{said}  [{shown}]" if shown else said

    def _quote(self, line: Line | None) -> str:
        if line is None or not line.text:
            return ""
        text = safe(line.text.split("\n")[0])
        return f" “{text[:QUOTE_CHARS]}{'…' if len(text) > QUOTE_CHARS else ''}”"


def _changed_by(event: chat_pb2.ChatEvent) -> str:
    """Whose change replaces an earlier one: each user has a reaction, and the text, under the empty id, is one for all."""
    return event.sender_user_id if event.content.HasField("reaction") else ""


def _amended(event: chat_pb2.ChatEvent) -> int | None:
    """The message of which an edit, a reaction or a deletion says what became; None for all other events."""
    match event.content.WhichOneof("body"):
        case "edit":
            return event.content.edit.target_seq
        case "reaction":
            return event.content.reaction.target_seq
        case "delete":
            return event.content.delete.target_seq
    return None
