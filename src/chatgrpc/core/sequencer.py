"""The sequencer: how a chat gets one order (design §4).

The owner of a chat takes writes, checks them against the chat's state, gives each the next seq, and hands them out in groups to
be appended to the log. Answers and deliveries leave only after the group is committed (G1), in order of seq (G2). A write that
was committed before, or is on its way, is not committed again (G3): the sender's `seen_seq` says from where to look.

No I/O: what must be read from the store is asked for (`take_loads`, `take_lookups`), and the writes of that chat wait, in their
order, until the answer comes back (`loaded`, `looked_up`). Of a chat of which the store holds what cannot be, they are refused
until it is looked at again (`core.damage`). A chat whose append failed is forgotten with all its waiting writes,
which are answered with a retryable error; the log says, at the next load, what became of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from chatgrpc.core.active_chat import ActiveChat, LookedUp, Pending, Ticket, reaction_of, text_of
from chatgrpc.core.budget import Budget
from chatgrpc.core.clock import Now
from chatgrpc.core.damage import Damage, DamageError, damage_of
from chatgrpc.core.door import Door, ReadIntervals, is_their_own, left_seq_of, may_open, says_who_may
from chatgrpc.core.entries import ChatView, Entry, StoredChat
from chatgrpc.core.events import event_chunk
from chatgrpc.core.fold import CHANGES_CHAT
from chatgrpc.core.ids import RandomBits, direct_chat_id, message_id, self_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.rates import Deed, Rates
from chatgrpc.core.refusal import RefusedError, after_failed_send, chat_damaged, is_retryable, overloaded, store_silent
from chatgrpc.core.rules import (
    MESSAGES,
    Circumstances,
    EventMeta,
    check_kind,
    complete,
    duration,
    link_invalid,
    new_members,
    not_a_member,
    nothing_to_change,
    target_seq,
)
from chatgrpc.core.send_order import FailedSends
from chatgrpc.core.shape import check_shape
from chatgrpc.core.visibility import Interval
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2

_REFERS_TO_MESSAGE = frozenset({"reaction", "edit", "delete"})
_GIVES_TEXT = frozenset({"text", "edit"})
_RETRY_AFTER_MAX_MS = 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a chat's next write needs from the store: the meta of events, and in how many groups users are."""

    chat: ActiveChat
    ranges: tuple[tuple[int, int], ...]
    """Pairs (after_seq, up_to_seq)."""
    user_ids: tuple[str, ...]
    erasing: frozenset[int]
    """Events whose erasure is on its way: the store may still hold what they said."""
    sender_user_id: str = ""
    """Who writes. Of users who are in as many groups as others may add them to it is read too whether they have opened their
    direct chat with this one."""


@dataclass(frozen=True, slots=True)
class Group:
    """Entries to be appended together."""

    entries: list[Entry]
    pending: list[tuple[ActiveChat, Pending]]


@dataclass(slots=True)
class Answer:
    """The outcome of one write. Not to be changed; see `Write`."""

    ticket: Ticket
    outcome: chat_pb2.SendResult | chat_pb2.Error


@dataclass(slots=True)
class Delivery:
    """A committed event on its way to the members' devices. Not to be changed; see `Write`."""

    chat_id: str
    seq: int
    chunk: bytes
    """The event as a pushed frame, to be spliced into each stream."""
    recipients: tuple[str, ...]
    """User ids of those who are members at this seq."""
    left_user_id: str
    """For whom it is the last event of the chat; empty for nobody."""
    changes_members: bool
    """Someone came in or left by it."""


_NOTHING = content_pb2.Content()
_CLOCKS_DIFFER_MS = 1_000
"""Wall clocks of a chat's successive owners normally differ by less; more is taken for a step of one of them."""


