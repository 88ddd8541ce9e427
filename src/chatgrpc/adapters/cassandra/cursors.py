"""What each device has acknowledged, in Cassandra."""

from collections.abc import Sequence
from typing import Final

from chatgrpc.adapters.cassandra.batches import Batches
from chatgrpc.adapters.cassandra.client import CassandraClient
from chatgrpc.ports.cursors import Cursor

_LATER_THAN_ANY: Final = 2**62
"""Above all seqs, and so above the timestamps of all cursors."""


class CassandraCursorStore:
    """`ports.cursors.CursorStore`. A cursor's timestamp is its own value, so Cassandra keeps the greater one."""

    def __init__(self, client: CassandraClient, batches: Batches) -> None:
        """Prepares its statements, which blocks."""
        self._client = client
        self._batches = batches
        self._put = client.prepare(
            "UPDATE {keyspace}.cursors USING TIMESTAMP ? SET acked_seq = ? WHERE user_id = ? AND device_id = ? AND chat_id = ?"
        )
        self._forget = client.prepare("DELETE FROM {keyspace}.cursors USING TIMESTAMP ? WHERE user_id = ? AND device_id = ?")
        self._of_device = client.prepare(
            "SELECT chat_id, acked_seq FROM {keyspace}.cursors WHERE user_id = ? AND device_id = ?"
        )

    async def save(self, cursors: Sequence[Cursor]) -> None:
        """See the port."""
        await self._batches.write(
            [
                self._put.bind((cursor.acked_seq, cursor.acked_seq, cursor.user_id, cursor.device_id, cursor.chat_id))
                for cursor in cursors
            ]
        )

    async def forget(self, user_id: str, device_id: str) -> None:
        """See the port; what is saved meanwhile is removed too."""
        await self._client.write(self._forget.bind((_LATER_THAN_ANY, user_id, device_id)))

    async def of_device(self, user_id: str, device_id: str) -> dict[str, int]:
        """See the port."""
        rows = await self._client.read(self._of_device.bind((user_id, device_id)))
        return {chat_id: max(acked_seq or 0, 0) for chat_id, acked_seq in rows}
