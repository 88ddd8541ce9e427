"""The outbox against a server that commits, fails, stalls and drops streams at random: order and once, whatever happens."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chatgrpc.v1 import chat_pb2
from chatgrpc_client.outbox import Outbox, OutboxEntry, Verdict

WINDOW = 8
WINDOW_BYTES = 10
TEMPORARY = chat_pb2.Error(code=chat_pb2.ERROR_CODE_UNAVAILABLE, retry_after_ms=50)
AFTER_FAILED = chat_pb2.Error(code=chat_pb2.ERROR_CODE_AFTER_FAILED_SEND, retry_after_ms=10)
TOO_LARGE = chat_pb2.Error(code=chat_pb2.ERROR_CODE_TOO_LARGE)
TOO_OLD = chat_pb2.Error(code=chat_pb2.ERROR_CODE_SEEN_SEQ_TOO_OLD)
AHEAD = chat_pb2.Error(code=chat_pb2.ERROR_CODE_SEEN_SEQ_AHEAD)


@dataclass
class Server:
    """What a server does of the contract: sends of a stream in order; after a failed one it wants that one first; repetitions
    are recognised."""

    log: list[tuple[str, bytes]] = field(default_factory=list)
    queue: list[tuple[int, OutboxEntry]] = field(default_factory=list)
    awaited: dict[str, bytes] = field(default_factory=dict)

    def new_stream(self) -> None:
        self.queue.clear()
        self.awaited.clear()

    def must_wait(self, entry: OutboxEntry) -> bool:
        return self.awaited.get(entry.chat_id, entry.client_message_id) != entry.client_message_id

    def commit(self, entry: OutboxEntry) -> None:
        self.awaited.pop(entry.chat_id, None)
        if (entry.chat_id, entry.client_message_id) not in self.log:
            self.log.append((entry.chat_id, entry.client_message_id))

    def fail(self, entry: OutboxEntry) -> None:
        self.awaited.setdefault(entry.chat_id, entry.client_message_id)


class OutboxMachine(RuleBasedStateMachine):
    """Composes to three chats and lets the server do its worst."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(())
        self.server = Server()
        self.composed: list[tuple[str, bytes]] = []
        self.refused: set[bytes] = set()
        self.positions = count(1)
        self.request_ids = count(1)
        self.now_s = 0.0
        self.connected = False

    @rule(chat=st.sampled_from("abc"), content_bytes=st.sampled_from([1, 4, 11]))
    def compose(self, chat: str, content_bytes: int) -> None:
        position = next(self.positions)
        entry = OutboxEntry(position, chat, position.to_bytes(16), 0, content_bytes)
        self.composed.append((chat, entry.client_message_id))
        self.outbox.add(entry)

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        self.outbox.connected(WINDOW, WINDOW_BYTES)
        self.server.new_stream()
        self.request_ids = count(1)
        self.connected = True

    @precondition(lambda self: self.connected)
    @rule()
    def disconnect(self) -> None:
        self.outbox.disconnected()
        self.server.queue.clear()
        self.connected = False

    @rule(seconds=st.floats(0.01, 20))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: self.connected)
    @rule()
    def send(self) -> None:
        self.server.queue += self.outbox.take(self.now_s, lambda: next(self.request_ids))
        assert len(self.server.queue) <= WINDOW
        assert len(self.server.queue) == 1 or sum(entry.content_bytes for _, entry in self.server.queue) <= WINDOW_BYTES

    @precondition(lambda self: self.server.queue)
    @rule(
        fate=st.sampled_from(["commit", "commit", "commit", "temporary", "unknown outcome", "refuse", "too old", "event first"])
    )
    def answer(self, fate: str) -> None:
        request_id, entry = self.server.queue.pop(0)
        if self.server.must_wait(entry):
            verdict, _ = self.outbox.failed(request_id, AFTER_FAILED, self.now_s)
            if verdict is Verdict.OUT_OF_STEP:
                self.disconnect()
            return
        match fate:
            case "commit":
                self.server.commit(entry)
                self.outbox.committed(request_id)
            case "event first":
                self.server.commit(entry)
                self.outbox.settle(entry.client_message_id)
                assert self.outbox.committed(request_id) is None
            case "temporary":
                self.server.fail(entry)
                self.outbox.failed(request_id, TEMPORARY, self.now_s)
            case "unknown outcome":
                self.server.commit(entry)
                self.server.fail(entry)
                self.outbox.failed(request_id, TEMPORARY, self.now_s)
            case "refuse" if (entry.chat_id, entry.client_message_id) not in self.server.log:
                self.server.awaited.pop(entry.chat_id, None)
                verdict, _ = self.outbox.failed(request_id, TOO_LARGE, self.now_s)
                if verdict is Verdict.FINAL:
                    self.refused.add(entry.client_message_id)
            case "too old" if (entry.chat_id, entry.client_message_id) not in self.server.log:
                self.server.awaited.pop(entry.chat_id, None)
                # Only the first message of a stream finds that out: `seen_seq` rises from message to message.
                verdict, _ = self.outbox.failed(request_id, TOO_OLD, self.now_s)
                if verdict is Verdict.SEEN_SEQ_TOO_OLD:
                    self.server.fail(entry)
                    self.outbox.rekeyed(entry.client_message_id, 7)
            case _:
                self.server.commit(entry)
                self.outbox.committed(request_id)

    @precondition(lambda self: self.server.log)
    @rule(data=st.data())
    def own_event_comes(self, data: st.DataObject) -> None:
        _, client_message_id = data.draw(st.sampled_from(self.server.log))
        self.outbox.settle(client_message_id)

    @invariant()
    def each_chat_has_its_order(self) -> None:
        for chat in "abc":
            wanted = [c for c in self.composed if c[0] == chat and c in self.server.log]
            assert [c for c in self.server.log if c[0] == chat] == wanted

    def teardown(self) -> None:
        """However it stood: with a server that works, everything that was not refused gets there, once, in order."""
        for _ in range(3 * len(self.composed) + 3):
            if not self.connected:
                self.connect()
            self.now_s += 100
            self.send()
            while self.server.queue:
                self.answer("commit")
            if not len(self.outbox):
                break
        assert not len(self.outbox)
        assert [c for c in self.composed if c[1] not in self.refused] == sorted(self.server.log, key=self.composed.index)
        self.each_chat_has_its_order()


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def outbox_of(chats: str, *, connected: bool = True) -> tuple[Outbox, Callable[[], int]]:
    entries = [OutboxEntry(n, chat, n.to_bytes(16), seen_seq=0) for n, chat in enumerate(chats, start=1)]
    outbox = Outbox(entries)
    if connected:
        outbox.connected(WINDOW)
    ids = count(1)
    return outbox, lambda: next(ids)


