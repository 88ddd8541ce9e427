"""How often a user may do what reaches others unasked: draw people into groups, make groups, come in by links, begin chats.
And how often what is kept although nothing of the kind exists: revoke ids that no device has.

Token buckets, one of each kind for each user, full at first. An owner of chats asks them when a write is decided, after
earlier tries were looked for, so that a repetition costs nothing; the shards of a node share them. In a cluster a user has as
many buckets as there are nodes, since each owner judges by itself, so the bound there is that of one node times their number.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Final

from chatgrpc.core.limits import Limits

_USERS_MAX: Final = 100_000


class Deed(Enum):
    """What is counted. The value is the field of `Limits` that says how fast."""

    ADD = "additions_rate"
    """Somebody else is drawn into a group; each one counts."""
    CREATE = "groups_rate"
    """A group is made."""
    JOIN = "joins_rate"
    """One comes in by a link, or asks to."""
    BEGIN = "direct_chats_rate"
    """The first message to somebody."""
    REVOKE_UNKNOWN = "unknown_revocations_rate"
    """An id is revoked that no device has, and that is not kept out already."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at_ms: int


class Rates:
    """The buckets of all users; those of the longest quiet are forgotten, which fills them."""

    def __init__(self, limits: Limits, users_max: int = _USERS_MAX) -> None:
        self._rates = {deed: getattr(limits, deed.value) for deed in Deed}
        self._bots = limits.bots
        self._bots_factor = limits.bots_factor
        self._users_max = users_max
        self._buckets: OrderedDict[str, dict[Deed, _Bucket]] = OrderedDict()

    def count(self, user_id: str, deeds: dict[Deed, int], now_ms: int) -> int:
        """How long to wait until the user may do all of this; 0 = now, and it is counted. See `wait_ms`."""
        wait_ms = self.wait_ms(user_id, deeds, now_ms)
        if not wait_ms:
            for deed, count in deeds.items():
                self._buckets[user_id][deed].tokens -= count
        return wait_ms

    def wait_ms(self, user_id: str, deeds: dict[Deed, int], now_ms: int) -> int:
        """How long to wait until the user may do all of this; 0 = now. `now_ms` is of the monotonic clock.

        More at once than a bucket holds is done when it is full, and has to be waited for afterwards.
        """
        buckets = self._buckets.setdefault(user_id, {})
        self._buckets.move_to_end(user_id)
        if len(self._buckets) > self._users_max:
            self._buckets.popitem(last=False)
        longest_ms = 0.0
        factor = self._bots_factor if user_id in self._bots else 1
        for deed, count in deeds.items():
            burst, interval_ms = self._rates[deed].burst * factor, self._rates[deed].interval_ms / factor
            bucket = buckets.setdefault(deed, _Bucket(burst, now_ms))
            bucket.tokens = min(burst, bucket.tokens + (now_ms - bucket.filled_at_ms) / interval_ms)
            bucket.filled_at_ms = now_ms
            longest_ms = max(longest_ms, (min(count, burst) - bucket.tokens) * interval_ms)
        return int(longest_ms) + 1 if longest_ms > 0 else 0
