"""Which entries of the session map a node writes and takes out, when, and what it concludes from what it finds there.

The map may lose everything, or single entries; it may do what it was asked although nobody heard of it, and a moment later.
So an entry of the node's own, that must stand there, is looked at; if it lacks, and after any trip that failed, and now and
then without a reason, all entries are looked at, and those that lack are written. Pushes may have passed the node by meanwhile,
since owners read the map to find whom to push to: then its sessions are to be doubted (`core.doubts`).

One trip to the map is under way at a time: an entry that was taken out and is written again must not be taken out by the first
of the two.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Final, NamedTuple, TypeAlias

LINGER_MS: Final = 3_000
"""How long after its stream ended a device still counts as connected, so that one that comes straight back does not flicker."""
AUDIT_INTERVAL_MS: Final = 120_000
SETTLED_MS: Final = 5_000
"""A write to the map that failed may still take effect this much later."""
TELL_INTERVAL_MS: Final = 10_000
"""While the map cannot be reached, those whose entries lack are doubted this often."""
_DEVICES_PER_TRIP = 1_000
"""Entries looked at in one trip, which devices that are opening may have to wait for."""

Device: TypeAlias = tuple[str, str]
"""User id and device id."""
Ticket: TypeAlias = object
"""Whatever stands for somebody who waits."""


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """One live stream."""

    user_id: str
    device_id: str
    node_id: str
    """The incarnation of the node that holds it: another one after each start of the process."""

    @property
    def device(self) -> Device:
        """Whose stream it is."""
        return self.user_id, self.device_id


@dataclass(frozen=True, slots=True)
class Look:
    """Do entries of this user stand, and does the map take writes?"""

    user_id: str


@dataclass(frozen=True, slots=True)
class Read:
    """The entries of these users."""

    user_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Put:
    """Writes these entries; those that the same devices have at other nodes are the answer."""

    entries: tuple[SessionEntry, ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """Removes these entries."""

    entries: tuple[SessionEntry, ...]


Trip: TypeAlias = Look | Read | Put | Remove
Answer: TypeAlias = bool | Collection[SessionEntry]
"""To `Look`: yes or no. To `Read` and `Put`: entries, a device's in the order in which they were written."""


@dataclass(slots=True)
class News:
    """What has come of trips, for others to act on."""

    written: list[Ticket] = field(default_factory=list)
    """Those who opened may read their chats now: their entries stand, or the map cannot be reached, and they come later. And
    who asked to leave: the node's entries are gone, as far as that can be had."""
    verdicts: list[tuple[Ticket, bool]] = field(default_factory=list)
    """Whether devices have moved."""
    moved: list[SessionEntry] = field(default_factory=list)
    """Entries at other nodes of devices that have opened here since."""
    in_doubt: bool = False
    """Pushes may have passed this node by: all its sessions are to be doubted."""
    wrote_back: bool = False
    """Entries that lacked stand again."""
    all_well: bool = False
    """A look at the map has ended, and nothing of it failed."""


_Answered: TypeAlias = Callable[[Answer, int], None]


class _Step(NamedTuple):
    """A trip, and what follows from its answer, or from none."""

    trip: Trip
    answered: _Answered
    failed: Callable[[int], None]


_NextStep: TypeAlias = Callable[[int], _Step | None]
"""Says what to do next; None for nothing."""


