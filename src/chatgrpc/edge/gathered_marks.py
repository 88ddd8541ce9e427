"""Marks that rose, gathered before anybody is told: devices acknowledge far more often than it matters to who sent.

Whoever comes reads the marks themselves (`edge.watermarks`). The telling waits, until the next housekeeping at the longest: for
each mark it costs a look at who has sent, or a message to the chat's owner.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from chatgrpc.core.receipts import Mark, Raised
from chatgrpc.edge.slices import Slice


class GatheredMarks:
    """Of each user and chat the last mark, and from where it rose since it was told last."""

    def __init__(self, tell: Callable[[Raised], None]) -> None:
        """`tell` shows a mark to whom it concerns."""
        self._tell = tell
        self._raised: OrderedDict[tuple[str, str], Raised] = OrderedDict()  # the longest waiting first

    def add(self, raised: Raised) -> None:
        """A mark rose."""
        key = (raised.mark.chat_id, raised.mark.user_id)
        first = self._raised.get(key)
        if first is not None:
            raised = Raised(raised.mark, first.delivered_from_seq, first.read_from_seq)
        self._raised[key] = raised

    def tell_some(self, slice_: Slice) -> bool:
        """Tells of marks until the slice is over; returns whether there are more."""
        while self._raised:
            _, raised = self._raised.popitem(last=False)
            self._tell(raised)
            if slice_.is_over:
                return bool(self._raised)
        return False

    def tell_of(self, marks: Sequence[Mark]) -> None:
        """Tells of these, as far as they wait: they are about to count as stored."""
        for mark in marks:
            raised = self._raised.pop((mark.chat_id, mark.user_id), None)
            if raised is not None:
                self._tell(raised)
