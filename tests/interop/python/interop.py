"""A client on grpcio's blocking API: runs the cases of `tests/interop/test_interop.py`, and prints what it saw of each.

    python interop.py ADDRESS ACCOUNTS [CA]

ACCOUNTS is a file with a user and a token on each line; with CA, certificates to trust, it speaks TLS. The other folders have
the same program on other libraries.
"""

import itertools
import json
import os
import queue
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from chatgrpc.v1 import content_pb2, session_pb2
from chatgrpc.v1.message_service_pb2 import ListMessagesRequest, SendMessageRequest
from chatgrpc.v1.message_service_pb2_grpc import MessageServiceStub
from chatgrpc.v1.node_service_pb2 import ListNodesRequest
from chatgrpc.v1.node_service_pb2_grpc import NodeServiceStub

TEXT = "Grüße, 世界 👋"
WAIT_S = 30.0

Facts = dict[str, Any]
Metadata = tuple[tuple[str, str | bytes], ...]


class Account(NamedTuple):
    """A user, and the token that proves it."""

    user: str
    token: str

    @property
    def metadata(self) -> Metadata:
        """What goes with a call that the user makes."""
        return (("authorization", f"Bearer {self.token}"),)


class Place:
    """The server, one connection to it, and users who have not been there yet."""

    def __init__(self, address: str, accounts: Iterator[Account], credentials: grpc.ChannelCredentials | None) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        if credentials is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            self.channel = grpc.secure_channel(address, credentials, options)
        self.messages: Any = MessageServiceStub(self.channel)
        self._accounts = accounts

    def account(self) -> Account:
        """A user of the case's own."""
        return next(self._accounts)

    def until_streams(self, number: int) -> int:
        """Waits until the server has so many streams; returns how many it says."""
        give_up_at = time.monotonic() + WAIT_S
        while True:
            [node] = NodeServiceStub(self.channel).ListNodes(ListNodesRequest(), timeout=WAIT_S).nodes
            if node.streams == number or time.monotonic() > give_up_at:
                return int(node.streams)
            time.sleep(0.02)


class Stream:
    """A call of SessionService.Connect."""

    def __init__(
        self,
        place: Place,
        metadata: Metadata = (),
        timeout_s: float = WAIT_S,
        compression: grpc.Compression | None = None,
    ) -> None:
        connect = place.channel.stream_stream(
            "/chatgrpc.v1.SessionService/Connect",
            request_serializer=session_pb2.ConnectRequest.SerializeToString,
            response_deserializer=session_pb2.ConnectResponse.FromString,
        )
        self._batches: queue.SimpleQueue[session_pb2.ConnectRequest | None] = queue.SimpleQueue()
        self._request_ids = itertools.count(1)
        self._frames: list[session_pb2.ServerFrame] = []
        self.seqs: dict[str, int] = {}
        """The last event that came, by chat."""
        self.call = connect(iter(self._batches.get, None), timeout=timeout_s, metadata=metadata, compression=compression)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.half_close()
        self.call.cancel()

    def send(self, *frames: session_pb2.ClientFrame) -> None:
        """Sends a batch."""
        self._batches.put(session_pb2.ConnectRequest(frames=frames))

    def half_close(self) -> None:
        """Says that nothing more is sent."""
        self._batches.put(None)

    def hello(self, device_id: str = "interop", token: str = "") -> session_pb2.ClientFrame:
        """Opens the session."""
        hello = session_pb2.Hello(device_id=device_id, token=token)
        return session_pb2.ClientFrame(request_id=next(self._request_ids), hello=hello)

    def message(self, to: Account, text: str) -> session_pb2.ClientFrame:
        """A text to a user."""
        send = session_pb2.SendMessage(user_id=to.user, content=content_of(text))
        send.key.client_message_id = os.urandom(16)
        send.key.seen_seq = max(self.seqs.values(), default=0)  # there is one chat in each case
        return session_pb2.ClientFrame(request_id=next(self._request_ids), send=send)

    def read(self) -> session_pb2.ServerFrame:
        """The next frame; events are acknowledged.

        Raises:
            grpc.RpcError: the stream has ended, not OK.
            StopIteration: it has ended.
        """
        while not self._frames:
            self._frames = list(next(self.call).frames)
            events = [frame.event for frame in self._frames if frame.WhichOneof("body") == "event"]
            if events:
                self.seqs |= {event.chat_id: event.seq for event in events}
                acks = (session_pb2.Ack(chat_id=chat_id, seq=seq) for chat_id, seq in self.seqs.items())
                self.send(*(session_pb2.ClientFrame(ack=ack) for ack in acks))
        return self._frames.pop(0)

    def until(self, arm: str) -> session_pb2.ServerFrame:
        """The next frame of this kind; what comes before it is dropped."""
        while True:
            frame = self.read()
            if frame.WhichOneof("body") == arm:
                return frame
            if frame.WhichOneof("body") in {"error", "disconnect"}:
                raise AssertionError(f"{arm} was to come, not: {frame}")

    def text(self) -> str:
        """The text of the next message."""
        while True:
            event = self.until("event").event
            if event.content.HasField("text"):
                return str(event.content.text.text)

    def open(self, device_id: str = "interop") -> session_pb2.Welcome:
        """Says Hello, and waits until the stream is in step."""
        self.send(self.hello(device_id))
        welcome = self.until("welcome").welcome
        self.until("sync_complete")
        return welcome

    def end(self) -> tuple[list[session_pb2.ServerFrame], Facts]:
        """Reads all frames that still come; returns them, and how the call ended."""
        frames = []
        try:
            while True:
                frames.append(self.read())
        except StopIteration:
            return frames, {"status": 0}
        except grpc.RpcError as error:
            return frames, ending_of(error)


