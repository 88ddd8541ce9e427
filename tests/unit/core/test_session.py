"""The session of one stream: its states, requests, limits, times and output."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from chatgrpc.core.clock import Now
from chatgrpc.core.disconnect import Ended
from chatgrpc.core.effects import (
    Admission,
    Admit,
    Effect,
    End,
    FetchPage,
    Marked,
    ShowTyping,
    Submit,
    VerifyToken,
    Watch,
)
from chatgrpc.core.entries import Membership, StoredEvent
from chatgrpc.core.event_feed import LoadChat, ReadLog, ReadMembership
from chatgrpc.core.events import event_chunk, typing_chunk
from chatgrpc.core.ids import direct_chat_id, group_chat_id, self_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import store_silent
from chatgrpc.core.session import Session, State, Timings
from chatgrpc.core.visibility import Interval
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2

NOW_MS = 1_000_000
NOW = Now(NOW_MS, NOW_MS)
TOKEN_EXPIRES_AT_MS = NOW_MS + 10**9
TIMINGS = Timings(hello_timeout_ms=10_000, heartbeat_interval_ms=30_000, max_age_ms=0, drain_grace_ms=20_000)
CHAT = direct_chat_id("alice", "bob")
TOKEN_INVALID = chat_pb2.Error(code=chat_pb2.ERROR_CODE_TOKEN_INVALID, message="It has expired.")
ALWAYS = (Interval(1),)
Frame = session_pb2.ClientFrame


class Stream:
    """A session, and what its device reads of it."""

    def __init__(self, limits: Limits | None = None, timings: Timings = TIMINGS, metadata_token: str | None = "token") -> None:
        self.limits = limits or Limits()
        self.session = Session("session", metadata_token, self.limits, timings, NOW_MS)
        self.now_ms = NOW_MS

    def say(self, **fields: object) -> Sequence[Effect]:
        return self.session.receive(Frame(**fields), self.now_ms)  # type: ignore[arg-type]

    def hello(self, **fields: object) -> Sequence[Effect]:
        return self.say(request_id=1, hello=session_pb2.Hello(device_id="phone", **fields))  # type: ignore[arg-type]

    def open(self, head_seq: int = 5, expires_at_ms: int = TOKEN_EXPIRES_AT_MS, **fields: object) -> "Stream":
        """A stream that is open and up to date."""
        self.hello(positions=[session_pb2.ChatPosition(chat_id=CHAT, seq=head_seq)], **fields)
        membership = Membership(CHAT, (Interval(1),), head_seq)
        self.session.admitted(Admission("alice", expires_at_ms, [membership], {}, [], "sync"), Now(self.now_ms, self.now_ms))
        assert self.arms() == ["welcome", "sync_complete"]
        return self

    def frames(self) -> list[session_pb2.ServerFrame]:
        frames: list[session_pb2.ServerFrame] = []
        while message := self.session.take_output(self.now_ms):
            frames += session_pb2.ConnectResponse.FromString(message).frames
        return frames

    def arms(self) -> list[str | None]:
        return [frame.WhichOneof("body") for frame in self.frames()]

    def frame(self) -> session_pb2.ServerFrame:
        [frame] = self.frames()
        return frame

    def error(self) -> str:
        """The code of the one frame that waits, an Error."""
        frame = self.frame()
        assert frame.WhichOneof("body") == "error", frame
        return chat_pb2.ErrorCode.Name(frame.error.code).removeprefix("ERROR_CODE_")

    def pass_time(self, passed_ms: int) -> Sequence[Effect]:
        self.now_ms += passed_ms
        return self.session.on_deadline(self.now_ms)


def code(effects: Sequence[Effect]) -> str:
    """The code that the session ends with."""
    [effect] = effects
    assert isinstance(effect, End)
    return session_pb2.DisconnectCode.Name(effect.ended.code).removeprefix("DISCONNECT_CODE_")


def send(number: int = 1, **fields: object) -> session_pb2.SendMessage:
    content = content_pb2.Content(text=content_pb2.TextContent(text="hi"))
    key = chat_pb2.WriteKey(client_message_id=number.to_bytes(16), seen_seq=3)
    defaults: dict[str, object] = {"user_id": "bob", "key": key, "content": content}
    return session_pb2.SendMessage(**(defaults | fields))  # type: ignore[arg-type]


def submitted(effects: Sequence[Effect]) -> Submit:
    [effect] = effects
    assert isinstance(effect, Submit)
    return effect


def event(seq: int, size: int = 10) -> bytes:
    content = content_pb2.Content(text=content_pb2.TextContent(text="x" * size))
    return event_chunk(chat_pb2.ChatEvent(chat_id=CHAT, seq=seq, content=content).SerializeToString())


# Hello.


def test_the_hello_asks_for_admission() -> None:
    stream = Stream(metadata_token="from metadata")
    assert list(stream.hello(device_name="Phone", sync_token="s")) == [Admit("from metadata", "phone", "Phone", "s")]
    assert stream.session.state is State.OPENING
    assert stream.frames() == []


def test_the_hellos_token_goes_before_the_metadatas() -> None:
    [admit] = Stream(metadata_token="from metadata").hello(token="from hello")
    assert isinstance(admit, Admit)
    assert admit.token == "from hello"


def test_a_long_device_name_is_cut_between_characters() -> None:
    [admit] = Stream(Limits(device_name_bytes_max=5)).hello(device_name="ääää")
    assert isinstance(admit, Admit)
    assert admit.device_name == "ää"


@pytest.mark.parametrize("device_id", ["", "a b", "x" * 65])
def test_a_hello_needs_a_device_id(device_id: str) -> None:
    assert code(Stream().say(hello=session_pb2.Hello(device_id=device_id))) == "PROTOCOL_VIOLATION"


def test_a_hello_needs_a_token() -> None:
    [end] = Stream(metadata_token=None).hello()
    assert isinstance(end, End)
    assert end.ended.status()[:2] == ("UNAUTHENTICATED", "TOKEN_MISSING")


def test_g7_as_many_positions_are_looked_at_as_a_user_may_have_groups_and_not_many_more() -> None:
    """A stranger's groups must lock nobody out; what the server says of these chats the device knows already, and takes."""
    limits = Limits()
    assert limits.chats_per_user_max + limits.groups_by_others_max + limits.groups_by_contacts_max < limits.positions_max
    chat_ids = [group_chat_id("mallory", bytes([number]) * 16) for number in range(6)]
    positions = [session_pb2.ChatPosition(chat_id=chat_id, seq=2**64 - 1) for chat_id in ["x" * 10_000, *chat_ids]]
    stream = Stream(Limits(positions_max=4))
    assert isinstance(stream.hello(positions=positions)[0], Admit)
    memberships = [Membership(chat_id, (Interval(1),), 7) for chat_id in chat_ids]
    effects = stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, memberships, {}, [], ""), NOW)
    assert [effect.chat_id for effect in effects if isinstance(effect, Marked)] == chat_ids[:3]
    assert [effect.delivered_seq for effect in effects if isinstance(effect, Marked)] == [7, 7, 7]


