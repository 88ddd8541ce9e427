"""Backup and restore as docs/operations.md tells it, under load."""

import asyncio
import re
import shlex
import shutil
import sys
from pathlib import Path

from chatgrpc.adapters.jwt import dev_keys
from tests.support.cast import Cast
from tests.support.conversation import Conversation
from tests.support.server import running_server

_OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
_BACKUPS = 3


def documented_backup(database: Path, copy: Path) -> list[str]:
    """The command of the page, on these files."""
    (line,) = re.findall(r"^python3 -c 'import sqlite3;.*$", _OPERATIONS.read_text(), re.MULTILINE)
    program, *arguments = shlex.split(
        line.replace("/var/lib/chatgrpc/chatgrpc.db", str(database)).replace("backup.db", str(copy))
    )
    assert program == "python3"
    return [sys.executable, *arguments]


async def test_a_backup_of_a_running_server_holds_what_was_acknowledged_and_opens(tmp_path: Path) -> None:
    copies = []
    async with running_server(tmp_path / "data") as server:
        people = Cast(server, "backup")
        conversation = Conversation(people, pairs=2, seed=1)
        clerk = await people.online("clerk")
        async with asyncio.timeout(120), conversation.going_on():
            for number in range(_BACKUPS):
                before = await clerk.send(people.user("boss"), f"{number}")
                copy = tmp_path / f"copy-{number}.db"
                process = await asyncio.create_subprocess_exec(*documented_backup(server.data_dir / "chatgrpc.db", copy))
                assert await process.wait() == 0
                assert copy.stat().st_mode & 0o077 == 0, "it is for its owner alone"
                copies.append((copy, before))
        await conversation.check()
        original = await people.caller("clerk").log(copies[0][1].chat_id)
        await people.close()

    for copy, before in copies:
        restored = tmp_path / f"restored-{copy.stem}"
        restored.mkdir()
        shutil.copy(copy, restored / "chatgrpc.db")
        shutil.copy(tmp_path / "data" / dev_keys.FILE_NAME, restored)
        async with running_server(restored) as server:
            people = Cast(server, "backup")
            log = await people.caller("clerk").log(before.chat_id)
            assert log[before.seq - 1].message_id == before.message_id
            assert log == original[: len(log)]
            again = await people.caller("clerk").send(before.chat_id, "after the restore")
            assert again.seq == len(log) + 1
            await people.close()
