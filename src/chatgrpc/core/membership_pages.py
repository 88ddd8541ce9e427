"""How a user's memberships are read when a device comes: all that last, and of those that are over a bounded number.

Others can put a user into groups and take them out again, so what is over grows without a bound; what a device costs that comes
must not (G7).
"""

PAST_CHATS_MAX = 1_000
"""Chats that are over for the user and are looked through. Beyond it those only that the device names."""
NAMED_CHATS_MAX = 100
"""Chats that are over beyond that, that the device names, and of which is read whether it lacks something."""


class MembershipPages:
    """Which page to read next, by rising chat id: until `is_done`, read one as the attributes say, and tell `took` of it."""

    __slots__ = ("_past", "_past_max", "after_chat_id", "is_done", "present_only")

    def __init__(self, past_max: int = PAST_CHATS_MAX) -> None:
        self.after_chat_id = ""
        """Read those above it."""
        self.present_only = False
        """Read only chats that the user is a member of now."""
        self.is_done = False
        self._past = 0
        self._past_max = past_max

    def took(self, last_chat_id: str, past: int, is_last: bool) -> None:
        """A page was read, which ended at `last_chat_id`; `past` of its chats are over; `is_last`: there are no more."""
        self.is_done = is_last
        self.after_chat_id = last_chat_id
        self._past += past
        self.present_only = self._past > self._past_max
