"""The lease rule (design §4): until when a node may count on what it has taken.

The coordinator lets others in when it has heard nothing for the lease's time to live, counted from when it *received* the last
keepalive. The node cannot know that moment, but it was not before the keepalive was sent. So the node counts from the sending,
and stops a margin earlier, which covers the drift of both clocks over one time to live.
"""

from dataclasses import dataclass
from typing import Protocol


class Holds(Protocol):
    """What an owner asks of its lease, whoever keeps it alive."""

    def holds(self, now_ms: int) -> bool:
        """Whether what was taken is still ours, by a clock that was read *after* whatever is to be judged had happened.

        Once false, it stays false.
        """
        ...


@dataclass(frozen=True, slots=True)
class Keepalive:
    """A keepalive under way."""

    sent_at_ms: int


class Lease:
    """One lease of one node. Once over, it stays over: a node that comes back takes a new one, and its shards anew.

    One thread may keep it alive while another asks whether it holds: each field only ever goes one way, and is written at once.
    """

    def __init__(self, ttl_ms: int, margin_ms: int) -> None:
        """`margin_ms` must be more than the two clocks can drift apart within `ttl_ms`."""
        assert 0 < margin_ms < ttl_ms
        self._ttl_ms = ttl_ms
        self._margin_ms = margin_ms
        self._deadline_ms = 0
        self._over = False

    @property
    def deadline_ms(self) -> int:
        """Until when it holds, in monotonic milliseconds; 0 before the first answer, and when it is over."""
        return 0 if self._over else self._deadline_ms

    def keepalive_sent(self, now_ms: int) -> Keepalive:
        """To be called before the request for the lease, or a keepalive, is handed to the transport; not after."""
        return Keepalive(now_ms)

    def answered(self, keepalive: Keepalive, now_ms: int, ttl_ms: int | None = None) -> None:
        """The coordinator answered. An answer that comes when the lease is over revives nothing.

        `ttl_ms` is how long the coordinator says that the lease lives; None = as long as it was asked for, and never longer.
        """
        if self._deadline_ms and not self.holds(now_ms):
            return
        good_for_ms = min(self._ttl_ms, ttl_ms if ttl_ms is not None else self._ttl_ms) - self._margin_ms
        self._deadline_ms = max(self._deadline_ms, keepalive.sent_at_ms + good_for_ms)

    def end(self) -> None:
        """The coordinator says that the lease is gone, or it was given up."""
        self._over = True

    def holds(self, now_ms: int) -> bool:
        """Whether what was taken is still ours, by a clock that was read *after* whatever is to be judged had happened.

        `now_ms` and the times of sending are rounded down, so that the last millisecond counts as over.
        """
        if now_ms >= self._deadline_ms:
            self._over = True
        return not self._over
