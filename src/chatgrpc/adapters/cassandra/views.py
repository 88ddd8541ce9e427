"""What follows from an event: memberships, amendments, erasures, the chat's state."""

import asyncio
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError

from chatgrpc.adapters.cassandra.batches import Batches
from chatgrpc.adapters.cassandra.client import CassandraClient
from chatgrpc.adapters.cassandra.timestamps import erased_timestamp, erasure_timestamp
from chatgrpc.core.entries import Entry
from chatgrpc.core.epochs import bucket_of
from chatgrpc.core.events import erased
from chatgrpc.v1 import chat_pb2


class ViewWriter:
    """Writes what follows from one event, the chat's state last."""

    def __init__(self, client: CassandraClient, batches: Batches) -> None:
        """Prepares its statements, which blocks."""
        self._client = client
        self._batches = batches
        self._put_member = client.prepare(
            "INSERT INTO {keyspace}.members (user_id, chat_id, joined_seq, left_seq) VALUES (?, ?, ?, ?) USING TIMESTAMP ?"
        )
        self._put_amendment = client.prepare(
            "INSERT INTO {keyspace}.amendments (chat_id, target_seq, seq) VALUES (?, ?, ?) USING TIMESTAMP ?"
        )
        self._put_chat = client.prepare("UPDATE {keyspace}.chats USING TIMESTAMP ? SET chat = ? WHERE chat_id = ?")
        self._amendments = client.prepare(
            "SELECT seq FROM {keyspace}.amendments WHERE chat_id = ? AND target_seq = ? AND seq < ?"
        )
        self._rows_at = client.prepare("SELECT epoch, event FROM {keyspace}.log WHERE chat_id = ? AND bucket = ? AND seq = ?")
        self._delete_rows = client.prepare(
            "DELETE FROM {keyspace}.log USING TIMESTAMP ? WHERE chat_id = ? AND bucket = ? AND seq = ?"
        )
        self._put_row = client.prepare(
            "INSERT INTO {keyspace}.log (chat_id, bucket, seq, epoch, event) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?"
        )

    async def write(self, entry: Entry) -> None:
        """Writes all that follows from a committed event; doing so again is harmless.

        Raises:
            StoreError: some of it was not written, or nobody knows.
        """
        await self._batches.write([*self._bound_members(entry), *self._bound_amendment(entry)])
        if entry.erases_seq and entry.erases_seq < entry.seq:
            await self._erase(entry)
        if entry.amends_seq:
            await self._erase_if_late(entry)
        if entry.view is not None:
            chat = self._put_chat.bind((entry.seq, entry.view.chat, entry.chat_id))
            await self._batches.write([chat], len(entry.view.chat))

    def _bound_members(self, entry: Entry) -> Iterable[Any]:
        for member in entry.view.members if entry.view is not None else ():
            interval = member.interval
            yield self._put_member.bind((member.user_id, entry.chat_id, interval.joined_seq, interval.left_seq, entry.seq))

    def _bound_amendment(self, entry: Entry) -> Iterable[Any]:
        if entry.amends_seq:
            yield self._put_amendment.bind((entry.chat_id, entry.amends_seq, entry.seq, entry.seq))

    async def _erase(self, entry: Entry) -> None:
        """Erases a message, then what amends it, in this order: see `_erase_if_late`."""
        await self._erase_at(entry.chat_id, entry.erases_seq, entry.epoch)
        amendments = await self._client.read(self._amendments.bind((entry.chat_id, entry.erases_seq, entry.seq)))
        await asyncio.gather(*(self._erase_at(entry.chat_id, seq, entry.epoch) for (seq,) in amendments))

    async def _erase_if_late(self, entry: Entry) -> None:
        """Erases an amendment of an erased message.

        A new owner writes the views of all that it adopts at once, an edit's and its deletion's. Whichever of the two reads
        last, here or in `_erase`, sees what the other wrote before it read.
        """
        target = await self._rows(entry.chat_id, entry.amends_seq)
        if target and _is_erased(max(target)[1]):
            await self._erase_at(entry.chat_id, entry.seq, entry.epoch)

    async def _erase_at(self, chat_id: str, seq: int, epoch: int) -> None:
        """Erases the rows of a seq of this epoch and earlier ones, those included that land later.

        The row that counts among them is written anew without content, in the same mutation, so no reader finds a hole; and
        under this epoch, so no owner does: if this one adopts the seq once more, what it writes is hidden by the deletion, and
        its boundary voids rows of earlier epochs. Rows of later epochs stand as they are: whoever wrote them has adopted the
        deletion, and erases by it.
        """
        rows = [row for row in await self._rows(chat_id, seq) if row[0] <= epoch]
        if not rows:
            return
        _, event = max(rows)
        place = (chat_id, bucket_of(seq), seq)
        delete = self._delete_rows.bind((erasure_timestamp(epoch), *place))
        keep = self._put_row.bind((*place, epoch, erased(event), erased_timestamp(epoch)))
        await self._client.write(self._client.batch([delete, keep]))

    async def _rows(self, chat_id: str, seq: int) -> list[tuple[int, bytes]]:
        """The rows of a seq: epoch, event."""
        found = await self._client.read(self._rows_at.bind((chat_id, bucket_of(seq), seq)))
        return [(epoch, event or b"") for epoch, event in found]


def _is_erased(event: bytes) -> bool:
    try:
        return chat_pb2.ChatEvent.FromString(event).content.WhichOneof("body") == "erased"
    except DecodeError:
        return False