class Sequencer:
    """The owner of all chats that are submitted to it, for one epoch."""

    def __init__(
        self,
        epoch: int,
        limits: Limits,
        random_bits: RandomBits,
        budget: Budget | None = None,
        dropped: Callable[[str], None] = lambda chat_id: None,
        rates: Rates | None = None,
        *,
        seals: bool = False,
    ) -> None:
        """`budget` and `rates` are shared with the node's other sequencers; none = this is the only one.

        `seals`: what an earlier owner wrote may still come to count; see `take_seals`.

        `dropped` is called with the id of each chat that was idle and is forgotten.
        """
        self._dropped = dropped
        self._epoch = epoch
        self._rates = rates or Rates(limits)
        self._budget = budget or Budget(limits)
        self._door = Door()
        self._failed_sends = FailedSends()
        self._seals = seals
        self._unsealed: list[str] = []
        self._arrivals = 0
        self._limits = limits
        self._random_bits = random_bits
        self._chats: dict[str, ActiveChat] = {}
        self._loads: list[ActiveChat] = []
        self._admitted: list[ActiveChat] = []
        self._lookups: list[Lookup] = []
        self._answers: list[Answer] = []
        self._entries: list[Entry] = []
        self._pending: list[tuple[ActiveChat, Pending]] = []
        self._damaged: dict[str, Damage] = {}
        self._found: list[Damage] = []

    # What the shell puts in.

    def submit(self, ticket: Ticket, write: Write, now: Now) -> None:
        """Takes a write. Writes of one sender in one chat are decided in the order in which they are submitted."""
        self._arrivals += 1
        write.arrival = self._arrivals
        try:
            size_bytes = check_shape(write.content, self._limits, unknown_checked=write.unknown_checked)
        except RefusedError as refused:
            self._fail(ticket, write, refused.error)
            return
        chat = self._chats.get(write.chat_id)
        at_door = self._door.waiting(write.sender_user_id, write.chat_id) if self._door.held_bytes else 0
        if not at_door and ((chat is not None and write.sender_user_id in chat.members) or self._is_let_in(chat, write)):
            self._enter(ticket, write, size_bytes, 0, now)
        elif at_door >= self._limits.writes_waiting_per_chat_max or not self._budget.take(write.sender_user_id, size_bytes):
            self._fail(ticket, write, overloaded())
        else:
            self._door.hold(ticket, write)

    def intervals_read(self, read: ReadIntervals, intervals: tuple[Interval, ...], now: Now) -> None:
        """Hands over what `take_intervals` asked for; nothing for a user who never was a member."""
        if not intervals:
            for ticket, write in self._let_go(self._door.turn_away, read):
                self._fail(ticket, write, _no_such_chat(write).error)
            return
        for ticket, write in self._let_go(self._door.release, read):
            self._enter(ticket, write, write.content.ByteSize(), left_seq_of(intervals), now)

    def intervals_failed(self, read: ReadIntervals, error: Exception | None = None) -> None:
        """What `take_intervals` asked for could not be read: the writes that waited for it fail, retryably.

        `error` says why not, if that is the chat's own fault; None = the store does not answer.
        """
        if error is not None:
            self._found.append(damage_of(read.chat_id, error))
        for ticket, write in self._let_go(self._door.release, read):
            self._fail(ticket, write, store_silent() if error is None else chat_damaged())

    def _let_go(
        self, release: Callable[[ReadIntervals], list[tuple[Ticket, Write]]], read: ReadIntervals
    ) -> list[tuple[Ticket, Write]]:
        released = release(read)
        for _, write in released:
            self._budget.give(write.sender_user_id, write.content.ByteSize())
        return released

    def _is_let_in(self, chat: ActiveChat | None, write: Write) -> bool:
        """Whether the write may be looked at, and its chat loaded, before it is known who its sender is."""
        if says_who_may(write):
            return True
        # Behind a write that may make the chat, the sender is what that makes of them.
        return chat is not None and any(
            earlier.sender_user_id == write.sender_user_id and may_open(earlier) for _, earlier, *_ in chat.waiting
        )

    def _enter(self, ticket: Ticket, write: Write, size_bytes: int, left_seq: int, now: Now) -> None:
        """Puts a write into its chat's queue; `left_seq`: where its sender left, for a former member."""
        if write.chat_id in self._damaged:
            self._fail(ticket, write, chat_damaged())
            return
        chat = self._activate(write.chat_id)
        chat.was_written_to = True
        self._budget.written_to(chat)
        if (
            len(chat.waiting) + len(chat.in_flight) + chat.behind >= self._limits.writes_waiting_per_chat_max
            or (chat.held_bytes and chat.held_bytes + size_bytes > self._limits.writes_waiting_bytes_per_chat_max)
            or not self._budget.take(write.sender_user_id, size_bytes)
        ):
            self._fail(ticket, write, overloaded())
            return
        chat.held_bytes += size_bytes
        chat.waiting.append((ticket, write, size_bytes, left_seq))
        if chat.loaded and len(chat.waiting) == 1:
            self._advance(chat, now)

    def _release(self, chat: ActiveChat, user_id: str, size_bytes: int) -> None:
        chat.held_bytes -= size_bytes
        self._budget.give(user_id, size_bytes)

    def _release_all(self, chat: ActiveChat) -> None:
        """What waits in the chat, and what is in flight, is held no more."""
        for _, write, size_bytes, _ in chat.waiting:
            self._release(chat, write.sender_user_id, size_bytes)
        for pending in chat.in_flight.values():
            self._release(chat, pending.meta.sender_user_id, pending.held_bytes)

    def activate(self, chat_id: str) -> bool:
        """Loads a chat that is not damaged without writing to it; returns whether it is loaded already. See `answered`."""
        return self._activate(chat_id).loaded

    def answered(self, chat_id: str, *, keep: bool) -> None:
        """What the chat was loaded for is done: it stays if it was written to meanwhile, or if it is to be kept and there is
        room for it without dropping another."""
        chat = self._chats.get(chat_id)
        if chat is not None and not chat.was_written_to and not (keep and self._budget.has_room):
            self._drop_idle(chat)

    def loaded(self, chat: ActiveChat, stored: StoredChat | None, now: Now) -> None:
        """Hands over what `take_loads` asked for; None = there is no such chat."""
        if self._chats.get(chat.chat_id) is not chat:
            return  # given up meanwhile; its writes have their answers
        try:
            chat.load(stored)
        except DamageError as error:
            self.damage(damage_of(chat.chat_id, error))
            return
        self._advance(chat, now)

    def looked_up(
        self,
        lookup: Lookup,
        found: list[EventMeta],
        group_counts: dict[str, int],
        now: Now,
        opened: frozenset[str] = frozenset(),
    ) -> None:
        """Hands over what `take_lookups` asked for: the meta of all events in its ranges, by seq, and counts of groups."""
        chat = lookup.chat
        if self._chats.get(chat.chat_id) is not chat:
            return  # forgotten meanwhile; its writes have their answers
        metas = {meta.seq: meta for meta in found}
        for seq in lookup.erasing.intersection(metas):
            metas[seq] = metas[seq]._replace(arm="erased")
        before = chat.looked_up.targets if chat.looked_up is not None else {}
        chat.looked_up = LookedUp(before | metas, bool(lookup.user_ids), group_counts, opened)
        floor_seq = chat.floor_seq
        older: list[EventMeta] = []
        while floor_seq - 1 - len(older) in metas:
            older.append(metas[floor_seq - 1 - len(older)])
        if older:
            chat.widen(older[::-1], now.monotonic_ms)
        self._advance(chat, now)

    def look_up_failed(self, lookup: Lookup, error: BaseException | None, now: Now) -> None:
        """What a lookup asked for could not be read: its write fails, retryably, and those of others have their turn.

        `error` says why not, if that is the chat's own fault; None = the store does not answer.
        """
        chat = lookup.chat
        if self._chats.get(chat.chat_id) is not chat or not chat.waiting:
            return  # given up meanwhile; its writes have their answers
        if error is not None:
            self._found.append(damage_of(chat.chat_id, error))
        ticket, write, size_bytes, _ = chat.waiting.popleft()
        self._release(chat, write.sender_user_id, size_bytes)
        self._fail(ticket, write, store_silent() if error is None else chat_damaged())
        chat.looked_up = None
        self._advance(chat, now)

    def damage(self, damage: Damage) -> None:
        """Gives a chat up: what waits in it is refused, and what comes from now on, until `look_again`.

        What has its seq may be committed or not; it is answered in the same way, and a repetition finds it.
        """
        self._found.append(damage)
        self._damaged[damage.chat_id] = damage
        chat = self._chats.get(damage.chat_id)
        if chat is not None:
            self._drop(chat, chat_damaged())

    def look_again(self) -> None:
        """Forgets which chats were damaged, unless for good: who asks for one has it read again."""
        self._damaged = {chat_id: damage for chat_id, damage in self._damaged.items() if damage.for_good}

    def read_failed(self, chat: ActiveChat) -> None:
        """What `take_loads` or `take_lookups` asked for could not be read: the chat's waiting writes fail, retryably.

        Writes that have their seq are not touched: they fail or succeed with their group.
        """
        if self._chats.get(chat.chat_id) is not chat:
            return  # forgotten meanwhile; its writes have their answers
        for ticket, write, size_bytes, _ in chat.waiting:
            self._release(chat, write.sender_user_id, size_bytes)
            self._fail(ticket, write, store_silent())
        chat.waiting.clear()
        chat.looked_up = None
        if chat.chat is None:
            self._remove(chat)

    def committed(self, group: Group) -> list[Delivery]:
        """The group's append returned: its answers may leave, and so may its deliveries, which are returned."""
        deliveries = []
        for chat, pending in group.pending:
            meta = pending.meta
            chat.committed_seq = meta.seq
            if 0 < chat.awaited_seq <= meta.seq:
                chat.awaited_seq = 0
                self._admitted.append(chat)
            if chat.in_flight.pop(meta.seq, None) is not None:  # else it was given up, and who waited has an answer
                self._release(chat, meta.sender_user_id, pending.held_bytes)
                chat.behind -= pending.behind
                for ticket, _, again in pending.tickets:
                    self._answers.append(Answer(ticket, _result(chat.chat_id, meta, again)))
                self._answers += [Answer(ticket, error) for ticket, _, error in pending.refusals]
            chunk = event_chunk(pending.event)
            deliveries.append(
                Delivery(chat.chat_id, meta.seq, chunk, pending.recipients, pending.left_user_id, pending.changes_members)
            )
        return deliveries

    def go_on(self, chat: ActiveChat, now: Now) -> None:
        """Decides what `take_admitted` says can be decided now."""
        if self._chats.get(chat.chat_id) is chat:
            self._advance(chat, now)

    def sealed(self, chat_id: str) -> None:
        """Nothing that an earlier owner wrote, and that this one has not found, can come to count any more."""
        chat = self._chats.get(chat_id)
        if chat is not None:
            unsealed, chat.unsealed = chat.unsealed, []
            chat.behind -= len(unsealed)
            for ticket, write, error in unsealed:
                self._fail(ticket, write, error)
            if chat.chat is None and chat.is_idle:
                self._remove(chat)  # a name that nobody made a chat of, again

    def failed(self, group: Group) -> None:
        """The group's append raised: its chats are forgotten, and everything that waited in them fails, retryably."""
        for chat in dict.fromkeys(chat for chat, _ in group.pending):
            if self._chats.get(chat.chat_id) is chat:
                self._drop(chat, store_silent())

    def drop(self) -> None:
        """The chats are not ours any more: what waits is held no more, and nobody is answered."""
        for write in self._door.held():
            self._budget.give(write.sender_user_id, write.content.ByteSize())
        self._door = Door()
        for chat in list(self._chats.values()):
            self._release_all(chat)
            self._remove(chat)

    # What the shell takes out.

    def take_loads(self) -> list[ActiveChat]:
        """Chats whose state is wanted."""
        loads, self._loads = self._loads, []
        return loads

    def take_seals(self) -> list[str]:
        """Chats in which somebody is to be refused for good, once `sealed` is called.

        An earlier owner may have taken the same write and died. Its row may lie where this one has not found it, and where the
        next one would, and take it for an event.
        """
        unsealed, self._unsealed = self._unsealed, []
        return list(dict.fromkeys(unsealed))

    def take_admitted(self) -> list[ActiveChat]:
        """Chats where a write has waited until its sender's admission was committed, which it is."""
        admitted, self._admitted = self._admitted, []
        return admitted

    def take_lookups(self) -> list[Lookup]:
        """Reads that writes wait for."""
        lookups, self._lookups = self._lookups, []
        return lookups

    def take_intervals(self) -> list[ReadIntervals]:
        """Reads that writes wait for whose senders are not known to be members."""
        return self._door.take_reads()

    def take_answers(self) -> list[Answer]:
        """Outcomes, in the order in which they became known; per chat in order of seq."""
        answers, self._answers = self._answers, []
        return answers

    def take_damage(self) -> list[Damage]:
        """What was found wrong with chats since the last call, to be told to operators."""
        found, self._found = self._found, []
        return found

    def take_group(self) -> Group | None:
        """What is ready to be appended, oldest first; None if nothing is. The next group may be taken when this one is done."""
        if not self._entries:
            return None
        entries_max = self._limits.group_entries_max
        group = Group(self._entries[:entries_max], self._pending[:entries_max])
        self._entries, self._pending = self._entries[entries_max:], self._pending[entries_max:]
        return group

    # What the shell may ask.

    def chat(self, chat_id: str) -> ActiveChat | None:
        """The chat, if it is loaded and exists."""
        chat = self._chats.get(chat_id)
        return chat if chat is not None and chat.chat is not None else None

    @property
    def asks(self) -> bool:
        """Whether writes wait whose senders are not known to be members."""
        return len(self._door) > 0

    def is_damaged(self, chat_id: str) -> bool:
        """Whether the chat is refused because of what is stored of it."""
        return chat_id in self._damaged

    def damaged(self) -> list[Damage]:
        """The chats that are refused now."""
        return list(self._damaged.values())

    def holds(self, chat_id: str) -> bool:
        """Whether the chat is in memory, loaded or about to be; else nothing of it waits for anything."""
        return chat_id in self._chats

    # How a write is decided.

    def _activate(self, chat_id: str) -> ActiveChat:
        chat = self._chats.get(chat_id)
        if chat is not None:
            return chat
        chat = self._chats[chat_id] = ActiveChat(chat_id, self._limits.recent_events_per_chat, self._limits.dedupe_span_max)
        self._budget.add(chat, self._drop_idle)
        self._loads.append(chat)
        return chat

    def _drop_idle(self, chat: ActiveChat) -> bool:
        if not (chat.loaded and chat.is_idle):
            return False
        self._remove(chat)
        self._dropped(chat.chat_id)
        return True

    def _remove(self, chat: ActiveChat) -> None:
        del self._chats[chat.chat_id]
        self._budget.remove(chat)

    def _advance(self, chat: ActiveChat, now: Now) -> None:
        """Decides the waiting writes, in order, until one needs something from the store."""
        while chat.waiting:
            ticket, write, size_bytes, left_seq = chat.waiting[0]
            head_seq = chat.head_seq
            try:
                if self._failed_sends and self._failed_sends.hold_up(write):
                    self._refuse(chat, ticket, write, after_failed_send())
                elif (earlier := self._earlier_try(chat, write)) is not None:
                    self._answer_again(chat, ticket, write, earlier)
                elif chat.await_admission(write.sender_user_id) and not is_their_own(write):
                    return  # no list of memberships would let them in again to ask what became of it (core.door)
                else:
                    arm = write.content.WhichOneof("body") or ""
                    lookup = self._needs(chat, write, arm, left_seq, now)
                    if lookup is not None:
                        self._lookups.append(lookup)
                        return
                    self._decide(chat, ticket, write, arm, now).held_bytes = size_bytes
                    size_bytes = 0  # they are held until it is committed
            except RefusedError as refused:
                self._refuse(chat, ticket, write, refused.error)
            except Exception as defect:
                if chat.head_seq != head_seq:
                    raise  # it has its seq: the chat in memory is not what it was, nor what it should be
                self._found.append(damage_of(chat.chat_id, defect))
                self._refuse(chat, ticket, write, _not_taken())
            chat.waiting.popleft()
            chat.looked_up = None
            if size_bytes:
                self._release(chat, write.sender_user_id, size_bytes)
        if chat.chat is None and not chat.unsealed:
            self._remove(chat)  # a name that nobody made a chat of must not take a place

    def _fail(self, ticket: Ticket, write: Write, error: chat_pb2.Error) -> None:
        self._failed_sends.refused(write, error)
        self._answers.append(Answer(ticket, error))

    def _refuse(self, chat: ActiveChat, ticket: Ticket, write: Write, error: chat_pb2.Error) -> None:
        """Answers at once, or once the events on their way are committed: the refusal may rest on them; or once it is sure."""
        if not chat.in_flight:
            if self._seals and not is_retryable(error) and self._might_count(chat, write):
                chat.unsealed.append((ticket, _without_content(write), error))
                chat.behind += 1
                self._unsealed.append(chat.chat_id)
            else:
                self._fail(ticket, write, error)
            return
        if is_retryable(error):
            self._failed_sends.refused(write, error)  # from here on, though the answer comes later
        last = next(reversed(chat.in_flight.values()))
        last.refusals.append((ticket, _without_content(write), error))
        chat.behind += 1

    def _might_count(self, chat: ActiveChat, write: Write) -> bool:
        """Whether an earlier owner may have taken it, by another clock, or by what died with it.

        None has from one who is no member: they would have been one then, and whoever was taken out since was so above that
        write, which the log would hold too. So what strangers send makes no owner write anything. A group that is to be made
        has no members yet; its name is its maker's.
        """
        if chat.chat is None:
            return write.content.HasField("chat_created")
        if write.join_token:
            return chat.chat.join_link.token == write.join_token
        return write.sender_user_id in chat.members

    def _needs(self, chat: ActiveChat, write: Write, arm: str, left_seq: int, now: Now) -> Lookup | None:
        """What must be read before the write can be decided, if anything.

        Groups of users are counted last, since that is a read for each of them: after it is known that the write is no
        repetition, and only if nothing that is known by then refuses it.
        """
        if chat.looked_up is not None and chat.looked_up.counted:
            return None
        ranges = self._ranges(chat, write, arm, left_seq) if chat.looked_up is None else []
        counted: list[str] = []
        if arm == "join_requested":
            if chat.chat is not None and write.sender_user_id not in chat.members:
                counted = [write.sender_user_id]
        elif not ranges:
            counted = self._new_members(chat, write, arm, now)
        if not ranges and not counted:
            return None
        erasing = frozenset(pending.erases_seq for pending in chat.in_flight.values() if pending.erases_seq)
        return Lookup(chat, tuple(sorted(ranges)), tuple(counted), erasing, write.sender_user_id)

    def _ranges(self, chat: ActiveChat, write: Write, arm: str, left_seq: int) -> list[tuple[int, int]]:
        """Where an earlier try may stand, and what the write refers to, as far as that is not in memory."""
        unseen_from = self._unseen_from(chat, write, arm, left_seq)
        floor_seq = chat.floor_seq
        below_floor = min(floor_seq - 1, left_seq) if left_seq else floor_seq - 1
        ranges = [(unseen_from - 1, below_floor)] if unseen_from <= below_floor else []
        if arm == "chat_created" and floor_seq > 1:
            ranges.append((0, 1))  # an earlier try stands at seq 1 or nowhere
        if write.sender_user_id in chat.members:
            target = target_seq(write.content, arm) if arm in _REFERS_TO_MESSAGE else 0
            if 0 < target < min(unseen_from, floor_seq):
                if arm == "reaction" and floor_seq - target <= self._limits.dedupe_span_max:
                    ranges = [(target - 1, floor_seq - 1)]  # up to now: is it their reaction already?
                else:
                    ranges.append((target - 1, target))
        return ranges

    def _new_members(self, chat: ActiveChat, write: Write, arm: str, now: Now) -> list[str]:
        """Whom the write would make members, if its sender may do that now.

        Raises:
            RefusedError: they may not, as far as can be told before groups are counted.
        """
        user_ids = new_members(write.content, arm)
        if not user_ids or (chat.chat is None and arm != "chat_created"):
            return []  # without a chat `_decide` refuses it
        content = write.content
        if chat.chat is not None:
            content = complete(write, self._circumstances(chat, chat.chat, write, arm, now), self._limits)
        _check_wait(self._rates.wait_ms(write.sender_user_id, _deeds(write, content), now.monotonic_ms))
        return user_ids

    def _unseen_from(self, chat: ActiveChat, write: Write, arm: str, left_seq: int) -> int:
        """The lowest seq at which an earlier try of the write may stand."""
        if write.seen_seq is None or arm == "chat_created":
            return chat.head_seq + 1
        end_seq = min(left_seq or chat.head_seq, chat.head_seq)
        if end_seq - write.seen_seq <= self._limits.dedupe_span_max and write.seen_seq <= chat.head_seq:
            return write.seen_seq + 1
        if write.sender_user_id not in chat.members and not is_their_own(write):
            raise _no_such_chat(write)  # where the log ends is told to members only
        if write.seen_seq > chat.head_seq:
            raise RefusedError(
                chat_pb2.ERROR_CODE_SEEN_SEQ_AHEAD,
                f"seen_seq is {write.seen_seq}, and the chat's last event is {chat.head_seq}. Send the highest seq you hold.",
            )
        raise RefusedError(
            chat_pb2.ERROR_CODE_SEEN_SEQ_TOO_OLD,
            f"More than {self._limits.dedupe_span_max} events lie above seen_seq. Sync the chat; if the message is not "
            "among the events above seen_seq, send it again with the seen_seq of now.",
        )

    def _decide(self, chat: ActiveChat, ticket: Ticket, write: Write, arm: str, now: Now) -> Pending:
        """Stages a write that was not committed before, or refuses it."""
        self._check_group_counts(chat, write)
        if arm == "chat_created" and chat.chat is None:
            self._count(write, _deeds(write, write.content), now)
            return self._stage(chat, [(ticket, write, False)], write, write.content, now)
        if chat.chat is None:
            self._open(chat, write, arm, now)
        if chat.chat is None:
            raise _no_such_chat(write)
        content = complete(write, self._circumstances(chat, chat.chat, write, arm, now), self._limits)
        if arm == "reaction":
            _check_changes(chat.standing_reaction(write.sender_user_id, content.reaction.target_seq), content.reaction.emoji)
        elif arm == "edit" and chat.has_text(content.edit.target_seq, content.edit.text):
            raise nothing_to_change("The message has this text already.")
        if deeds := _deeds(write, content):
            self._count(write, deeds, now)
        return self._stage(chat, [(ticket, write, False)], write, content, now)

    def _circumstances(self, chat: ActiveChat, state: chat_pb2.Chat, write: Write, arm: str, now: Now) -> Circumstances:
        return Circumstances(
            chat=state,
            sender=chat.members.get(write.sender_user_id),
            head_seq=chat.head_seq,
            target=self._target(chat, target_seq(write.content, arm)) if arm in _REFERS_TO_MESSAGE else None,
            now_ms=now.wall_ms,
        )

    def _earlier_try(self, chat: ActiveChat, write: Write) -> EventMeta | None:
        earlier = chat.find(write.sender_user_id, write.client_message_id)
        if earlier is None and chat.looked_up is not None:
            for meta in chat.looked_up.targets.values():
                if (meta.sender_user_id, meta.client_message_id) == (write.sender_user_id, write.client_message_id):
                    return meta
        return earlier

    def _answer_again(self, chat: ActiveChat, ticket: Ticket, write: Write, earlier: EventMeta) -> None:
        on_its_way = chat.in_flight.get(earlier.seq)
        if on_its_way is not None:
            on_its_way.tickets.append((ticket, _without_content(write), True))
            chat.behind += 1
            return
        self._answers.append(Answer(ticket, _result(chat.chat_id, earlier, again=True)))

    def _check_group_counts(self, chat: ActiveChat, write: Write) -> None:
        """Strangers can use up what others may add a user to. What those may add them to whose direct chat with them they have
        opened lies beyond that, and what they come into by themself beyond both, so that nobody takes it away."""
        if chat.looked_up is None:
            return
        by_others = self._limits.groups_by_others_max
        by_contacts = by_others + self._limits.groups_by_contacts_max
        for user_id, count in chat.looked_up.group_counts.items():
            if user_id in chat.members or count < by_others:
                continue
            if user_id == write.sender_user_id or write.answers_request:
                if count >= by_contacts + self._limits.chats_per_user_max:
                    raise RefusedError(
                        chat_pb2.ERROR_CODE_LIMIT_EXCEEDED, f"{user_id} is in as many groups as one can be. Leave some first."
                    )
            elif count >= by_contacts or user_id not in chat.looked_up.opened:
                raise RefusedError(chat_pb2.ERROR_CODE_LIMIT_EXCEEDED, f"{user_id} cannot be added to more groups.")

    def _count(self, write: Write, deeds: dict[Deed, int], now: Now) -> None:
        _check_wait(self._rates.count(write.sender_user_id, deeds, now.monotonic_ms))

    def _target(self, chat: ActiveChat, seq: int) -> EventMeta | None:
        if seq == 0:
            return None
        meta = chat.event_meta(seq)
        if meta is None and chat.looked_up is not None:
            meta = chat.looked_up.targets.get(seq)
        return meta

    def _open(self, chat: ActiveChat, write: Write, arm: str, now: Now) -> None:
        """Stages the event that makes a self chat or a direct chat, if the write may make it."""
        if arm not in MESSAGES:
            return
        created = content_pb2.ChatCreatedContent()
        if chat.chat_id == self_chat_id(write.sender_user_id):
            created.kind = content_pb2.CHAT_KIND_SELF
            user_ids = [write.sender_user_id]
        elif write.peer_user_id and chat.chat_id == direct_chat_id(write.sender_user_id, write.peer_user_id):
            created.kind = content_pb2.CHAT_KIND_DIRECT
            user_ids = sorted((write.sender_user_id, write.peer_user_id))
        else:
            return
        if arm in _REFERS_TO_MESSAGE or write.content.reply_to_seq:
            raise RefusedError(chat_pb2.ERROR_CODE_TARGET_NOT_FOUND, "The chat has no messages yet. Begin with a text.")
        check_kind(arm, created.kind)
        if created.kind == content_pb2.CHAT_KIND_DIRECT:
            self._count(write, {Deed.BEGIN: 1}, now)
        for user_id in user_ids:
            created.members.add(user_id=user_id, role=content_pb2.MEMBER_ROLE_MEMBER)
        opening = Write(
            chat_id=chat.chat_id,
            sender_user_id=write.sender_user_id,
            sender_device_id=write.sender_device_id,
            content=content_pb2.Content(chat_created=created),
            client_message_id=self._random_bits.getrandbits(128).to_bytes(16),
            seen_seq=None,
        )
        self._stage(chat, [], opening, opening.content, now)

    def _stage(
        self, chat: ActiveChat, tickets: list[tuple[Ticket, Write, bool]], write: Write, content: content_pb2.Content, now: Now
    ) -> Pending:
        """Gives the write the next seq and puts it into the next group."""
        seq = chat.head_seq + 1
        arm = content.WhichOneof("body") or ""
        if arm == "chat_created":
            for member in content.chat_created.members:
                member.joined_seq = seq
        sent_at_ms = _stamp_ms(now.wall_ms, chat.sent_at_ms)
        meta = EventMeta(
            seq,
            message_id(now.wall_ms, self._random_bits),
            write.sender_user_id,
            write.client_message_id,
            sent_at_ms,
            arm,
            reaction_of(content) if arm == "reaction" else None,
            text_of(content, seq) if arm in _GIVES_TEXT else None,
        )
        event = chat_pb2.ChatEvent(
            chat_id=chat.chat_id,
            seq=seq,
            message_id=meta.message_id,
            client_message_id=write.client_message_id,
            sender_user_id=write.sender_user_id,
            sender_device_id=write.sender_device_id,
            sent_at_ms=sent_at_ms,
            content=content,
        )
        serialized = event.SerializeToString()
        recipients_before = chat.recipients
        chat.append(meta, now.monotonic_ms)
        members = chat.apply(event) if arm in CHANGES_CHAT else None
        left_user_id = content.member_removed.user_id if arm == "member_removed" else ""
        erases_seq = content.delete.target_seq if arm == "delete" else 0
        pending = Pending(
            meta=meta,
            event=serialized,
            recipients=recipients_before if left_user_id else chat.recipients,
            left_user_id=left_user_id,
            changes_members=bool(members),
            erases_seq=erases_seq,
            tickets=tickets,
        )
        view = None
        if members is not None and chat.chat is not None:
            view = ChatView(chat.chat.SerializeToString(), members)
        if erases_seq:
            chat.mark_erased(erases_seq)
        amends_seq = content.edit.target_seq if arm == "edit" else 0
        self._entries.append(Entry(chat.chat_id, seq, self._epoch, serialized, amends_seq, erases_seq, view))
        self._pending.append((chat, pending))
        chat.in_flight[seq] = pending
        return pending

    def _drop(self, chat: ActiveChat, error: chat_pb2.Error) -> None:
        """Drops a chat whose memory is no longer what the log holds; all who wait in it get this answer."""
        self._remove(chat)
        kept = [other is not chat for other, _ in self._pending]
        self._entries = [entry for entry, keep in zip(self._entries, kept, strict=True) if keep]
        self._pending = [pair for pair, keep in zip(self._pending, kept, strict=True) if keep]
        self._release_all(chat)
        for pending in chat.in_flight.values():
            for ticket, write, _ in (*pending.tickets, *pending.refusals):
                self._fail(ticket, write, error)
        for ticket, write, _ in chat.unsealed:
            self._fail(ticket, write, error)
        for ticket, write, *_ in chat.waiting:
            self._fail(ticket, write, error)
        chat.in_flight.clear()
        chat.unsealed.clear()
        chat.waiting.clear()


