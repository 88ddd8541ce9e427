"""What must hold when a run has come to rest: G1 to G6, from what the store holds and what everybody has seen."""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from chatgrpc.core.epochs import Row, adopted_tail
from chatgrpc.v1 import chat_pb2
from tests.sim.store import Bucket, Replica
from tests.sim.users import GROUP_ID
from tests.sim.world import BrokenError

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.device import Device

Log = list[chat_pb2.ChatEvent]


def check(cluster: "Cluster") -> None:
    """
    Raises:
        BrokenError: naming what does not hold.
    """
    logs = {chat_id: _log(cluster, chat_id, cluster.store.replicas) for chat_id in cluster.chat_ids}
    heads = {chat_id: cluster.head_seq(chat_id) for chat_id in cluster.chat_ids}
    for chat_id, log in logs.items():
        head_seq = heads[chat_id]
        for pair in combinations(cluster.store.replicas, 2):
            found = _log(cluster, chat_id, pair)
            if len(found) < head_seq:
                raise BrokenError(f"G1: {chat_id} was stated up to {head_seq}; a QUORUM read finds {len(found)} of {len(log)}")
            _check_erasures(chat_id, found, head_seq)
    for chat_id, log in logs.items():
        keys = [(event.sender_user_id, event.client_message_id) for event in log]
        for key in keys:
            if keys.count(key) > 1:
                raise BrokenError(f"G3: {chat_id} holds {key} {keys.count(key)} times")
    _check_acknowledged(cluster, logs)
    for chat_id, log in logs.items():
        _check_sender_order(cluster, chat_id, log)
    shown = {chat_id: log[: heads[chat_id]] for chat_id, log in logs.items()}  # what is above may become an event, or not
    for chat_id, log in shown.items():
        _check_streams(cluster, chat_id, log)
    _check_pages(cluster, shown)
    for node in cluster.nodes:
        if node.edge.desk.questions_waiting:
            raise BrokenError(f"{node.node_id} still waits for answers of owners")


def last_visible_to(cluster: "Cluster", chat_id: str) -> list[tuple["Device", int]]:
    """Up to where each device must come to hold the chat, whoever knows of it now."""
    rows = _rows(chat_id, cluster.store.replicas)[: cluster.head_seq(chat_id)]
    log = [chat_pb2.ChatEvent.FromString(row.event) for row in rows]
    return [(device, max(_visible_seqs(log, device.user_id), default=0)) for device in cluster.devices]


def _rows(chat_id: str, replicas: Sequence[Replica]) -> list[Row]:
    """The chat as an owner would find it on these replicas if it knew no mark, nothing being under way any more."""
    whole = Bucket()
    for replica in replicas:
        for (of_chat, _), bucket in replica.buckets.items():
            if of_chat == chat_id:
                whole.merge(bucket)
    stored = whole.stored()
    return adopted_tail(stored.rows, stored.boundaries, 0)


def _log(cluster: "Cluster", chat_id: str, replicas: Sequence[Replica]) -> Log:
    log = []
    for row in _rows(chat_id, replicas):
        cluster.world.witness("the log", chat_id, row.seq, row.event, cluster.world.now_ms)
        log.append(chat_pb2.ChatEvent.FromString(row.event))
    return log


def _check_erasures(chat_id: str, log: Log, head_seq: int) -> None:
    """What was deleted says nothing any more, nor do its edits; everything else does. A deletion above the head, which does not
    count, may have erased already."""
    deletions = [event for event in log if event.content.HasField("delete")]
    targets = {event.content.delete.target_seq: event.seq for event in deletions if event.seq <= head_seq}
    for event in log:
        is_gone = event.content.HasField("erased")
        if event.seq in targets and not is_gone:
            raise BrokenError(f"erasure: {chat_id} {event.seq} was deleted by {targets[event.seq]} and still says what it said")
        amended_seq = event.content.edit.target_seq
        if amended_seq in targets and event.seq < targets[amended_seq]:
            raise BrokenError(f"erasure: {chat_id} {event.seq} edits {amended_seq}, which was deleted, and still says so")
    if sum(event.content.HasField("erased") for event in log) and not deletions:
        raise BrokenError(f"erasure: {chat_id} has erased events, and none that deletes")


def _check_acknowledged(cluster: "Cluster", logs: dict[str, Log]) -> None:
    acknowledged = list(cluster.users.acknowledged_changes)
    for device in cluster.devices:
        acknowledged += [(key, *place) for key, place in device.memory.acknowledged.items()]
        left = {chat_id: len(messages) for chat_id, messages in device.outbox.items() if messages}
        if left:
            raise BrokenError(f"{device.device_id} still waits for answers: {left}")
    for key, chat_id, seq in acknowledged:
        log = logs[chat_id]
        if seq > len(log) or log[seq - 1].client_message_id != key:
            raise BrokenError(f"G1: {int.from_bytes(key)} was acknowledged as {chat_id} {seq}, and is not there")
    keys = {(chat_id, event.client_message_id) for chat_id, log in logs.items() for event in log}
    for device in cluster.devices:
        for key, chat_id in device.memory.refused:
            if (chat_id, key) in keys:
                raise BrokenError(f"{int.from_bytes(key)} was refused for good, and is an event of {chat_id}")


def _check_streams(cluster: "Cluster", chat_id: str, log: Log) -> None:
    for device in cluster.devices:
        visible = _visible_seqs(log, device.user_id)
        received = [event.seq for event in device.memory.received.get(chat_id, ())]
        if received != visible:
            missing = sorted(set(visible) - set(received))
            forbidden = sorted(set(received) - set(visible))
            raise BrokenError(
                f"{'G6' if forbidden else 'G4'}: {device.device_id} in {chat_id} lacks {missing}, should not have {forbidden}, "
                f"holds {received[-1:]} of {len(log)}"
            )


def _check_pages(cluster: "Cluster", logs: dict[str, Log]) -> None:
    """A page is a run of what its reader may see: no hole in it, nothing that is not theirs, and its ends are said rightly."""
    for device in cluster.devices:
        for page in device.memory.pages:
            visible = _visible_seqs(logs[page.chat_id], device.user_id)
            if not page.seqs:
                continue
            if not set(page.seqs) <= set(visible):
                raise BrokenError(f"G6: {device.device_id} was shown {page.chat_id} {page.seqs}, and may see {visible}")
            begin = visible.index(page.seqs[0])
            if visible[begin : begin + len(page.seqs)] != page.seqs:
                raise BrokenError(f"a page with a hole: {device.device_id} was shown {page.chat_id} {page.seqs} of {visible}")
            if page.more_before != (begin > 0):
                raise BrokenError(f"{device.device_id}: before {page.chat_id} {page.seqs} there is {page.more_before} more")


def _visible_seqs(log: Log, user_id: str) -> list[int]:
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


def _check_sender_order(cluster: "Cluster", chat_id: str, log: Log) -> None:
    places = {event.client_message_id: event.seq for event in log}
    for device in cluster.devices:
        if device.user_id == "carol" and chat_id == GROUP_ID:
            continue  # she comes and goes: a refusal that is lost with a stream may be an acceptance the next time
        seqs = [places[key] for key in device.memory.sent_order.get(chat_id, ()) if key in places]
        if seqs != sorted(seqs):
            raise BrokenError(f"order: {device.device_id} in {chat_id} sent in this order: {seqs}")
