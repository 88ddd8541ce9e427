"""Identifiers: what a valid one looks like, and those that follow from others.

A chat id says its kind by its first two characters, so a chat's kind is known before the chat is loaded:

- `d.` direct: a hash of the two user ids, so both sides compute the same id and nobody has to ask for it (M1).
- `g.` group: a hash of its creator and the creator's request id, so a repeated creation names the same group.
- `s.` self: one per user, the log of what a user changes for themself only.
"""

import hashlib
import re
from base64 import urlsafe_b64encode
from typing import Protocol

CLIENT_MESSAGE_ID_BYTES = 16
SHARD_COUNT = 1024

_USER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")
_DEVICE_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CHAT_ID = re.compile(r"[dgs]\.[A-Za-z0-9_-]{22}")


class RandomBits(Protocol):
    """Source of randomness; `random.Random` and `secrets.SystemRandom` fit."""

    def getrandbits(self, k: int, /) -> int:
        """Returns a non-negative integer with `k` random bits."""
        ...


def is_user_id(text: str) -> bool:
    """1 to 64 characters: letters, digits, `_ . @ + -`, the first one a letter or a digit."""
    return _USER_ID.fullmatch(text) is not None


def is_device_id(text: str) -> bool:
    """1 to 64 characters: letters, digits, `_ . -`."""
    return _DEVICE_ID.fullmatch(text) is not None


def is_chat_id(text: str) -> bool:
    """Has the form of a chat id; whether the chat exists is another question."""
    return _CHAT_ID.fullmatch(text) is not None


def is_group_id(text: str) -> bool:
    """Has the form of a group's id."""
    return text.startswith("g.") and is_chat_id(text)


def is_group_chat_id(chat_id: str) -> bool:
    """Whether the chat of this id is a group."""
    return chat_id.startswith("g.")


def direct_chat_id(user_id: str, other_user_id: str) -> str:
    """The chat of two users, the same from either side; of a user with themself, their self chat."""
    if user_id == other_user_id:
        return self_chat_id(user_id)
    return "d." + _digest(*sorted((user_id, other_user_id)))


def group_chat_id(creator_user_id: str, client_message_id: bytes) -> str:
    """The group that `creator_user_id` creates by the request with this 16-byte id."""
    return "g." + _digest(creator_user_id, client_message_id.hex())


def self_chat_id(user_id: str) -> str:
    """The log of a user's own settings, and their notes to themself."""
    return "s." + _digest(user_id)


def shard_of(chat_id: str) -> int:
    """The shard, 0 to 1023, whose owner orders this chat. Fixed for ever: rows are found by it."""
    return int.from_bytes(hashlib.blake2b(chat_id.encode(), digest_size=2).digest()) % SHARD_COUNT


def message_id(now_ms: int, random_bits: RandomBits) -> bytes:
    """A UUID of version 7 (RFC 9562 §5.7) as 16 bytes: 48 bits of Unix milliseconds, then 74 random bits."""
    value = (now_ms & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | random_bits.getrandbits(12) << 64
    return (value | 0b10 << 62 | random_bits.getrandbits(62)).to_bytes(16)


def _digest(*parts: str) -> str:
    digest = hashlib.sha256("\0".join(parts).encode()).digest()[:16]
    return urlsafe_b64encode(digest).decode().rstrip("=")
