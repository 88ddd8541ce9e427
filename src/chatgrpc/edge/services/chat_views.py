"""What a member sees of their chats: the state of one, its summary, pages of summaries. Read from the log at each call."""

import asyncio

from chatgrpc.core.fold import member_of
from chatgrpc.core.rules import not_a_member
from chatgrpc.core.visibility import first_visible, is_member
from chatgrpc.edge.backend import Backend
from chatgrpc.ports.chat_log import Membership
from chatgrpc.ports.errors import ChatDamagedError
from chatgrpc.v1 import chat_pb2, chat_service_pb2

_SUMMARIES_AT_ONCE = 10


async def summary_of(backend: Backend, user_id: str, chat_id: str) -> chat_service_pb2.ChatSummary:
    """Reads a chat's summary for one of its members.

    Raises:
        RefusedError: NOT_A_MEMBER.
        StoreError: the log cannot be read.
    """
    membership = await backend.log.membership(user_id, chat_id)
    summary = await _summarize(backend, user_id, membership) if membership is not None else None
    if summary is None:
        raise not_a_member()
    return summary


async def page_of_summaries(
    backend: Backend, user_id: str, after_chat_id: str, page_size: int
) -> tuple[list[chat_service_pb2.ChatSummary], str]:
    """Reads summaries of the chats that the user is a member of, by rising chat id, those above `after_chat_id`.

    Returns them and the chat id after which the next page begins; empty = this is the last one. A page may be short of
    `page_size` before the last: it ends early past `limits.page_bytes_max`, and a chat that is damaged, or whose owner is
    silent, is left out.

    Raises:
        StoreError: the log cannot be read.
    """
    present = await backend.log.memberships(user_id, after_chat_id, page_size + 1, present_only=True)
    summaries: list[chat_service_pb2.ChatSummary] = []
    taken = size_bytes = 0
    while taken < min(page_size, len(present)) and size_bytes <= backend.limits.page_bytes_max:
        some = present[taken : min(taken + _SUMMARIES_AT_ONCE, page_size)]
        for summary in await asyncio.gather(*(_summarize_if_sound(backend, user_id, membership) for membership in some)):
            if summary is not None:
                summaries.append(summary)
                size_bytes += summary.ByteSize()
        taken += len(some)
    return summaries, present[taken - 1].chat_id if taken < len(present) else ""


async def _summarize_if_sound(backend: Backend, user_id: str, membership: Membership) -> chat_service_pb2.ChatSummary | None:
    """None also for what is damaged, which must not hide the others."""
    if not is_member(membership.intervals):
        return None
    try:
        return await _summarize(backend, user_id, membership)
    except ChatDamagedError:
        return None


async def _summarize(backend: Backend, user_id: str, membership: Membership) -> chat_service_pb2.ChatSummary | None:
    """None if the user is not a member (any more)."""
    stored = await backend.log.load(membership.chat_id)
    chat = chat_pb2.Chat.FromString(stored.chat) if stored is not None else chat_pb2.Chat()
    if stored is None or member_of(chat, user_id) is None:
        return None
    shown = [user_id]
    if len(chat.members) <= backend.limits.small_group_members_max:
        shown = [member.user_id for member in chat.members]
    return chat_service_pb2.ChatSummary(
        chat=chat,
        head_seq=stored.head_seq,
        first_visible_seq=first_visible(membership.intervals),
        receipts=await backend.receipts(membership.chat_id, shown),
    )
