"""The session without I/O: what it hands out, acknowledges, says and gives up, frame by frame and second by second."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgrpc.v1 import chat_pb2, session_pb2
from chatgrpc_client.backoff import Backoff
from chatgrpc_client.effects import Next, Received
from chatgrpc_client.outbox import Outbox, OutboxEntry
from chatgrpc_client.protocol import Session, SessionState, hello

from .frames import CHAT, OTHER_CHAT, event, frame, opened, welcome

ACKNOWLEDGED = session_pb2.START_AT_ACKNOWLEDGED


def session_of(
    positions: dict[str, tuple[int, int]] | None = None,
    *,
    outbox: Outbox | None = None,
    received: dict[str, int] | None = None,
    unstored: int = 0,
) -> Session:
    greeting = hello("phone-1", "phone", positions or {}, "", ACKNOWLEDGED, 1)
    return Session(greeting, "alice", outbox or Outbox(()), 0.0, received=received, unstored=unstored)


def live(
    positions: dict[str, tuple[int, int]] | None = None,
    *,
    outbox: Outbox | None = None,
    token_lifetime_ms: int = 3_600_000,
    ack_delay_ms: int = 0,
    limits: session_pb2.Limits | None = None,
) -> Session:
    session = session_of(positions, outbox=outbox)
    session.take(0.0)
    first = welcome(token_lifetime_ms=token_lifetime_ms)
    first.welcome.ack_delay_ms = ack_delay_ms
    if limits is not None:
        first.welcome.limits.CopyFrom(limits)
    session.receive([first, frame(session_pb2.SyncComplete(sync_token="t"))], 0.0)
    assert session.state is SessionState.LIVE
    return session


def events_of(received: Received) -> list[chat_pb2.ChatEvent]:
    return [record for record in received.records if isinstance(record, chat_pb2.ChatEvent)]


def acks(frames: Sequence[session_pb2.ClientFrame]) -> dict[str, int]:
    return {f.ack.chat_id: f.ack.seq for f in frames if f.HasField("ack")}


def test_hello_goes_first_and_nothing_else_before_the_welcome() -> None:
    session = session_of({CHAT: (7, 3)}, outbox=Outbox([OutboxEntry(1, CHAT, b"1" * 16, 7)]))
    session.mark_read(CHAT, 7)
    taken = session.take(0.0)
    assert [f.WhichOneof("body") for f in taken.frames] == ["hello"]
    position = taken.frames[0].hello.positions[0]
    assert (position.chat_id, position.seq, position.read_seq) == (CHAT, 7, 3)
    assert not session.take(1.0).frames
    session.receive([welcome()], 1.0)
    taken = session.take(1.0)
    assert [f.WhichOneof("body") for f in taken.frames] == ["mark_read"]
    assert len(taken.sends) == 1


def test_request_ids_rise_across_hello_requests_and_sends() -> None:
    outbox = Outbox([OutboxEntry(n, chat, n.to_bytes(16), 0) for n, chat in ((1, CHAT), (2, OTHER_CHAT))])
    session = session_of(outbox=outbox)
    ids = [f.request_id for f in session.take(0.0).frames]
    session.receive([welcome()], 0.0)
    session.request(session_pb2.ClientFrame(fetch_history=session_pb2.FetchHistory(chat_id=CHAT)))
    taken = session.take(0.0)
    ids += [f.request_id for f in taken.frames if f.request_id] + [request_id for request_id, _ in taken.sends]
    assert ids == [1, 2, 3, 4]


@settings(deadline=None)
@given(
    log_length=st.integers(0, 30),
    streams=st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.booleans()), max_size=12), max_size=6),
)
def test_records_are_contiguous_however_streams_are_cut_and_events_repeated(
    log_length: int, streams: list[list[tuple[int, int, bool]]]
) -> None:
    """The server repeats the last few events and cuts streams; the device stores only some batches before the cut."""
    stored: list[int] = []
    for stream in [*streams, [(0, 40, True)]]:
        held = len(stored)
        session = session_of({CHAT: (held, 0)} if held else None)
        session.receive([welcome()], 0.0)
        if not held:
            session.receive([frame(opened(1, head_seq=log_length))], 0.0)
        sent = held
        for repeated, fresh, is_stored in stream:
            first, last = max(1, sent + 1 - repeated), min(log_length, sent + fresh)
            received = session.receive([frame(event(seq)) for seq in range(first, last + 1)], 0.0)
            assert received.ending is None
            assert [e.seq for e in events_of(received)] == list(range(sent + 1, last + 1))
            sent = max(sent, last)
            if not is_stored:
                break
            stored += [e.seq for e in events_of(received)]
            session.stored(events_of(received), 0.0)
            session.take(0.0)
    assert stored == list(range(1, log_length + 1))


def test_a_gap_ends_the_session_and_keeps_what_came_before_it() -> None:
    session = live({CHAT: (3, 0)})
    received = session.receive([frame(event(4)), frame(event(6)), frame(event(7))], 1.0)
    assert [e.seq for e in events_of(received)] == [4]
    assert received.ending is not None
    assert received.ending.next is Next.BACK_OFF
    assert session.state is SessionState.ENDED


def test_an_event_of_a_chat_that_was_not_opened_ends_the_session() -> None:
    received = live().receive([frame(event(1))], 1.0)
    assert received.records == []
    assert received.ending is not None


def test_a_chat_may_be_opened_anew_further_on_or_with_a_shorter_log() -> None:
    session = live({CHAT: (10, 0)})
    assert session.receive([frame(opened(8, head_seq=12))], 0.0).records == [], "the device holds more than that"
    received = session.receive([frame(opened(20, head_seq=25)), frame(event(20))], 0.0)
    assert len(received.records) == 2
    received = session.receive([frame(opened(3, head_seq=2)), frame(event(3))], 0.0)
    assert len(received.records) == 2, "a shorter log replaces the longer one"


def test_events_are_acknowledged_once_per_batch_and_only_when_stored() -> None:
    """At once, by a server that says nothing of a delay."""
    session = live({CHAT: (0, 0), OTHER_CHAT: (5, 0)})
    received = session.receive([frame(event(n)) for n in (1, 2, 3)] + [frame(event(6, chat_id=OTHER_CHAT))], 1.0)
    assert not session.take(1.0).frames
    session.stored(events_of(received), 1.0)
    frames = session.take(1.0).frames
    assert acks(frames) == {CHAT: 3, OTHER_CHAT: 6}
    assert len(frames) == 2


def receive_and_store(session: Session, *seqs: int, now_s: float) -> None:
    session.stored(events_of(session.receive([frame(event(seq)) for seq in seqs], now_s)), now_s)


def test_acknowledgements_wait_for_one_another_as_long_as_the_server_allows() -> None:
    session = live({CHAT: (0, 0)}, ack_delay_ms=100)
    receive_and_store(session, 1, now_s=1.0)
    assert not session.take(1.0).frames
    assert session.take_at_s(1.0) == pytest.approx(1.1)
    receive_and_store(session, 2, now_s=1.09)
    assert not session.take(1.09).frames
    assert session.take_at_s(1.09) == pytest.approx(1.1), "the first one does not wait longer for the second"
    assert acks(session.take(1.1).frames) == {CHAT: 2}
    assert session.take_at_s(1.1) > 2

    receive_and_store(session, 3, now_s=5.0)
    assert not session.take(5.0).frames
    assert acks(session.take_acks()) == {CHAT: 3}, "at the end of a session nothing waits"


def test_acknowledgements_go_with_what_goes_anyway() -> None:
    session = live({CHAT: (0, 0)}, ack_delay_ms=100)
    receive_and_store(session, 1, now_s=1.0)
    session.typing(CHAT, session_pb2.TYPING_KIND_TEXT)
    assert acks(session.take(1.01).frames) == {CHAT: 1}


@pytest.mark.parametrize(
    "limits",
    [
        session_pb2.Limits(unacknowledged_events_max=8),
        session_pb2.Limits(unacknowledged_bytes_max=2 * 4 * len(event(1).SerializeToString())),
    ],
)
@pytest.mark.parametrize("sender", ["alice", "bob"])
def test_acknowledgements_wait_no_longer_than_half_a_window(limits: session_pb2.Limits, sender: str) -> None:
    """Else the server would wait for them with what it has to send."""
    session = live({CHAT: (0, 0)}, ack_delay_ms=100, limits=limits)
    for first_seq in (1, 5):  # what was acknowledged counts no more
        events = [event(seq, sender=sender) for seq in range(first_seq, first_seq + 4)]
        for one in events[:3]:
            session.receive([frame(one)], 1.0)
            session.stored([one], 1.0)
        assert not session.take(1.0).frames
        session.receive([frame(events[3])], 1.0)
        session.stored(events[3:], 1.0)
        assert session.take_at_s(1.0) <= 1.0
        assert acks(session.take(1.0).frames) == {CHAT: first_seq + 3}


def test_own_events_are_acknowledged_with_other_traffic_or_after_a_second() -> None:
    session = live({CHAT: (0, 0)})
    session.stored(events_of(session.receive([frame(event(1, sender="alice"))], 1.0)), 1.0)
    assert not session.take(1.5).frames
    assert session.take_at_s(1.5) == pytest.approx(2.0)
    assert acks(session.take(2.0).frames) == {CHAT: 1}

    session.stored(events_of(session.receive([frame(event(2, sender="alice"))], 3.0)), 3.0)
    session.typing(CHAT, session_pb2.TYPING_KIND_TEXT)
    assert acks(session.take(3.1).frames) == {CHAT: 2}

    session.stored(events_of(session.receive([frame(event(3, sender="alice"))], 4.0)), 4.0)
    assert acks(session.take_acks()) == {CHAT: 3}, "at the end of a session nothing waits"


def test_events_that_come_again_though_stored_are_acknowledged_again() -> None:
    session = session_of({CHAT: (2, 0)}, received={CHAT: 4}, unstored=2)
    session.receive([welcome()], 0.0)
    assert session.receive([frame(event(2)), frame(event(3)), frame(event(4))], 0.0).records == []
    assert acks(session.take(0.0).frames) == {CHAT: 2}, "not what the consumer has not acknowledged"
    session.stored([event(3), event(4)], 0.0)
    assert acks(session.take(0.0).frames) == {CHAT: 4}


def test_what_is_on_the_screen_is_said_again_when_a_chat_of_it_opens() -> None:
    """A send is answered before its new chat opens, and the server watches no chat that it does not know the user to be in."""
    session = live()
    session.watch(session_pb2.WatchChats(chat_ids=[CHAT, "g.new"]))
    assert [list(f.watch_chats.chat_ids) for f in session.take(1.0).frames] == [[CHAT, "g.new"]]
    session.receive([frame(opened(1, chat_id="g.other"))], 1.1)
    assert not session.take(1.2).frames
    session.receive([frame(opened(1, chat_id="g.new"))], 1.3)
    assert [list(f.watch_chats.chat_ids) for f in session.take(1.4).frames] == [[CHAT, "g.new"]]
    assert not session.take(1.5).frames


def test_heartbeats_go_out_when_nothing_else_did_and_silence_is_noticed() -> None:
    session = live()
    session.typing(CHAT, session_pb2.TYPING_KIND_TEXT)
    assert session.take(20.0).frames
    assert not session.take(49.0).frames
    assert [f.WhichOneof("body") for f in session.take(50.0).frames] == ["heartbeat"]
    assert session.check(74.9) is None
    assert session.check_at_s() == pytest.approx(75.0)
    ending = session.check(75.0)
    assert ending is not None
    assert ending.next is Next.RECONNECT


def test_a_server_that_does_not_welcome_in_time_is_given_up() -> None:
    session = session_of()
    assert session.check(14.9) is None
    ending = session.check(15.0)
    assert ending is not None
    assert ending.next is Next.BACK_OFF


def heartbeat(seq: int) -> session_pb2.ServerFrame:
    return frame(session_pb2.Heartbeat(heads=[session_pb2.ChatHead(chat_id=CHAT, seq=seq)]))


def test_a_head_that_stays_out_of_reach_for_a_heartbeat_means_a_lost_push() -> None:
    session = live({CHAT: (3, 0)})
    session.receive([heartbeat(3)], 10.0)
    session.receive([heartbeat(5)], 20.0)
    session.stored(events_of(session.receive([frame(event(4))], 45.0)), 45.0)
    session.receive([heartbeat(5)], 60.0)
    assert session.check(74.9) is None, "an event came at 45"
    assert session.check_at_s() == pytest.approx(75.0)
    ending = session.check(75.0)
    assert ending is not None
    assert ending.next is Next.RECONNECT


def test_a_head_that_is_reached_or_that_the_device_itself_holds_up_means_nothing() -> None:
    reached = live({CHAT: (3, 0)})
    reached.receive([heartbeat(4), frame(event(4))], 20.0)
    assert reached.check(94.9) is None

    slow = live({CHAT: (3, 0)})
    slow.receive([frame(event(4)), heartbeat(5)], 20.0)
    slow.receive([heartbeat(5)], 60.0)
    assert slow.check(70.0) is None, "the server rightly waits for the acknowledgement of 4"


def test_the_token_is_refreshed_a_minute_before_it_expires_and_sooner_if_it_is_short() -> None:
    assert not live().token_due(3539.0)
    session = live()
    assert session.token_due(3540.0)
    session.refresh_token("new")
    assert not session.token_due(3541.0)
    sent = session.take(3541.0).frames
    assert sent[-1].refresh_token.token == "new"
    refreshed = session_pb2.TokenRefreshed(token_expires_at_ms=1_700_000_000_000 + 7_200_000)
    session.receive([session_pb2.ServerFrame(request_id=sent[-1].request_id, token_refreshed=refreshed)], 3542.0)
    assert not session.token_due(7139.0)
    assert session.token_due(7140.0)
    assert live(token_lifetime_ms=10_000).token_due(5.0)


def test_a_refused_token_is_tried_again_at_half_of_what_is_left() -> None:
    session = live(token_lifetime_ms=100_000)
    assert session.token_due(50.0)
    session.refresh_token("bad")
    number = session.take(50.0).frames[-1].request_id
    error = chat_pb2.Error(code=chat_pb2.ERROR_CODE_TOKEN_INVALID)
    session.receive([session_pb2.ServerFrame(request_id=number, error=error)], 60.0)
    assert not session.token_due(79.0)
    assert session.token_due(80.0)


def test_a_drained_stream_is_left_after_the_time_named() -> None:
    session = live()
    assert session.receive([frame(session_pb2.Drain(reconnect_after_ms=2_000))], 10.0).ending is None
    assert session.check(11.9) is None
    ending = session.check(12.0)
    assert ending is not None
    assert ending.next is Next.RECONNECT


@pytest.mark.parametrize("code", [code for code in session_pb2.DisconnectCode.values() if code])
def test_the_range_of_a_disconnect_says_what_to_do(code: session_pb2.DisconnectCode.ValueType) -> None:
    wanted = {1: Next.RECONNECT, 2: Next.BACK_OFF, 3: Next.STOP}[code // 100]
    disconnect = session_pb2.Disconnect(code=code, message="why", reconnect_after_ms=500)
    received = live().receive([session_pb2.ServerFrame(disconnect=disconnect), frame(event(1))], 1.0)
    assert received.ending is not None
    assert (received.ending.next, received.ending.code) == (wanted, code)
    assert received.ending.wait_s == (0.0 if wanted is Next.STOP else 0.5)


def test_frames_of_a_later_version_are_passed_over() -> None:
    unknown = session_pb2.ServerFrame.FromString(b"\xfa\x07\x00")  # field 127, which this version does not have
    received = live({CHAT: (0, 0)}).receive([unknown, frame(event(1))], 1.0)
    assert [e.seq for e in events_of(received)] == [1]
    assert received.ending is None


def test_answers_carry_the_ticket_of_their_request() -> None:
    session = live()
    ticket = session.request(session_pb2.ClientFrame(fetch_history=session_pb2.FetchHistory(chat_id=CHAT)))
    number = session.take(1.0).frames[0].request_id
    page = session_pb2.ServerFrame(request_id=number, history_page=session_pb2.HistoryPage(chat_id=CHAT))
    assert session.receive([page], 1.0).answers == [(ticket, page)]
    assert session.receive([page], 1.0).answers == [], "an answer counts once"


def test_a_stream_that_owes_an_answer_for_too_long_is_given_up() -> None:
    session = live({CHAT: (3, 0)}, outbox=Outbox([OutboxEntry(1, CHAT, b"1" * 16, 3)]))
    ((number, _),) = session.take(10.0).sends
    session.receive([heartbeat(3)], 39.0)
    assert session.check(39.9) is None
    assert session.check_at_s() == pytest.approx(40.0)
    ending = session.check(40.0)
    assert ending is not None
    assert ending.next is Next.BACK_OFF
    session.receive([session_pb2.ServerFrame(request_id=number, sent=chat_pb2.SendResult(chat_id=CHAT, seq=4))], 41.0)
    assert session.check(41.0) is None, "answered"


def refused(request_id: int, code: chat_pb2.ErrorCode.ValueType = chat_pb2.ERROR_CODE_UNAVAILABLE) -> session_pb2.ServerFrame:
    return session_pb2.ServerFrame(request_id=request_id, error=chat_pb2.Error(code=code))


def test_it_tells_for_how_long_a_message_has_been_refused_as_unavailable() -> None:
    outbox = Outbox([OutboxEntry(1, CHAT, b"1" * 16, 7)], lambda: Backoff(0.0, 0.0))
    session = live({CHAT: (7, 7)}, outbox=outbox)
    ((first_id, entry),) = session.take(1.0).sends
    assert session.receive([refused(first_id)], 11.0).unavailable == [(entry, 10.0)], "since it was sent, not since the refusal"
    ((second_id, again),) = session.take(12.0).sends
    assert again is entry
    assert session.receive([refused(second_id, chat_pb2.ERROR_CODE_RATE_LIMITED)], 13.0).unavailable == []
    ((third_id, _),) = session.take(14.0).sends
    assert session.receive([refused(third_id)], 15.0).unavailable == [(entry, 14.0)]
    ((fourth_id, _),) = session.take(16.0).sends
    sent = session_pb2.ServerFrame(request_id=fourth_id, sent=chat_pb2.SendResult(chat_id=CHAT, seq=8))
    assert session.receive([sent], 17.0).unavailable == []


def test_it_tells_so_of_each_chat_and_each_stream_begins_anew() -> None:
    entries = [OutboxEntry(number, chat, bytes([number]) * 16, 7) for number, chat in ((1, CHAT), (2, OTHER_CHAT))]
    outbox = Outbox(entries[:1], lambda: Backoff(0.0, 0.0))
    session = live({CHAT: (7, 7)}, outbox=outbox)
    ((first_id, _),) = session.take(1.0).sends
    outbox.add(entries[1])
    ((second_id, _),) = session.take(4.0).sends
    assert session.receive([refused(second_id), refused(first_id)], 6.0).unavailable == [(entries[1], 2.0), (entries[0], 5.0)]
    session.end()
    session = live({CHAT: (7, 7)}, outbox=outbox)
    ((request_id, entry), _) = session.take(20.0).sends
    assert session.receive([refused(request_id)], 21.0).unavailable == [(entry, 1.0)]


def test_a_session_that_is_to_leave_ends_and_reconnects_at_once() -> None:
    session = live()
    assert session.check(1.0) is None
    session.leave(2.0)
    assert session.check_at_s() == 2.0
    ending = session.check(2.0)
    assert ending is not None
    assert (ending.next, ending.wait_s) == (Next.RECONNECT, 0.0)


def test_a_provider_without_a_newer_token_is_not_asked_without_end_while_the_server_forgives_the_old_one() -> None:
    session = live(token_lifetime_ms=4_000)
    now_s, asked = 0.0, 0
    refreshed = session_pb2.TokenRefreshed(token_expires_at_ms=1_700_000_000_000 + 4_000)  # as before
    while now_s < 34.0:
        if session.token_due(now_s):
            session.refresh_token("the same")
            asked += 1
            sent = session.take(now_s).frames
            session.receive([session_pb2.ServerFrame(request_id=sent[-1].request_id, token_refreshed=refreshed)], now_s)
        now_s += 0.01
    assert asked <= 34
