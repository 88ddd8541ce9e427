"""Memberships together with the heads up to which they are known to hold.

The order of the reads is what makes them right (G4, G6): a head that was stated *before* a membership is read says up to where
that membership holds. So memberships are read, their heads asked for, and they are read again. Nothing here knows of time: the
simulator runs it too.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeAlias

from chatgrpc.core.entries import Membership
from chatgrpc.core.visibility import Interval, is_member, last_change

Heads: TypeAlias = Callable[[Collection[str]], Awaitable[Mapping[str, int]]]
"""Asks the owners of chats for their heads; returns those that they stated in time."""
Listed: TypeAlias = Sequence[tuple[str, tuple[Interval, ...]]]


class IntervalReader(Protocol):
    """As much of `ports.row_store.CommittedLog` as is read here."""

    async def intervals_of_user(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[tuple[str, tuple[Interval, ...]]]:
        """See there."""
        ...

    async def intervals(self, user_id: str, chat_id: str) -> tuple[Interval, ...]:
        """See there."""
        ...


async def memberships_of_user(
    reader: IntervalReader, heads: Heads, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
) -> tuple[list[Membership], list[str]]:
    """The user's memberships, by rising chat id, those above `after_chat_id`; and the ids of chats whose owners were silent.

    With `present_only` those that last, or did when this began.
    """
    memberships: list[Membership] = []
    unknown: list[str] = []
    while (wanted := limit - len(memberships) - len(unknown)) > 0:
        listed = await reader.intervals_of_user(user_id, after_chat_id, wanted, present_only=present_only)
        if listed:
            known, silent = await _with_heads(reader, heads, user_id, after_chat_id, listed, present_only)
            memberships += known
            unknown += silent
            after_chat_id = listed[-1][0]
        if len(listed) < wanted:
            break
    return memberships, unknown


async def membership_in(
    reader: IntervalReader, head: Callable[[str], Awaitable[int]], user_id: str, chat_id: str
) -> Membership | None:
    """One of them. The owner is asked of chats only that the user has been a member of."""
    if not await reader.intervals(user_id, chat_id):
        return None
    head_seq = await head(chat_id)
    intervals = await reader.intervals(user_id, chat_id)
    return Membership(chat_id, intervals, max(head_seq, last_change(intervals))) if intervals else None


async def past_membership_in(reader: IntervalReader, user_id: str, chat_id: str) -> Membership | None:
    """See `ports.chat_log.ChatReader.past_membership`. No owner is asked: they may see nothing above what took them out."""
    intervals = await reader.intervals(user_id, chat_id)
    return Membership(chat_id, intervals, last_change(intervals)) if intervals and not is_member(intervals) else None


async def _with_heads(
    reader: IntervalReader, heads: Heads, user_id: str, after_chat_id: str, listed: Listed, present_only: bool
) -> tuple[list[Membership], list[str]]:
    """The memberships of these chats, read again after their heads were stated.

    They are all that the user had above `after_chat_id`, up to the last one. One that is not there any more was of an event
    that is not committed, and is left out. So is one that is new: whoever is connected is told. Of a chat that the user has
    left no owner is asked: they may see nothing above the event that took them out.
    """
    asked = [chat_id for chat_id, intervals in listed if is_member(intervals)]
    if not asked:
        return [Membership(chat_id, intervals, last_change(intervals)) for chat_id, intervals in listed], []
    stated = await heads(asked)
    head_seqs = {chat_id: 0 for chat_id, _ in listed} | dict(stated)
    found: dict[str, tuple[Interval, ...]] = {}
    last_chat_id = listed[-1][0]
    while after_chat_id < last_chat_id:
        page = await reader.intervals_of_user(user_id, after_chat_id, len(listed), present_only=present_only)
        found |= page
        if len(page) < len(listed):
            break
        after_chat_id = page[-1][0]
    memberships: list[Membership] = []
    unknown: list[str] = []
    for chat_id, _ in listed:
        intervals = found.get(chat_id, ())
        if not intervals and present_only:
            intervals = await reader.intervals(user_id, chat_id)  # left meanwhile, and the device may not know it
        if is_member(intervals) and chat_id not in stated:
            unknown.append(chat_id)
        elif intervals:
            memberships.append(Membership(chat_id, intervals, max(head_seqs[chat_id], last_change(intervals))))
    return memberships, unknown
