"""A server whose store holds what cannot be: that chat is refused, and the server and all other chats go on."""

import sqlite3
from pathlib import Path

import pytest

from chatgrpc.embedded.node import DATABASE_NAME
from chatgrpc.v1 import chat_pb2
from tests.support.callers import Caller
from tests.support.server import ServerProcess

GARBAGE = b"\xff\xff\xff garbage"
_OF_SICK = "chat_number = (SELECT number FROM chats WHERE chat_id = :chat_id)"
ANOTHER = chat_pb2.ChatEvent(chat_id="g.another", seq=4).SerializeToString()

POISON = {
    "last row garbage": (f"UPDATE log SET event = :garbage WHERE seq = 4 AND {_OF_SICK}", True),
    "last row empty": (f"UPDATE log SET event = x'' WHERE seq = 4 AND {_OF_SICK}", True),
    "last row another's": (f"UPDATE log SET event = :another WHERE seq = 4 AND {_OF_SICK}", True),
    "last row of another seq": (f"UPDATE log SET seq = 9 WHERE seq = 4 AND {_OF_SICK}", True),
    "state garbage": ("UPDATE chats SET chat = :garbage WHERE chat_id = :chat_id", True),
    "state empty": ("UPDATE chats SET chat = x'' WHERE chat_id = :chat_id", True),
    "a row in the middle garbage": (f"UPDATE log SET event = :garbage WHERE seq = 2 AND {_OF_SICK}", False),
    "a row in the middle missing": (f"DELETE FROM log WHERE seq = 2 AND {_OF_SICK}", False),
}
"""What is done to the store, and whether the chat takes no more writes then; else only its history cannot be read."""


@pytest.mark.parametrize(("statement", "takes_nothing"), POISON.values(), ids=POISON)
async def test_a_poisoned_chat_costs_that_chat(tmp_path: Path, statement: str, takes_nothing: bool) -> None:
    server = ServerProcess(tmp_path / "data")
    try:
        await server.start()
        async with Caller(server.address, "alice", server.token("alice")) as alice:
            sick, sound = await alice.create_group("bob"), await alice.create_group("bob")
            for chat_id in (sick, sound):
                for number in range(3):
                    await alice.send(chat_id, f"message {number}")
        server.terminate()
        with sqlite3.connect(server.data_dir / DATABASE_NAME) as db:
            which = {"chat_id": sick, "garbage": GARBAGE, "another": ANOTHER}
            used = {name: value for name, value in which.items() if f":{name}" in statement}
            assert db.execute(statement, used).rowcount == 1
        db.close()
        await server.start()
        pid = server.pid
        async with Caller(server.address, "alice", server.token("alice")) as alice:
            for _ in range(3):
                if takes_nothing:
                    with pytest.raises(AssertionError, match="CHAT_DAMAGED"):
                        await alice.send(sick, "to the sick one")
                else:
                    with pytest.raises(AssertionError, match="CHAT_DAMAGED"):
                        await alice.log(sick)
                    assert (await alice.send(sick, "to the sick one")).seq > 4
            assert (await alice.send(sound, "to the sound one")).seq == 5
            assert await alice.seqs(sound) == [1, 2, 3, 4, 5]
            assert (await alice.summary(sound)).chat.chat_id == sound
        assert server.pid == pid
        log = server.log_path.read_text()
        assert "chat_damaged" in log
        assert "Traceback" not in log
    finally:
        server.close()
