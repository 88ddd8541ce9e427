"""Who looks at whom before there is a chat between them: two users who have each other on their screens are shown that.

Nobody else is shown anything, and no more than that: whoever wants to know whether somebody is there has to be looked at by
them at this moment. Where a chat is made, its members' presence is shown (`core.presence`).
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Looker = TypeVar("Looker", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Look(Generic[Looker]):
    """What a device is to be shown: whether a user whom it looks at looks back."""

    looker: Looker
    user_id: str
    looks_back: bool


class Looks(Generic[Looker]):
    """The looks of the devices of one process."""

    def __init__(self) -> None:
        self._looked_at: dict[Looker, tuple[str, tuple[str, ...]]] = {}  # its user, and at whom it looks
        self._lookers: dict[tuple[str, str], dict[Looker, None]] = {}  # by who looks, and at whom

    def look(self, looker: Looker, user_id: str, at_user_ids: Iterable[str]) -> list[Look[Looker]]:
        """The device of a user looks at these, and at nobody else; returns what is news, and to whom."""
        before = self._looked_at.pop(looker, ("", ()))[1]
        at = tuple(dict.fromkeys(at_user_ids))
        if at:
            self._looked_at[looker] = (user_id, at)
        news: list[Look[Looker]] = []
        for at_user_id in before:
            if at_user_id not in at:
                lookers = self._lookers[user_id, at_user_id]
                del lookers[looker]
                if not lookers:
                    del self._lookers[user_id, at_user_id]
                    news += self._told(at_user_id, user_id, looks=False)
        for at_user_id in at:
            lookers = self._lookers.setdefault((user_id, at_user_id), {})
            if not lookers:
                news += self._told(at_user_id, user_id, looks=True)
            lookers[looker] = None
            if (at_user_id, user_id) in self._lookers:
                news.append(Look(looker, at_user_id, looks_back=True))
        return news

    def look_away(self, looker: Looker, user_id: str) -> list[Look[Looker]]:
        """The device looks at nobody any more."""
        return self.look(looker, user_id, ())

    def pairs(self) -> list[tuple[str, str]]:
        """Who looks, and at whom."""
        return list(self._lookers)

    def lookers(self, user_id: str, at_user_id: str) -> tuple[Looker, ...]:
        """The devices of a user that look at another one."""
        return tuple(self._lookers.get((user_id, at_user_id), ()))

    def _told(self, user_id: str, of_user_id: str, *, looks: bool) -> list[Look[Looker]]:
        return [Look(looker, of_user_id, looks) for looker in self.lookers(user_id, of_user_id)]
