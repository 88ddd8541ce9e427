"""Lanes: how writes get from an edge to an owner, each once and in the order of their sender, over links that lose things.

A lane is one stream of one device in one chat. The edge numbers a lane's writes and keeps them until each has its outcome; when
nothing is heard, the owner's node is linked anew, or the shard has a new owner, it sends all of them again, oldest first
(go-back-N). The owner takes a lane's
writes in order of number only, so a write never overtakes an earlier one of the same device. What it takes twice, since an
earlier owner or an earlier stream had taken it too, the sequencer finds in the log (G3).

A refusal is not in the log: each owner judges anew what it is sent. So that no write is refused for good and then committed
by a copy that was on its way to the next owner, the last owner that it was sent to has the last word. For this an owner takes
only what is for its epoch, and says that with the outcome; `EdgeDesk` compares.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from chatgrpc.core.active_chat import Ticket
from chatgrpc.core.refusal import after_failed_send, is_retryable, owner_silent
from chatgrpc.core.retransmission import RetransmissionTimers
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2

Outcome: TypeAlias = chat_pb2.SendResult | chat_pb2.Error


class Lane(NamedTuple):
    """Names a lane; a stream of a device is never the same as an earlier one."""

    edge_id: str
    """The node's incarnation."""
    session_id: str
    chat_id: str


@dataclass(slots=True)
class Forward:
    """A write on its way to the owner. Not to be changed, but for its epoch, which is set as it is sent; see `Write`."""

    lane: Lane
    number: int
    """1, 2, 3, … within the lane."""
    base: int
    """The lowest number that had no outcome when this was sent: where an owner begins that does not know the lane."""
    write: Write
    epoch: int = 0
    """Of the owner that it is for; 0 = the edge, of an earlier version, does not say it."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An outcome on its way back."""

    lane: Lane
    number: int
    outcome: Outcome
    epoch: int = 0
    """Of the owner whose word it is; 0 = the owner, of an earlier version, does not say it."""


@dataclass(slots=True)
class _Outgoing:
    """A lane as its edge sees it."""

    next_number: int
    waiting: dict[int, tuple[Ticket, Write]] = field(default_factory=dict)  # by number, oldest first


class EdgeLanes:
    """The lanes of one edge: those in which something waits.

    When nothing does, a lane is forgotten. If the stream writes to the chat again, the lane goes on with a higher number than
    any that was forgotten, so that an owner which knew it takes the write, and nothing that is late is taken for it.
    """

    def __init__(self, resend_after_ms: int, give_up_after_ms: int) -> None:
        """After `give_up_after_ms` without an outcome the device gets a retryable error."""
        self.give_up_after_ms = give_up_after_ms
        self._lanes: dict[Lane, _Outgoing] = {}
        self._of_session: dict[str, dict[Lane, None]] = {}
        self._opened_at_ms: OrderedDict[tuple[Lane, int], int] = OrderedDict()  # when each write came; the oldest first
        self._next_number = 1  # above those of all lanes that were forgotten
        self._silent: RetransmissionTimers[Lane] = RetransmissionTimers(resend_after_ms)  # lanes that wait
        self._forwards: dict[Lane, list[Forward]] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def is_idle(self) -> bool:
        """No write waits for its outcome."""
        return not self._lanes

    def submit(self, lane: Lane, ticket: Ticket, write: Write, now_ms: int) -> None:
        """Takes a write; its outcome comes out of `answered` or `give_up`."""
        outgoing = self._lanes.get(lane)
        if outgoing is None:
            outgoing = self._lanes[lane] = _Outgoing(self._next_number)
            self._of_session.setdefault(lane.session_id, {})[lane] = None
            self._silent.start(lane, now_ms)
        number = outgoing.next_number
        outgoing.next_number += 1
        outgoing.waiting[number] = (ticket, write)
        self._opened_at_ms[lane, number] = now_ms
        self._forwards.setdefault(lane, []).append(Forward(lane, number, next(iter(outgoing.waiting)), write))

    def take_forwards(self, now_ms: int) -> list[Forward]:
        """What is to be sent now: new writes, and all of a lane of which nothing was heard for a while."""
        for lane in self._silent.due(now_ms):
            self._resend(lane)
        forwards, self._forwards = self._forwards, {}
        return [forward for of_lane in forwards.values() for forward in of_lane]

    def resend(self, concerns: Callable[[str], bool], now_ms: int) -> None:
        """Chats have a new owner, or a new link to it: of those that it `concerns` everything without an outcome goes again."""
        for lane in [lane for lane in self._silent if concerns(lane.chat_id)]:
            self._silent.start(lane, now_ms)
            self._resend(lane)

    def answered(self, forwarded: Forwarded, now_ms: int) -> list[tuple[Ticket, Write, Outcome]]:
        """An outcome came; nothing if it is known already, or nobody waits for it any more.

        Where it says that the write is to come again, those behind it are to come again too: sent to another owner from now on,
        they would overtake it.
        """
        lane, number, outcome = forwarded.lane, forwarded.number, forwarded.outcome
        outgoing = self._lanes.get(lane)
        if outgoing is None or number not in outgoing.waiting:
            return []
        answers = [(*self._settle(lane, outgoing, number), outcome)]
        if isinstance(outcome, chat_pb2.Error) and is_retryable(outcome):
            behind = [later for later in outgoing.waiting if later > number]
            answers += [(*self._settle(lane, outgoing, later), after_failed_send()) for later in behind]
            if behind and lane in self._forwards:
                self._forwards[lane] = [forward for forward in self._forwards[lane] if forward.number < number]
        if outgoing.waiting:
            self._silent.start(lane, now_ms)
        else:
            self._forget(lane)
        return answers

    def give_up(self, now_ms: int) -> list[tuple[Ticket, Write, Outcome]]:
        """Lanes whose oldest write has waited too long: all their writes fail, oldest first, so that none overtakes another."""
        failed: list[tuple[Ticket, Write, Outcome]] = []
        while self._opened_at_ms:
            (lane, _), opened_at_ms = next(iter(self._opened_at_ms.items()))
            if now_ms - opened_at_ms < self.give_up_after_ms:
                break
            failed += [(ticket, write, owner_silent()) for ticket, write in self._forget(lane).values()]
        return failed

    def close(self, session_id: str) -> None:
        """The stream is gone; the device sends again what it has no answer for."""
        for lane in list(self._of_session.get(session_id, ())):
            self._forget(lane)

    def _settle(self, lane: Lane, outgoing: _Outgoing, number: int) -> tuple[Ticket, Write]:
        del self._opened_at_ms[lane, number]
        return outgoing.waiting.pop(number)

    def _forget(self, lane: Lane) -> dict[int, tuple[Ticket, Write]]:
        """Drops a lane; returns what waited in it."""
        outgoing = self._lanes.pop(lane)
        self._next_number = max(self._next_number, outgoing.next_number)
        for number in outgoing.waiting:
            del self._opened_at_ms[lane, number]
        self._silent.stop(lane)
        self._forwards.pop(lane, None)
        of_session = self._of_session[lane.session_id]
        del of_session[lane]
        if not of_session:
            del self._of_session[lane.session_id]
        return outgoing.waiting

    def _resend(self, lane: Lane) -> None:
        waiting = self._lanes[lane].waiting
        base = next(iter(waiting))
        self._forwards[lane] = [Forward(lane, number, base, write) for number, (_, write) in waiting.items()]