def content_of(text: str) -> content_pb2.Content:
    return content_pb2.Content(text=content_pb2.TextContent(text=text))


def ending_of(error: Any) -> Facts:
    """The status of a call, and what explains it."""
    facts: Facts = {"status": error.code().value[0]}
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            facts |= {"error_reason": info.reason, "domain": info.domain}
    return facts


def failed(call: Callable[[], object]) -> Facts:
    """How a call fails, which must."""
    try:
        call()
    except grpc.RpcError as error:
        return ending_of(error)
    raise AssertionError("the call did not fail")


# The cases.


def conversation(place: Place) -> Facts:
    """Says hello, sends a message, sees it sent and as an event."""
    account, other = place.account(), place.account()
    with Stream(place, account.metadata) as stream:
        welcome = stream.open()
        stream.send(stream.message(other, TEXT))
        facts: Facts = {"is_mine": welcome.user_id == account.user}
        while not facts.keys() >= {"sent", "text"}:
            frame = stream.read()
            if frame.WhichOneof("body") == "sent":
                facts |= {"sent": frame.sent.seq, "answers": frame.request_id}
            elif frame.event.content.HasField("text"):
                facts |= {"event": frame.event.seq, "text": frame.event.content.text.text}
        return facts


def ping_pong(place: Place) -> Facts:
    """Two devices on one connection write in turns, each when it has read what the other wrote."""
    one, two = place.account(), place.account()
    with Stream(place, one.metadata) as first, Stream(place, two.metadata) as second:
        first.open()
        second.open()
        texts = []
        for number in range(50):
            first.send(first.message(two, f"ping {number}"))
            texts += [first.text(), second.text()]
            second.send(second.message(one, f"pong {number}"))
            texts += [first.text(), second.text()]
        return {"texts": texts}


def half_close(place: Place) -> Facts:
    """All that is to be said is said at once, and the call's half closed."""
    account, other = place.account(), place.account()
    stream = Stream(place, account.metadata)
    stream.send(stream.hello(), stream.message(other, TEXT))
    stream.half_close()
    frames, ending = stream.end()
    answers = [frame.WhichOneof("body") for frame in frames if frame.request_id]
    return {"answers": answers, "disconnect": frames[-1].disconnect.code} | ending


def empty_stream(place: Place) -> Facts:
    """A call's half is closed before anything was sent."""
    stream = Stream(place, place.account().metadata)
    stream.half_close()
    frames, ending = stream.end()
    return {"disconnects": [frame.disconnect.code for frame in frames]} | ending


def cancellation(place: Place) -> Facts:
    """A call is given up after the Welcome; the server forgets the stream, and the device comes again."""
    account = place.account()
    streams = [place.until_streams(0)]
    stream = Stream(place, account.metadata)
    stream.open()
    streams.append(place.until_streams(1))
    stream.call.cancel()
    _, ending = stream.end()
    streams.append(place.until_streams(0))
    with Stream(place, account.metadata) as again:
        again.open()
        again.send(again.message(account, TEXT))
        return {"streams": streams, "text": again.text()} | ending


