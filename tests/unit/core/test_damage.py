"""What the store holds of a chat and cannot be right: it costs that chat, is told, and can be mended."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.clock import Now
from chatgrpc.core.damage import STORED_BYTES_MAX, Damage, Kind
from chatgrpc.core.epochs import Row
from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.row_store import WriteMark, WriteRow
from chatgrpc.core.shard import Request, Shard
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.core.model_rows import ModelRows

SICK = direct_chat_id("alice", "bob")
SOUND = direct_chat_id("alice", "carol")
NOW = Now(1_000, 1_000)
DAMAGED = chat_pb2.ERROR_CODE_CHAT_DAMAGED
Outcome = chat_pb2.SendResult | chat_pb2.Error


class Lease:
    """Never ends."""

    def holds(self, now_ms: int) -> bool:
        return True


class Owner:
    """One owner of all chats."""

    def __init__(self, rows: ModelRows, epoch: int = 1) -> None:
        self.rows = rows
        limits = Limits(recent_events_per_chat=4)
        self.shard = Shard(epoch, Lease(), limits, random.Random(epoch), rows.bucket_seqs)
        self.outcomes: dict[object, Outcome] = {}
        self.heads: dict[object, int | None] = {}
        self.damage: list[Damage] = []

    def send(self, words: str, chat_id: str = SICK, seen_seq: int = 0) -> Outcome:
        """Sends a text, and returns what became of it."""
        content = content_pb2.Content(text=content_pb2.TextContent(text=words))
        peer = "bob" if chat_id == SICK else "carol"
        write = Write(chat_id, "alice", content, words.encode().ljust(16), seen_seq, peer_user_id=peer)
        assert self.shard.submit(words, write, NOW)
        self.run()
        return self.outcomes[words]

    def head(self, chat_id: str) -> int | None:
        """What is answered to who asks for the head."""
        ticket = object()
        assert self.shard.ask_head(ticket, chat_id, NOW)
        self.run()
        return self.heads[ticket]

    def run(self, but: type[Request] | None = None) -> None:
        """Lets the store answer until nothing more is asked, `but` for requests of a kind, which it never answers."""
        while requests := self.requests():
            for request in requests:
                if but is None or not isinstance(request, but):
                    self.rows.answer(self.shard, request, NOW)

    def requests(self) -> list[Request]:
        """What the store is asked for; what the shard says beside it is noted."""
        output = self.shard.step()
        for answer in output.answers:
            assert answer.ticket not in self.outcomes, "answered twice"
            self.outcomes[answer.ticket] = answer.outcome
        self.heads |= {head.ticket: head.seq for head in output.heads}
        self.damage += output.damage
        return output.requests


def seq(outcome: Outcome) -> int:
    assert isinstance(outcome, chat_pb2.SendResult), outcome
    return outcome.seq


def code(outcome: Outcome) -> int:
    assert isinstance(outcome, chat_pb2.Error), outcome
    return outcome.code


def two_chats() -> ModelRows:
    """Six events in each, all committed, and the marks stored."""
    rows = ModelRows()
    owner = Owner(rows)
    for chat_id in (SICK, SOUND):
        for number in range(5):
            owner.send(f"{chat_id[:5]}{number}", chat_id, seen_seq=number + 1 if number else 0)
    for mark in owner.shard.take_marks():
        rows.put(mark)
    assert (rows.marks[SICK], rows.marks[SOUND]) == (6, 6)
    return rows


def change_row(rows: ModelRows, at_seq: int, event: bytes | None) -> None:
    """None takes it away."""
    kept = [row for row in rows.rows[SICK] if row.seq != at_seq]
    rows.rows[SICK] = kept if event is None else [*kept, Row(at_seq, 1, event)]


def event(chat_id: str, at_seq: int, content: content_pb2.Content | None = None) -> bytes:
    return chat_pb2.ChatEvent(chat_id=chat_id, seq=at_seq, sender_user_id="bob", content=content).SerializeToString()


def edit(target_seq: int) -> content_pb2.Content:
    return content_pb2.Content(edit=content_pb2.EditContent(target_seq=target_seq, text="x"))


def delete(target_seq: int) -> content_pb2.Content:
    return content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=target_seq))


def added(*user_ids: str) -> content_pb2.Content:
    return content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=user_ids))


def removed(user_id: str) -> content_pb2.Content:
    return content_pb2.Content(member_removed=content_pb2.MemberRemovedContent(user_id=user_id))


def created(user_id: str, joined_seq: int) -> content_pb2.Content:
    member = content_pb2.Member(user_id=user_id, joined_seq=joined_seq)
    return content_pb2.Content(chat_created=content_pb2.ChatCreatedContent(members=[member]))


def add_rows(rows: ModelRows, *contents: content_pb2.Content) -> None:
    """Above the mark, as an earlier owner may have left them."""
    rows.rows[SICK] += [Row(at_seq, 1, event(SICK, at_seq, content)) for at_seq, content in enumerate(contents, 7)]


def change_state(rows: ModelRows, state: bytes) -> None:
    rows.chats[SICK] = (rows.chats[SICK][0], state)


def state(chat_id: str, as_of_seq: int, *user_ids: str) -> bytes:
    members = [content_pb2.Member(user_id=user_id, joined_seq=1) for user_id in user_ids]
    return chat_pb2.Chat(chat_id=chat_id, as_of_seq=as_of_seq, members=members).SerializeToString()


def forget_mark_and_rows(rows: ModelRows) -> None:
    del rows.marks[SICK]
    rows.rows[SICK].clear()


LARGE = content_pb2.Content(text=content_pb2.TextContent(text="x" * STORED_BYTES_MAX))
GARBAGE = b"\xff\xff\xff garbage"

POISON: dict[str, Callable[[ModelRows], None]] = {
    "the row at the mark is missing": lambda rows: change_row(rows, 6, None),
    "all rows are missing": lambda rows: rows.rows[SICK].clear(),
    "the row at the mark is garbage": lambda rows: change_row(rows, 6, GARBAGE),
    "the row at the mark is empty": lambda rows: change_row(rows, 6, b""),
    "the row at the mark has no event": lambda rows: change_row(rows, 6, None) or rows.rows[SICK].append(Row(6, 1, None)),  # type: ignore[arg-type,func-returns-value]
    "the row at the mark is another chat's": lambda rows: change_row(rows, 6, event(SOUND, 6)),
    "the row at the mark is of another seq": lambda rows: change_row(rows, 6, event(SICK, 5)),
    "a row above the mark is garbage": lambda rows: change_row(rows, 7, GARBAGE),
    "a row above the mark is of another seq": lambda rows: change_row(rows, 7, event(SICK, 8)),
    "a row above the mark edits what is later": lambda rows: add_rows(rows, edit(2**64 - 1)),
    "a row above the mark deletes itself": lambda rows: add_rows(rows, delete(7)),
    "a row above the mark adds nobody": lambda rows: add_rows(rows, added("carol", "")),
    "a row above the mark adds a name that is too long": lambda rows: add_rows(rows, added("c" * 70_000)),
    "a row above the mark takes out who can be nobody": lambda rows: add_rows(rows, removed("c" * 70_000)),
    "rows above the mark let in from beyond the log, and out": lambda rows: add_rows(
        rows, created("carol", 2**64 - 1), removed("carol")
    ),
    "the row at the mark is too large": lambda rows: change_row(rows, 6, event(SICK, 6, LARGE)),
    "a row above the mark is too large": lambda rows: add_rows(rows, LARGE, content_pb2.Content()),
    "the mark is above all rows": lambda rows: rows.put(WriteMark(SICK, 1_000_000)),
    "the mark is below nothing": lambda rows: rows.marks.update({SICK: -3}),
    "the state is garbage": lambda rows: change_state(rows, GARBAGE),
    "the state is missing": lambda rows: change_state(rows, b""),
    "the state is too large": lambda rows: change_state(rows, state(SICK, 1, *["alice"] * (STORED_BYTES_MAX // 5))),
    "the state is another chat's": lambda rows: change_state(rows, state(SOUND, 1)),
    "the state has a member without a name": lambda rows: change_state(rows, state(SICK, 1, "")),
    "the state is later than the log": lambda rows: change_state(rows, state(SICK, 99)),
    "the state stands, mark and rows are gone": forget_mark_and_rows,
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_a_poisoned_chat_is_refused_and_all_others_go_on(poison: Callable[[ModelRows], None]) -> None:
    rows = two_chats()
    poison(rows)
    before = [row for row in rows.rows.get(SICK, ()) if row.epoch == 2]
    owner = Owner(rows, epoch=2)
    refused = owner.send("to the sick one")
    assert code(refused) == DAMAGED
    assert isinstance(refused, chat_pb2.Error)
    assert refused.retry_after_ms > 0
    assert owner.head(SICK) is None
    assert seq(owner.send("to the sound one", SOUND, 6)) == 7
    assert owner.head(SOUND) == 7
    assert {(damage.chat_id, damage.kind) for damage in owner.damage} == {(SICK, Kind.STORED)}
    assert [damage.chat_id for damage in owner.shard.damaged()] == [SICK]
    assert [row for row in rows.rows.get(SICK, ()) if row.epoch == 2] == before, "nothing was written into it"
    assert owner.shard.is_idle
    assert owner.shard.take_marks() == [WriteMark(SOUND, 7)]


def test_a_mark_that_no_chat_gets_to_asks_for_no_bucket_that_the_store_cannot_name() -> None:
    rows = two_chats()
    rows.put(WriteMark(SICK, 2**62))
    owner = Owner(rows, epoch=2)
    assert owner.shard.ask_head("head", SICK, NOW)
    (read,) = owner.requests()
    rows.answer(owner.shard, read, NOW)
    assert owner.requests() == []
    assert [damage.kind for damage in owner.damage] == [Kind.STORED]


def test_while_it_is_damaged_the_store_is_not_asked_again() -> None:
    rows = two_chats()
    change_row(rows, 6, GARBAGE)
    owner = Owner(rows, epoch=2)
    owner.head(SICK)
    assert owner.shard.ask_head("again", SICK, NOW)
    assert owner.requests() == []
    assert code(owner.send("again")) == DAMAGED
    assert len(owner.damage) == 1


def test_a_chat_that_was_mended_is_found_sound_when_it_is_looked_at_again() -> None:
    rows = two_chats()
    sound = list(rows.rows[SICK])
    change_row(rows, 6, None)
    owner = Owner(rows, epoch=2)
    assert owner.head(SICK) is None
    rows.rows[SICK] = sound
    assert owner.head(SICK) is None
    owner.shard.look_again()
    assert owner.head(SICK) == 6
    assert seq(owner.send("well again", seen_seq=6)) == 7


def test_garbage_below_the_head_costs_the_write_that_looks_there() -> None:
    rows = two_chats()
    change_row(rows, 3, GARBAGE)
    owner = Owner(rows, epoch=2)
    assert owner.head(SICK) == 6
    assert code(owner.send("an old one", seen_seq=1)) == DAMAGED
    assert seq(owner.send("a new one", seen_seq=6)) == 7
    assert owner.head(SICK) == 7
    assert [damage.kind for damage in owner.damage] == [Kind.STORED]


def test_a_later_epoch_is_no_place_to_write_under_an_earlier_one_however_often_one_looks() -> None:
    rows = two_chats()
    rows.boundaries[SICK, 0] = {9: 1}
    owner = Owner(rows, epoch=2)
    assert code(owner.send("late")) == DAMAGED
    owner.shard.look_again()
    assert owner.head(SICK) is None
    assert [(damage.kind, damage.for_good) for damage in owner.damage] == [(Kind.EPOCH_FELL, True)]


# Mistakes of ours.


@dataclass
class Broken:
    """Raises in the place of a method."""

    error: Exception

    def __call__(self, *arguments: object) -> None:
        raise self.error


def test_a_mistake_over_a_chat_with_rows_on_their_way_gives_it_up_for_good() -> None:
    """One of them may land late: under the same epoch nothing else may be written in its place."""
    rows = two_chats()
    owner = Owner(rows, epoch=2)
    assert owner.head(SICK) == 6
    content = content_pb2.Content(text=content_pb2.TextContent(text="lost"))
    owner.shard.submit("lost", Write(SICK, "alice", content, b"lost".ljust(16), 6), NOW)
    owner.run(but=WriteRow)
    owner.shard._pipelines[SICK].stored = Broken(KeyError("ours"))  # type: ignore[method-assign,assignment]
    owner.shard.stored(WriteRow(SICK, 0, Row(7, 2, b"")), NOW)
    owner.run()
    assert code(owner.outcomes["lost"]) == DAMAGED
    (damage,) = owner.damage
    assert (damage.kind, damage.for_good, type(damage.defect)) == (Kind.DEFECT, True, KeyError)
    owner.shard.look_again()
    assert owner.head(SICK) is None
    assert owner.shard.is_idle
    assert seq(owner.send("to the sound one", SOUND, 6)) == 7
    assert seq(Owner(rows, epoch=3).send("the next owner begins from the log", seen_seq=6)) == 7


def test_a_write_that_the_rules_trip_over_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = two_chats()
    owner = Owner(rows, epoch=2)
    assert owner.head(SICK) == 6
    with monkeypatch.context() as broken:
        broken.setattr("chatgrpc.core.sequencer.complete", Broken(IndexError("ours")))
        assert code(owner.send("trips", seen_seq=6)) == chat_pb2.ERROR_CODE_INVALID_ARGUMENT
    assert seq(owner.send("goes on", seen_seq=6)) == 7
    assert [damage.kind for damage in owner.damage] == [Kind.DEFECT]


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(-(2**63), 2**63 - 1), st.integers(0, 8))
def test_whatever_stands_in_the_store_the_shard_never_raises(row: bytes, chat: bytes, mark: int, at_seq: int) -> None:
    rows = two_chats()
    change_row(rows, at_seq, row)
    change_state(rows, chat)
    rows.marks[SICK] = mark
    owner = Owner(rows, epoch=2)
    owner.send("anything")
    assert seq(owner.send("to the sound one", SOUND, 6)) == 7
    assert all(damage.kind is Kind.STORED for damage in owner.damage), owner.damage
