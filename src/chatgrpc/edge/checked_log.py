"""The history, looked at before it is shown: what the store holds of one chat must not break what is read of others.

Events are spliced into streams and pages as they are stored, so bytes that are no event would make a frame that no device can
read, and a row that is missing would pass for an event that never was.
"""

from collections.abc import Sequence
from dataclasses import replace

from chatgrpc.core.damage import Damage, DamageError, Kind, check_membership, stored_chat, stored_event
from chatgrpc.core.unknown_fields import flaw_of, flaw_of_content
from chatgrpc.damage_book import DamageBook
from chatgrpc.ports.chat_log import ChatReader, Membership, StoredChat, StoredEvent
from chatgrpc.ports.errors import ChatDamagedError
from chatgrpc.v1 import chat_pb2

_SEQ_MAX = 2**63 - 1


class CheckedLog:
    """`ports.chat_log.ChatReader`. What cannot be right raises `ChatDamagedError`, and is told to operators."""

    def __init__(self, log: ChatReader, book: DamageBook) -> None:
        self._log = log
        self._book = book

    async def load(self, chat_id: str) -> StoredChat | None:
        """See the port."""
        try:
            stored = await self._log.load(chat_id)
            if stored is not None:
                stored_chat(chat_id, stored.chat, _SEQ_MAX)  # it may have been read later than the head
        except (ChatDamagedError, DamageError) as error:
            raise self._told(chat_id, error) from None
        return stored

    async def read_after(self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """See the port."""
        try:
            events = await self._log.read_after(chat_id, after_seq, up_to_seq, limit, bytes_max)
            if limit > 0 and after_seq < up_to_seq:
                events = _checked_run(chat_id, events, after_seq + 1)
        except (ChatDamagedError, DamageError) as error:
            raise self._told(chat_id, error) from None
        return events

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        """See the port."""
        try:
            events = await self._log.read_before(chat_id, before_seq, down_to_seq, limit, bytes_max)
            if limit > 0 and max(down_to_seq, 1) < before_seq:
                events = _checked_run(chat_id, events, before_seq - max(len(events), 1))
        except (ChatDamagedError, DamageError) as error:
            raise self._told(chat_id, error) from None
        return events

    async def memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[Membership]:
        """See the port; a membership that cannot be right has no interval, so it shows nothing."""
        memberships = await self._log.memberships(user_id, after_chat_id, limit, present_only=present_only)
        return [found if self._is_sound(found) else replace(found, intervals=()) for found in memberships]

    async def readable_memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> tuple[list[Membership], list[str]]:
        """See the port; a membership that cannot be right is one that could not be read."""
        memberships, unknown = await self._log.readable_memberships(user_id, after_chat_id, limit, present_only=present_only)
        unsound = [found.chat_id for found in memberships if not self._is_sound(found)]
        if not unsound:
            return memberships, unknown
        return [found for found in memberships if found.chat_id not in unsound], sorted([*unknown, *unsound])

    async def membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port."""
        try:
            membership = await self._log.membership(user_id, chat_id)
            if membership is not None:
                check_membership(membership)
        except (ChatDamagedError, DamageError) as error:
            raise self._told(chat_id, error) from None
        return membership

    async def past_membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port; one that cannot be right is none."""
        membership = await self._log.past_membership(user_id, chat_id)
        return membership if membership is None or self._is_sound(membership) else None

    async def has_been_member(self, user_id: str, chat_id: str) -> bool:
        """See the port."""
        return await self._log.has_been_member(user_id, chat_id)

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        """See the port."""
        return await self._log.count_groups(user_ids)

    def _is_sound(self, membership: Membership) -> bool:
        try:
            check_membership(membership)
        except DamageError as error:
            self._told(membership.chat_id, error)
            return False
        return True

    def _told(self, chat_id: str, error: ChatDamagedError | DamageError) -> ChatDamagedError:
        why = error.why if isinstance(error, ChatDamagedError) else str(error)
        self._book.note(Damage(chat_id, Kind.STORED, why))
        return ChatDamagedError(chat_id, why)


def _checked_run(chat_id: str, events: Sequence[StoredEvent], first_seq: int) -> list[StoredEvent]:
    """The events that were asked for begin at a seq that is committed, and follow one another.

    Returns them. Of what a version took that looked at unknown fields less closely, the unknown fields are left out.
    """
    if not events:
        raise DamageError(f"there is no row at seq {first_seq}, which was committed")
    checked = list(events)
    for seq, event in enumerate(events, first_seq):
        if event.seq != seq:
            raise DamageError(f"there is no row at seq {seq}, which was committed")
        parsed = stored_event(chat_id, seq, event.event)
        parsed.DiscardUnknownFields()
        if parsed.ByteSize() != len(event.event) and _has_flaw(chat_pb2.ChatEvent.FromString(event.event)):
            checked[seq - first_seq] = StoredEvent(seq, parsed.SerializeToString())
    return checked


def _has_flaw(event: chat_pb2.ChatEvent) -> bool:
    return bool(flaw_of(event) or flaw_of_content(event.content))