def test_a_position_of_a_chat_that_is_not_the_users_costs_nothing_also_if_they_are_let_in_later() -> None:
    stream = Stream()
    stream.hello(positions=[session_pb2.ChatPosition(chat_id=CHAT, seq=2**64 - 1)])
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [], {}, [], ""), NOW)
    stream.session.deliver(CHAT, 4, event(4), last=False)
    assert stream.session.next_read() == ReadMembership(CHAT)
    stream.session.membership_read(CHAT, Membership(CHAT, (Interval(4),), 4))
    assert stream.session.next_read() == LoadChat(CHAT)


def test_g4_a_head_that_is_stated_while_the_session_opens_is_not_forgotten() -> None:
    """Its membership had been read already, and the push was lost: nothing else would tell before the next message."""
    stream = Stream()
    stream.hello(positions=[session_pb2.ChatPosition(chat_id=CHAT, seq=5)])
    for seq in (6, 7, *[1] * 100):
        stream.session.note_heads({CHAT: seq, "another": 9})
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [Membership(CHAT, ALWAYS, 5)], {}, [], ""), NOW)
    assert stream.session.next_read() == ReadMembership(CHAT)
    stream.session.membership_read(CHAT, Membership(CHAT, ALWAYS, 7))
    assert stream.session.next_read() == ReadLog(CHAT, 5, 7, 256, 512 * 1024)


def test_a_device_comes_in_with_what_is_known_and_is_sent_the_rest_once_it_can_be_read() -> None:
    stream, sick = Stream(), group_chat_id("bob", bytes(16))
    stream.hello(positions=[session_pb2.ChatPosition(chat_id=chat_id, seq=5) for chat_id in (CHAT, sick)])
    admission = Admission("alice", TOKEN_EXPIRES_AT_MS, [Membership(CHAT, ALWAYS, 5)], {}, [], "sync", [sick])
    stream.session.admitted(admission, NOW)
    stream.session.after_read(NOW_MS)
    assert stream.session.next_read() is None
    welcome, synced = stream.frames()
    assert welcome.HasField("welcome")
    assert synced.sync_complete.unread_chat_ids == [sick]
    stream.session.deliver(CHAT, 6, event(6), last=False)
    assert stream.arms() == ["event"], "the other chat is live"
    for wait_ms in (500, 1_000, 2_000):
        assert stream.session.deadline_ms == stream.now_ms + wait_ms
        stream.pass_time(wait_ms)
        assert stream.session.next_read() == ReadMembership(sick)
        assert stream.session.next_read() is None
        stream.session.read_failed(ReadMembership(sick))
        stream.session.after_read(stream.now_ms)
    stream.pass_time(4_000)
    assert stream.session.next_read() == ReadMembership(sick)
    stream.session.membership_read(sick, Membership(sick, ALWAYS, 8))
    assert stream.session.next_read() == ReadLog(sick, 5, 8, 256, 512 * 1024)
    stream.session.deliver(sick, 9, event_chunk(chat_pb2.ChatEvent(chat_id=sick, seq=9).SerializeToString()), last=False)
    assert stream.frames() == [], "it lags until it has caught up"


def test_marks_of_a_chat_that_is_not_known_at_the_hello_count_once_it_is() -> None:
    stream, sick, gone = Stream(), group_chat_id("bob", bytes(16)), group_chat_id("carol", bytes(16))
    stream.hello(positions=[session_pb2.ChatPosition(chat_id=chat_id, seq=5, read_seq=2) for chat_id in (sick, gone)])
    assert stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [], {}, [], "sync", [sick, gone]), NOW) == []
    assert stream.session.after_read(NOW_MS) == []
    assert stream.say(mark_read=session_pb2.MarkRead(chat_id=sick, seq=2**64 - 1)) == ()
    assert stream.say(mark_read=session_pb2.MarkRead(chat_id=sick, seq=1)) == ()
    stream.pass_time(500)
    assert [stream.session.next_read(), stream.session.next_read()] == [ReadMembership(sick), ReadMembership(gone)]
    stream.session.membership_read(gone, None)
    stream.session.membership_read(sick, Membership(sick, ALWAYS, 8))
    assert stream.session.after_read(stream.now_ms) == [Marked(sick, 5, 8)]
    assert stream.session.after_read(stream.now_ms) == []
    assert stream.say(mark_read=session_pb2.MarkRead(chat_id=gone, seq=3)) == ()


def test_a_page_that_cannot_be_read_costs_its_chat_and_no_other() -> None:
    stream, other = Stream(), group_chat_id("bob", bytes(16))
    stream.hello(positions=[session_pb2.ChatPosition(chat_id=chat_id, seq=5) for chat_id in (CHAT, other)])
    memberships = [Membership(chat_id, ALWAYS, 7) for chat_id in (CHAT, other)]
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, memberships, {}, [], ""), NOW)
    sick = stream.session.next_read()
    assert isinstance(sick, ReadLog)
    stream.session.read_failed(sick)
    stream.session.after_read(NOW_MS)
    healthy = stream.session.next_read()
    assert isinstance(healthy, ReadLog)
    assert {sick.chat_id, healthy.chat_id} == {CHAT, other}
    stream.pass_time(500)
    assert stream.session.next_read() is None, "one page is read at a time"
    stream.session.log_read(
        [StoredEvent(seq, chat_pb2.ChatEvent(chat_id=healthy.chat_id).SerializeToString()) for seq in (6, 7)]
    )
    assert stream.session.next_read() == sick


