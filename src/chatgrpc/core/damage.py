"""Damage: what the store holds of a chat cannot be what was stored there.

A row is missing that must be there, bytes do not parse, or they speak of another place. Nobody may guess what stood there, so
the chat takes no writes and answers nothing but that, by a typed error, and all other chats go on. An owner looks at it again
now and then, since it may have been mended, unless rows of its own may still be on their way: under the same epoch they would
stand beside what it writes next. A mistake of ours costs a chat in the same way.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from chatgrpc.core.entries import Membership
from chatgrpc.core.epochs import SEQ_MAX
from chatgrpc.core.ids import is_user_id
from chatgrpc.core.rules import new_members, target_seq
from chatgrpc.core.unknown_fields import flaw_of
from chatgrpc.core.visibility import Interval, last_change
from chatgrpc.v1 import chat_pb2

STORED_BYTES_MAX = 1024 * 1024
"""Of an event, or of a chat's state. None of ours comes near it (`Limits.content_bytes_max`, `group_members_max`). Unless told
to, clients of gRPC take no message above 4 MiB, and a page may hold other events beside it."""


class DamageError(Exception):
    """What is stored of a chat cannot be right. The message says what, and quotes nothing of it."""


class Kind(Enum):
    """Why a chat is refused."""

    STORED = "stored"
    """By what the store holds of it."""
    EPOCH_FELL = "epoch_fell"
    """The store knows a later epoch of it than its owner has."""
    DEFECT = "defect"
    """By a mistake of the program."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a chat, to be told to operators."""

    chat_id: str
    kind: Kind
    why: str
    for_good: bool = False
    """For as long as this owner has the chat; else it looks again."""
    defect: BaseException | None = None
    """Of a defect: what was raised."""


def damage_of(chat_id: str, error: BaseException, *, for_good: bool = False) -> Damage:
    """Says what an exception tells of a chat."""
    if isinstance(error, DamageError):
        return Damage(chat_id, Kind.STORED, str(error), for_good)
    return Damage(chat_id, Kind.DEFECT, f"{type(error).__name__} while it was worked on", for_good, error)


def stored_event(chat_id: str, seq: int, event: bytes) -> chat_pb2.ChatEvent:
    """Parses the event that is stored at a place.

    Raises:
        DamageError: it is none, or one of another place.
    """
    parsed = _parsed(chat_pb2.ChatEvent.FromString, event, f"what is stored at seq {seq} is no event")
    if parsed.seq != seq or parsed.chat_id != chat_id:
        raise DamageError(f"what is stored at seq {seq} is an event of another place")
    return parsed


def adopted_event(chat_id: str, seq: int, event: bytes) -> chat_pb2.ChatEvent:
    """Parses the event that is stored at a place, of which an owner will store what follows from it.

    Raises:
        DamageError: it is none, or one from which nothing can follow that a store takes.
    """
    parsed = stored_event(chat_id, seq, event)
    content = parsed.content
    arm = content.WhichOneof("body") or ""
    if target_seq(content, arm) >= seq:
        raise DamageError(f"what is stored at seq {seq} is about an event that was later")
    left_user_id = content.member_removed.user_id
    _check_user_ids([*new_members(content, arm), *filter(None, [left_user_id])])
    return parsed


def stored_chat(chat_id: str, chat: bytes, head_seq: int) -> chat_pb2.Chat:
    """Parses the stored state of a chat whose last event is `head_seq`.

    Raises:
        DamageError: it is none, one of another chat, or later than the log.
    """
    if not chat:
        raise DamageError(f"it has {head_seq} events, and no state is stored")
    parsed = _parsed(chat_pb2.Chat.FromString, chat, "what is stored as its state is none")
    if parsed.chat_id != chat_id:
        raise DamageError("what is stored as its state is that of another chat")
    if flaw := flaw_of(parsed):
        raise DamageError(f"its state holds {flaw}")
    if not 0 < parsed.as_of_seq <= head_seq:
        raise DamageError(f"its state is as of seq {parsed.as_of_seq}, and its log ends at {head_seq}")
    if not all(0 < member.joined_seq <= parsed.as_of_seq for member in parsed.members):
        raise DamageError("by its state, somebody came in at a seq that it does not reach")
    _check_user_ids(member.user_id for member in parsed.members)
    return parsed


def _check_user_ids(user_ids: Iterable[str]) -> None:
    if not all(map(is_user_id, user_ids)):
        raise DamageError("a member of it is nobody who can be a user")


def check_membership(membership: Membership) -> None:
    """Looks at a stored membership.

    Raises:
        DamageError: nobody can have been a member like this, or not in a log that ends there.
    """
    check_intervals(membership.intervals)
    if membership.head_seq < last_change(membership.intervals):
        raise DamageError(f"a membership of it changed above seq {membership.head_seq}, where its log ends")


def check_intervals(intervals: Sequence[Interval]) -> None:
    """Looks at the times at which a user was a member.

    Raises:
        DamageError: they are no such times.
    """
    before_seq = 0
    for place, interval in enumerate(intervals, 1):
        is_closed = interval.left_seq >= interval.joined_seq
        is_open = interval.left_seq == 0 and place == len(intervals)
        is_seq = before_seq < interval.joined_seq <= SEQ_MAX and interval.left_seq <= SEQ_MAX
        if not (is_seq and (is_closed or is_open)):
            raise DamageError("the times at which a user was a member of it cannot be right")
        before_seq = interval.left_seq


_Parsed = TypeVar("_Parsed", bound=Message)


def _parsed(parse: Callable[[bytes], _Parsed], data: bytes, if_not: str) -> _Parsed:
    try:
        if len(data) > STORED_BYTES_MAX:
            raise DamageError(f"{if_not}: it has {len(data)} bytes")
        return parse(data)
    except (DecodeError, TypeError):  # TypeError: the cell is empty
        raise DamageError(if_not) from None