def deadline(place: Place) -> Facts:
    """A call with a deadline lasts as long."""
    began_s = time.monotonic()
    stream = Stream(place, place.account().metadata, timeout_s=1)
    stream.open()
    _, ending = stream.end()
    took_s = time.monotonic() - began_s
    place.until_streams(0)
    return {"took_s": took_s} | ending


def _refused(place: Place, metadata: Metadata) -> Facts:
    stream = Stream(place, metadata)
    stream.send(stream.hello())
    frames, ending = stream.end()
    [frame] = frames
    return {"disconnect": frame.disconnect.code, "reason": frame.disconnect.reason} | ending


def stream_without_token(place: Place) -> Facts:
    """A stream of nobody."""
    return _refused(place, ())


def stream_with_bad_token(place: Place) -> Facts:
    """A stream of somebody who forged a token."""
    return _refused(place, forged(place))


def forged(place: Place) -> Metadata:
    """A token of somebody else's signature."""
    one, other = place.account(), place.account()
    token = ".".join([*one.token.split(".")[:2], other.token.split(".")[2]])
    return Account(one.user, token).metadata


def call_without_token(place: Place) -> Facts:
    """A unary call of nobody."""
    return failed(lambda: place.messages.ListMessages(ListMessagesRequest(chat_id="?"), timeout=WAIT_S))


def call_with_bad_token(place: Place) -> Facts:
    """A unary call of somebody who forged a token."""
    metadata = forged(place)
    return failed(lambda: place.messages.ListMessages(ListMessagesRequest(), timeout=WAIT_S, metadata=metadata))


def _call(place: Place, path: str) -> Facts:
    method: Any = place.channel.unary_unary(path)
    return failed(lambda: method(b"", timeout=WAIT_S, metadata=place.account().metadata))


def unknown_method(place: Place) -> Facts:
    """A method that its service does not have."""
    return _call(place, "/chatgrpc.v1.MessageService/Unsend")


def unknown_service(place: Place) -> Facts:
    """A service that nobody has."""
    return _call(place, "/test.NoService/Do")


