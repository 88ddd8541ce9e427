"""What went wrong with single chats, and by mistakes of the program that cost a part of the work: told to operators.

A damaged chat is asked for again and again, by every device of every member. Of that the log gets one line every ten minutes,
with what to do; how many chats are refused is for the metrics to say, and which ones, for `chatgrpc cluster status`.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from chatgrpc.core.damage import Damage, Kind
from chatgrpc.metrics import Metrics

REMEMBERED_S: Final = 600.0
"""A chat that nobody asked for so long is not listed any more; it may have been mended."""
_CHATS_MAX: Final = 1_000
_DEFECT_INTERVAL_S: Final = 10.0
_HELP: Final = {
    Kind.STORED: "the chat is refused, all others go on: repair the store (Cassandra: nodetool repair) or restore the chat "
    "from a backup, see 'A chat is damaged' in docs/operations.md; it is read again about every 30 s",
    Kind.EPOCH_FELL: "the chat is refused: the store holds a later epoch, as it does after etcd was restored from a snapshot; "
    "if it was, stop every node and delete their keys from etcd, see 'Never restore a snapshot of etcd' in docs/operations.md",
    Kind.DEFECT: "a mistake of chatgrpc, please report it with this line; the chat is refused until it is read again, or, if "
    "it stays so, until its node is restarted",
}
_EVENT: Final = {Kind.STORED: "chat_damaged", Kind.EPOCH_FELL: "epoch_fell", Kind.DEFECT: "chat_defect"}

_log = structlog.get_logger()


@dataclass(slots=True)
class _Noted:
    damage: Damage
    at_s: float
    told_at_s: float


class DamageBook:
    """The damaged chats that one node has met lately, as the owner of them or as it read for its devices."""

    def __init__(self, metrics: Metrics, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        """Belongs to the event loop; the metrics' thread reads how many there are."""
        self._metrics = metrics
        self._monotonic_s = monotonic_s
        self._chats: OrderedDict[str, _Noted] = OrderedDict()  # the one noted longest ago first
        self._defect_told_at_s: dict[str, float] = {}
        metrics.chats_damaged.set_function(lambda: len(self.damaged()))

    def note(self, damage: Damage) -> None:
        """A chat is refused."""
        now_s = self._monotonic_s()
        self._metrics.damage_found[damage.kind.value].inc()
        known = self._chats.pop(damage.chat_id, None)
        told_at_s = known.told_at_s if known is not None and known.damage.why == damage.why else -REMEMBERED_S
        if now_s - told_at_s >= REMEMBERED_S:
            told_at_s = now_s
            _log.error(
                _EVENT[damage.kind], chat_id=damage.chat_id, why=damage.why, help=_HELP[damage.kind], exc_info=damage.defect
            )
        self._chats[damage.chat_id] = _Noted(damage, now_s, told_at_s)
        if len(self._chats) > _CHATS_MAX:
            self._chats.popitem(last=False)

    def damaged(self) -> list[Damage]:
        """The chats noted lately, the latest last."""
        since_s = self._monotonic_s() - REMEMBERED_S
        return [noted.damage for noted in list(self._chats.values()) if noted.at_s > since_s]

    def defect(self, where: str, defect: BaseException, **context: object) -> None:
        """A mistake of the program that cost one message, stream or shard. `where` is one of a few words of ours."""
        self._metrics.defects[where].inc()
        now_s = self._monotonic_s()
        if now_s - self._defect_told_at_s.get(where, -_DEFECT_INTERVAL_S) >= _DEFECT_INTERVAL_S:
            self._defect_told_at_s[where] = now_s
            _log.error(f"{where}_defect", **context, exc_info=defect)