def test_a_token_lasts_as_long_as_it_had_left_whatever_the_wall_clock_does() -> None:
    for step_ms in (-3_600_000, 7_200_000):
        stream = Stream().open(expires_at_ms=NOW_MS + 60_000)
        stream.now_ms = NOW_MS + 20_000
        stream.say(heartbeat=session_pb2.Heartbeat())
        stream.session.token_verified(0, "alice", NOW_MS + step_ms + 80_000, Now(NOW_MS + 20_000 + step_ms, NOW_MS + 20_000))
        stream.pass_time(59_999)
        stream.session.excuse_silence(stream.now_ms)
        assert stream.session.state is State.OPEN
        assert code(stream.pass_time(1)) == "UNAUTHENTICATED"


def test_g7_of_what_a_device_wants_to_watch_no_more_is_looked_at_than_it_may() -> None:
    stream = Stream().open()
    [watch] = stream.say(request_id=2, watch_chats=session_pb2.WatchChats(chat_ids=[""] * 500_000 + [CHAT]))
    assert watch == Watch(())


def test_anything_before_the_hello_ends_the_session() -> None:
    stream = Stream()
    assert code(stream.say(heartbeat=session_pb2.Heartbeat())) == "PROTOCOL_VIOLATION"
    assert stream.arms() == ["disconnect"]
    assert stream.hello() == ()


def test_a_second_hello_ends_the_session() -> None:
    assert code(Stream().open().say(request_id=2, hello=session_pb2.Hello(device_id="phone"))) == "PROTOCOL_VIOLATION"


def test_the_welcome_answers_the_hello() -> None:
    stream = Stream()
    stream.hello()
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [], {}, [], "sync"), NOW)
    welcome, sync_complete = stream.frames()
    assert welcome.request_id == 1
    assert welcome.welcome.session_id == "session"
    assert welcome.welcome.user_id == "alice"
    assert welcome.welcome.heartbeat_interval_ms == 30_000
    assert welcome.welcome.ack_delay_ms == 100
    assert welcome.welcome.limits == Limits().frame()
    assert welcome.welcome.token_expires_at_ms == TOKEN_EXPIRES_AT_MS
    assert welcome.welcome.server_time_ms == NOW_MS
    assert sync_complete.sync_complete.sync_token == "sync"


def test_a_hello_without_request_id_is_welcomed_too() -> None:
    stream = Stream()
    stream.say(hello=session_pb2.Hello(device_id="phone"))
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [], {}, [], ""), NOW)
    assert stream.arms() == ["welcome", "sync_complete"]


def test_what_the_device_holds_is_delivered_and_read() -> None:
    stream = Stream()
    unknown = group_chat_id("mallory", bytes(16))
    stream.hello(
        positions=[
            session_pb2.ChatPosition(chat_id=CHAT, seq=9, read_seq=4),
            session_pb2.ChatPosition(chat_id=unknown, seq=9, read_seq=9),
            session_pb2.ChatPosition(chat_id=self_chat_id("alice"), seq=0, read_seq=2),
        ]
    )
    memberships = [Membership(CHAT, (Interval(1),), 7), Membership(self_chat_id("alice"), (Interval(1),), 3)]
    effects = stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, memberships, {}, [], ""), NOW)
    assert list(effects) == [Marked(CHAT, 7, 4), Marked(self_chat_id("alice"), 0, 2)]


def test_receipts_of_the_admission_come_after_the_welcome() -> None:
    stream = Stream()
    stream.hello()
    receipt = chat_pb2.Receipt(chat_id=CHAT, user_id="bob", delivered_seq=3)
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [], {}, [receipt], ""), NOW)
    assert stream.arms() == ["welcome", "receipt", "sync_complete"]


def test_frames_that_came_before_the_welcome_are_taken_then() -> None:
    stream = Stream()
    stream.hello()
    assert stream.say(request_id=2, send=send()) == ()
    effects = stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [], {}, [], ""), NOW)
    assert submitted(effects).request_id == 2


def test_a_violation_before_the_welcome_ends_the_session_after_it() -> None:
    stream = Stream()
    stream.hello()
    stream.say(request_id=1, heartbeat=session_pb2.Heartbeat())
    stream.say(request_id=2, send=send())
    effects = stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [], {}, [], ""), NOW)
    assert code(effects) == "PROTOCOL_VIOLATION"
    assert stream.arms() == ["welcome", "sync_complete", "disconnect"]


def test_g7_only_so_many_frames_may_come_before_the_welcome() -> None:
    stream = Stream(Limits(frames_per_batch_max=3))
    stream.hello()
    for _ in range(3):
        assert stream.say(heartbeat=session_pb2.Heartbeat()) == ()
    assert code(stream.say(heartbeat=session_pb2.Heartbeat())) == "PROTOCOL_VIOLATION"


def test_an_admission_that_comes_too_late_does_nothing() -> None:
    stream = Stream()
    stream.hello()
    stream.session.end(Ended(session_pb2.DISCONNECT_CODE_UNAUTHENTICATED))
    assert stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [], {}, [], ""), NOW) == ()
    assert stream.arms() == ["disconnect"]


def test_g4_events_that_came_before_the_welcome_are_not_lost() -> None:
    stream = Stream()
    stream.hello(positions=[session_pb2.ChatPosition(chat_id=CHAT, seq=5)])
    stream.session.deliver(CHAT, 6, event(6), last=False)
    membership = Membership(CHAT, (Interval(1),), 5)
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [membership], {}, [], ""), NOW)
    assert stream.session.next_read() == ReadMembership(CHAT)
    stream.session.membership_read(CHAT, Membership(CHAT, (Interval(1),), 6))
    assert isinstance(stream.session.next_read(), ReadLog)


def test_the_sync_is_complete_behind_the_last_event_of_the_hellos_moment() -> None:
    stream = Stream()
    stream.hello(positions=[session_pb2.ChatPosition(chat_id=CHAT, seq=4)])
    membership = Membership(CHAT, (Interval(1),), 5)
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [membership], {}, [], "sync"), NOW)
    assert stream.session.next_read() == ReadLog(CHAT, 4, 5, 256, stream.limits.page_bytes_max)
    assert stream.arms() == ["welcome"]
    stored = chat_pb2.ChatEvent(chat_id=CHAT, seq=5).SerializeToString()
    stream.session.log_read([StoredEvent(5, stored)])
    assert stream.session.next_read() is None
    assert stream.arms() == ["event", "sync_complete"]


def test_g5_nothing_is_read_while_too_much_waits_to_be_sent() -> None:
    stream = Stream(Limits(unacknowledged_bytes_max=1_000))
    stream.hello(positions=[session_pb2.ChatPosition(chat_id=CHAT, seq=4)])
    membership = Membership(CHAT, (Interval(1),), 5)
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [membership], {}, [], "sync"), NOW)
    for number in range(50):
        stream.session.show_presence(session_pb2.Presence(user_id=f"user number {number}"))
    assert stream.session.next_read() is None
    stream.frames()
    assert isinstance(stream.session.next_read(), ReadLog)


