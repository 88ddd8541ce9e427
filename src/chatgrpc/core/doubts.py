"""Which sessions of a node may have missed a push that no heartbeat can name any more, and of which chats (G4, G6).

An owner's heartbeat names what it has pushed to this node. It cannot when the owner is gone, when it took this node for gone,
or when the session map had forgotten that a member's device is here. And a feed that does not know a chat cannot miss it: the
push that let a user in may be the one that was lost. So what such an event puts in doubt is looked at again: heads are asked
for, and memberships are read. A session that is just opening has asked for its heads, perhaps too early, and cannot be told
yet: it is looked after once it is open.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from chatgrpc.core.damage import stored_event
from chatgrpc.core.entries import StoredEvent
from chatgrpc.core.rules import new_members
from chatgrpc.core.session import State
from chatgrpc.core.tending import ShardOwner

RETURNED_MS = 60_000
"""Within this time every node has heard that this one was gone and is back, and has linked with it anew."""

Who = TypeVar("Who")
"""Whatever stands for a session."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Chats whose last events a session may have missed. Even if there are none, its user's memberships may have changed."""

    everything: bool = False
    shards: frozenset[int] = frozenset()
    chats: frozenset[str] = frozenset()
    memberships: bool = True
    """All of the user's memberships are to be read; else those of `chats` only."""

    def __or__(self, other: "Doubt") -> "Doubt":
        if self == other:
            return self
        return Doubt(
            self.everything or other.everything,
            self.shards | other.shards,
            self.chats | other.chats,
            self.memberships or other.memberships,
        )

    @property
    def of_heads(self) -> bool:
        """It is of some chat's last events."""
        return bool(self.everything or self.shards or self.chats)

    def concerns(self, chat_id: str, shard_of: Callable[[str], int]) -> bool:
        """Whether a chat's last events may have been missed."""
        return self.everything or chat_id in self.chats or (bool(self.shards) and shard_of(chat_id) in self.shards)


MEMBERSHIPS = Doubt()
"""A user may have been let in or out of any chat."""
EVERYTHING = Doubt(everything=True)
_NONE = Doubt(memberships=False)


class Doubts(Generic[Who]):
    """The doubts of one node."""

    def __init__(self, returned_ms: int = RETURNED_MS) -> None:
        self._returned_ms = returned_ms
        self._had: dict[str, set[int]] = {}  # the shards that each live node has ever owned
        self._returned_at_ms: int | None = None
        self._of_all = _NONE
        self._late: dict[Who, Doubt] = {}  # those who could not be looked after yet

    @property
    def wanted(self) -> bool:
        """Somebody is to be looked after."""
        return self._of_all != _NONE or bool(self._late)

    @property
    def of_all_memberships(self) -> bool:
        """The memberships of all sessions are to be read, and not only of some that could not be looked after before."""
        return self._of_all.memberships

    # What gives rise to doubt. Each says what it put in doubt, for others who watch the chats to look too; None for nothing.

    def see(self, owners: Mapping[int, ShardOwner], live: Collection[str], drained: Collection[str] = ()) -> Doubt | None:
        """The cluster, whenever it has changed.

        Owners that are gone may have taken along what they had not pushed yet, also of shards that they had given away; but not
        those that said last that all they had pushed was heard (`drained`).
        """
        gone = {node_id: self._had.pop(node_id) for node_id in list(self._had) if node_id not in live}
        shards = frozenset(shard for node_id, had in gone.items() if node_id not in drained for shard in had)
        for shard, owner in owners.items():
            self._had.setdefault(owner.node_id, set()).add(shard)
        return self._suspect(Doubt(shards=shards)) if shards else None

    def returned(self, now_ms: int) -> Doubt:
        """Others took this node for gone for a while, and pushed nothing to it.

        Who is asked now may not have heard of it yet, and leave this node out after the answer. But then it drops its link.
        """
        self._returned_at_ms = now_ms
        return self._suspect(EVERYTHING)

    def linked(self, node_id: str, now_ms: int) -> Doubt | None:
        """The link with a node is up."""
        if self._returned_at_ms is None or now_ms - self._returned_at_ms >= self._returned_ms or node_id not in self._had:
            return None
        return self._suspect(Doubt(shards=frozenset(self._had[node_id])))

    def suspect_all(self) -> Doubt:
        """Pushes of any chat may have passed this node by."""
        return self._suspect(EVERYTHING)

    def suspect_memberships(self) -> Doubt:
        """Somebody may have been let in or out without this node being told."""
        return self._suspect(MEMBERSHIPS)

    def missed(self, chat_ids: Collection[str], sessions: Iterable[tuple[Who, State]]) -> None:
        """Pushes of these chats were lost. Who is open is told at once, by the heads; who is opening cannot be told yet."""
        doubt = Doubt(chats=frozenset(chat_ids), memberships=False)
        for who, state in sessions:
            if state is State.OPENING:
                self.look_later(who, doubt)

    def _suspect(self, doubt: Doubt) -> Doubt:
        self._of_all |= doubt
        return doubt

    # What is to be done.

    def take(self, sessions: Iterable[tuple[Who, State]]) -> list[tuple[Who, Doubt]]:
        """The open sessions to look after now, and of what they are in doubt. Who is opening is kept for later."""
        of_all, self._of_all = self._of_all, _NONE
        late, self._late = self._late, {}
        work: list[tuple[Who, Doubt]] = []
        nobody_else = of_all == _NONE
        for who, state in sessions:
            known = late.get(who)
            if known is None and nobody_else:
                continue
            doubt = of_all if known is None else of_all | known
            if state is State.OPEN:
                work.append((who, doubt))
            elif state is State.OPENING:
                self._late[who] = doubt
        return work

    def look_later(self, who: Who, doubt: Doubt) -> None:
        """It could not be looked after now."""
        known = self._late.get(who)
        self._late[who] = doubt if known is None else known | doubt


def users_changed(chat_id: str, events: Iterable[StoredEvent]) -> set[str]:
    """Users whom these events of a chat let in or out.

    Raises:
        DamageError: one of them is none.
    """
    changed: set[str] = set()
    for stored in events:
        content = stored_event(chat_id, stored.seq, stored.event).content
        changed.update(new_members(content, content.WhichOneof("body") or ""))
        changed.add(content.member_removed.user_id)
    changed.discard("")
    return changed
