"""The device's file: what is stored together, what survives a reopening, what is erased, and which pages it can serve."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgrpc.core.ids import is_device_id, self_chat_id
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from chatgrpc_client.datadir import DataDir, new_device_id
from chatgrpc_client.exceptions import DataDirError, DataDirLockedError, WrongUserError
from chatgrpc_client.store import CONNECTION_NUMBER_MAX, HistoryPage, QueuedMessage, Store

from .frames import CHAT, created, event, opened, text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path, "alice", "phone-1")
    yield store
    store.close()


def message(number: int, *, chat_id: str = CHAT) -> QueuedMessage:
    return QueuedMessage(number.to_bytes(16), chat_id, "bob", text(f"text {number}"), 1_700_000_000_000)


def seqs(page: HistoryPage | None) -> list[int] | None:
    return None if page is None else [e.seq for e in page.events]


def test_events_place_marks_and_token_survive_a_reopening(path: Path) -> None:
    store = Store(path, "alice", "phone-1")
    assert store.sync_token() is None
    store.apply([opened(1), created("alice", "bob"), event(2)], [], None)
    assert store.sync_token() is None, "the first synchronization is not complete"
    store.apply([], [chat_pb2.Receipt(chat_id=CHAT, user_id="bob", delivered_seq=2, read_seq=1)], "token")
    assert store.raise_own_read_mark(CHAT, 2)
    assert not store.raise_own_read_mark(CHAT, 1), "marks only rise"
    before = store.chat(CHAT)
    store.close()

    again = Store(path, "alice", "another-id")
    assert again.device_id == "phone-1", "chosen once"
    assert again.sync_token() == "token"
    assert again.positions() == {CHAT: (2, 2)}
    assert again.chat(CHAT) == before
    assert before is not None
    assert [member.user_id for member in before.chat.members] == ["alice", "bob"]
    assert (before.receipts["bob"].delivered_seq, before.receipts["bob"].read_seq) == (2, 1)
    assert [e.seq for _, e in again.arrived(0, again.last_arrival(), 10)] == [1, 2]
    again.close()


def test_each_stream_has_a_higher_number_than_the_ones_before_whatever_the_clock_says(path: Path) -> None:
    store = Store(path, "alice", "phone-1")
    numbers = [store.next_connection_number(wall_ms) for wall_ms in (1_000, 1_000, 2_000, 0)]
    store.close()
    again = Store(path, "alice", "phone-1")
    numbers += [again.next_connection_number(wall_ms) for wall_ms in (1_500, 9_000, 2**70)]
    again.close()
    assert numbers == [1_000, 1_001, 2_000, 2_001, 2_002, 9_000, CONNECTION_NUMBER_MAX]


def test_a_batch_is_stored_whole_or_not_at_all(store: Store) -> None:
    with pytest.raises(AttributeError):
        store.apply([opened(1), event(1), None], [], "token")  # type: ignore[list-item]
    assert store.positions() == {}
    assert store.sync_token() is None
    store.apply([opened(1), event(1)], [], None)
    assert [arrival for arrival, _ in store.arrived(0, 100, 10)] == [1]


def test_a_deletion_erases_the_message_and_its_edits_whatever_comes_first(store: Store) -> None:
    edit = content_pb2.Content(edit=content_pb2.EditContent(target_seq=2, text="edited"))
    delete = content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=2))
    store.apply([opened(4), event(4, delete)], [], None)
    page = session_pb2.HistoryPage(chat_id=CHAT, events=[event(1), event(2), event(3, edit)], more_before=False)
    shown = store.save_page(page, 4)
    assert [e.content.WhichOneof("body") for e in shown.events] == ["text", "erased", "erased"]

    store.apply([event(5), event(6, content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=5)))], [], None)
    erased = store.event(CHAT, 5)
    assert erased is not None
    assert erased.content.WhichOneof("body") == "erased"
    assert erased.sender_user_id == "bob", "who and when stay"
    assert all(b"text 5" not in e.SerializeToString() for _, e in store.arrived(0, 100, 100))


def test_hidden_messages_are_left_out_of_pages(store: Store) -> None:
    own = self_chat_id("alice")
    hide = content_pb2.Content(hide=content_pb2.HideContent(chat_id=CHAT, seqs=[2]))
    store.apply([opened(1), event(1), event(2), event(3), opened(1, chat_id=own)], [], None)
    store.apply([event(1, hide, chat_id=own, sender="alice")], [], None)
    assert seqs(store.page_before(CHAT, 0, 10)) == [1, 3]
    page = store.page_before(CHAT, 3, 1)  # whoever looks further back must know from where
    assert page is not None
    assert (page.events, page.first_seq, page.last_seq, page.more_before) == ((), 2, 2, True)
    fetched = store.save_page(session_pb2.HistoryPage(chat_id=CHAT, events=[event(2)], more_before=True, more_after=True), 3)
    assert fetched == page


def test_pages_come_from_disk_only_where_all_is_held(store: Store) -> None:
    store.apply([opened(10, head_seq=9), event(10), event(11)], [], None)
    assert seqs(store.page_before(CHAT, 0, 2)) == [10, 11]
    assert store.page_before(CHAT, 0, 3) is None, "9 is not held"
    assert store.page_before(CHAT, 10, 1) is None

    far = session_pb2.HistoryPage(chat_id=CHAT, events=[event(3), event(4)], more_before=True, more_after=True)
    store.save_page(far, 5)
    assert store.page_before(CHAT, 0, 3) is None, "a page that was jumped to closes no gap"

    near = session_pb2.HistoryPage(chat_id=CHAT, events=[event(n) for n in range(5, 10)], more_before=True, more_after=True)
    store.save_page(near, 10)
    page = store.page_before(CHAT, 0, 6)
    assert seqs(page) == [6, 7, 8, 9, 10, 11]
    assert page is not None
    assert (page.more_before, page.more_after) == (True, False)

    first = session_pb2.HistoryPage(chat_id=CHAT, events=[event(n) for n in range(1, 5)], more_before=False, more_after=True)
    store.save_page(first, 5)
    page = store.page_before(CHAT, 0, 100)
    assert page is not None
    assert seqs(page) == list(range(1, 12))
    assert not page.more_before


@settings(deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 25), st.integers(1, 6)), max_size=20), start=st.integers(1, 20))
def test_what_pages_serve_is_always_the_log(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]], start: int
) -> None:
    """Whatever pages were asked of the server before, a page from disk is what the server would have sent."""
    log = [event(seq) for seq in range(1, 21)]
    store = Store(tmp_path_factory.mktemp("store") / "s", "alice", "d")
    try:
        store.apply([opened(start, head_seq=20), *log[start - 1 :]], [], None)
        for before, limit in steps:
            below = before or 21
            wanted = [e for e in log if e.seq < below][-limit:]
            held = store.page_before(CHAT, before, limit)
            if held is None:
                first = wanted[0].seq if wanted else below
                answer = session_pb2.HistoryPage(chat_id=CHAT, events=wanted, more_before=first > 1, more_after=below <= 20)
                held = store.save_page(answer, before or 21)
            assert list(held.events) == wanted
            assert held.more_before == bool(wanted and wanted[0].seq > 1)
    finally:
        store.close()


def test_a_shorter_log_replaces_what_is_held(store: Store) -> None:
    store.apply([opened(1), event(1), event(2), event(3)], [], None)
    store.apply([opened(1, head_seq=1), event(1, text("another log"))], [], None)
    assert store.positions() == {CHAT: (1, 0)}
    assert seqs(store.page_before(CHAT, 0, 10)) == [1]
    assert store.event(CHAT, 2) is None


def test_the_outbox_keeps_order_content_and_key(path: Path) -> None:
    store = Store(path, "alice", "phone-1")
    unknown = store.queue(message(1))
    store.apply([opened(8, head_seq=7)], [], None)
    known = store.queue(message(2))
    assert (unknown.seen_seq, known.seen_seq) == (None, 7)
    store.apply([event(8)], [], None)
    store.set_seen_seq([(unknown.client_message_id, 3)])
    store.close()

    again = Store(path, "alice", "phone-1")
    entries = again.outbox_entries()
    assert [(e.client_message_id, e.seen_seq) for e in entries] == [((1).to_bytes(16), 3), ((2).to_bytes(16), 7)]
    assert again.queue(message(3)).position > entries[-1].position
    assert again.queued([(2).to_bytes(16)])[(2).to_bytes(16)].content == text("text 2")
    again.close()


def test_committed_messages_leave_the_outbox_and_refused_ones_keep_their_reason(store: Store) -> None:
    for number in (1, 2, 3):
        store.queue(message(number))
    refusal = chat_pb2.Error(code=chat_pb2.ERROR_CODE_MUTED, message="You are muted.")
    store.settle([(1).to_bytes(16)], [((2).to_bytes(16), refusal)])
    assert [m.client_message_id for m in store.outbox_messages(failed=False)] == [(3).to_bytes(16)]
    (failed,) = store.outbox_messages(failed=True)
    assert failed.error == refusal
    assert [e.client_message_id for e in store.outbox_entries()] == [(3).to_bytes(16)]
    store.discard(failed.client_message_id)
    assert store.outbox_messages(failed=True) == []


def test_an_own_event_settles_its_message(store: Store) -> None:
    store.queue(message(1))
    store.apply([opened(1)], [], None)
    not_own = store.apply([event(1, sender="bob", client_message_id=(1).to_bytes(16))], [], None)
    assert not_own.settled == []
    own = store.apply([event(2, sender="alice", client_message_id=(1).to_bytes(16))], [], None)
    assert [(i, result.seq) for i, result in own.settled] == [((1).to_bytes(16), 2)]
    assert store.outbox_entries() == []


def test_an_own_event_is_the_last_word_on_a_message_that_was_refused(store: Store) -> None:
    """A refusal speaks of one try; an earlier one may have been under way, and is committed (docs/protocol.md)."""
    store.queue(message(1))
    store.apply([opened(1)], [], None)
    refusal = chat_pb2.Error(code=chat_pb2.ERROR_CODE_NOT_A_MEMBER, message="You are not a member.")
    store.settle([], [((1).to_bytes(16), refusal)])
    assert [m.error for m in store.outbox_messages(failed=True)] == [refusal]
    store.apply([event(1, sender="alice", client_message_id=(1).to_bytes(16))], [], None)
    assert store.outbox_messages(failed=True) == []


def test_a_forgotten_chat_is_as_if_it_had_never_been_held(store: Store) -> None:
    store.apply([opened(1), event(1)], [], None)
    store.queue(message(1))
    store.forget_chat(CHAT)
    assert store.positions() == {}
    assert [e.seen_seq for e in store.outbox_entries()] == [None]


def test_a_file_belongs_to_one_user(path: Path, store: Store) -> None:
    with pytest.raises(WrongUserError, match="alice"):
        Store(path, "bob", "phone-1")


def test_a_file_that_is_no_store_is_refused(path: Path) -> None:
    path.write_bytes(b"no database" * 100)
    with pytest.raises(DataDirError):
        Store(path, "alice", "phone-1")


def test_a_folder_has_one_user_at_a_time(tmp_path: Path) -> None:
    with DataDir(tmp_path / "device"), pytest.raises(DataDirLockedError, match="in use by process"):
        DataDir(tmp_path / "device")
    DataDir(tmp_path / "device").close()


def test_device_ids_are_valid_and_differ() -> None:
    first, second = new_device_id(), new_device_id()
    assert first != second
    assert is_device_id(first)