def _batch_of(stream: Stream, to: Account, size_bytes: int) -> list[session_pb2.ClientFrame]:
    """Messages that together are a batch of exactly this size."""
    frames = [stream.message(to, "x" * 60_000) for _ in range((size_bytes - 20_000) // 60_100)]
    last = stream.message(to, "x" * 20_000)
    short = size_bytes - session_pb2.ConnectRequest(frames=[*frames, last]).ByteSize()
    last.send.content.text.text += "x" * short
    frames.append(last)
    assert session_pb2.ConnectRequest(frames=frames).ByteSize() == size_bytes
    return frames


def largest_batch(place: Place) -> Facts:
    """A batch as large as one may be is taken; what it brought is read again by a unary call, whose reply is large."""
    account, other = place.account(), place.account()
    with Stream(place, account.metadata) as stream:
        batch_bytes = stream.open().limits.batch_bytes_max
        frames = _batch_of(stream, other, batch_bytes)
        stream.send(*frames)
        sent = texts = 0
        chat_id = ""
        while sent < len(frames) or texts < len(frames):
            frame = stream.read()
            arm = frame.WhichOneof("body")
            assert arm not in {"error", "disconnect"}, frame
            sent += arm == "sent"
            texts += arm == "event" and frame.event.content.HasField("text")
            chat_id = frame.event.chat_id or chat_id
        request = ListMessagesRequest(chat_id=chat_id, page_size=100)
        page = place.messages.ListMessages(request, timeout=WAIT_S, metadata=account.metadata)
        return {"bytes": batch_bytes, "sent": sent, "texts": texts, "page_bytes": page.ByteSize()}


def longer_batch(place: Place) -> Facts:
    """A longer one ends its stream, and harms no other on the same connection."""
    one, two = place.account(), place.account()
    with Stream(place, one.metadata) as stream, Stream(place, two.metadata) as neighbour:
        batch_bytes = stream.open().limits.batch_bytes_max
        neighbour.open()
        stream.send(*_batch_of(stream, two, batch_bytes + 1))
        _, ending = stream.end()
        neighbour.send(neighbour.message(one, TEXT))
        return {"neighbour": neighbour.text()} | ending


def compressed_stream(place: Place) -> Facts:
    """A stream whose batches are compressed."""
    account, other = place.account(), place.account()
    text = TEXT * 100
    with Stream(place, account.metadata, compression=grpc.Compression.Gzip) as stream:
        stream.open()
        stream.send(stream.message(other, text))
        return {"is_right": stream.text() == text}


def compressed_call(place: Place) -> Facts:
    """A unary call whose request is compressed."""
    account, other = place.account(), place.account()
    request = SendMessageRequest(user_id=other.user, content=content_of(TEXT * 100))
    gzip = grpc.Compression.Gzip
    sent = place.messages.SendMessage(request, timeout=WAIT_S, metadata=account.metadata, compression=gzip).sent
    page = place.messages.ListMessages(ListMessagesRequest(chat_id=sent.chat_id), timeout=WAIT_S, metadata=account.metadata)
    return {"is_right": page.events[0].content.text.text == TEXT * 100}


def many_streams(place: Place) -> Facts:
    """Fifty devices on one connection, each of which writes and reads."""
    accounts = [place.account() for _ in range(50)]
    place.until_streams(0)
    streams = [Stream(place, account.metadata) for account in accounts]
    for stream in streams:
        stream.open()
    opened = place.until_streams(50)
    for stream, account in zip(streams, accounts, strict=True):
        stream.send(stream.message(account, account.user))
    told = [stream.text() for stream in streams]
    for stream in streams:
        stream.half_close()
    endings = [stream.end()[1]["status"] for stream in streams]
    return {"streams": opened, "is_right": told == [account.user for account in accounts], "endings": endings}


def calls_beside_a_stream(place: Place) -> Facts:
    """Unary calls on the connection of a stream, to which they bring events."""
    account, other = place.account(), place.account()
    with Stream(place, account.metadata) as stream:
        stream.open()
        told = []
        for number in range(10):
            request = SendMessageRequest(user_id=account.user, content=content_of(f"call {number}"))
            sent = place.messages.SendMessage(request, timeout=WAIT_S, metadata=other.metadata).sent
            told.append(stream.text())
        request_of_all = ListMessagesRequest(chat_id=sent.chat_id)
        page = place.messages.ListMessages(request_of_all, timeout=WAIT_S, metadata=account.metadata)
        return {"told": told, "listed": [event.seq for event in page.events]}


def health(place: Place) -> Facts:
    """Health of the server, of a service, and of one that is none."""
    stub = health_pb2_grpc.HealthStub(place.channel)
    names = ("", "chatgrpc.v1.SessionService")
    statuses = [stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S).status for name in names]
    return {"statuses": statuses} | failed(lambda: stub.Check(health_pb2.HealthCheckRequest(service="?"), timeout=WAIT_S))


def reflection(place: Place) -> Facts:
    """What the server says that it serves."""
    database = ProtoReflectionDescriptorDatabase(place.channel)
    file = database.FindFileContainingSymbol("chatgrpc.v1.SessionService")
    return {"services": sorted(database.get_services()), "file": file.name}


def metadata(place: Place) -> Facts:
    """Metadata of the client's own, binary too, disturbs nobody."""
    account = place.account()
    own: Metadata = (("x-trace", "0af7651916cd43dd"), ("x-trace-bin", bytes(range(256))))
    with Stream(place, account.metadata + own) as stream:
        stream.open()
        request = SendMessageRequest(user_id=account.user, content=content_of(TEXT))
        place.messages.SendMessage(request, timeout=WAIT_S, metadata=account.metadata + own)
        return {"text": stream.text()}


CASES = (
    conversation,
    ping_pong,
    half_close,
    empty_stream,
    cancellation,
    deadline,
    stream_without_token,
    stream_with_bad_token,
    call_without_token,
    call_with_bad_token,
    unknown_method,
    unknown_service,
    largest_batch,
    longer_batch,
    compressed_stream,
    compressed_call,
    many_streams,
    calls_beside_a_stream,
    health,
    reflection,
    metadata,
)
LEFT_OUT = {"negotiated_protocol": "grpcio does not show it; it takes no server that chooses another than h2"}


def main(address: str, accounts_file: str, ca_file: str | None = None) -> None:
    """Runs every case; what goes wrong in one is its result."""
    accounts = (Account(*line.split()) for line in Path(accounts_file).read_text().splitlines())
    credentials = None if ca_file is None else grpc.ssl_channel_credentials(Path(ca_file).read_bytes())
    place = Place(address, accounts, credentials)
    for case in CASES:
        try:
            facts = case(place)
        except Exception:
            facts = {"failed": traceback.format_exc()}
        print(json.dumps({"case": case.__name__} | facts), flush=True)
    for name, why in LEFT_OUT.items():
        print(json.dumps({"case": name, "left_out": why}), flush=True)
    place.channel.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
