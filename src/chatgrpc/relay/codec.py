"""The bytes of a link: `core.links` values and the frames of protos/chatgrpc/internal/v1/relay.proto.

Each direction of a link has an `Encoder` at one end and a `Decoder` at the other, made anew with the link, since they share
what audiences are called. The chat and the users of a delivery are the same for every event of a busy chat, and can be far
longer than the event: so they are sent once and called by number after that.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, cast

from google.protobuf.message import DecodeError

from chatgrpc.core.lanes import Forward, Forwarded, Lane
from chatgrpc.core.links import (
    AskHead,
    AskMembers,
    Deliver,
    EndStream,
    EndStreamHeard,
    HeadIs,
    Heads,
    HeadsHeard,
    Load,
    MembersAre,
    Message,
    RaiseMark,
    ShowReceipt,
    ShowTyping,
    TellTyping,
)
from chatgrpc.core.write import Write
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.v1 import chat_pb2, content_pb2

AUDIENCES_MAX: Final = 4096
"""Audiences that a direction of a link remembers."""
AUDIENCE_USERS_MAX: Final = 65_536
"""Users in all of them together; a larger audience is remembered alone."""

_DELIVER_BYTES: Final = 32
"""What a delivery needs beside its event, at most, while nobody leaves."""


class MalformedBatchError(Exception):
    """A batch is not what another node of this version sends."""


class Encoder:
    """Puts messages into batches, which must be sent all and in order."""

    def __init__(self) -> None:
        self._audiences: OrderedDict[str, tuple[int, tuple[str, ...]]] = OrderedDict()  # by chat, the longest unused first
        self._audience_users = 0
        self._last_number = 0

    def add(self, batch: relay_pb2.LinkBatch, message: Message) -> int:
        """Puts a message at the end of a batch; returns about how many bytes longer the batch is."""
        if type(message) is Deliver:
            return self._add_deliver(batch, message)
        frame = batch.frames.add()
        _PUT[type(message)](frame, message)
        return frame.ByteSize()

    def _add_deliver(self, batch: relay_pb2.LinkBatch, message: Deliver) -> int:
        size = len(message.chunk) + _DELIVER_BYTES
        known = self._audiences.get(message.chat_id)
        if known is not None and (known[1] is message.user_ids or known[1] == message.user_ids):
            self._audiences.move_to_end(message.chat_id)
            number = known[0]
        else:
            number = self._last_number = self._last_number + 1
            size += self._add_audience(batch, message.chat_id, message.user_ids)
        deliver = batch.frames.add().deliver
        deliver.audience = number
        deliver.seq = message.seq
        deliver.chunk = message.chunk
        if message.left_user_id:
            deliver.left_user_id = message.left_user_id
            size += len(message.left_user_id)
        if message.changes_members:
            deliver.changes_members = True
        if message.after_seq:
            deliver.after_seq = message.after_seq
        return size

    def _add_audience(self, batch: relay_pb2.LinkBatch, chat_id: str, user_ids: tuple[str, ...]) -> int:
        frame = batch.frames.add()
        audience = frame.audience
        audience.number = self._last_number
        audience.chat_id = chat_id
        audience.user_ids.extend(user_ids)
        former = self._audiences.pop(chat_id, None)
        if former is not None:
            self._forget(audience, former)
        while self._audiences and (
            len(self._audiences) >= AUDIENCES_MAX or self._audience_users + len(user_ids) > AUDIENCE_USERS_MAX
        ):
            self._forget(audience, self._audiences.popitem(last=False)[1])
        self._audiences[chat_id] = (self._last_number, user_ids)
        self._audience_users += len(user_ids)
        return frame.ByteSize()

    def _forget(self, audience: relay_pb2.Audience, former: tuple[int, tuple[str, ...]]) -> None:
        audience.forgotten.append(former[0])
        self._audience_users -= len(former[1])


class Decoder:
    """Reads the frames of one direction of a link, in order. Of no more use after a `MalformedBatchError`."""

    def __init__(self, *, sender_checks_unknown: bool = False) -> None:
        """`sender_checks_unknown`: the other node looks at what it forwards (`core.shape.check_unknown_fields`)."""
        self._sender_checks_unknown = sender_checks_unknown
        self._audiences: dict[int, tuple[str, tuple[str, ...]]] = {}
        self._audience_users = 0
        self._last_number = 0

    def decode(self, batch: relay_pb2.LinkBatch) -> list[Message]:
        """Reads the messages of a batch. Frames of the link itself, and of kinds that a later version added, are left out.

        Raises:
            MalformedBatchError: a frame is not as an `Encoder` would have made it.
        """
        messages: list[Message] = []
        for frame in batch.frames:
            kind = frame.WhichOneof("body")
            if kind == "deliver":
                deliver = frame.deliver
                audience = self._audiences.get(deliver.audience)
                if audience is None:
                    raise MalformedBatchError("a delivery to an audience that was not named")
                chat_id, user_ids = audience
                messages.append(
                    Deliver(
                        chat_id,
                        deliver.seq,
                        deliver.chunk,
                        user_ids,
                        deliver.left_user_id,
                        deliver.changes_members,
                        deliver.after_seq,
                    )
                )
            elif kind == "audience":
                self._learn(frame.audience)
            elif kind is not None and kind in _TAKE:
                try:
                    message = _TAKE[kind](getattr(frame, kind))
                except DecodeError as error:
                    raise MalformedBatchError(f"{kind}: its content is not valid") from error
                if isinstance(message, Forward):
                    message.write.unknown_checked = self._sender_checks_unknown
                messages.append(message)
        return messages

    def _learn(self, audience: relay_pb2.Audience) -> None:
        if audience.number <= self._last_number:
            raise MalformedBatchError("audiences out of order")
        self._last_number = audience.number
        for number in audience.forgotten:
            former = self._audiences.pop(number, None)
            if former is not None:
                self._audience_users -= len(former[1])
        user_ids = tuple(audience.user_ids)
        self._audiences[audience.number] = (audience.chat_id, user_ids)
        self._audience_users += len(user_ids)
        count = len(self._audiences)
        if count > AUDIENCES_MAX or (count > 1 and self._audience_users > AUDIENCE_USERS_MAX):
            raise MalformedBatchError("too many audiences")


def parse_batch(data: bytes) -> relay_pb2.LinkBatch:
    """Parses what came.

    Raises:
        MalformedBatchError: it is no batch.
    """
    try:
        return relay_pb2.LinkBatch.FromString(data)
    except DecodeError as error:
        raise MalformedBatchError("these bytes are no batch") from error


# Into frames. Assigned field by field: a message that is made first and copied into the frame takes twice as long.


def _put_forward(frame: relay_pb2.LinkFrame, message: Forward) -> None:
    forward, write = frame.forward, message.write
    assert write.chat_id == message.lane.chat_id, "a lane carries the writes of one chat"
    forward.edge_id, forward.session_id, forward.chat_id = message.lane
    forward.number = message.number
    forward.base = message.base
    forward.sender_user_id = write.sender_user_id
    forward.content = write.content.SerializeToString()
    forward.client_message_id = write.client_message_id
    if write.seen_seq is not None:
        forward.seen_seq = write.seen_seq
    if write.sender_device_id:
        forward.sender_device_id = write.sender_device_id
    if write.peer_user_id:
        forward.peer_user_id = write.peer_user_id
    if write.join_token:
        forward.join_token = write.join_token
    if write.answers_request:
        forward.answers_request = True
    forward.epoch = message.epoch


def _put_forwarded(frame: relay_pb2.LinkFrame, message: Forwarded) -> None:
    forwarded = frame.forwarded
    forwarded.edge_id, forwarded.session_id, forwarded.chat_id = message.lane
    forwarded.number = message.number
    forwarded.epoch = message.epoch
    if isinstance(message.outcome, chat_pb2.SendResult):
        forwarded.sent = message.outcome.SerializeToString()
    else:
        forwarded.error = message.outcome.SerializeToString()


def _put_heads(frame: relay_pb2.LinkFrame, message: Heads) -> None:
    frame.heads.SetInParent()
    frame.heads.heads.update(message.heads)


def _put_heads_heard(frame: relay_pb2.LinkFrame, message: HeadsHeard) -> None:
    frame.heads_heard.SetInParent()
    frame.heads_heard.heads.update(message.heads)


def _put_ask_head(frame: relay_pb2.LinkFrame, message: AskHead) -> None:
    frame.ask_head.chat_id = message.chat_id
    frame.ask_head.number = message.number


def _put_head_is(frame: relay_pb2.LinkFrame, message: HeadIs) -> None:
    frame.head_is.chat_id = message.chat_id
    frame.head_is.number = message.number
    frame.head_is.seq = message.seq
    if message.damaged:
        frame.head_is.damaged = True


def _put_ask_members(frame: relay_pb2.LinkFrame, message: AskMembers) -> None:
    frame.ask_members.chat_id = message.chat_id
    frame.ask_members.number = message.number


def _put_members_are(frame: relay_pb2.LinkFrame, message: MembersAre) -> None:
    frame.members_are.chat_id = message.chat_id
    frame.members_are.number = message.number
    frame.members_are.user_ids.extend(message.user_ids)


def _put_raise_mark(frame: relay_pb2.LinkFrame, message: RaiseMark) -> None:
    raised = frame.raise_mark
    raised.chat_id = message.chat_id
    raised.user_id = message.user_id
    raised.delivered_seq = message.delivered_seq
    raised.read_seq = message.read_seq
    raised.delivered_from_seq = message.delivered_from_seq
    raised.read_from_seq = message.read_from_seq


def _put_show_receipt(frame: relay_pb2.LinkFrame, message: ShowReceipt) -> None:
    shown = frame.show_receipt
    shown.chat_id = message.chat_id
    shown.user_id = message.user_id
    shown.delivered_seq = message.delivered_seq
    shown.read_seq = message.read_seq
    shown.to_user_ids.extend(message.to_user_ids)


def _put_tell_typing(frame: relay_pb2.LinkFrame, message: TellTyping) -> None:
    frame.tell_typing.chat_id = message.chat_id
    frame.tell_typing.user_id = message.user_id
    frame.tell_typing.kind = message.kind


def _put_show_typing(frame: relay_pb2.LinkFrame, message: ShowTyping) -> None:
    shown = frame.show_typing
    shown.chat_id = message.chat_id
    shown.user_id = message.user_id
    shown.kind = message.kind
    shown.to_user_ids.extend(message.to_user_ids)


def _put_end_stream(frame: relay_pb2.LinkFrame, message: EndStream) -> None:
    frame.end_stream.user_id = message.user_id
    frame.end_stream.device_id = message.device_id
    frame.end_stream.code = message.code
    frame.end_stream.connection_number = message.connection_number


def _put_end_stream_heard(frame: relay_pb2.LinkFrame, message: EndStreamHeard) -> None:
    frame.end_stream_heard.user_id = message.user_id
    frame.end_stream_heard.device_id = message.device_id
    frame.end_stream_heard.code = message.code


def _put_load(frame: relay_pb2.LinkFrame, message: Load) -> None:
    frame.load.SetInParent()
    frame.load.streams = message.streams


_PUT = cast(
    "dict[type[Message], Callable[[relay_pb2.LinkFrame, Any], None]]",
    {
        Forward: _put_forward,
        Forwarded: _put_forwarded,
        Heads: _put_heads,
        HeadsHeard: _put_heads_heard,
        AskHead: _put_ask_head,
        HeadIs: _put_head_is,
        AskMembers: _put_ask_members,
        MembersAre: _put_members_are,
        RaiseMark: _put_raise_mark,
        ShowReceipt: _put_show_receipt,
        TellTyping: _put_tell_typing,
        ShowTyping: _put_show_typing,
        EndStream: _put_end_stream,
        EndStreamHeard: _put_end_stream_heard,
        Load: _put_load,
    },
)


# Out of frames.


def _take_forward(body: relay_pb2.Forward) -> Forward:
    chat_id = body.chat_id
    write = Write(
        chat_id,
        body.sender_user_id,
        content_pb2.Content.FromString(body.content),
        body.client_message_id,
        body.seen_seq if body.HasField("seen_seq") else None,
        body.sender_device_id,
        body.peer_user_id,
        body.join_token,
        body.answers_request,
        body.session_id if body.sender_device_id else "",
    )
    return Forward(Lane(body.edge_id, body.session_id, chat_id), body.number, body.base, write, body.epoch)


def _take_forwarded(body: relay_pb2.Forwarded) -> Forwarded:
    lane = Lane(body.edge_id, body.session_id, body.chat_id)
    match body.WhichOneof("outcome"):
        case "sent":
            return Forwarded(lane, body.number, chat_pb2.SendResult.FromString(body.sent), body.epoch)
        case "error":
            return Forwarded(lane, body.number, chat_pb2.Error.FromString(body.error), body.epoch)
        case _:
            raise MalformedBatchError("forwarded: without an outcome")


_TAKE: dict[str, Callable[[Any], Message]] = {
    "forward": _take_forward,
    "forwarded": _take_forwarded,
    "heads": lambda body: Heads(dict(body.heads)),
    "heads_heard": lambda body: HeadsHeard(dict(body.heads)),
    "ask_head": lambda body: AskHead(body.chat_id, body.number),
    "head_is": lambda body: HeadIs(body.chat_id, body.number, body.seq, body.damaged),
    "ask_members": lambda body: AskMembers(body.chat_id, body.number),
    "members_are": lambda body: MembersAre(body.chat_id, body.number, tuple(body.user_ids)),
    "raise_mark": lambda body: RaiseMark(
        body.chat_id, body.user_id, body.delivered_seq, body.read_seq, body.delivered_from_seq, body.read_from_seq
    ),
    "show_receipt": lambda body: ShowReceipt(
        body.chat_id, body.user_id, body.delivered_seq, body.read_seq, tuple(body.to_user_ids)
    ),
    "tell_typing": lambda body: TellTyping(body.chat_id, body.user_id, body.kind),
    "show_typing": lambda body: ShowTyping(body.chat_id, body.user_id, body.kind, tuple(body.to_user_ids)),
    "end_stream": lambda body: EndStream(body.user_id, body.device_id, body.code, body.connection_number),
    "end_stream_heard": lambda body: EndStreamHeard(body.user_id, body.device_id, body.code),
    "load": lambda body: Load(body.streams),
}
