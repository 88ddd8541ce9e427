"""What people send besides texts."""

from chatgrpc.v1 import content_pb2


def reaction(target_seq: int, emoji: str) -> content_pb2.Content:
    """A reaction; an empty emoji takes it back."""
    return content_pb2.Content(reaction=content_pb2.ReactionContent(target_seq=target_seq, emoji=emoji))


def edit(target_seq: int, text: str) -> content_pb2.Content:
    """A new text for an earlier message."""
    return content_pb2.Content(edit=content_pb2.EditContent(target_seq=target_seq, text=text))


def delete(target_seq: int) -> content_pb2.Content:
    """Takes a message back for everyone."""
    return content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=target_seq))


def reply(target_seq: int, text: str) -> content_pb2.Content:
    """An answer to an earlier message."""
    return content_pb2.Content(text=content_pb2.TextContent(text=text), reply_to_seq=target_seq)


def hide(chat_id: str, *seqs: int) -> content_pb2.Content:
    """Hides messages for oneself; for the self chat."""
    return content_pb2.Content(hide=content_pb2.HideContent(chat_id=chat_id, seqs=seqs))


def chat_settings(chat_id: str, muted_until_ms: int = 0, archived: bool = False) -> content_pb2.Content:
    """One's own settings of a chat; for the self chat."""
    settings = content_pb2.ChatSettingsContent(chat_id=chat_id, muted_until_ms=muted_until_ms, archived=archived)
    return content_pb2.Content(chat_settings=settings)