def positions(taken: list[tuple[int, OutboxEntry]]) -> list[int]:
    return [entry.position for _, entry in taken]


def test_nothing_is_taken_without_a_stream() -> None:
    outbox, new_id = outbox_of("aab", connected=False)
    assert outbox.take(0.0, new_id) == []


def test_the_first_of_each_chat_goes_alone_and_then_the_window_opens() -> None:
    outbox, new_id = outbox_of("aaab")
    first = outbox.take(0.0, new_id)
    assert positions(first) == [1, 4]
    assert outbox.take(0.0, new_id) == []
    outbox.committed(first[0][0])
    assert positions(outbox.take(0.0, new_id)) == [2, 3]


def test_after_a_failure_the_message_and_all_later_ones_go_again_after_the_wait() -> None:
    outbox, new_id = outbox_of("aaaa")
    outbox.committed(outbox.take(0.0, new_id)[0][0])
    taken = outbox.take(0.0, new_id)
    assert positions(taken) == [2, 3, 4]
    assert outbox.failed(taken[0][0], TEMPORARY, 0.0)[0] is Verdict.WILL_RETRY
    assert outbox.failed(taken[1][0], AFTER_FAILED, 0.0)[0] is Verdict.STALE
    assert outbox.take(0.04, new_id) == [], "the server asked for 50 ms"
    assert outbox.next_deadline_s(0.04) is not None
    assert positions(outbox.take(10.0, new_id)) == [2]


def test_no_more_bytes_are_in_flight_than_the_server_takes_and_a_larger_message_goes_alone() -> None:
    sizes = (("a", 6), ("b", 4), ("c", 11), ("d", 1))
    entries = [OutboxEntry(n, chat, n.to_bytes(16), 0, size) for n, (chat, size) in enumerate(sizes, 1)]
    outbox, ids = Outbox(entries), count(1)
    outbox.connected(WINDOW, WINDOW_BYTES)
    first = outbox.take(0.0, lambda: next(ids))
    assert positions(first) == [1, 2]
    outbox.committed(first[0][0])
    assert outbox.take(0.0, lambda: next(ids)) == [], "the small one does not overtake the large one for ever"
    outbox.failed(first[1][0], TEMPORARY, 0.0)
    large = outbox.take(0.0, lambda: next(ids))
    assert positions(large) == [3]
    outbox.committed(large[0][0])
    assert positions(outbox.take(10.0, lambda: next(ids))) == [2, 4]


def test_a_message_without_seen_seq_holds_up_its_chat_only() -> None:
    outbox, new_id = outbox_of("b", connected=False)
    waiting = OutboxEntry(2, "a", b"x" * 16, seen_seq=None)
    outbox.add(waiting)
    outbox.connected(WINDOW)
    assert positions(outbox.take(0.0, new_id)) == [1]
    waiting.seen_seq = 5
    assert positions(outbox.take(0.0, new_id)) == [2]


@pytest.mark.parametrize(("error", "verdict"), [(TOO_OLD, Verdict.SEEN_SEQ_TOO_OLD), (AHEAD, Verdict.SEEN_SEQ_AHEAD)])
def test_a_message_with_a_useless_seen_seq_is_held_until_the_next_stream(error: chat_pb2.Error, verdict: Verdict) -> None:
    outbox, new_id = outbox_of("aa")
    assert outbox.failed(outbox.take(0.0, new_id)[0][0], error, 0.0)[0] is verdict
    assert outbox.take(100.0, new_id) == []
    outbox.connected(WINDOW)
    assert positions(outbox.take(100.0, new_id)) == [1]


def test_a_server_that_waits_for_a_message_that_is_settled_is_out_of_step() -> None:
    outbox, new_id = outbox_of("aa")
    request_id = outbox.take(0.0, new_id)[0][0]
    outbox.failed(request_id, TEMPORARY, 0.0)
    outbox.settle((1).to_bytes(16))
    again = outbox.take(10.0, new_id)
    assert positions(again) == [2]
    assert outbox.failed(again[0][0], AFTER_FAILED, 10.0)[0] is Verdict.OUT_OF_STEP


def test_a_flood_to_one_chat_does_not_shut_out_another() -> None:
    outbox, new_id = outbox_of("a" * 20 + "b" * 4)
    for request_id, _ in outbox.take(0.0, new_id):
        outbox.committed(request_id)
    chats = [entry.chat_id for _, entry in outbox.take(0.0, new_id)]
    assert chats.count("b") == 3
    assert len(chats) == WINDOW