@dataclass(slots=True)
class _Incoming:
    """A lane as the owner sees it."""

    base: int
    expected: int
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    @property
    def is_decided(self) -> bool:
        """Whether all that was taken has its outcome."""
        return len(self.outcomes) == self.expected - self.base


_LOOKED_AT_TO_FORGET = 8
"""Lanes at a time, so that taking a write costs the same however many wait."""


class OwnerLanes:
    """The lanes into one shard, for one epoch."""

    def __init__(self, epoch: int, lanes_max: int) -> None:
        """The longest silent lanes beyond `lanes_max` are forgotten, which costs their next write a look into the log.

        None is whose writes have not all an outcome, which are bounded elsewhere: a copy of one that is about to be refused
        would be judged anew, and the log says nothing of refusals.
        """
        self._epoch = epoch
        self._lanes_max = lanes_max
        self._lanes: OrderedDict[Lane, _Incoming] = OrderedDict()

    def receive(self, forward: Forward) -> bool | Forwarded:
        """Takes a forward: True = submit its write, then call `accepted`; False = drop it; or it was answered, thus."""
        if forward.epoch not in (0, self._epoch):
            return False  # for an earlier owner on this node, which may have refused it, or a later one
        incoming = self._lanes.get(forward.lane)
        if incoming is None:
            self._forget_silent()
            incoming = self._lanes[forward.lane] = _Incoming(forward.base, forward.base)
        self._lanes.move_to_end(forward.lane)
        self._settle(incoming, forward.base)
        if forward.number == incoming.expected:
            return True
        outcome = incoming.outcomes.get(forward.number)
        return Forwarded(forward.lane, forward.number, outcome, self._epoch) if outcome is not None else False

    def accepted(self, forward: Forward) -> None:
        """The write of a forward was submitted."""
        incoming = self._lanes.get(forward.lane)
        if incoming is not None:
            incoming.expected = forward.number + 1

    def answered(self, lane: Lane, number: int, outcome: Outcome) -> Forwarded:
        """The outcome of a submitted write: kept until the edge is known to have it."""
        incoming = self._lanes.get(lane)
        if incoming is not None and number >= incoming.base:
            incoming.outcomes[number] = outcome
        return Forwarded(lane, number, outcome, self._epoch)

    def _forget_silent(self) -> None:
        """Makes room for one more, as far as that is quickly done."""
        for _ in range(_LOOKED_AT_TO_FORGET):
            if len(self._lanes) < self._lanes_max:
                return
            lane = next(iter(self._lanes))
            if self._lanes[lane].is_decided:
                del self._lanes[lane]
            else:
                self._lanes.move_to_end(lane)

    def _settle(self, incoming: _Incoming, base: int) -> None:
        """Below the base the edge has all outcomes, or wants none."""
        if base <= incoming.base:
            return
        incoming.base = base
        incoming.expected = max(incoming.expected, base)
        for number in [number for number in incoming.outcomes if number < base]:
            del incoming.outcomes[number]


class HeadBook:
    """The heads that one edge must hear of: a lost last push is found by the next heartbeat of the link (G4)."""

    def __init__(self) -> None:
        self._heads: dict[str, int] = {}

    def __len__(self) -> int:
        """How many are not confirmed."""
        return len(self._heads)

    def __contains__(self, chat_id: str) -> bool:
        """Whether a head of the chat is not confirmed."""
        return chat_id in self._heads

    def note(self, chat_id: str, seq: int) -> int:
        """An event was delivered to the edge, perhaps in vain; returns the one before that is not confirmed, 0 for none."""
        before_seq = self._heads.get(chat_id, 0)
        self._heads[chat_id] = max(seq, before_seq)
        return before_seq

    def beat(self) -> dict[str, int]:
        """The heads that a heartbeat names; they are named again until the edge confirms one."""
        return dict(self._heads)

    def confirmed(self, heads: dict[str, int]) -> None:
        """The edge has heard these."""
        for chat_id, seq in heads.items():
            if self._heads.get(chat_id, 0) <= seq:
                self._heads.pop(chat_id, None)
