"""Whatever a peer sends, in whatever order: the session answers with typed results or ends with a code, and never raises."""

from google.protobuf.message import DecodeError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chatgrpc.core.clock import Now
from chatgrpc.core.disconnect import ENDINGS
from chatgrpc.core.effects import Admission, Admit, End, FetchPage, Marked, ShowTyping, Submit, VerifyToken, Watch
from chatgrpc.core.entries import Membership
from chatgrpc.core.ids import CLIENT_MESSAGE_ID_BYTES, direct_chat_id, is_chat_id, is_device_id, is_user_id, self_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import store_silent
from chatgrpc.core.rules import MESSAGES
from chatgrpc.core.session import Session, State, Timings
from chatgrpc.core.visibility import Interval
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2

NOW_MS = 1_000_000
HEAD_SEQ = 9
LIMITS = Limits(
    requests_in_flight_max=3,
    sends_in_flight_bytes_max=20,
    history_requests_in_flight_max=2,
    frames_per_batch_max=5,
    gathered_bytes_max=4_000,
    chats_per_user_max=4,
    watched_chats_max=2,
    sends_in_order_max=6,
)
CHATS = [direct_chat_id("alice", "bob"), self_chat_id("alice")]

texts = st.sampled_from(["", "phone", "alice", "bob", "s.", *CHATS, "d." + "A" * 22, "\0"]) | st.text(max_size=70)
seqs = st.integers(0, 12) | st.integers(0, 2**64 - 1)
ids = st.integers(0, 3).map(lambda number: number.to_bytes(16, "big")) | st.binary(max_size=20)
contents = st.builds(
    content_pb2.Content,
    reply_to_seq=seqs,
    text=st.none() | st.builds(content_pb2.TextContent, text=texts),
    edit=st.none() | st.builds(content_pb2.EditContent, target_seq=seqs, text=texts),
    delete=st.none() | st.builds(content_pb2.DeleteContent, target_seq=seqs),
    members_added=st.none() | st.builds(content_pb2.MembersAddedContent, user_ids=st.lists(texts, max_size=2)),
    erased=st.none() | st.builds(content_pb2.ErasedContent),
)
keys = st.none() | st.builds(chat_pb2.WriteKey, client_message_id=ids, seen_seq=seqs)
good_sends = st.builds(
    session_pb2.SendMessage,
    user_id=st.sampled_from(["bob", "carol", "alice"]),
    key=st.builds(chat_pb2.WriteKey, client_message_id=st.integers(0, 9).map(lambda number: number.to_bytes(16, "big"))),
    content=st.just(content_pb2.Content(text=content_pb2.TextContent(text="hi"))),
)
positions = st.builds(session_pb2.ChatPosition, chat_id=texts, seq=seqs, read_seq=seqs)
bodies = st.one_of(
    st.builds(
        session_pb2.Hello,
        device_id=texts | st.just("phone"),
        device_name=texts,
        token=texts,
        positions=st.lists(positions, max_size=10),
        start_at=st.integers(0, 5),
        features=st.lists(texts, max_size=2),
        sync_token=texts,
    ).map(lambda body: {"hello": body}),
    good_sends.map(lambda body: {"send": body}),
    st.builds(session_pb2.SendMessage, chat_id=texts, key=keys, content=contents).map(lambda body: {"send": body}),
    st.builds(session_pb2.SendMessage, user_id=texts, key=keys, content=contents).map(lambda body: {"send": body}),
    st.builds(session_pb2.Ack, chat_id=texts, seq=seqs).map(lambda body: {"ack": body}),
    st.builds(session_pb2.MarkRead, chat_id=texts, seq=seqs).map(lambda body: {"mark_read": body}),
    st.builds(session_pb2.Typing, chat_id=texts, user_id=texts, kind=st.integers(0, 9)).map(lambda body: {"typing": body}),
    st.builds(session_pb2.Heartbeat).map(lambda body: {"heartbeat": body}),
    st.builds(session_pb2.FetchHistory, chat_id=texts, before_seq=seqs, limit=st.integers(0, 2**32 - 1)).map(
        lambda body: {"fetch_history": body}
    ),
    st.builds(session_pb2.RefreshToken, token=texts).map(lambda body: {"refresh_token": body}),
    st.builds(session_pb2.WatchChats, chat_ids=st.lists(texts, max_size=5), user_ids=st.lists(texts, max_size=5)).map(
        lambda body: {"watch_chats": body}
    ),
    st.just({}),
)
unknown_fields = st.sampled_from([b""] * 9 + [b"\xa2\x06\x03abc", b"\xc0\x3e\x07", b"\x1a\x00", b"\x52\x00"])
"""Fields 100 and 1000, and empty bodies once more: the last one counts."""