# Sending.


def test_a_send_is_submitted_with_what_the_session_knows() -> None:
    submit = submitted(Stream().open().say(request_id=2, send=send()))
    write = submit.write
    assert submit.request_id == 2
    assert (write.chat_id, write.sender_user_id, write.sender_device_id) == (CHAT, "alice", "phone")
    assert (write.client_message_id, write.seen_seq, write.peer_user_id) == ((1).to_bytes(16), 3, "bob")
    assert write.content.text.text == "hi"


def test_a_send_to_a_chat_names_no_peer() -> None:
    write = submitted(Stream().open().say(request_id=2, send=send(user_id="", chat_id=CHAT))).write
    assert (write.chat_id, write.peer_user_id) == (CHAT, "")


def test_a_send_to_oneself_goes_to_the_self_chat() -> None:
    assert submitted(Stream().open().say(request_id=2, send=send(user_id="alice"))).write.chat_id == self_chat_id("alice")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"key": chat_pb2.WriteKey(client_message_id=b"short")}, "INVALID_ARGUMENT"),
        ({"user_id": ""}, "INVALID_ARGUMENT"),
        ({"user_id": "not a user"}, "INVALID_ARGUMENT"),
        ({"user_id": "", "chat_id": "x.y"}, "INVALID_ARGUMENT"),
        ({"content": content_pb2.Content()}, "UNSUPPORTED_CONTENT"),
        ({"content": content_pb2.Content(erased=content_pb2.ErasedContent())}, "UNSUPPORTED_CONTENT"),
        ({"content": content_pb2.Content(members_added=content_pb2.MembersAddedContent())}, "UNSUPPORTED_CONTENT"),
        ({"content": content_pb2.Content(chat_created=content_pb2.ChatCreatedContent())}, "UNSUPPORTED_CONTENT"),
    ],
)
def test_a_send_that_cannot_be_is_refused(fields: dict[str, Any], error: str) -> None:
    stream = Stream().open()
    assert stream.say(request_id=2, send=send(**fields)) == ()
    assert stream.error() == error
    submitted(stream.say(request_id=3, send=send()))


def test_a_send_without_request_id_ends_the_session() -> None:
    assert code(Stream().open().say(send=send())) == "PROTOCOL_VIOLATION"


def test_results_and_errors_answer_their_request() -> None:
    stream = Stream().open()
    one = submitted(stream.say(request_id=2, send=send(1)))
    other = submitted(stream.say(request_id=7, send=send(2)))
    stream.session.answered(other.request_id, other.write, chat_pb2.SendResult(chat_id=CHAT, seq=6))
    stream.session.answered(one.request_id, one.write, chat_pb2.Error(code=chat_pb2.ERROR_CODE_MUTED))
    sent, error = stream.frames()
    assert (sent.request_id, sent.sent.seq) == (7, 6)
    assert (error.request_id, error.error.code) == (2, chat_pb2.ERROR_CODE_MUTED)


@pytest.mark.parametrize("request_id", [1, 2])
def test_request_ids_rise(request_id: int) -> None:
    stream = Stream().open()
    stream.say(request_id=2, heartbeat=session_pb2.Heartbeat())
    assert code(stream.say(request_id=request_id, heartbeat=session_pb2.Heartbeat())) == "PROTOCOL_VIOLATION"


def test_g7_requests_in_flight_are_limited() -> None:
    stream = Stream(Limits(requests_in_flight_max=2)).open()
    first = submitted(stream.say(request_id=2, send=send(1)))
    stream.say(request_id=3, send=send(2, user_id="carol"))
    assert stream.say(request_id=4, send=send(3, user_id="dave")) == ()
    assert stream.error() == "TOO_MANY_IN_FLIGHT"
    stream.session.answered(first.request_id, first.write, chat_pb2.SendResult(seq=6))
    submitted(stream.say(request_id=6, send=send(3, user_id="dave")))


def test_g7_a_send_in_flight_keeps_nothing_of_the_batch_that_it_came_in() -> None:
    """A part of a message keeps all of it in memory: a small send beside a megabyte of something else would cost that."""
    stream = Stream().open()
    frame = session_pb2.ClientFrame(request_id=2, send=send(1))
    (submit,) = stream.session.receive(frame, NOW_MS)
    assert isinstance(submit, Submit)
    before = submit.write.content.SerializeToString()
    frame.send.content.text.text = "another"
    assert submit.write.content.SerializeToString() == before


def test_g7_a_page_that_is_being_read_keeps_nothing_of_the_batch_that_asked_for_it() -> None:
    stream = Stream().open()
    frame = session_pb2.ClientFrame(request_id=2, fetch_history=session_pb2.FetchHistory(chat_id="g.1", limit=3))
    (fetch,) = stream.session.receive(frame, NOW_MS)
    assert isinstance(fetch, FetchPage)
    frame.fetch_history.limit = 4
    assert fetch.request.limit == 3


def test_g7_bytes_of_sends_in_flight_are_limited_and_one_alone_may_be_large() -> None:
    stream = Stream(Limits(sends_in_flight_bytes_max=10)).open()
    first = submitted(stream.say(request_id=2, send=send(1)))
    assert first.write.size_bytes == first.write.content.ByteSize() > 5
    assert stream.say(request_id=3, send=send(2)) == ()
    assert stream.error() == "TOO_MANY_IN_FLIGHT"
    stream.session.answered(first.request_id, first.write, chat_pb2.SendResult(seq=6))
    stream.frames()
    stream.say(request_id=4, send=send(3))
    assert stream.error() == "AFTER_FAILED_SEND"
    again = submitted(stream.say(request_id=5, send=send(2)))
    stream.session.answered(again.request_id, again.write, store_silent())
    large = submitted(stream.say(request_id=6, send=send(4, user_id="carol")))
    assert stream.say(request_id=7, send=send(5, user_id="dave")) == ()
    stream.session.answered(large.request_id, large.write, chat_pb2.SendResult(seq=1))
    submitted(stream.say(request_id=8, send=send(5, user_id="dave")))


