"""The edge's desk: what the streams of one node want of the owners of chats, and what owners say to it (design §4, §5).

Writes travel in lanes and are sent again until they are answered; questions likewise. What owners state about heads is noted:
up to there, and no further, the log may be shown (visibility rule).
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import TypeAlias

from chatgrpc.core.active_chat import Ticket
from chatgrpc.core.keyless import KeylessWrites
from chatgrpc.core.lanes import EdgeLanes, Forwarded, Lane, Outcome
from chatgrpc.core.limits import Limits
from chatgrpc.core.links import (
    AskHead,
    AskMembers,
    Deliver,
    HeadIs,
    Heads,
    HeadsHeard,
    MembersAre,
    Message,
    ShowReceipt,
    ShowTyping,
)
from chatgrpc.core.questions import Questions
from chatgrpc.core.refusal import RefusedError, is_retryable
from chatgrpc.core.shape import check_unknown_fields
from chatgrpc.core.tending import ShardOwner
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2

ForEdge: TypeAlias = Forwarded | Deliver | Heads | HeadIs | MembersAre | ShowReceipt | ShowTyping
"""Messages that an edge takes."""
Answered: TypeAlias = tuple[Ticket, Write, Outcome]


@dataclass(frozen=True, slots=True)
class Missed:
    """Events of one chat that an owner says it has pushed to this node, and that did not come."""

    after_seq: int
    """Up to there nothing of what that owner pushed is missing; 0 = nobody knows."""
    seq: int
    """The last one."""

    def __or__(self, other: "Missed") -> "Missed":
        return Missed(min(self.after_seq, other.after_seq), max(self.seq, other.seq))


@dataclass(frozen=True, slots=True)
class EdgeOutput:
    """What an edge says, and what owners have told it, since the last step."""

    messages: list[tuple[str, Message]]
    """Messages and the nodes they are for."""
    answers: list[Answered]
    """Outcomes of writes."""
    deliveries: list[Deliver]
    """Committed events for users of this node."""
    missed: dict[str, Missed]
    """By chat, events that an owner says it pushed, and that did not come: they concern every session of the node.

    Such a push may also have let a user in, or out; only the store says who it was. Knowing the head from elsewhere (a later
    push, an answer to a question) is not enough: this push may have been the only news for some users.
    """
    notices: list[ShowReceipt | ShowTyping]
    """Receipts and typing for users of this node."""


class EdgeDesk:
    """The desk of one node. Whatever is put in, `step` hands out what follows."""

    def __init__(
        self,
        node_id: str,
        lanes: EdgeLanes,
        shard_of: Callable[[str], int],
        ask_again_after_ms: int,
        stated_max: int,
        limits: Limits | None = None,
    ) -> None:
        """`stated_max` heads are remembered, the latest stated ones; and as many of the last pushes."""
        self._limits = limits or Limits()
        self._node_id = node_id
        self._lanes = lanes
        self._shard_of = shard_of
        self._stated_max = stated_max
        self._owners: Mapping[int, ShardOwner] = {}
        self._epochs: dict[int, int] = {}  # by shard: of its latest owner, to which all that waits was sent
        self._now_ms = 0  # when the latest head was stated
        self._keyless = KeylessWrites(lanes.give_up_after_ms, self._submit_keyless)
        self._stated: OrderedDict[str, int] = OrderedDict()
        self._heads_asked: Questions[int | None] = Questions(ask_again_after_ms)
        self._members_asked: Questions[tuple[str, ...]] = Questions(ask_again_after_ms)
        self._messages: list[tuple[str, Message]] = []
        self._answers: list[Answered] = []
        self._deliveries: list[Deliver] = []
        self._notices: list[ShowReceipt | ShowTyping] = []
        self._pushed: OrderedDict[tuple[str, str], int] = OrderedDict()  # by owner's node and chat: the last event it pushed
        self._missed: dict[str, Missed] = {}

    # What the shell puts in.

    def see(self, owners: Mapping[int, ShardOwner], now_ms: int) -> set[int]:
        """The cluster has changed. What an old owner has not answered yet goes to the new one; returns shards that moved."""
        before, self._owners = self._owners, owners
        changed = {shard for shard, owner in owners.items() if before.get(shard) != owner}
        if changed:
            self._epochs |= {shard: owners[shard].epoch for shard in changed}
            self._say_again(changed, now_ms)
        return changed

    def linked(self, node_id: str, now_ms: int) -> None:
        """A link to a node stands anew: what was said to it before may be lost."""
        owned = {shard for shard, owner in self._owners.items() if owner.node_id == node_id}
        if owned and (not self._lanes.is_idle or self.questions_waiting):
            self._say_again(owned, now_ms)

    def _say_again(self, shards: Set[int], now_ms: int) -> None:
        def concerns(chat_id: str) -> bool:
            return self._shard_of(chat_id) in shards

        self._lanes.resend(concerns, now_ms)
        for chat_id, number in self._heads_asked.again(concerns, now_ms):
            self._send(chat_id, AskHead(chat_id, number))
        for chat_id, number in self._members_asked.again(concerns, now_ms):
            self._send(chat_id, AskMembers(chat_id, number))

    def submit(self, session_id: str, ticket: Ticket, write: Write, now_ms: int) -> None:
        """Sends a write on its way; its outcome comes out of a later `step`.

        One without a `seen_seq` gets one first: the head that the owner states now.
        """
        try:
            check_unknown_fields(write.content, self._limits)  # before a link takes it, which wraps it
            write.unknown_checked = True
        except RefusedError as refused:
            self._answers.append((ticket, write, refused.error))
            return
        if write.seen_seq is not None:
            self._submit(session_id, ticket, write, now_ms)
        elif write.content.HasField("chat_created"):
            self._submit(session_id, ticket, replace(write, seen_seq=0), now_ms)  # it stands at the chat's first seq or nowhere
        else:
            self.ask_head(write.chat_id, self._keyless.hold(session_id, ticket, write, now_ms), now_ms)

    def _submit(self, session_id: str, ticket: Ticket, write: Write, now_ms: int) -> None:
        self._lanes.submit(Lane(self._node_id, session_id, write.chat_id), ticket, write, now_ms)

    def _submit_keyless(self, session_id: str, ticket: Ticket, write: Write) -> None:
        self._submit(session_id, ticket, write, self._now_ms)

    def close(self, session_id: str) -> None:
        """The stream is gone, and waits for nothing any more."""
        self._lanes.close(session_id)
        for chat_id, callback in self._keyless.close(session_id):
            self.withdraw_head(chat_id, callback)

    def ask_head(self, chat_id: str, callback: Callable[[int | None], None], now_ms: int) -> None:
        """Calls back with a head of the chat that the owner stated after this call; None if the chat is damaged."""
        self._send(chat_id, AskHead(chat_id, self._heads_asked.ask(chat_id, callback, now_ms)))

    def withdraw_head(self, chat_id: str, callback: Callable[[int | None], None]) -> None:
        """Whoever asked for the head has gone, or waits no more."""
        self._heads_asked.withdraw(chat_id, callback)

    def ask_members(self, chat_id: str, callback: Callable[[tuple[str, ...]], None], now_ms: int) -> None:
        """Calls back with who is in the chat; nobody if it is large, or none. Once, however often the same callback asks."""
        self._send(chat_id, AskMembers(chat_id, self._members_asked.ask(chat_id, callback, now_ms)))

    def withdraw_members(self, chat_id: str, callback: Callable[[tuple[str, ...]], None]) -> None:
        """Whoever asked for the members has gone, or looks elsewhere."""
        self._members_asked.withdraw(chat_id, callback)

    def tell(self, chat_id: str, message: Message) -> None:
        """Sends something to the chat's owner that may be lost."""
        self._send(chat_id, message)

    def note_stated(self, chat_id: str, seq: int) -> None:
        """The chat is committed up to `seq`, as a view says."""
        self._state(chat_id, seq)

    def stated_seq(self, chat_id: str) -> int:
        """The latest head that was stated; 0 for none that is remembered."""
        return self._stated.get(chat_id, 0)

    def receive(self, sender_id: str, message: ForEdge, now_ms: int) -> None:
        """Takes a message of an owner."""
        match message:
            case Forwarded():
                if not self._is_refused_by_another(message):
                    self._answers += self._lanes.answered(message, now_ms)
            case Deliver(chat_id=chat_id, seq=seq):
                self._hear_of(sender_id, chat_id, message.after_seq)
                self._note_pushed(sender_id, chat_id, seq)
                self._deliveries.append(message)
            case Heads(heads=heads):
                self._messages.append((sender_id, HeadsHeard(heads)))
                for chat_id, seq in heads.items():
                    self._hear_of(sender_id, chat_id, seq)
            case HeadIs(chat_id=chat_id, number=number, seq=seq, damaged=damaged):
                if not damaged:
                    self._state(chat_id, seq)
                self._now_ms = now_ms
                self._heads_asked.answered(chat_id, number, None if damaged else seq)
            case MembersAre(chat_id=chat_id, number=number, user_ids=user_ids):
                self._members_asked.answered(chat_id, number, user_ids)
            case ShowReceipt() | ShowTyping():
                self._notices.append(message)

    def pass_time(self, now_ms: int) -> None:
        """Sends again, asks again, gives up."""
        self._answers += self._lanes.give_up(now_ms)
        for callback, ticket, write, error in self._keyless.give_up(now_ms):
            self.withdraw_head(write.chat_id, callback)
            self._answers.append((ticket, write, error))
        for chat_id, number in self._heads_asked.due(now_ms):
            self._send(chat_id, AskHead(chat_id, number))
        for chat_id, number in self._members_asked.due(now_ms):
            self._send(chat_id, AskMembers(chat_id, number))

    # What comes out.

    def step(self, now_ms: int) -> EdgeOutput:
        """What follows from all that was put in since the last step; all of it is handed out once."""
        for forward in self._lanes.take_forwards(now_ms):
            owner = self._owners.get(self._shard_of(forward.lane.chat_id))
            if owner is not None:
                forward.epoch = owner.epoch
                self._messages.append((owner.node_id, forward))
        output = EdgeOutput(self._messages, self._answers, self._deliveries, self._missed, self._notices)
        self._messages, self._answers, self._deliveries, self._missed, self._notices = [], [], [], {}, []
        return output

    @property
    def is_idle(self) -> bool:
        """No write waits for its outcome."""
        return self._lanes.is_idle and not self._keyless and not self._answers

    @property
    def questions_waiting(self) -> int:
        """How many questions are not answered yet."""
        return len(self._heads_asked) + len(self._members_asked)

    def _is_refused_by_another(self, forwarded: Forwarded) -> bool:
        """Whether an owner of before refuses for good what was sent to the next one since. That one judges it anew, by what has
        happened meanwhile, and may commit it; so its outcome counts. A result counts whoever says it: the log has the event."""
        outcome = forwarded.outcome
        return (
            isinstance(outcome, chat_pb2.Error)
            and not is_retryable(outcome)
            and 0 < forwarded.epoch < self._epochs.get(self._shard_of(forwarded.lane.chat_id), 0)
        )

    def _hear_of(self, sender_id: str, chat_id: str, seq: int) -> None:
        """The sender has pushed this event to us."""
        if not self._was_pushed(sender_id, chat_id, seq):
            missed = Missed(self._pushed.get((sender_id, chat_id), 0), seq)
            known = self._missed.get(chat_id)
            self._missed[chat_id] = missed if known is None else known | missed
            self._note_pushed(sender_id, chat_id, seq)

    def _was_pushed(self, sender_id: str, chat_id: str, seq: int) -> bool:
        return seq <= self._pushed.get((sender_id, chat_id), 0)

    def _note_pushed(self, sender_id: str, chat_id: str, seq: int) -> None:
        key = (sender_id, chat_id)
        self._pushed[key] = max(seq, self._pushed.get(key, 0))
        self._pushed.move_to_end(key)
        if len(self._pushed) > self._stated_max:
            self._pushed.popitem(last=False)
        self._state(chat_id, seq)

    def _state(self, chat_id: str, seq: int) -> None:
        self._stated[chat_id] = max(seq, self._stated.get(chat_id, 0))
        self._stated.move_to_end(chat_id)
        if len(self._stated) > self._stated_max:
            self._stated.popitem(last=False)

    def _send(self, chat_id: str, message: Message) -> None:
        """Sends it to the owner. If none is known it is dropped here, and sent again once there is one."""
        owner = self._owners.get(self._shard_of(chat_id))
        if owner is not None:
            self._messages.append((owner.node_id, message))
