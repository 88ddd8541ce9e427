"""What must hold when a run has come to rest: G1 to G6, from what the store holds and what everybody has seen."""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from chatgrpc.core.epochs import adopted_tail
from chatgrpc.v1 import chat_pb2
from tests.sim.store import Replica
from tests.sim.world import BrokenError

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster


def check(cluster: "Cluster") -> None:
    """
    Raises:
        BrokenError: naming what does not hold.
    """
    logs = {chat_id: _log(cluster, chat_id, cluster.store.replicas) for chat_id in cluster.chat_ids}
    for chat_id, log in logs.items():
        heads = [node.edge.stated.get(chat_id, 0) for node in cluster.nodes]
        for pair in combinations(cluster.store.replicas, 2):
            found = len(_log(cluster, chat_id, pair))
            if found < max(heads):
                raise BrokenError(f"G1: {chat_id} was stated up to {max(heads)}; a QUORUM read finds {found} of {len(log)}")
    for chat_id, log in logs.items():
        keys = [(event.sender_user_id, event.client_message_id) for event in log]
        for key in keys:
            if keys.count(key) > 1:
                raise BrokenError(f"G3: {chat_id} holds {key} {keys.count(key)} times")
    _check_acknowledged(cluster, logs)
    for chat_id, log in logs.items():
        _check_streams(cluster, chat_id, log)
        _check_sender_order(cluster, chat_id, log)


def _log(cluster: "Cluster", chat_id: str, replicas: Sequence[Replica]) -> list[chat_pb2.ChatEvent]:
    """The chat as an owner would find it on these replicas if it knew no mark, nothing being under way any more."""
    rows, boundaries = {}, {}
    for replica in replicas:
        for (of_chat, bucket), found in replica.rows.items():
            if of_chat == chat_id:
                rows.update({key: replica.bucket(chat_id, bucket, 0).rows[at] for at, key in enumerate(found)})
        for (of_chat, _), bounds in replica.boundaries.items():
            if of_chat == chat_id:
                boundaries.update(bounds)
    log = []
    for row in adopted_tail(rows.values(), boundaries, 0):
        cluster.world.witness("the log", chat_id, row.seq, row.event)
        log.append(chat_pb2.ChatEvent.FromString(row.event))
    return log


def _check_acknowledged(cluster: "Cluster", logs: dict[str, list[chat_pb2.ChatEvent]]) -> None:
    acknowledged = list(cluster.acknowledged_changes)
    for device in cluster.devices:
        acknowledged += [(key, *place) for key, place in device.acknowledged.items()]
        left = {chat_id: len(messages) for chat_id, messages in device.outbox.items() if messages}
        if left:
            raise BrokenError(f"{device.device_id} still waits for answers: {left}")
    for key, chat_id, seq in acknowledged:
        log = logs[chat_id]
        if seq > len(log) or log[seq - 1].client_message_id != key:
            raise BrokenError(f"G1: {int.from_bytes(key)} was acknowledged as {chat_id} {seq}, and is not there")


def _check_streams(cluster: "Cluster", chat_id: str, log: list[chat_pb2.ChatEvent]) -> None:
    for device in cluster.devices:
        visible = _visible_seqs(log, device.user_id)
        received = [event.seq for event in device.received.get(chat_id, ())]
        if received != visible:
            missing = sorted(set(visible) - set(received))
            forbidden = sorted(set(received) - set(visible))
            raise BrokenError(
                f"{'G6' if forbidden else 'G4'}: {device.device_id} in {chat_id} lacks {missing}, should not have {forbidden}, "
                f"holds {received[-1:]} of {len(log)}"
            )


def _visible_seqs(log: list[chat_pb2.ChatEvent], user_id: str) -> list[int]:
    """The events before or after which the user is a member; worked out without the code under test."""
    visible, member = [], False
    for event in log:
        before = member
        content = event.content
        match content.WhichOneof("body"):
            case "chat_created":
                member = user_id in {other.user_id for other in content.chat_created.members}
            case "members_added":
                member = member or user_id in content.members_added.user_ids
            case "member_removed":
                member = member and user_id != content.member_removed.user_id
        if before or member:
            visible.append(event.seq)
    return visible


def _check_sender_order(cluster: "Cluster", chat_id: str, log: list[chat_pb2.ChatEvent]) -> None:
    places = {event.client_message_id: event.seq for event in log}
    for device in cluster.devices:
        if device.user_id == "carol":
            continue  # she comes and goes: a refusal that is lost with a stream may be an acceptance the next time
        seqs = [places[key] for key in device.sent_order.get(chat_id, ()) if key in places]
        if seqs != sorted(seqs):
            raise BrokenError(f"order: {device.device_id} in {chat_id} sent in this order: {seqs}")