def test_m7_what_was_too_many_comes_first_when_it_comes_again() -> None:
    stream = Stream(Limits(requests_in_flight_max=1)).open()
    first = submitted(stream.say(request_id=2, send=send(1)))
    stream.say(request_id=3, send=send(2))
    stream.session.answered(first.request_id, first.write, chat_pb2.SendResult(seq=6))
    stream.frames()
    stream.say(request_id=4, send=send(3))
    assert stream.error() == "AFTER_FAILED_SEND"
    submitted(stream.say(request_id=5, send=send(2)))


def test_m7_a_failed_send_comes_again_before_later_ones() -> None:
    stream = Stream().open()
    first, second = (submitted(stream.say(request_id=1 + number, send=send(number))) for number in (1, 2))
    for submit in (first, second):
        stream.session.answered(submit.request_id, submit.write, store_silent())
    stream.frames()
    for request_id, number in ((4, 3), (5, 2)):
        stream.say(request_id=request_id, send=send(number))
        assert stream.error() == "AFTER_FAILED_SEND"
    assert [submitted(stream.say(request_id=5 + number, send=send(number))).request_id for number in (1, 2, 3)] == [6, 7, 8]


def test_m7_a_send_that_was_refused_for_good_holds_up_nobody() -> None:
    stream = Stream().open()
    first = submitted(stream.say(request_id=2, send=send(1)))
    stream.session.answered(first.request_id, first.write, chat_pb2.Error(code=chat_pb2.ERROR_CODE_MUTED))
    submitted(stream.say(request_id=3, send=send(2)))


def test_g7_sends_that_fail_and_do_not_come_again_end_the_session() -> None:
    """Otherwise a device could have us remember any number of them."""
    stream = Stream(Limits(requests_in_flight_max=1, sends_in_order_max=4)).open()
    stream.say(request_id=2, send=send(1))
    for number in range(2, 5):
        stream.say(request_id=1 + number, send=send(number, user_id=f"user{number}"))
    assert stream.arms() == ["error"] * 3
    assert code(stream.say(request_id=6, send=send(5, user_id="user5"))) == "OVERLOADED"


# Watermarks, typing, watching.


def test_an_ack_marks_what_was_pushed() -> None:
    stream = Stream().open(head_seq=5)
    assert stream.say(ack=session_pb2.Ack(chat_id=CHAT, seq=5)) == (), "the Hello said so already"
    stream.session.deliver(CHAT, 6, event(6), last=False)
    assert list(stream.say(ack=session_pb2.Ack(chat_id=CHAT, seq=99))) == [Marked(CHAT, 6, 0)]
    assert stream.say(ack=session_pb2.Ack(chat_id=CHAT, seq=6)) == ()
    assert stream.say(ack=session_pb2.Ack(chat_id="unknown", seq=6)) == ()


def test_a_read_mark_is_cut_to_the_head() -> None:
    stream = Stream().open(head_seq=5)
    assert list(stream.say(mark_read=session_pb2.MarkRead(chat_id=CHAT, seq=3))) == [Marked(CHAT, 0, 3)]
    assert list(stream.say(mark_read=session_pb2.MarkRead(chat_id=CHAT, seq=99))) == [Marked(CHAT, 0, 5)]
    assert stream.say(mark_read=session_pb2.MarkRead(chat_id="unknown", seq=6)) == ()
    assert stream.say(mark_read=session_pb2.MarkRead(chat_id=CHAT, seq=0)) == ()


def test_a_device_that_reads_by_pages_may_mark_what_was_not_pushed_yet() -> None:
    stream = Stream()
    stream.hello(positions=[session_pb2.ChatPosition(chat_id=CHAT, seq=2)])
    membership = Membership(CHAT, (Interval(1),), 9)
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [membership], {}, [], ""), NOW)
    assert list(stream.say(mark_read=session_pb2.MarkRead(chat_id=CHAT, seq=8))) == [Marked(CHAT, 0, 8)]


def test_a_read_mark_of_a_chat_that_was_made_a_moment_ago_counts_once_the_membership_is_read() -> None:
    stream, made = Stream().open(), group_chat_id("bob", bytes(16))
    stream.session.deliver(made, 1, event(1), last=False)
    assert stream.say(mark_read=session_pb2.MarkRead(chat_id=made, seq=2)) == ()
    assert stream.session.next_read() == ReadMembership(made)
    stream.session.membership_read(made, Membership(made, (Interval(1),), 2))
    assert stream.session.after_read(stream.now_ms) == [Marked(made, 0, 2)]
    assert stream.session.after_read(stream.now_ms) == []


def test_a_read_mark_counts_as_far_as_the_chat_is_known_and_the_rest_once_the_membership_is_read() -> None:
    stream = Stream().open(head_seq=5)
    stream.session.deliver(CHAT, 8, event(8), last=False)
    assert list(stream.say(mark_read=session_pb2.MarkRead(chat_id=CHAT, seq=8))) == [Marked(CHAT, 0, 5)]
    assert stream.session.next_read() == ReadMembership(CHAT)
    stream.session.membership_read(CHAT, Membership(CHAT, (Interval(1),), 8))
    assert stream.session.after_read(stream.now_ms) == [Marked(CHAT, 0, 8)]


def test_typing_is_shown_at_most_once_an_interval() -> None:
    stream = Stream(Limits(typing_interval_ms=1_000)).open()
    text, recording = session_pb2.TYPING_KIND_TEXT, session_pb2.TYPING_KIND_RECORDING
    assert list(stream.say(typing=session_pb2.Typing(chat_id=CHAT))) == [ShowTyping(CHAT, text)]
    stream.now_ms += 999
    assert stream.say(typing=session_pb2.Typing(chat_id=CHAT, kind=recording)) == ()
    stream.now_ms += 1
    assert list(stream.say(typing=session_pb2.Typing(chat_id=CHAT, kind=recording))) == [ShowTyping(CHAT, recording)]
    assert stream.say(typing=session_pb2.Typing(chat_id="unknown")) == ()


def test_stopping_is_shown_at_once_and_only_after_typing() -> None:
    stream = Stream(Limits(typing_interval_ms=1_000)).open()
    stopped = session_pb2.Typing(chat_id=CHAT, kind=session_pb2.TYPING_KIND_STOPPED)
    assert stream.say(typing=stopped) == ()
    stream.say(typing=session_pb2.Typing(chat_id=CHAT))
    assert list(stream.say(typing=stopped)) == [ShowTyping(CHAT, session_pb2.TYPING_KIND_STOPPED)]
    assert stream.say(typing=stopped) == (), "a flood of these would reach every member"
    assert stream.say(typing=session_pb2.Typing(chat_id=CHAT)) == (), "and so would one of pairs"


