"""What a device shows of a chat: the messages that its events add up to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from chatgrpc.v1 import chat_pb2


@dataclass
class Message:
    """A message as its readers see it."""

    sender_user_id: str
    text: str
    """As last edited; empty once it is deleted."""
    reply_to_seq: int = 0
    reactions: dict[str, str] = field(default_factory=dict)
    """Emoji by user."""
    deleted: bool = False


def shown(events: Mapping[int, chat_pb2.ChatEvent]) -> dict[int, Message]:
    """The messages of a chat by seq, the same whether their device was there when one was edited and deleted, or came later.

    An event whose content was erased had been a message, if a later event deletes it, or else an edit of one.
    """
    in_order = [event for _, event in sorted(events.items())]
    deleted = {event.content.delete.target_seq for event in in_order if event.content.HasField("delete")}
    messages: dict[int, Message] = {}
    for event in in_order:
        content = event.content
        match content.WhichOneof("body"):
            case "text":
                messages[event.seq] = Message(event.sender_user_id, content.text.text, content.reply_to_seq)
            case "erased" if event.seq in deleted:
                messages[event.seq] = Message(event.sender_user_id, "")
            case "edit" if content.edit.target_seq in messages:
                messages[content.edit.target_seq].text = content.edit.text
            case "reaction" if content.reaction.target_seq in messages:
                reactions = messages[content.reaction.target_seq].reactions
                reactions[event.sender_user_id] = content.reaction.emoji
                if not content.reaction.emoji:
                    del reactions[event.sender_user_id]
    for seq in deleted & messages.keys():
        messages[seq].text, messages[seq].reply_to_seq, messages[seq].deleted = "", 0, True
    return messages