class SessionBook:
    """The entries of one node. Let it `look` now and then; make the trips that it gives, one after the other."""

    def __init__(
        self,
        node_id: str,
        *,
        linger_ms: int = LINGER_MS,
        audit_interval_ms: int = AUDIT_INTERVAL_MS,
        settled_ms: int = SETTLED_MS,
        tell_interval_ms: int = TELL_INTERVAL_MS,
    ) -> None:
        """
        Args:
            node_id: of this node.
            linger_ms: how long after its stream ended a device's entry stays.
            audit_interval_ms: how often all entries are looked at without any reason.
            settled_ms: how long after a trip that failed all entries are looked at once more.
            tell_interval_ms: how often devices are doubted whose entries cannot be written.
        """
        self.canary = SessionEntry(f"!{node_id}", "node", node_id)  # no user id begins like this
        self._node_id = node_id
        self._linger_ms = linger_ms
        self._audit_interval_ms = audit_interval_ms
        self._settled_ms = settled_ms
        self._tell_interval_ms = tell_interval_ms
        self._live: dict[Device, None] = {}
        self._leaving: OrderedDict[Device, int] = OrderedDict()  # when to take them out, the soonest first
        self._opening: list[tuple[Device, Ticket]] = []
        self._asked: list[tuple[Device, Ticket]] = []  # who wants to know whether a device has moved
        self._unwritten: dict[Device, None] = {}  # of the live ones, those whose entry could not be written when they opened
        self._unchecked: deque[Device] = deque()
        self._step: _Step | None = None  # under way
        self._first: deque[_NextStep] = deque()  # what must not be parted from the step before
        self._next_of_look: _NextStep | None = None
        self._turn = 0
        self._news = News()
        self._in_doubt = False  # entries may lack
        self._was_in_doubt = False
        self._lacked = False  # entries did lack, and that was not told yet
        self._looked_at_ms = 0
        self._audit_at_ms: int | None = None
        self._tell_at_ms = 0
        self._left = False
        self._farewell: _NextStep | None = None

    def __len__(self) -> int:
        return len(self._live)

    @property
    def unwritten(self) -> int:
        """How many devices are here whose entries could not be written."""
        return len(self._unwritten)

    # What happens.

    def opened(self, device: Device, ticket: Ticket) -> None:
        """The device has its stream here; the ticket comes back when the map says so, or cannot be reached.

        It is written again even if it may still stand since the last stream here: the device may have been elsewhere meanwhile.
        """
        self._live[device] = None
        self._leaving.pop(device, None)
        self._opening.append((device, ticket))

    def closed(self, device: Device, now_ms: int) -> None:
        """The device's stream here has ended."""
        if device not in self._live:
            return
        del self._live[device]
        self._unwritten.pop(device, None)
        self._leaving[device] = now_ms + self._linger_ms

    def ask_moved(self, device: Device, ticket: Ticket, now_ms: int) -> None:
        """Another node says that it has a newer stream of a device which has one here; the verdict says whether that is so.

        What it says may be old: the device may have come back here meanwhile. Without the map it is believed.
        """
        if device in self._live:
            self._asked.append((device, ticket))
            return
        # If its entry stands although it was taken out, the map was set back, or did what it was asked too late.
        self._leaving.setdefault(device, now_ms + self._linger_ms)
        self._news.verdicts.append((ticket, False))

    def look(self, now_ms: int) -> None:
        """Looks at the map, and takes out whose time has come; nothing if the last look is not over yet."""
        if self._audit_at_ms is None:
            self._audit_at_ms = now_ms + self._audit_interval_ms
        if self._next_of_look is None:
            self._next_of_look = self._look_at_canary

    def leave(self, ticket: Ticket) -> None:
        """The node stops: its entries go, as far as the map can be reached, and are not written again."""
        self._left = True
        self._farewell = partial(self._remove_all, ticket)

    # Trips.

    def next_trip(self, now_ms: int) -> Trip | None:
        """The trip to make now, if none is under way; None if there is nothing to do."""
        assert self._step is None
        self._step = self._next_step(now_ms)
        return self._step.trip if self._step is not None else None

    def answered(self, answer: Answer, now_ms: int) -> None:
        """The trip that was under way has ended."""
        assert self._step is not None
        step, self._step = self._step, None
        step.answered(answer, now_ms)

    def failed(self, now_ms: int) -> None:
        """It was given up. What it asks for may be done nevertheless, or a moment later."""
        assert self._step is not None
        step, self._step = self._step, None
        step.failed(now_ms)

    def take_news(self) -> News:
        """What has come of it since the last time."""
        news, self._news = self._news, News()
        return news

    def _next_step(self, now_ms: int) -> _Step | None:
        while self._first:
            step = self._first.popleft()(now_ms)
            if step is not None:
                return step
        if self._farewell is not None:
            farewell, self._farewell = self._farewell, None
            return farewell(now_ms)
        kinds = (self._write_opened, self._read_asked, self._go_on_looking)
        for turn in range(self._turn, self._turn + len(kinds)):  # each has its turn, lest one waits for ever
            step = kinds[turn % len(kinds)](now_ms)
            if step is not None:
                self._turn = turn % len(kinds) + 1
                return step
        return None

    # Devices that open.

    def _write_opened(self, now_ms: int) -> _Step | None:
        """All that have opened since the last such trip."""
        opening, self._opening = self._opening, []
        put = self._put_opened(device for device, _ in opening)
        if put is None:
            self._let_in(opening)
            return None

        def failed(now_ms: int) -> None:
            self._let_in_unwritten(opening)

        def answered(elsewhere: Answer, now_ms: int) -> None:
            self._opened_stand(put, elsewhere)
            self._let_in(opening)

        return _Step(put, answered, failed)

    def _let_in(self, opening: Iterable[tuple[Device, Ticket]]) -> None:
        self._news.written += [ticket for _, ticket in opening]

    def _let_in_unwritten(self, opening: Iterable[tuple[Device, Ticket]]) -> None:
        self._unwritten |= dict.fromkeys(device for device, _ in opening if device in self._live)
        self._in_doubt = True
        self._let_in(opening)

    def _put_opened(self, devices: Iterable[Device]) -> Put | None:
        entries = tuple(self._entry(device) for device in dict.fromkeys(devices) if device in self._live)
        return Put(entries) if entries and not self._left else None

    def _opened_stand(self, put: Put, elsewhere: Answer) -> None:
        """What stands at other nodes is told, if the devices have not gone on meanwhile."""
        for entry in put.entries:
            self._unwritten.pop(entry.device, None)
        self._news.moved += [entry for entry in _entries(elsewhere) if entry.device in self._live]

    # Devices that may have moved.

    def _read_asked(self, now_ms: int) -> _Step | None:
        if not self._asked:
            return None
        asked, self._asked = self._asked[:_DEVICES_PER_TRIP], self._asked[_DEVICES_PER_TRIP:]

        def answered(found: Answer, now_ms: int) -> None:
            last = {entry.device: entry for entry in _entries(found)}
            self._news.verdicts += [(ticket, self._has_moved(device, last.get(device))) for device, ticket in asked]

        def failed(now_ms: int) -> None:
            self._news.verdicts += [(ticket, device in self._live) for device, ticket in asked]

        return _Step(_read(device for device, _ in asked), answered, failed)

    def _has_moved(self, device: Device, last: SessionEntry | None) -> bool:
        is_written = device not in self._unwritten and all(opening != device for opening, _ in self._opening)
        return device in self._live and is_written and last is not None and last != self._entry(device)

    # The look at the map, one thing after the other.

    def _go_on_looking(self, now_ms: int) -> _Step | None:
        while self._next_of_look is not None:
            step = self._next_of_look(now_ms)
            while step is None and self._first:
                step = self._first.popleft()(now_ms)
            if step is not None:
                return step
        return None

    def _look_at_canary(self, now_ms: int) -> _Step | None:
        def answered(stands: Answer, now_ms: int) -> None:
            self._looked_at_ms = now_ms
            audit_is_due = self._audit_at_ms is not None and now_ms >= self._audit_at_ms
            if self._left or (stands and not self._in_doubt and not audit_is_due):
                self._next_of_look = self._take_out
            else:
                self._was_in_doubt, self._in_doubt = self._in_doubt, False
                self._next_of_look = self._write_canary

        def failed(now_ms: int) -> None:
            self._look_failed(now_ms)
            opening, self._opening = self._opening, []
            self._let_in_unwritten(opening)  # they have waited long enough for a map that is away

        return _Step(Look(self.canary.user_id), answered, failed)

    def _write_canary(self, now_ms: int) -> _Step | None:
        """First: if the map loses its memory again while the others are written, the next look sees it."""
        if self._left:
            self._next_of_look = self._take_out
            return None

        def answered(elsewhere: Answer, now_ms: int) -> None:
            self._unchecked = deque(self._live)
            self._next_of_look = self._check_some

        return self._step_of_look(Put((self.canary,)), answered)

    def _check_some(self, now_ms: int) -> _Step | None:
        if not self._unchecked or self._left:
            self._all_checked()
            return None
        devices = [self._unchecked.popleft() for _ in range(min(len(self._unchecked), _DEVICES_PER_TRIP))]
        never_written = self._unwritten.keys() | {device for device, _ in self._opening}
        self._first.append(partial(self._read_written, [device for device in devices if device not in never_written]))
        self._first.append(partial(self._write_late, devices))
        return None

    def _all_checked(self) -> None:
        self._audit_at_ms = self._looked_at_ms + (self._settled_ms if self._was_in_doubt else self._audit_interval_ms)
        if self._lacked:
            self._lacked = False
            self._news.in_doubt = self._news.wrote_back = True
        self._next_of_look = self._take_out

    def _read_written(self, devices: list[Device], now_ms: int) -> _Step | None:
        """Those that were written when they opened here.

        Nobody is told of what stands at other nodes: the device may be there by now, its old stream here not found dead yet.
        """

        def answered(found: Answer, now_ms: int) -> None:
            lacking = self._lacking(devices, _entries(found))
            if lacking and not self._left:
                self._lacked = True
                self._first.appendleft(lambda now_ms: self._step_of_look(Put(lacking), _nothing_follows))

        return self._step_of_look(_read(devices), answered) if devices else None

    def _lacking(self, devices: Iterable[Device], found: Collection[SessionEntry]) -> tuple[SessionEntry, ...]:
        stand = set(found)
        entries = (self._entry(device) for device in devices if device in self._live)
        return tuple(entry for entry in entries if entry not in stand)

    def _write_late(self, devices: list[Device], now_ms: int) -> _Step | None:
        """Those that could not be written when they opened here."""
        put = self._put_opened(device for device in devices if device in self._unwritten)
        if put is None:
            return None
        self._lacked = True
        return self._step_of_look(put, lambda elsewhere, now_ms: self._opened_stand(put, elsewhere))

    def _take_out(self, now_ms: int) -> _Step | None:
        gone = [device for device, _ in takewhile(lambda leaving: leaving[1] <= now_ms, self._leaving.items())]

        def answered(answer: Answer, now_ms: int) -> None:
            for device in gone:
                self._leaving.pop(device, None)
            self._end_look()

        if gone:
            return self._step_of_look(Remove(tuple(self._entry(device) for device in gone)), answered)
        self._end_look()
        return None

    def _end_look(self) -> None:
        self._next_of_look = None
        self._news.all_well = True

    def _step_of_look(self, trip: Trip, answered: _Answered) -> _Step:
        return _Step(trip, answered, self._look_failed)

    def _look_failed(self, now_ms: int) -> None:
        self._in_doubt = True
        self._first.clear()
        self._next_of_look = None
        # Others may read the map though this node cannot: they see nobody there to push to.
        if self._unwritten and now_ms >= self._tell_at_ms:
            self._tell_at_ms = now_ms + self._tell_interval_ms
            self._news.in_doubt = True

    # The end.

    def _remove_all(self, ticket: Ticket, now_ms: int) -> _Step | None:
        def over(answer: Answer, now_ms: int) -> None:
            self._news.written.append(ticket)

        entries = tuple(self._entry(device) for device in (*self._live, *self._leaving))
        return _Step(Remove((*entries, self.canary)), over, partial(over, False))

    def _entry(self, device: Device) -> SessionEntry:
        return SessionEntry(*device, self._node_id)


def _nothing_follows(answer: Answer, now_ms: int) -> None:
    pass


def _read(devices: Iterable[Device]) -> Read:
    return Read(tuple(dict.fromkeys(user_id for user_id, _ in devices)))


def _entries(answer: Answer) -> Collection[SessionEntry]:
    assert not isinstance(answer, bool)
    return answer