def test_an_unknown_kind_of_typing_is_text() -> None:
    frame = Frame.FromString(
        Frame(typing=session_pb2.Typing(chat_id=CHAT, kind=session_pb2.TYPING_KIND_TEXT)).SerializeToString()
    )
    frame.typing.MergeFromString(b"\x18\x63")  # kind = 99
    assert list(Stream().open().session.receive(frame, NOW_MS)) == [ShowTyping(CHAT, session_pb2.TYPING_KIND_TEXT)]


def test_only_known_chats_are_watched_and_only_so_many() -> None:
    stream = Stream(Limits(watched_chats_max=1))
    stream.hello()
    chats = [CHAT, self_chat_id("alice")]
    memberships = [Membership(chat_id, (Interval(1),), 1) for chat_id in chats]
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, memberships, {}, [], ""), NOW)
    watch = session_pb2.WatchChats(chat_ids=["unknown", chats[1], chats[1], chats[0]])
    assert list(stream.say(watch_chats=watch)) == [Watch((chats[1],))]
    assert list(stream.say(watch_chats=session_pb2.WatchChats())) == [Watch(())]


def test_users_are_looked_at_who_have_no_chat_with_this_one_and_the_chat_is_watched_if_there_is_one() -> None:
    stream = Stream(Limits(watched_chats_max=3))
    stream.hello()
    group = group_chat_id("alice", bytes(16))
    memberships = [Membership(chat_id, (Interval(1),), 1) for chat_id in (CHAT, group)]
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, memberships, {}, [], ""), NOW)
    watch = session_pb2.WatchChats(user_ids=["bob", "no user id", "alice"])
    assert list(stream.say(watch_chats=watch)) == [Watch((CHAT,), ("bob",))]
    watch = session_pb2.WatchChats(chat_ids=[group, direct_chat_id("alice", "carol")], user_ids=["bob", "carol", "dave"])
    assert list(stream.say(watch_chats=watch)) == [Watch((group, CHAT), ("bob", "carol"))]
    watch = session_pb2.WatchChats(user_ids=["carol"] * 500_000 + ["bob"])
    assert list(stream.say(watch_chats=watch)) == [Watch((), ("carol",))]


def test_a_past_chat_is_neither_typed_in_nor_watched() -> None:
    stream = Stream().open(head_seq=5)
    stream.session.deliver(CHAT, 6, event(6), last=True)
    assert stream.say(typing=session_pb2.Typing(chat_id=CHAT)) == ()
    assert list(stream.say(watch_chats=session_pb2.WatchChats(chat_ids=[CHAT]))) == [Watch(())]
    assert list(stream.say(ack=session_pb2.Ack(chat_id=CHAT, seq=6))) == [Marked(CHAT, 6, 0)], "its last event counts"


# History, heartbeats, tokens, frames of the future.


def test_a_page_of_history_answers_its_request() -> None:
    stream = Stream().open()
    request = session_pb2.FetchHistory(chat_id=CHAT, before_seq=9)
    assert list(stream.say(request_id=2, fetch_history=request)) == [FetchPage(2, request)]
    stored = chat_pb2.ChatEvent(chat_id=CHAT, seq=8).SerializeToString()
    stream.session.page_read(2, session_pb2.HistoryPage(chat_id=CHAT, more_before=True), [StoredEvent(8, stored)])
    frame = stream.frame()
    assert frame.request_id == 2
    assert frame.history_page.more_before
    assert [event.seq for event in frame.history_page.events] == [8]


def test_history_without_request_id_ends_the_session() -> None:
    assert code(Stream().open().say(fetch_history=session_pb2.FetchHistory())) == "PROTOCOL_VIOLATION"


def test_g7_pages_in_flight_are_limited() -> None:
    stream = Stream(Limits(history_requests_in_flight_max=1)).open()
    stream.say(request_id=2, fetch_history=session_pb2.FetchHistory())
    assert stream.say(request_id=3, fetch_history=session_pb2.FetchHistory()) == ()
    assert stream.error() == "TOO_MANY_IN_FLIGHT"
    stream.session.page_read(2, chat_pb2.Error(code=chat_pb2.ERROR_CODE_NOT_A_MEMBER))
    assert stream.error() == "NOT_A_MEMBER"
    assert len(stream.say(request_id=4, fetch_history=session_pb2.FetchHistory())) == 1


def test_a_heartbeat_is_answered_if_an_answer_is_wanted() -> None:
    stream = Stream().open()
    assert stream.say(heartbeat=session_pb2.Heartbeat()) == ()
    assert stream.frames() == []
    stream.say(request_id=2, heartbeat=session_pb2.Heartbeat())
    frame = stream.frame()
    assert (frame.request_id, frame.WhichOneof("body")) == (2, "heartbeat")


def test_g4_a_heartbeat_names_heads_that_are_not_acknowledged() -> None:
    stream = Stream().open(head_seq=5)
    stream.session.deliver(CHAT, 6, event(6), last=False)
    stream.frames()
    stream.say(request_id=2, heartbeat=session_pb2.Heartbeat())
    assert list(stream.frame().heartbeat.heads) == [session_pb2.ChatHead(chat_id=CHAT, seq=6)]
    stream.say(ack=session_pb2.Ack(chat_id=CHAT, seq=6))
    stream.say(request_id=3, heartbeat=session_pb2.Heartbeat())
    assert not stream.frame().heartbeat.heads


def test_a_newer_token_prolongs_the_session() -> None:
    stream = Stream().open(expires_at_ms=NOW_MS + 5_000)
    assert stream.session.deadline_ms == NOW_MS + 5_000
    assert list(stream.say(request_id=2, refresh_token=session_pb2.RefreshToken(token="t"))) == [VerifyToken(2, "t")]
    stream.session.token_verified(2, "alice", NOW_MS + 9_000, NOW)
    frame = stream.frame()
    assert (frame.request_id, frame.token_refreshed.token_expires_at_ms) == (2, NOW_MS + 9_000)
    assert stream.session.deadline_ms == NOW_MS + 9_000
    assert stream.pass_time(5_000) == ()


