"""The order in which a new owner takes a chat over."""

import pytest

from chatgrpc.core.activation import Activation
from chatgrpc.core.entries import StoredChat
from chatgrpc.core.epochs import Row
from chatgrpc.core.row_store import (
    ReadBucket,
    ReadHead,
    StoredBucket,
    StoredHead,
    WriteBoundary,
    WriteRow,
    WriteViews,
)
from chatgrpc.v1 import chat_pb2, content_pb2

TEXT = content_pb2.Content(text=content_pb2.TextContent(text="hi"))


STATE = chat_pb2.Chat(chat_id="c", as_of_seq=1).SerializeToString()


def event(seq: int, content: content_pb2.Content = TEXT) -> bytes:
    return chat_pb2.ChatEvent(chat_id="c", seq=seq, sender_user_id="alice", content=content).SerializeToString()


def created() -> content_pb2.Content:
    content = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
    content.members.add(user_id="alice", role=content_pb2.MEMBER_ROLE_OWNER, joined_seq=1)
    return content_pb2.Content(chat_created=content)


def row(seq: int, epoch: int, content: content_pb2.Content = TEXT) -> Row:
    return Row(seq, epoch, event(seq, content))


def test_a_chat_that_nobody_made_is_ready_after_two_reads_and_leaves_no_trace() -> None:
    activation = Activation("c", 9)
    assert activation.take_reads() == [ReadHead("c")]
    activation.head_read(StoredHead())
    (read,) = activation.take_reads()
    assert read == ReadBucket("c", 0, 0)
    activation.bucket_read(ReadBucket("c", 0, 0), StoredBucket())
    assert activation.ready
    assert activation.take_writes() == []
    assert activation.stored_chat is None
    assert activation.buckets_with_boundary == set()
    assert activation.first_seq == 1


def test_rows_first_then_the_boundary_then_views_then_ready() -> None:
    activation = Activation("c", 9)
    activation.take_reads()
    activation.head_read(StoredHead())
    activation.take_reads()
    activation.bucket_read(ReadBucket("c", 0, 0), StoredBucket([row(1, 3, created()), row(2, 3), row(4, 3)], {3: 1}))
    rows = activation.take_writes()
    assert rows == [WriteRow("c", 0, row(1, 9, created())), WriteRow("c", 0, row(2, 9))]
    activation.stored(rows[1])
    activation.stored(rows[1])
    assert activation.take_writes() == []
    activation.stored(rows[0])
    (boundary,) = activation.take_writes()
    assert boundary == WriteBoundary("c", 0, 9, 1)
    assert not activation.ready
    activation.stored(boundary)
    (views,) = activation.take_writes()
    assert isinstance(views, WriteViews)
    assert views.entry.view is not None
    assert chat_pb2.Chat.FromString(views.entry.view.chat).title == "g"
    assert [member.user_id for member in views.entry.view.members] == ["alice"]
    assert not activation.ready
    activation.stored(views)
    assert activation.ready
    assert activation.head_seq == 2
    assert activation.stored_chat == StoredChat(views.entry.view.chat, 2, event(2))


@pytest.mark.parametrize(
    "found", [StoredBucket([row(1, 10)]), StoredBucket([row(1, 3)], {3: 1, 10: 2})], ids=["a row", "a boundary"]
)
def test_a_chat_of_which_the_store_knows_a_later_epoch_is_never_ready(found: StoredBucket) -> None:
    """Epochs fell back, as those of an etcd that was restored from a backup: to go on would be to order the chat anew."""
    activation = Activation("c", 9)
    activation.take_reads()
    activation.head_read(StoredHead())
    (read,) = activation.take_reads()
    assert isinstance(read, ReadBucket)
    activation.bucket_read(read, found)
    assert activation.superseded
    assert not activation.ready
    assert activation.take_reads() == []
    assert activation.take_writes() == []


def test_the_row_at_the_mark_is_the_head_when_nothing_is_above() -> None:
    activation = Activation("c", 9)
    activation.head_read(StoredHead(12, STATE))
    activation.take_reads()
    activation.bucket_read(ReadBucket("c", 0, 12), StoredBucket([row(12, 3), row(12, 4)], {4: 12}))
    assert activation.ready
    assert activation.stored_chat == StoredChat(STATE, 12, event(12))
    assert activation.first_seq == 13


def test_a_boundary_in_the_marks_bucket_voids_rows_of_the_next_one() -> None:
    """Epoch 4 filled bucket 0 and wrote nothing into bucket 1, where a late row of epoch 3 stands."""
    activation = Activation("c", 9, bucket_seqs=10)
    activation.head_read(StoredHead(9, STATE))
    assert activation.take_reads()[-1] == ReadBucket("c", 0, 9)
    activation.bucket_read(ReadBucket("c", 0, 9), StoredBucket([row(9, 4)], {3: 1, 4: 8}))
    assert not activation.ready
    assert activation.take_reads() == [ReadBucket("c", 1, 10)]
    activation.bucket_read(ReadBucket("c", 1, 10), StoredBucket([row(10, 3)], {3: 1}))
    assert activation.ready
    assert activation.head_seq == 9


def test_a_tail_over_several_buckets_is_bounded_in_each() -> None:
    activation = Activation("c", 9, bucket_seqs=2)
    activation.take_reads()
    activation.head_read(StoredHead())
    for bucket, rows in enumerate(([row(1, 3, created())], [row(2, 3), row(3, 3)], [row(4, 3)])):
        (read,) = activation.take_reads()
        assert isinstance(read, ReadBucket)
        assert read.bucket == bucket
        activation.bucket_read(read, StoredBucket(rows, {3: 1}))
    for write in activation.take_writes():
        activation.stored(write)
    assert activation.take_writes() == [WriteBoundary("c", bucket, 9, 1) for bucket in (0, 1, 2)]
