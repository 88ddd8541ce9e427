"""A device: sends, acknowledges, loses its stream, comes back through another node; a user of the public protocol."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.refusal import is_retryable
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from tests.sim.world import BrokenError

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.node import Node


class Stream:
    """One stream between a device and an edge: bytes in order, until it is cut."""

    def __init__(self, device: "Device", node: "Node", stream_id: str) -> None:
        self.device = device
        self.node = node
        self.stream_id = stream_id
        self.is_cut = False
        self._world = device.world
        self._up_ms = self._down_ms = 0

    def to_node(self, frame: session_pb2.ClientFrame) -> None:
        self._up_ms = max(self._up_ms, self._world.now_ms + self._world.between(1, 15))
        self._later(self._up_ms, lambda: self.node.run(lambda: self.node.edge.from_device(self, frame)))

    def to_device(self, output: bytes) -> None:
        self._down_ms = max(self._down_ms, self._world.now_ms + self._world.between(1, 15))
        self._later(self._down_ms, lambda: self.device.receive(self, output))

    def cut(self) -> None:
        """What is under way is lost; the device learns of it first, the edge a little later, or much later."""
        if self.is_cut:
            return
        self.is_cut = True
        learned_after_ms = self._world.between(1, 400)
        if self._world.chance(self.device.cluster.plan.climate.half_open):
            learned_after_ms = self._world.between(1_000, 3_000)
        self.node.after(learned_after_ms, lambda: self.node.edge.closed(self))
        self.device.lost(self)

    def _later(self, at_ms: int, action: Callable[[], None]) -> None:
        self._world.after(at_ms - self._world.now_ms, lambda: None if self.is_cut else action())


@dataclass
class Unsent:
    """A message in the outbox."""

    client_message_id: bytes
    seen_seq: int
    content: content_pb2.Content
    request_id: int = 0
    """Of the try under way; 0 = none."""
    may_be_under_way: bool = False
    """An earlier try had no answer when its stream was lost, or UNAVAILABLE: nobody knows what becomes of it, and when."""


@dataclass
class ShownPage:
    """A page of history that the device was shown."""

    chat_id: str
    seqs: list[int]
    more_before: bool
    more_after: bool


@dataclass
class Memory:
    """What the device has seen and done, for the checks at the end."""

    received: dict[str, list[chat_pb2.ChatEvent]] = field(default_factory=dict)
    acknowledged: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    refused: list[tuple[bytes, str]] = field(default_factory=list)
    """Refused for good, and no other try of it can be under way."""
    sent_order: dict[str, list[bytes]] = field(default_factory=dict)
    pages: list[ShownPage] = field(default_factory=list)


class Device:
    """One device of one user."""

    def __init__(self, cluster: "Cluster", device_id: str) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.user_id = device_id.partition("-")[0]
        self.device_id = device_id
        self.stream: Stream | None = None
        self.open = False
        self.held: dict[str, int] = {}
        self.outbox: dict[str, list[Unsent]] = {}
        self.memory = Memory()
        self._requests = 0
        self._streams = 0
        self._unacked: dict[str, int] = {}

    # Streams.

    def connect(self) -> None:
        if self.stream is not None:
            return
        nodes = [node for node in self.cluster.nodes if node.alive]
        if not nodes:
            self.world.after(200, self.connect)
            return
        self._streams += 1
        self._requests = 0
        node = self.world.rng.choice(nodes)
        stream = self.stream = Stream(self, node, f"{self.device_id}.{self._streams}")
        self.world.note(self.device_id, f"connects to {node.node_id}, holds {self.held}")
        node.run(lambda: None if stream.is_cut else node.edge.open(stream))
        hello = session_pb2.Hello(device_id=self.device_id, token="token")
        for chat_id, seq in self.held.items():
            hello.positions.add(chat_id=chat_id, seq=seq)
        self._send(session_pb2.ClientFrame(request_id=self._next_request(), hello=hello))
        self.world.after(2_500, lambda: self._impatient(stream))

    def disconnect(self) -> None:
        if self.stream is not None:
            self.stream.cut()

    def lost(self, stream: Stream) -> None:
        """The stream is gone."""
        if self.stream is not stream:
            return
        self.stream, self.open = None, False
        for messages in self.outbox.values():
            for message in messages:
                message.may_be_under_way |= message.request_id != 0
                message.request_id = 0
        self.world.after(self.world.between(10, 600), self.connect)

    def _impatient(self, stream: Stream) -> None:
        if self.stream is stream and not self.open:
            stream.cut()  # no Welcome: try another node

    # What the user does.

    def compose(self, chat_id: str, content: content_pb2.Content) -> None:
        """A message, an edit or a deletion; sent when there is a stream, and until it has an answer."""
        message = Unsent(self.cluster.next_number().to_bytes(16), self.held.get(chat_id, 0), content)
        self.outbox.setdefault(chat_id, []).append(message)
        self.memory.sent_order.setdefault(chat_id, []).append(message.client_message_id)
        self._send_waiting(chat_id)

    def fetch_history(self, request: session_pb2.FetchHistory) -> None:
        if self.open:
            self._send(session_pb2.ClientFrame(request_id=self._next_request(), fetch_history=request))

    def show_typing(self, chat_id: str) -> None:
        if self.open:
            self._send(session_pb2.ClientFrame(typing=session_pb2.Typing(chat_id=chat_id)))
            self._send(session_pb2.ClientFrame(watch_chats=session_pb2.WatchChats(chat_ids=[chat_id])))
            if self.held.get(chat_id, 0):
                mark = session_pb2.MarkRead(chat_id=chat_id, seq=self.held[chat_id])
                self._send(session_pb2.ClientFrame(mark_read=mark))

    # Frames.

    def receive(self, stream: Stream, output: bytes) -> None:
        if stream is not self.stream:
            return
        for frame in session_pb2.ConnectResponse.FromString(output).frames:
            match frame.WhichOneof("body"):
                case "welcome":
                    self.open = True
                    for chat_id in self.outbox:
                        self._send_waiting(chat_id)
                case "event":
                    self._take_event(frame.event)
                case "sent":
                    self._sent(frame.request_id, frame.sent)
                case "error":
                    self._failed(frame.request_id, frame.error)
                case "history_page":
                    self._take_page(frame.history_page)
                case "receipt":
                    self._take_receipt(frame.receipt)
                case "typing":
                    self._check_is_theirs(frame.typing.chat_id)
                case "disconnect":
                    stream.cut()
                    return

    def _take_event(self, event: chat_pb2.ChatEvent) -> None:
        chat_id = event.chat_id
        if event.seq <= self.held.get(chat_id, 0):
            raise BrokenError(f"{self.device_id} got {chat_id} seq {event.seq} and holds {self.held[chat_id]} already")
        self.world.witness(self.device_id, chat_id, event.seq, event.SerializeToString(deterministic=True))
        self.world.note(self.device_id, f"gets {chat_id} seq {event.seq}")
        self.held[chat_id] = event.seq
        self.memory.received.setdefault(chat_id, []).append(event)
        if not self._unacked.get(chat_id):
            self.world.after(self.world.between(1, 120), lambda: self._acknowledge(chat_id))
        self._unacked[chat_id] = event.seq

    def _acknowledge(self, chat_id: str) -> None:
        seq, self._unacked[chat_id] = self._unacked[chat_id], 0
        if self.open:
            self._send(session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id=chat_id, seq=seq)))

    def _take_page(self, page: session_pb2.HistoryPage) -> None:
        for event in page.events:
            self.world.witness(self.device_id, event.chat_id, event.seq, event.SerializeToString(deterministic=True))
        seqs = [event.seq for event in page.events]
        self.world.note(self.device_id, f"is shown {page.chat_id} seqs {seqs}")
        self.memory.pages.append(ShownPage(page.chat_id, seqs, page.more_before, page.more_after))

    def _take_receipt(self, receipt: chat_pb2.Receipt) -> None:
        self._check_is_theirs(receipt.chat_id)
        held = [device.held.get(receipt.chat_id, 0) for device in self.cluster.devices if device.user_id == receipt.user_id]
        if max(receipt.delivered_seq, receipt.read_seq) > max(held):
            raise BrokenError(f"{self.device_id} is told that {receipt.user_id} has what they have not: {receipt}")

    def _check_is_theirs(self, chat_id: str) -> None:
        if self.user_id not in self.cluster.users_ever(chat_id):
            raise BrokenError(f"G6: {self.device_id} is told who does what in {chat_id}")

    def _sent(self, request_id: int, result: chat_pb2.SendResult) -> None:
        message = self._of_request(result.chat_id, request_id)
        if message is None:
            raise BrokenError(f"{self.device_id} got a result for a request it did not make")
        place = (result.chat_id, result.seq)
        self.world.note(self.device_id, f"has {place} for {int.from_bytes(message.client_message_id)}")
        if self.memory.acknowledged.setdefault(message.client_message_id, place) != place:
            raise BrokenError(f"{self.device_id}: one message, two seqs: {place}")
        if message.content.WhichOneof("body") == "delete":
            self.world.witness_erasure(result.chat_id, message.content.delete.target_seq)
        self.outbox[result.chat_id].remove(message)
        self._send_waiting(result.chat_id)

    def _failed(self, request_id: int, error: chat_pb2.Error) -> None:
        for chat_id, messages in self.outbox.items():
            message = self._of_request(chat_id, request_id)
            if message is None:
                continue
            self.world.note(
                self.device_id, f"{chat_pb2.ErrorCode.Name(error.code)} for {int.from_bytes(message.client_message_id)}"
            )
            if error.code == chat_pb2.ERROR_CODE_NOT_A_MEMBER:
                messages.remove(message)
                if not message.may_be_under_way:
                    self.memory.refused.append((message.client_message_id, chat_id))
                self.memory.sent_order[chat_id].remove(message.client_message_id)
                self._send_waiting(chat_id)
            elif is_retryable(error):
                message.may_be_under_way |= error.code == chat_pb2.ERROR_CODE_UNAVAILABLE
                message.request_id = 0
                self.world.after(150, lambda chat_id=chat_id: self._send_waiting(chat_id))  # type: ignore[misc]
            else:
                raise BrokenError(f"{self.device_id} was refused: {error}")
            return

    def _of_request(self, chat_id: str, request_id: int) -> Unsent | None:
        for message in self.outbox.get(chat_id, ()):
            if message.request_id == request_id:
                return message
        return None

    def _send_waiting(self, chat_id: str) -> None:
        """Sends, in order, what is not under way; a few at a time. What follows a failed one waits for its turn."""
        if not self.open:
            return
        for message in self.outbox.get(chat_id, [])[:4]:
            if message.request_id == 0:
                message.request_id = self._next_request()
                key = chat_pb2.WriteKey(client_message_id=message.client_message_id, seen_seq=message.seen_seq)
                send = session_pb2.SendMessage(key=key, content=message.content)
                self._address(send, chat_id)
                self._send(session_pb2.ClientFrame(request_id=message.request_id, send=send))

    def _address(self, send: session_pb2.SendMessage, chat_id: str) -> None:
        """A direct chat is named by the other user, and made by the first message."""
        for other_id in ("alice", "bob", "carol"):
            if other_id != self.user_id and chat_id == direct_chat_id(self.user_id, other_id):
                send.user_id = other_id
                return
        send.chat_id = chat_id

    def _next_request(self) -> int:
        self._requests += 1
        return self._requests

    def _send(self, frame: session_pb2.ClientFrame) -> None:
        if self.stream is not None:
            self.stream.to_node(frame)