def test_g7_one_token_is_looked_at_at_a_time() -> None:
    stream = Stream().open()
    stream.say(request_id=2, refresh_token=session_pb2.RefreshToken(token="t"))
    assert stream.say(request_id=3, refresh_token=session_pb2.RefreshToken(token="t")) == ()
    assert stream.error() == "TOO_MANY_IN_FLIGHT"
    stream.session.token_refused(2, TOKEN_INVALID)
    assert stream.error() == "TOKEN_INVALID"
    assert list(stream.say(request_id=4, refresh_token=session_pb2.RefreshToken(token="t"))) == [VerifyToken(4, "t")]


def test_a_token_of_another_user_or_of_nobody_is_refused() -> None:
    stream = Stream().open()
    stream.say(request_id=2, refresh_token=session_pb2.RefreshToken(token="t"))
    stream.session.token_verified(2, "mallory", NOW_MS + 9_000, NOW)
    assert stream.error() == "TOKEN_INVALID"
    stream.say(request_id=3, refresh_token=session_pb2.RefreshToken(token="t"))
    stream.session.token_refused(3, TOKEN_INVALID)
    assert stream.error() == "TOKEN_INVALID"
    assert stream.session.user_id == "alice"


def test_no_answer_where_none_is_wanted() -> None:
    stream = Stream().open()
    stream.say(refresh_token=session_pb2.RefreshToken(token="t"))
    stream.session.token_verified(0, "alice", NOW_MS + 9_000, NOW)
    stream.say()
    assert stream.frames() == []


def test_a_frame_of_the_future_is_refused_or_passed_over() -> None:
    stream = Stream().open()
    unknown = Frame.FromString(b"\x08\x02\xa2\x06\x00")  # request_id 2, field 100
    assert stream.session.receive(unknown, NOW_MS) == ()
    assert stream.error() == "INVALID_ARGUMENT"


# Output.


def test_nothing_goes_out_before_the_welcome() -> None:
    stream = Stream()
    stream.hello()
    stream.session.show_presence(session_pb2.Presence(user_id="bob", online=True))
    assert stream.frames() == []
    stream.session.admitted(Admission("alice", TOKEN_EXPIRES_AT_MS, [], {}, [], ""), NOW)
    assert stream.arms() == ["welcome", "sync_complete", "presence"]


def test_control_traffic_is_coalesced_to_the_latest() -> None:
    stream = Stream().open()
    for seq in (1, 2, 3):
        stream.session.show_receipt(chat_pb2.Receipt(chat_id=CHAT, user_id="bob", delivered_seq=seq))
        types = session_pb2.Typing(chat_id=CHAT, user_id="bob", kind=session_pb2.TYPING_KIND_TEXT)
        stream.session.show_typing(CHAT, "bob", typing_chunk(types))
        stream.session.show_presence(session_pb2.Presence(user_id="bob", online=seq == 3))
    receipt, typing, presence = stream.frames()
    assert receipt.receipt.delivered_seq == 3
    assert typing.typing.user_id == "bob"
    assert presence.presence.online


def test_control_traffic_comes_behind_events() -> None:
    stream = Stream().open(head_seq=5)
    stream.session.show_presence(session_pb2.Presence(user_id="bob"))
    stream.session.deliver(CHAT, 6, event(6), last=False)
    assert stream.arms() == ["event", "presence"]


def test_g5_control_traffic_that_is_too_much_is_dropped() -> None:
    stream = Stream(Limits(control_frames_max=2)).open()
    for user_id in ("bob", "carol", "dave", "bob"):
        stream.session.show_presence(session_pb2.Presence(user_id=user_id, online=user_id == "bob"))
    assert [frame.presence.user_id for frame in stream.frames()] == ["bob", "carol"]


def test_g7_a_message_keeps_within_its_limits() -> None:
    stream = Stream(Limits(gathered_bytes_max=1_000, frames_per_batch_max=4, control_frames_max=50)).open(head_seq=5)
    for seq in range(6, 16):
        stream.session.deliver(CHAT, seq, event(seq, size=seq * 20), last=False)
    for number in range(20):
        stream.session.show_presence(session_pb2.Presence(user_id="x" * 40 + str(number)))
    seqs, user_ids = [], []
    while message := stream.session.take_output(NOW_MS):
        frames = session_pb2.ConnectResponse.FromString(message).frames
        assert len(message) <= 1_000
        assert len(frames) <= 4
        seqs += [frame.event.seq for frame in frames if frame.HasField("event")]
        user_ids += [frame.presence.user_id for frame in frames if frame.HasField("presence")]
    assert seqs == list(range(6, 16))
    assert user_ids == ["x" * 40 + str(number) for number in range(20)]


def test_a_frame_that_is_larger_than_a_message_should_be_goes_alone() -> None:
    stream = Stream(Limits(gathered_bytes_max=1_000)).open(head_seq=5)
    for seq, size in ((6, 10), (7, 2_000), (8, 10)):
        stream.session.deliver(CHAT, seq, event(seq, size), last=False)
    sizes = []
    while message := stream.session.take_output(NOW_MS):
        sizes.append(len(session_pb2.ConnectResponse.FromString(message).frames))
    assert sizes == [1, 1, 1]


# Time.


def test_without_a_hello_the_session_ends() -> None:
    stream = Stream()
    assert stream.session.deadline_ms == NOW_MS + 10_000
    assert code(stream.pass_time(10_000)) == "HELLO_TIMEOUT"


def test_a_store_that_does_not_admit_ends_the_session() -> None:
    """The device is not heard while it waits, so it cannot be to blame; and it comes again after a while."""
    stream = Stream()
    stream.now_ms += 9_000
    stream.hello()
    assert stream.session.deadline_ms == NOW_MS + 39_000
    assert code(stream.pass_time(30_000)) == "UNAVAILABLE"


def test_a_quiet_stream_has_heartbeats() -> None:
    stream = Stream().open(head_seq=5)
    assert stream.session.deadline_ms == NOW_MS + 30_000
    stream.say(heartbeat=session_pb2.Heartbeat())
    assert stream.pass_time(29_999) == ()
    assert stream.frames() == []
    stream.pass_time(1)
    assert stream.arms() == ["heartbeat"]
    assert stream.session.deadline_ms == NOW_MS + 60_000
    stream.now_ms += 10_000
    stream.session.deliver(CHAT, 6, event(6), last=False)
    stream.frames()
    stream.pass_time(20_000)
    assert stream.frames() == [], "something was said meanwhile"
    assert stream.session.deadline_ms == NOW_MS + 70_000


