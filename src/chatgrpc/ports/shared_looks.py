"""The port by which nodes know who looks at whom where there is no chat yet; see `core.looks`."""

from collections.abc import Collection
from typing import Protocol

LOOK_KEPT_S = 6
"""For so long somebody counts as looking after it was said last."""


class SharedLooks(Protocol):
    """Who looks at whom, of all nodes. It may forget everything: what is true is said again, soon."""

    async def look(self, pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Notes of each pair of users that the first looks at the second, for `LOOK_KEPT_S` from now on; with few trips.

        Returns the pairs of which the second looks at the first.

        Raises:
            SharedLooksUnavailableError: and nothing else, within seconds; some may be noted.
        """
        ...


class SharedLooksUnavailableError(Exception):
    """It did not answer. What was shown last stays on the screens."""
