"""A server whose store holds what cannot be: that chat is refused, and the server and all other chats go on."""

import sqlite3
from pathlib import Path

import pytest

from chatgrpc.embedded.node import DATABASE_NAME
from chatgrpc.v1 import chat_pb2
from chatgrpc.v1.chat_service_pb2 import ListChatsRequest
from chatgrpc.v1.device_service_pb2 import ListDevicesRequest
from chatgrpc.v1.message_service_pb2 import ListMessagesRequest, SendMessageRequest
from chatgrpc.v1.user_service_pb2 import GetUserRequest
from tests.support.callers import Caller, code_of, text_content
from tests.support.device import Device
from tests.support.server import ServerProcess

GARBAGE = b"\xff\xff\xff garbage"
_OF_SICK = "chat_number = (SELECT number FROM chats WHERE chat_id = :chat_id)"
_NUMBER_OF_SICK = "SELECT (SELECT number FROM chats WHERE chat_id = :chat_id)"
ANOTHER = chat_pb2.ChatEvent(chat_id="g.another", seq=4).SerializeToString()

POISON = {
    "last row garbage": (f"UPDATE log SET event = :garbage WHERE seq = 4 AND {_OF_SICK}", True),
    "last row empty": (f"UPDATE log SET event = x'' WHERE seq = 4 AND {_OF_SICK}", True),
    "last row another's": (f"UPDATE log SET event = :another WHERE seq = 4 AND {_OF_SICK}", True),
    "last row of another seq": (f"UPDATE log SET seq = 9 WHERE seq = 4 AND {_OF_SICK}", True),
    "a row at the end of all seqs": (
        f"INSERT INTO log (chat_number, seq, epoch, event) {_NUMBER_OF_SICK}, {2**63 - 1}, 1, :far",
        True,
    ),
    "state garbage": ("UPDATE chats SET chat = :garbage WHERE chat_id = :chat_id", True),
    "state empty": ("UPDATE chats SET chat = x'' WHERE chat_id = :chat_id", True),
    "a row in the middle garbage": (f"UPDATE log SET event = :garbage WHERE seq = 2 AND {_OF_SICK}", False),
    "a row in the middle too large": (f"UPDATE log SET event = :large WHERE seq = 2 AND {_OF_SICK}", False),
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
            which: dict[str, str | bytes] = {"chat_id": sick, "garbage": GARBAGE, "another": ANOTHER, "large": _large(sick, 2)}
            which["far"] = chat_pb2.ChatEvent(chat_id=sick, seq=2**63 - 1).SerializeToString()
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
            async with Device(server.address, server.token("alice"), "phone") as phone:
                await phone.until_held(sound, 5)
            assert await alice.seqs(sound) == [1, 2, 3, 4, 5]
            assert (await alice.summary(sound)).chat.chat_id == sound
        assert server.pid == pid
        log = server.log_path.read_text()
        assert "chat_damaged" in log
        assert "Traceback" not in log
    finally:
        server.close()


_NO_TEXT = "CAST(x'fffe41' AS TEXT)"
ENTRIES = {
    "all rows gone": f"DELETE FROM log WHERE {_OF_SICK}",
    "the chat gone": "DELETE FROM chats WHERE chat_id = :chat_id",
    "joined at a negative seq": "UPDATE members SET joined_seq = -5 WHERE user_id = :user_id AND chat_id = :chat_id",
    "joined above the log": "UPDATE members SET joined_seq = 100 WHERE user_id = :user_id AND chat_id = :chat_id",
    "left before joining": "UPDATE members SET joined_seq = 3, left_seq = 2 WHERE user_id = :user_id AND chat_id = :chat_id",
    "a member twice": "INSERT INTO members VALUES (:user_id, :chat_id, 2, 0)",
    "a member of nothing": "INSERT INTO members VALUES (:user_id, 'garbage', 2, 0)",
    "a member of no text": f"INSERT INTO members VALUES (:user_id, {_NO_TEXT}, 2, 0)",
    "a mark below zero": "INSERT OR REPLACE INTO receipts VALUES (:chat_id, :user_id, -1, -1, 9000000000000)",
    "a mark above all": "INSERT OR REPLACE INTO receipts VALUES (:chat_id, 'peer', 9000000000, 9000000000, 9000000000000)",
    "a mark of no text": f"INSERT INTO receipts VALUES (:chat_id, {_NO_TEXT}, 1, 1, 9000000000000)",
    "a cursor below zero": "INSERT OR REPLACE INTO cursors VALUES (:user_id, 'phone', :chat_id, -7)",
    "a cursor in no text": f"INSERT INTO cursors VALUES (:user_id, 'phone', {_NO_TEXT}, 1)",
    "a profile of no text": f"INSERT OR REPLACE INTO profiles VALUES (:user_id, {_NO_TEXT}, {_NO_TEXT}, {_NO_TEXT})",
    "a device of no text": f"UPDATE devices SET name = {_NO_TEXT} WHERE user_id = :user_id",
    "a revoked device of no text": f"INSERT INTO devices VALUES (:user_id, {_NO_TEXT}, '', 1, 1, 1, 1, 0)",
    "somebody who comes in in the far future": "UPDATE chats SET chat = :future WHERE chat_id = :chat_id",
    "a state that no frame can hold": "UPDATE chats SET chat = :deep WHERE chat_id = :chat_id",
}
"""What is done to one entry of a table. The user has another chat, and is not kept out of that."""
_DEEP = b"\x83\x38" * 98 + b"\x84\x38" * 98
_MAY_COST = {"CHAT_DAMAGED", "NOT_A_MEMBER"}


async def test_a_poisoned_entry_keeps_nobody_out_of_what_is_sound(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data")
    chats: dict[str, tuple[str, str]] = {}
    users = {name: f"user{number}" for number, name in enumerate(ENTRIES)}
    try:
        await server.start()
        for name, user_id in users.items():
            async with Caller(server.address, user_id, server.token(user_id)) as caller:
                chats[name] = (await caller.create_group("peer"), await caller.create_group("peer"))
                for chat_id in chats[name]:
                    await caller.send(chat_id, "hello")
            async with Device(server.address, server.token(user_id), "phone") as device:
                await device.synced()
        server.terminate()
        with sqlite3.connect(server.data_dir / DATABASE_NAME) as db:
            for name, statement in ENTRIES.items():
                sick = chats[name][0]
                which: dict[str, str | bytes] = {"user_id": users[name], "chat_id": sick}
                which |= {"future": _state(sick, users[name], 2**64 - 1), "deep": _state(sick, users[name], 1) + _DEEP}
                assert db.execute(statement, {key: which[key] for key in which if f":{key}" in statement}).rowcount
        db.close()
        await server.start()
        pid = server.pid
        for name, user_id in users.items():
            await _is_served(server, user_id, *chats[name], name)
        assert server.pid == pid
        log = server.log_path.read_text()
        assert "Traceback" not in log
        assert "defect" not in log
    finally:
        server.close()


def _large(chat_id: str, seq: int) -> bytes:
    """Larger than what a client of gRPC takes, unless told to."""
    return chat_pb2.ChatEvent(chat_id=chat_id, seq=seq, content=text_content("x" * 5_000_000)).SerializeToString()


def _state(chat_id: str, user_id: str, joined_seq: int) -> bytes:
    state = chat_pb2.Chat(chat_id=chat_id, as_of_seq=1)
    state.members.add(user_id=user_id, joined_seq=joined_seq)
    return state.SerializeToString()


async def _is_served(server: ServerProcess, user_id: str, sick: str, sound: str, name: str) -> None:
    async with Caller(server.address, user_id, server.token(user_id)) as caller:
        async with Device(server.address, server.token(user_id), "phone") as device:
            await device.synced()
            sent = await caller.send(sound, name)
            await device.until_held(sound, sent.seq)
            assert (await device.send(sound, "by the stream")).seq == sent.seq + 1
        listed = await caller.chats.ListChats(ListChatsRequest())
        assert sound in {summary.chat.chat_id for summary in listed.chats}, name
        assert (await caller.summary(sound)).chat.chat_id == sound
        await caller.devices.ListDevices(ListDevicesRequest())
        assert not (await caller.users.GetUser(GetUserRequest())).HasField("error"), name
        written = await caller.messages.SendMessage(SendMessageRequest(chat_id=sick, content=text_content("to the sick one")))
        read = await caller.messages.ListMessages(ListMessagesRequest(chat_id=sick))
        assert {code_of(reply) for reply in (written, read) if reply.HasField("error")} <= _MAY_COST, name