def _result(chat_id: str, meta: EventMeta, again: bool) -> chat_pb2.SendResult:
    return chat_pb2.SendResult(
        chat_id=chat_id, seq=meta.seq, message_id=meta.message_id, sent_at_ms=meta.sent_at_ms, duplicate=again
    )


def _without_content(write: Write) -> Write:
    """What is needed to answer it: the store may be away for long, and meanwhile devices send it again and again."""
    return replace(write, content=_NOTHING)


def _not_taken() -> chat_pb2.Error:
    """The program has a mistake that this write brings to light; another try would do so again."""
    return chat_pb2.Error(
        code=chat_pb2.ERROR_CODE_INVALID_ARGUMENT, message="The server made a mistake over this; it was not taken."
    )


def _deeds(write: Write, content: content_pb2.Content) -> dict[Deed, int]:
    """What of this write counts towards a rate; of who asked to be let in nothing does but their asking."""
    if content.HasField("chat_created"):
        return {Deed.CREATE: 1, Deed.ADD: len(content.chat_created.members) - 1}
    if write.join_token:
        return {Deed.JOIN: 1}
    if content.HasField("members_added") and not write.answers_request:
        return {Deed.ADD: len(content.members_added.user_ids)}
    return {}


def _check_wait(wait_ms: int) -> None:
    if wait_ms:
        raise RefusedError(
            chat_pb2.ERROR_CODE_RATE_LIMITED,
            f"You have reached out to too many lately. Try again in {duration(wait_ms)}.",
            retry_after_ms=min(wait_ms, _RETRY_AFTER_MAX_MS),
        )


def _check_changes(standing: str | None, emoji: str) -> None:
    if standing == emoji:
        raise nothing_to_change(
            "This is your reaction already." if emoji else "You have no reaction to this message that could be taken back."
        )


def _no_such_chat(write: Write) -> RefusedError:
    if write.content.WhichOneof("body") == "join_requested":
        return link_invalid()
    return not_a_member()


def _stamp_ms(now_ms: int, before_ms: int) -> int:
    """The time that an event is stamped with: not before that of the event below, unless that one's clock was ahead by a step.

    Then the stamps fall; else all that follows would bear a time that has not come.
    """
    return before_ms if now_ms < before_ms <= now_ms + _CLOCKS_DIFFER_MS else now_ms
