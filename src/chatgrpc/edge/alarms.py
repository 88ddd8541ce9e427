"""When each connection's session wants to be looked at: one time for each, however often it is moved."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from chatgrpc.edge.connection import Connection


@dataclass(slots=True)
class _Alarm:
    due_ms: int
    connection: Connection | None
    """None once it is cancelled; so nothing that is over is kept until its time comes."""

    def __lt__(self, other: "_Alarm") -> bool:
        return self.due_ms < other.due_ms


class Alarms:
    """The next alarm of each connection, times in milliseconds."""

    def __init__(self) -> None:
        self._heap: list[_Alarm] = []
        self._of: dict[Connection, _Alarm] = {}

    def __len__(self) -> int:
        """Alarms kept, cancelled ones whose time has not come included."""
        return len(self._heap)

    def set_by(self, connection: Connection, due_ms: int) -> None:
        """Rings for the connection at `due_ms` at the latest; if it rings before, whoever hears it sets it again."""
        known = self._of.get(connection)
        if known is not None:
            if known.due_ms <= due_ms:
                return
            known.connection = None
        alarm = self._of[connection] = _Alarm(due_ms, connection)
        heapq.heappush(self._heap, alarm)

    def cancel(self, connection: Connection) -> None:
        """Rings no more for the connection."""
        known = self._of.pop(connection, None)
        if known is not None:
            known.connection = None

    def due(self, now_ms: int) -> Iterator[Connection]:
        """The connections whose time has come; the alarm of each is off once it is taken from here."""
        while self._heap and self._heap[0].due_ms <= now_ms:
            connection = heapq.heappop(self._heap).connection
            if connection is not None:
                del self._of[connection]
                yield connection