class Peers(RuleBasedStateMachine):
    """A peer without manners before a shell that answers in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = NOW_MS
        self.open_stream()

    @precondition(lambda self: self.ended)
    @rule()
    def open_stream(self) -> None:
        self.session = Session("session", "token", LIMITS, Timings(), self.now_ms)
        self.last_request_id = 0
        self.waiting: list[Submit | FetchPage | VerifyToken | Admit] = []
        self.wants_answer: set[int] = set()
        self.ended = False

    # The peer.

    @precondition(lambda self: self.session.state is State.AWAITING_HELLO)
    @rule(positions=st.lists(positions, max_size=3), admitted=st.booleans())
    def say_hello(self, positions: list[session_pb2.ChatPosition], admitted: bool) -> None:
        self.last_request_id += 1
        hello = session_pb2.Hello(device_id="phone", positions=positions)
        self.take(session_pb2.ClientFrame(request_id=self.last_request_id, hello=hello))
        if admitted:
            self.answer(0, True)

    @precondition(lambda self: self.session.state is not State.AWAITING_HELLO)
    @rule(
        body=bodies,
        rise=st.sampled_from([1] * 20 + [0, -1]),
        wants_answer=st.sampled_from([True] * 12 + [False]),
        unknown=unknown_fields,
    )
    def say(self, body: dict[str, object], rise: int, wants_answer: bool, unknown: bytes) -> None:
        if self.session.state is State.OPEN and "hello" in body and rise == 1:
            return  # one in ten is enough to see how it ends
        frame = session_pb2.ClientFrame(**body)  # type: ignore[arg-type]
        if wants_answer:
            self.last_request_id = max(0, self.last_request_id + rise)
            frame.request_id = self.last_request_id
        self.take(session_pb2.ClientFrame.FromString(frame.SerializeToString() + unknown))

    @rule(body=bodies, request_id=seqs, really=st.sampled_from([True, False, False, False]))
    def say_anything(self, body: dict[str, object], request_id: int, really: bool) -> None:
        if self.session.state is not State.OPEN and really:
            self.take(session_pb2.ClientFrame(request_id=request_id, **body))  # type: ignore[arg-type]

    @rule(noise=st.binary(max_size=60), really=st.sampled_from([True, False, False, False]))
    def say_noise(self, noise: bytes, really: bool) -> None:
        if not really:
            return
        try:
            request = session_pb2.ConnectRequest.FromString(b"\x0a" + bytes([len(noise)]) + noise)
        except DecodeError:
            return
        for frame in request.frames:
            self.take(frame)

    def take(self, frame: session_pb2.ClientFrame) -> None:
        was_open = self.session.state is State.OPEN
        arm = frame.WhichOneof("body")
        effects = self.session.receive(frame, self.now_ms)
        is_answered = arm in {"send", "fetch_history", "refresh_token", "heartbeat", None}
        if was_open and self.session.state is State.OPEN and frame.request_id and is_answered:
            self.wants_answer.add(frame.request_id)
        for effect in effects:
            self.take_effect(effect)

    def take_effect(self, effect: object) -> None:
        match effect:
            case Admit():
                assert is_device_id(effect.device_id)
                assert effect.token
                assert len(effect.device_name.encode()) <= LIMITS.device_name_bytes_max
                self.waiting.append(effect)
            case Submit(request_id, write):
                assert request_id > 0
                assert len(write.client_message_id) == CLIENT_MESSAGE_ID_BYTES
                assert is_chat_id(write.chat_id)
                assert (write.sender_user_id, write.sender_device_id) == ("alice", self.session.device_id)
                assert write.content.WhichOneof("body") in MESSAGES
                assert not write.peer_user_id or direct_chat_id("alice", write.peer_user_id) == write.chat_id
                self.waiting.append(effect)
            case FetchPage() | VerifyToken():
                self.waiting.append(effect)
            case Marked(chat_id, delivered_seq, read_seq):
                assert chat_id in CHATS
                assert 0 < max(delivered_seq, read_seq) <= HEAD_SEQ
            case ShowTyping(chat_id, kind):
                assert chat_id in CHATS
                assert kind in session_pb2.TypingKind.values()
                assert kind != session_pb2.TYPING_KIND_UNSPECIFIED
            case Watch(chat_ids, peer_user_ids):
                assert max(len(chat_ids), len(peer_user_ids)) <= LIMITS.watched_chats_max
                assert all(is_user_id(user_id) for user_id in peer_user_ids)
                assert set(chat_ids) <= set(CHATS)
            case End(ended):
                assert ended.code in ENDINGS
                assert not self.ended, "ended twice"
                self.ended = True
            case _:
                raise AssertionError(effect)

    # The shell.

    @precondition(lambda self: self.waiting)
    @rule(index=st.integers(0, 9), works=st.sampled_from([True, True, False]))
    def answer(self, index: int, works: bool) -> None:
        effect = self.waiting.pop(index % len(self.waiting))
        match effect:
            case Admit():
                memberships = [Membership(chat_id, (Interval(1),), HEAD_SEQ) for chat_id in CHATS]
                admission = Admission("alice", NOW_MS + 10**9, memberships, {}, [], "sync")
                was_opening = self.session.state is State.OPENING
                effects = self.session.admitted(admission, Now(self.now_ms, self.now_ms))
                for other in effects:
                    self.take_effect(other)
                if was_opening:
                    self.last_request_id = self.session._last_request_id
            case Submit(request_id, write) if works:
                self.session.answered(request_id, write, chat_pb2.SendResult(chat_id=write.chat_id, seq=10))
            case Submit(request_id, write):
                self.session.answered(request_id, write, store_silent())
            case FetchPage(request_id):
                self.session.page_read(request_id, session_pb2.HistoryPage() if works else store_silent(), [])
            case VerifyToken(request_id) if works:
                self.session.token_verified(request_id, "alice", NOW_MS + 10**9, Now(self.now_ms, self.now_ms))
            case VerifyToken(request_id):
                self.session.token_refused(request_id, store_silent())

    @rule()
    def read_output(self) -> None:
        message = self.session.take_output(self.now_ms)
        assert len(message) <= LIMITS.gathered_bytes_max
        frames = session_pb2.ConnectResponse.FromString(message).frames
        assert len(frames) <= LIMITS.frames_per_batch_max
        for frame in frames:
            assert frame.WhichOneof("body") is not None
            if frame.WhichOneof("body") == "disconnect":
                assert self.ended
            if frame.WhichOneof("body") == "error":
                assert frame.error.code != chat_pb2.ERROR_CODE_UNSPECIFIED
                assert frame.error.message
                assert (frame.error.retry_after_ms > 0) == (frame.error.code >= chat_pb2.ERROR_CODE_UNAVAILABLE)
            self.wants_answer.discard(frame.request_id)

    @rule(passed_ms=st.integers(0, 5_000))
    def pass_time(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        if self.session.deadline_ms <= self.now_ms:
            for effect in self.session.on_deadline(self.now_ms):
                self.take_effect(effect)
        assert self.session.deadline_ms > self.now_ms or self.session.state is State.ENDED

    @invariant()
    def what_it_holds_is_bounded(self) -> None:
        session = self.session
        assert self.ended == (session.state is State.ENDED)
        assert sum(isinstance(effect, Submit) for effect in self.waiting) <= LIMITS.requests_in_flight_max
        sizes = [effect.write.size_bytes for effect in self.waiting if isinstance(effect, Submit)]
        assert len(sizes) < 2 or sum(sizes) <= LIMITS.sends_in_flight_bytes_max
        assert session._sends_in_flight_bytes == sum(sizes)
        assert set(session._late_positions) <= set(CHATS)
        assert sum(isinstance(effect, VerifyToken) for effect in self.waiting) <= LIMITS.refreshes_in_flight_max
        assert sum(isinstance(effect, FetchPage) for effect in self.waiting) <= LIMITS.history_requests_in_flight_max
        assert len(session._early_frames) <= LIMITS.frames_per_batch_max
        assert session._send_order.count <= LIMITS.sends_in_order_max
        assert len(session._typing_at_ms) <= len(CHATS)

    def teardown(self) -> None:
        """In the end every request has its answer."""
        while self.waiting:
            self.answer(0, True)
        while self.session.state is not State.OPENING and (self.session.events or self.session.control):
            self.read_output()
        if self.session.state is State.OPEN:
            assert not self.wants_answer


Peers.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPeers = Peers.TestCase
