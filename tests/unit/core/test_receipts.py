"""Marks only rise, whatever order they come in and whatever becomes of their storing."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatgrpc.core.limits import Limits
from chatgrpc.core.receipts import Mark, Raised, ReceiptBook

CHATS = st.sampled_from(["c1", "c2", "c3"])
USERS = st.sampled_from(["alice", "bob"])
SEQS = st.integers(0, 20)


def test_what_was_read_was_delivered() -> None:
    raised = ReceiptBook(Limits()).raise_mark("c", "alice", delivered_seq=2, read_seq=5, now_ms=7)
    assert raised == Raised(Mark("c", "alice", 5, 5, 7), 0, 0)


def test_a_repeated_or_older_mark_is_no_news() -> None:
    book = ReceiptBook(Limits())
    book.raise_mark("c", "alice", 5, 3, now_ms=1)
    assert book.raise_mark("c", "alice", 5, 3, now_ms=2) is None
    assert book.raise_mark("c", "alice", 4, 0, now_ms=2) is None
    assert book.take_unsaved() == [Mark("c", "alice", 5, 3, 1)]


def test_it_says_from_where_a_mark_rose() -> None:
    book = ReceiptBook(Limits())
    book.raise_mark("c", "alice", 5, 3, now_ms=1)
    assert book.raise_mark("c", "alice", 6, 0, now_ms=2) == Raised(Mark("c", "alice", 6, 3, 2), 5, 3)


def test_a_receipt_shows_the_mark() -> None:
    receipt = Mark("c", "alice", 6, 3, 2).receipt()
    assert (receipt.chat_id, receipt.user_id, receipt.delivered_seq, receipt.read_seq) == ("c", "alice", 6, 3)


def test_what_is_stored_does_not_change_when_it_is_said_again_and_is_told_once() -> None:
    book = ReceiptBook(Limits())
    stored = Mark("g.1", "bob", 5, 3, 1_000)
    book.learn([stored])
    assert book.raise_mark("g.1", "bob", 4, 0, 2_000) == Raised(stored, 0, 0), "whether it was told is not known"
    assert book.raise_mark("g.1", "bob", 5, 3, 2_000) is None
    assert book.take_unsaved() == []
    assert book.raise_mark("g.1", "bob", 6, 0, 3_000) == Raised(Mark("g.1", "bob", 6, 3, 3_000), 5, 3)
    book.learn([stored])
    assert book.take_unsaved() == [Mark("g.1", "bob", 6, 3, 3_000)]


def test_memory_is_bounded_once_marks_are_stored() -> None:
    book = ReceiptBook(Limits(marks_in_memory_max=10))
    for number in range(25):
        book.raise_mark(f"c{number}", "alice", 1, 0, now_ms=number)
    assert len(book.take_unsaved()) == 25
    stored = [Mark(f"c{number}", "alice", 0, 0, 0) for number in range(25)]
    in_memory = [mark.chat_id for mark in book.merge(stored) if mark.delivered_seq]
    assert in_memory == [f"c{number}" for number in range(15, 25)], "the longest unchanged are dropped"


class LastingMarks(RuleBasedStateMachine):
    """Each save is either stored or handed back: then nothing is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.book = ReceiptBook(Limits(marks_in_memory_max=2))
        self.noted: dict[tuple[str, str], tuple[int, int]] = {}
        self.stored: dict[tuple[str, str], tuple[int, int]] = {}
        self.under_way: list[list[Mark]] = []
        self.now_ms = 0

    @rule(chat_id=CHATS, user_id=USERS, delivered_seq=SEQS, read_seq=SEQS)
    def note(self, chat_id: str, user_id: str, delivered_seq: int, read_seq: int) -> None:
        self.now_ms += 1
        self.book.raise_mark(chat_id, user_id, delivered_seq, read_seq, self.now_ms)
        delivered, read = self.noted.get((chat_id, user_id), (0, 0))
        self.noted[chat_id, user_id] = (max(delivered, delivered_seq, read_seq), max(read, read_seq))

    @rule()
    def begin_save(self) -> None:
        self.under_way.append(self.book.take_unsaved())

    @rule(data=st.data(), works=st.booleans())
    def end_save(self, data: st.DataObject, works: bool) -> None:
        if not self.under_way:
            return
        marks = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        if not works:
            self.book.unsave(marks)
            return
        for mark in marks:
            delivered, read = self.stored.get((mark.chat_id, mark.user_id), (0, 0))
            self.stored[mark.chat_id, mark.user_id] = (max(delivered, mark.delivered_seq), max(read, mark.read_seq))

    @invariant()
    def a_merged_mark_is_never_below_the_stored_one(self) -> None:
        stored = [Mark(*key, *seqs, 0) for key, seqs in self.stored.items()]
        for mark, merged in zip(stored, self.book.merge(stored), strict=True):
            assert merged.delivered_seq >= mark.delivered_seq
            assert merged.read_seq >= mark.read_seq

    def teardown(self) -> None:
        for marks in self.under_way:
            self.book.unsave(marks)
        self.under_way = [self.book.take_unsaved()]
        for mark in self.under_way[0]:
            delivered, read = self.stored.get((mark.chat_id, mark.user_id), (0, 0))
            self.stored[mark.chat_id, mark.user_id] = (max(delivered, mark.delivered_seq), max(read, mark.read_seq))
        assert self.stored == {key: seqs for key, seqs in self.noted.items() if seqs != (0, 0)}


LastingMarks.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestLastingMarks = LastingMarks.TestCase