def test_a_device_that_is_not_listened_to_is_not_given_up() -> None:
    stream = Stream().open()
    stream.now_ms += 74_999
    stream.session.excuse_silence(stream.now_ms)
    assert stream.pass_time(74_999) == ()
    assert code(stream.pass_time(1)) == "HEARTBEAT_MISSED"


def test_a_device_that_is_not_heard_is_given_up() -> None:
    stream = Stream().open()
    while stream.now_ms < NOW_MS + 74_999:
        assert stream.pass_time(min(stream.session.deadline_ms, NOW_MS + 74_999) - stream.now_ms) == ()
    assert stream.session.deadline_ms == NOW_MS + 75_000
    assert code(stream.pass_time(1)) == "HEARTBEAT_MISSED"


def test_the_session_ends_with_its_token() -> None:
    stream = Stream().open(expires_at_ms=NOW_MS + 5_000)
    assert stream.pass_time(4_999) == ()
    [end] = stream.pass_time(1)
    assert isinstance(end, End)
    assert end.ended.status()[:2] == ("UNAUTHENTICATED", "TOKEN_EXPIRED")


def test_a_token_that_is_forgiven_its_age_at_the_door_is_forgiven_it_afterwards() -> None:
    stream = Stream(timings=Timings(token_leeway_ms=30_000)).open(expires_at_ms=NOW_MS - 10_000)
    assert stream.session.deadline_ms == NOW_MS + 20_000
    assert stream.pass_time(19_999) == ()
    [end] = stream.pass_time(1)
    assert isinstance(end, End)
    assert end.ended.status()[:2] == ("UNAUTHENTICATED", "TOKEN_EXPIRED")


def test_a_session_has_a_greatest_age() -> None:
    stream = Stream(timings=Timings(max_age_ms=25_000, drain_grace_ms=3_000)).open()
    assert stream.session.deadline_ms == NOW_MS + 25_000
    assert stream.pass_time(25_000) == ()
    assert stream.arms() == ["drain"]
    assert stream.session.deadline_ms == NOW_MS + 28_000
    submitted(stream.say(request_id=2, send=send()))
    assert code(stream.pass_time(3_000)) == "MAX_AGE"


def test_a_drained_session_works_until_it_ends() -> None:
    stream = Stream().open(head_seq=5)
    stream.session.drain(700, NOW_MS)
    assert stream.frame().drain.reconnect_after_ms == 700
    assert stream.session.deadline_ms == NOW_MS + 20_000
    stream.session.deliver(CHAT, 6, event(6), last=False)
    assert stream.arms() == ["event"]
    assert code(stream.pass_time(20_000)) == "SHUTTING_DOWN"


def test_only_an_open_session_is_drained() -> None:
    stream = Stream()
    stream.session.drain(700, NOW_MS)
    assert stream.frames() == []


# The end.


def test_the_last_frame_is_a_disconnect() -> None:
    stream = Stream().open(head_seq=5)
    stream.session.deliver(CHAT, 6, event(6), last=False)
    stream.session.show_presence(session_pb2.Presence(user_id="bob"))
    stream.session.end(Ended(session_pb2.DISCONNECT_CODE_REPLACED))
    assert stream.session.end(Ended(session_pb2.DISCONNECT_CODE_INTERNAL)) == ()
    assert stream.arms() == ["event", "disconnect"]


def test_g7_the_last_message_keeps_within_its_limits() -> None:
    stream = Stream(Limits(gathered_bytes_max=1_000)).open(head_seq=5)
    for seq in range(6, 16):
        stream.session.deliver(CHAT, seq, event(seq, size=200), last=False)
    stream.session.end(Ended(session_pb2.DISCONNECT_CODE_REPLACED))
    message = stream.session.take_output(NOW_MS)
    assert len(message) <= 1_000
    frames = session_pb2.ConnectResponse.FromString(message).frames
    assert [frame.event.seq for frame in frames[:-1]] == [6, 7, 8], "without a hole"
    assert frames[-1].HasField("disconnect")
    assert stream.session.take_output(NOW_MS) == b""


def test_after_the_end_nothing_does_anything() -> None:
    stream = Stream().open(head_seq=5)
    submit = submitted(stream.say(request_id=2, send=send()))
    stream.say(request_id=3, fetch_history=session_pb2.FetchHistory())
    stream.say(request_id=4, refresh_token=session_pb2.RefreshToken())
    session = stream.session
    session.end(Ended(session_pb2.DISCONNECT_CODE_REPLACED))
    stream.frames()
    session.answered(submit.request_id, submit.write, chat_pb2.SendResult(seq=6))
    session.page_read(3, session_pb2.HistoryPage())
    session.token_verified(4, "alice", NOW_MS + 1, NOW)
    session.deliver(CHAT, 6, event(6), last=False)
    session.show_presence(session_pb2.Presence(user_id="bob"))
    session.log_read([])
    session.membership_read(CHAT, None)
    session.drain(1, NOW_MS)
    assert session.next_read() is None
    assert stream.say(request_id=5, send=send()) == ()
    assert stream.pass_time(10**9) == ()
    assert stream.frames() == []


def test_a_closed_stream_holds_nothing() -> None:
    stream = Stream().open(head_seq=5)
    stream.session.deliver(CHAT, 6, event(6), last=False)
    stream.session.show_presence(session_pb2.Presence(user_id="bob"))
    stream.session.closed()
    assert stream.session.backlog_bytes() == 0
    assert stream.session.state is State.ENDED


def test_what_waits_is_counted_as_it_comes_and_goes() -> None:
    stream = Stream(Limits(gathered_bytes_max=500, frames_per_batch_max=7)).open(head_seq=5)
    session, rng, seq = stream.session, random.Random(1), 5

    def check() -> None:
        assert session.backlog_bytes() == sum(map(len, session.events)) + sum(map(len, session.control.values()))

    for _ in range(2_000):
        match rng.randrange(6):
            case 0 | 1:
                seq += 1
                session.deliver(CHAT, seq, event_chunk(bytes(rng.randrange(300))), last=False)
            case 2:
                receipt = chat_pb2.Receipt(chat_id=CHAT, user_id=f"user{rng.randrange(9)}", read_seq=rng.randrange(1 << 40))
                session.show_receipt(receipt)
            case 3 | 4:
                session.take_output(stream.now_ms)
            case 5:
                stream.say(ack=session_pb2.Ack(chat_id=CHAT, seq=seq))
        if rng.random() < 0.7:  # and not each time, so that it catches up with several
            check()
    session.end(Ended(session_pb2.DISCONNECT_CODE_REPLACED))
    check()
