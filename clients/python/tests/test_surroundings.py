"""The commands where something around them is not as usual: streams, encodings, disks, rights, proxies, signals.

Each ends in a sentence and the right exit code: never in a traceback, a hang, or "still waits" for what was committed.
"""

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from chatgrpc.v1 import content_pb2
from chatgrpc_client.datadir import DataDir
from chatgrpc_client.exceptions import DiskError
from chatgrpc_client.store import QueuedMessage, Store
from chatgrpc_client.store_thread import StoreThread
from tests.support.closed_folder import ANSWERS, Answer, close_folder
from tests.support.ports import accepts, free_port
from tests.support.server import ServerProcess

from .conftest import Home, until
from .shell import CHATGRPC, TIMEOUT_S, Shell, parsed, terminal

Names = tuple[str, str, str]


def through_sh(shell: Shell, line: str, environment: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of the shell, in which `$C` is the command."""
    wanted = {**shell.environment, **environment, "C": CHATGRPC}
    return subprocess.run(["/bin/sh", "-c", line], env=wanted, capture_output=True, timeout=TIMEOUT_S * 2, check=False)


def no_traceback(done: subprocess.CompletedProcess[bytes]) -> str:
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert "Traceback" not in said, said
    return said


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_that_is_not_utf_8_costs_no_message_and_no_line(shell: Shell, names: Names, encoding: str) -> None:
    alice, bob, _ = names
    in_it = {"PYTHONIOENCODING": encoding}
    done = through_sh(shell, f'"$C" send --as {alice} --to {bob} "grüße 🎉"', in_it)
    said = no_traceback(done)
    assert (done.returncode, "sent to" in said) == (0, True), said
    done = through_sh(shell, f'"$C" tail --as {bob} --json --count 1', in_it)
    no_traceback(done)
    assert done.returncode == 0
    texts = [event["text"] for event in parsed(done.stdout.decode().splitlines()) if event["type"] == "text"]
    assert texts == ["grüße 🎉"]


def test_a_locale_without_utf_8_takes_what_is_typed_as_utf_8(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    posix = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = through_sh(shell, f'"$C" send --as {alice} --to {bob} "grüße 🎉"', posix)
    assert done.returncode == 0, no_traceback(done)
    _, lines = shell.call("history", "--as", bob, "--with", alice, "--json")
    assert parsed(lines)[-1]["text"] == "grüße 🎉"


def test_output_that_takes_nothing_does_not_make_a_committed_message_wait(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    for redirected in ("> /dev/full", ">&-"):
        done = through_sh(shell, f'"$C" send --as {alice} --to {bob} hello {redirected}')
        said = no_traceback(done)
        assert "still waits" not in said
        assert "kept on disk" not in said
        assert done.returncode == 0, said
    _, lines = shell.call("history", "--as", bob, "--with", alice, "--json")
    assert [event["type"] for event in parsed(lines)] == ["chat_created", "text", "text"]


def test_a_chat_that_cannot_be_shown_ends_also_where_nothing_is_typed(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    done = through_sh(shell, f'"$C" chat --as {alice} --with {bob} < /dev/null > /dev/full')
    assert "the output cannot be written" in no_traceback(done)
    assert done.returncode == 1


@pytest.mark.parametrize("program", ["$C", "$C-client"])
@pytest.mark.parametrize("command", ["token alice", "config", "queue --as alice", "--help", "--version"])
def test_any_command_whose_output_takes_nothing_says_so(shell: Shell, program: str, command: str) -> None:
    if program == "$C-client" and command in {"token alice", "config"}:
        pytest.skip("a command of the server's")
    done = through_sh(shell, f'"{program}" {command} > /dev/full')
    assert "the output cannot be written: No space left on device" in no_traceback(done)
    assert done.returncode == 1


async def test_closed_standard_input_is_an_empty_one(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    done = await asyncio.to_thread(through_sh, shell, f'"$C" chat --as {alice} --with {bob} <&-')
    said = no_traceback(done)
    assert (done.returncode, "nothing said yet" in said) == (0, True), said
    done = await asyncio.to_thread(through_sh, shell, f'"$C" send --as {alice} --to {bob} - <&-')
    assert done.returncode == 0, no_traceback(done)


async def test_standard_input_that_does_not_block_is_read_to_its_end(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    process = await asyncio.create_subprocess_exec(
        *(CHATGRPC, "send", "--as", alice, "--to", bob, "-"), env=shell.environment, stdin=reader, stdout=subprocess.PIPE
    )
    os.close(reader)
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        os.write(writer, b"first\n")  # after the reader has found nothing: it starts more slowly than this writes
        await process.stdout.readline()
        os.write(writer, b"second\n")
        await process.stdout.readline()
        os.close(writer)
        assert await process.wait() == 0


@pytest.mark.parametrize("command", [("history", "--all"), ("tail", "--count", "200")])
async def test_output_that_does_not_block_is_written_whole_to_a_reader_who_comes_late(
    shell: Shell, names: Names, command: tuple[str, ...]
) -> None:
    alice, bob, _ = names
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    room = _room(reader, writer)
    code, _ = await shell.run("send", "--as", alice, "--to", bob, "-", typed="\n".join(["x" * (room // 100)] * 200))
    assert code == 0
    arguments = (*command, "--json", *(("--with", bob) if command[0] == "history" else ()))
    process = await asyncio.create_subprocess_exec(CHATGRPC, *arguments, "--as", alice, env=shell.environment, stdout=writer)
    await until(lambda: _is_full(writer) or process.returncode is not None)
    os.close(writer)
    lines = await asyncio.to_thread(_rest_of, reader)
    assert await process.wait() == 0
    assert [line["type"] for line in parsed(lines)].count("text") == 200


def _room(reader: int, writer: int) -> int:
    """How many bytes an empty pipe takes: it depends on the system, and on the size of its pages."""
    room = 0
    while not _is_full(writer):
        room += os.write(writer, bytes(4096))
    left = room
    while left:
        left -= len(os.read(reader, left))
    return room


def _is_full(writer: int) -> bool:
    return not select.select([], [writer], [], 0)[1]


def _rest_of(descriptor: int) -> list[str]:
    with open(descriptor) as file:
        return file.read().splitlines()


@pytest.mark.slow
def test_lines_that_cannot_be_sent_are_kept_and_wait_once_and_not_one_window_after_the_other(
    shell: Shell, names: Names
) -> None:
    alice, bob, _ = names
    lines = "import sys; sys.stdout.writelines(f'{n}\\n' for n in range(300))"  # five windows
    nobody = f"--server 127.0.0.1:{free_port()} --timeout 20"
    done = through_sh(shell, f'{sys.executable} -c "{lines}" | "$C" send --as {alice} --to {bob} - {nobody}')
    assert done.returncode == 1
    assert "300 messages kept on disk" in no_traceback(done)


def test_what_could_not_be_looked_at_is_not_said_to_wait_for_nothing(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    code, _ = shell.call("send", "--as", alice, "--to", bob, "x", "--server", f"127.0.0.1:{free_port()}", "--timeout", "0.5")
    assert code == 1
    (store,) = Path(shell.environment["XDG_DATA_HOME"]).rglob("store.sqlite3")
    with DataDir(store.parent):
        for drop in ((), ("--drop", "all"), ("--drop", "ff")):
            code, lines = shell.call("queue", "--as", alice, *drop)
            assert code == 1, lines
            assert "is in use by process" in lines[0]
            assert "nothing waits" not in lines
    assert shell.call("queue", "--as", alice, "--drop", "all") == (0, ["dropped 1"])


async def test_a_device_that_was_revoked_promises_to_send_nothing(shell: Shell, home: Home, names: Names) -> None:
    alice, bob, _ = names
    assert (await shell.run("send", "--as", alice, "--to", bob, "first"))[0] == 0
    async with home.device(alice) as other:
        (sender,) = [device for device in await other.devices.list() if device.name == "send"]
        await other.devices.revoke(sender.device_id)
    code, lines = await shell.run("send", "--as", alice, "--to", bob, "second")
    said = " ".join(lines)
    assert (code, "never sent from this device: send it again with --device NAME" in said) == (1, True), said
    assert "with the next" not in said
    code, lines = await shell.run("chat", "--as", alice, "--with", bob, "--device", "send", typed="third")
    said = " ".join(lines)
    assert (code, "this device was revoked and never connects again" in said) == (1, True), said
    assert "with the next" not in said
    assert "when the connection is back" not in said
    assert (await shell.run("send", "--as", alice, "--to", bob, "second", "--device", "another"))[0] == 0


def test_a_disk_that_is_full_as_a_device_opens_is_said_to_be(shell: Shell, names: Names, tmp_path: Path) -> None:
    with DataDir(tmp_path / "device") as folder:
        Store(folder.store_path, "alice", "device").close()
        limit = subprocess.run(
            ["/bin/sh", "-c", 'ulimit -f 0; trap "" XFSZ; exec "$0" -c "$1" "$2"', sys.executable, _OPEN, str(folder.path)],
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert "is there room on the disk" in no_traceback(limit)


_OPEN = """
import sys
from pathlib import Path
from chatgrpc_client.exceptions import DataDirError
from chatgrpc_client.store import Store
try:
    Store(Path(sys.argv[1]) / "store.sqlite3", "alice", "device")
except DataDirError as error:
    print(error)
"""
"""Opens a store where no file may grow, as none can on a full disk."""


def test_a_user_without_a_home_is_told_to_name_a_folder(names: Names) -> None:
    alice = names[0]
    for one, *more in (("send", "--to", "bob", "x", "--token", "x"), ("queue",)):
        code = (
            "import pwd, sys, os\n"
            "os.environ.pop('HOME', None); os.environ.pop('XDG_DATA_HOME', None)\n"
            "def nobody(uid): raise KeyError(uid)\n"
            "pwd.getpwuid = nobody\n"  # as in a container that runs as any number
            f"sys.argv = ['chatgrpc', {one!r}, '--as', {alice!r}, *{more!r}]\n"
            "from chatgrpc.entry import main; main()\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=TIMEOUT_S, check=False)
        assert "name a folder with --data-dir" in no_traceback(done)
        assert done.returncode == 2


def test_numbers_beyond_all_events_are_places_in_the_history(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    assert shell.call("send", "--as", alice, "--to", bob, "hello")[0] == 0
    history = ("history", "--as", bob, "--with", alice, "--json")
    assert len(shell.call(*history, "--before", str(10**30))[1]) == 2
    assert shell.call(*history, "--after", str(10**30)) == (0, [])


def test_an_option_that_a_script_left_empty_is_no_wish_to_list(shell: Shell, names: Names) -> None:
    assert shell.call("devices", "--as", names[0], "--revoke", "")[0] == 2
    assert shell.call("queue", "--as", names[0], "--drop", "")[0] == 2


def test_a_line_that_is_too_long_is_refused_and_the_next_ones_are_sent(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    script = "import sys; sys.stdout.write('first\\n' + 'x' * 600_000 + '\\nlast\\n')"
    done = through_sh(shell, f'{sys.executable} -c "{script}" | "$C" send --as {alice} --to {bob} - --json')
    said = no_traceback(done)
    assert done.returncode == 3, said
    outcomes = sorted(line["status"] for line in parsed(done.stdout.decode().splitlines()))
    assert outcomes == ["refused", "sent", "sent"]


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://user:secret@127.0.0.1:9")
    done = through_sh(shell, f'"$C" send --as {alice} --to {bob} hello', proxies)
    assert done.returncode == 0, no_traceback(done)
    done = through_sh(
        shell, f'"$C" send --as {alice} --to {bob} hello --server chat.example.invalid:443 --tls --timeout 2', proxies
    )
    said = no_traceback(done)
    assert done.returncode == 1
    assert "through the proxy http://127.0.0.1:9 (grpc_proxy)" in said
    assert "secret" not in said


def test_a_name_that_does_not_resolve_ends_in_a_sentence(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    for _ in range(2):
        done = through_sh(shell, f'"$C" chat --as {alice} --with {bob} --server nohost.invalid:5190 < /dev/null')
        said = no_traceback(done)
        assert "a defect" not in said
        assert "no address is known for the name nohost.invalid" in said
    assert "warning: without TLS the token and all that is said go to nohost.invalid in clear" in said


@pytest.mark.parametrize("error", ["ExecuteBatchError()", "asyncio.InvalidStateError()"])
def test_a_call_that_cannot_be_ended_since_its_name_does_not_resolve_is_no_defect(
    shell: Shell, names: Names, error: str
) -> None:
    alice, bob, _ = names
    server = "nohost.invalid:5190"
    done = subprocess.run(
        [sys.executable, "-c", _CANNOT_END.replace("ERROR", error), "chat", "--as", alice, "--with", bob, "--server", server],
        env=shell.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    said = no_traceback(done)
    assert "it could not be ended" in said
    assert "a defect" not in said
    assert "no address is known for the name nohost.invalid" in said
    assert done.returncode == 1, said


_CANNOT_END = """
import asyncio
from grpc._cython.cygrpc import ExecuteBatchError
from grpc.aio._call import StreamStreamCall
from chatgrpc.entry import main

read, write, calls = StreamStreamCall.read, StreamStreamCall.write, []

async def fails_once(call):
    calls.append(call)
    return await (read(call) if call is calls[0] else asyncio.Event().wait())

async def takes_it(call, batch):
    if call is calls[0]:
        await write(call, batch)

async def cannot_be_ended(call):
    print("it could not be ended", flush=True)
    raise ERROR

StreamStreamCall.read, StreamStreamCall.write, StreamStreamCall.done_writing = fails_once, takes_it, cannot_be_ended
main()
"""
"""The command, whose second call still goes on as it leaves, and fails just then: else that is a matter of luck."""


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_key_that_may_not_be_read_ends_in_a_sentence(
    shell: Shell, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    alice, bob, _ = names
    closed = tmp_path / "closed"
    close_folder(monkeypatch, closed, answer)
    shell.environment["CHATGRPC_DATA_DIR"] = str(closed)
    code, lines = shell.call("send", "--as", alice, "--to", bob, "hello")
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith(f"chatgrpc: cannot read the development key in {closed}: Permission denied")


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("closed", ["", "home", "home/server", "home/server/{user}", "home/server/{user}/send"])
def test_a_folder_that_may_not_be_looked_at_ends_queue_in_a_sentence(
    shell: Shell, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str, answer: Answer
) -> None:
    """Whatever it is of: what waits in it is not said to be nothing."""
    alice, home = names[0], tmp_path / "home"
    (home / "server" / alice / "send").mkdir(parents=True)
    close_folder(monkeypatch, tmp_path / closed.format(user=alice), answer)
    code, lines = shell.call("queue", "--as", alice, "--data-dir", str(home))
    assert (code, lines) == (1, [f"chatgrpc: cannot look into {home}: Permission denied"])


def test_what_a_device_keeps_is_for_its_owner_alone(shell: Shell, names: Names, tmp_path: Path) -> None:
    alice, bob, _ = names
    before = os.umask(0)
    try:
        assert shell.call("send", "--as", alice, "--to", bob, "hello")[0] == 0
        home = tmp_path / "home"
        for path in (home, *home.rglob("*")):
            assert not path.stat().st_mode & 0o077, path
        device = next(home.rglob("store.sqlite3")).parent
        device.chmod(0o755)
        (device / "store.sqlite3").chmod(0o644)
        assert shell.call("send", "--as", alice, "--to", bob, "again")[0] == 0
        for path in (device, *device.iterdir()):
            assert not path.stat().st_mode & 0o077, path
    finally:
        os.umask(before)


async def test_a_full_disk_loses_no_text_and_ends_no_client(home: Home, names: Names, tmp_path: Path) -> None:
    """What SQLite may not grow beyond stands for the end of the disk."""
    alice, bob, _ = names
    async with home.device(alice) as client:
        await client.wait_until_live(TIMEOUT_S)
        store = client._engine.store
        pages = await store.call(lambda s: int(s._db.execute("PRAGMA page_count").fetchone()[0]))
        await store.call(lambda s: s._db.execute(f"PRAGMA max_page_count={pages}").fetchone())
        with pytest.raises(DiskError, match="full"):
            await client.send("x" * 60_000, user_id=bob)
        assert await client.waiting_messages() == []
        await store.call(lambda s: s._db.execute("PRAGMA max_page_count=1000000").fetchone())
        assert (await (await client.send("there is room again", user_id=bob)).sent).seq == 2


async def test_chat_on_a_full_disk_shows_what_was_typed_and_goes_on(shell: Shell, home: Home, names: Names) -> None:
    """A limit on the size of files, set while it runs, stands for the end of the disk."""
    alice, bob, _ = names
    async with home.device(bob) as other, shell.start("chat", "--as", alice, "--with", bob) as chat:
        await (await other.send("hello", user_id=alice)).sent
        await chat.until(lambda line: line.endswith(f"{bob}: hello"))
        before = resource.prlimit(chat.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        for typed in ("there is no room for this", "/reply 2 nor for this"):
            chat.type(typed)
            line = await chat.until(lambda line: "✗" in line)
            assert "the disk did not take it, and it is not kept" in line
            assert line.endswith(f" — {typed}")
        await (await other.send("is there room for me?", user_id=alice)).sent
        await chat.until(lambda line: "not connected: the disk did not take it" in line)
        resource.prlimit(chat.process.pid, resource.RLIMIT_FSIZE, before)
        await chat.until(lambda line: line.endswith(f"{bob}: is there room for me?"))
        chat.type("there is room again")
        await chat.until(lambda line: line.endswith("you: there is room again"))
        assert await chat.end() == 3, "two lines were not sent"
        assert not any("Traceback" in line for line in chat.lines)
    _, lines = await shell.run("history", "--as", bob, "--with", alice, "--json")
    texts = [event["text"] for event in parsed(lines) if event["type"] == "text"]
    assert texts == ["hello", "is there room for me?", "there is room again"]


async def test_an_interrupt_in_the_first_second_is_a_sentence(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    for delay_s in (0.05, 0.15, 0.3, 0.6, 1.0):
        process = await asyncio.create_subprocess_exec(
            *(CHATGRPC, "chat", "--as", alice, "--with", bob),
            env=shell.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        # Whatever it is at then: the moment does not decide whether this passes.
        await asyncio.sleep(delay_s)
        while not _begun(process.pid):
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = (await asyncio.wait_for(process.communicate(), TIMEOUT_S))[0].decode()
        assert process.returncode == 130, said
        assert "Traceback" not in said


def _begun(pid: int) -> bool:
    """Whether the command has begun to load what takes long; as the interpreter starts, nothing of ours can catch a signal."""
    return "pydantic" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("redirected", ["> /dev/full", ">&-", "2>&- >&-", "<&- >&-"])
async def test_a_server_serves_though_its_output_takes_nothing(tmp_path: Path, redirected: str) -> None:
    server = ServerProcess(tmp_path / "server")
    shell = Shell(server, tmp_path)
    line = f'exec "$C" serve --port {server.port} --metrics-port 0 --data-dir "{server.data_dir}" {redirected}'
    complaints = tmp_path / "stderr"
    with complaints.open("wb") as stderr:
        process = subprocess.Popen(["/bin/sh", "-c", line], env={**shell.environment, "C": CHATGRPC}, stderr=stderr)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not accepts(server.port):
                assert process.poll() is None
                await asyncio.sleep(0.05)
        code, lines = await shell.run("send", "--as", "alice", "--to", "bob", "hello")
        assert code == 0, lines
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, TIMEOUT_S) == 0
        assert "Traceback" not in complaints.read_text()
    finally:
        process.kill()
        process.wait()


async def test_a_server_serves_though_nobody_reads_its_greeting_to_the_end(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "server")
    shell = Shell(server, tmp_path)
    line = f'"$C" serve --port {server.port} --metrics-port 0 --data-dir "{server.data_dir}" | head -c 1'
    process = subprocess.Popen(["/bin/sh", "-c", line], env={**shell.environment, "C": CHATGRPC}, start_new_session=True)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not accepts(server.port):
                await asyncio.sleep(0.05)
        code, lines = await shell.run("send", "--as", "alice", "--to", "bob", "hello")
        assert code == 0, lines
        os.killpg(process.pid, signal.SIGTERM)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def test_a_terminal_that_can_do_nothing_is_told_in_lines(shell: Shell, home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    shell.environment["TERM"] = "dumb"
    async with home.device(bob_id) as bob, terminal(shell, "chat", "--as", alice_id, "--with", bob_id) as alice:
        await alice.until("nothing said yet")
        alice.type("hello\n")
        await alice.until("✓✓ delivered #2")
        await bob.mark_read(bob.direct_chat_id(alice_id), 2)
        await alice.until("✓✓ read #2")
        assert "\x1b" not in alice.written


@pytest.mark.slow
async def test_a_terminal_that_can_do_nothing_is_told_in_lines_that_the_server_is_down(
    own_server: ServerProcess, tmp_path: Path
) -> None:
    shell = Shell(own_server, tmp_path)
    shell.environment["TERM"] = "dumb"
    async with terminal(shell, "chat", "--as", "alice", "--with", "bob") as alice:
        await alice.until("nothing said yet")
        own_server.kill()
        await alice.until("not connected: ", "next try in ", " s\n")
        alice.type("hello\n")
        assert await alice.leave("\x04") == 1
        await alice.until("1 message kept on disk, to go out with the next `chatgrpc chat`: ")
        await own_server.start()
        assert "\x1b" not in alice.written
    async with terminal(shell, "chat", "--as", "alice", "--with", "bob") as alice:
        await alice.until("you: hello", "✓ sent #2")
        assert await alice.leave("\x04") == 0
        assert "\x1b" not in alice.written


def test_a_store_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    with DataDir(tmp_path / "device") as folder:
        store = Store(folder.store_path, "alice", "device")
        store._db.execute("ALTER TABLE chats DROP COLUMN ended")
        store._db.execute("PRAGMA user_version=1")
        store.close()
        store = Store(folder.store_path, "alice", "device")
        assert store.ended_positions() == {}
        store.close()


async def test_what_the_disk_did_not_take_is_undone_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite3", "alice", "device")
    thread = StoreThread(store)
    pages = int(store._db.execute("PRAGMA page_count").fetchone()[0])
    store._db.execute(f"PRAGMA max_page_count={pages}")
    content = content_pb2.Content(text=content_pb2.TextContent(text="x" * 100_000))
    message = QueuedMessage(b"1" * 16, "d.aaaaaaaaaaaaaaaaaaaaaa", "bob", content, 0)
    for _ in range(2):
        with pytest.raises(DiskError):
            await thread.call(Store.queue, message)
    assert await thread.call(Store.outbox_entries) == []
    await thread.close()


async def test_ctrl_z_is_no_character_of_a_message(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    async with terminal(shell, "chat", "--as", alice, "--with", bob) as window:
        await window.until("nothing said yet", "→")
        await window.until(f"whether {bob} is online is told after the first message, or while both are here")
        window.type("before ")
        window.type("\x1a")
        window.type("after\r")
        await window.until("you: before after")
        assert await window.leave("\x04") == 0


async def test_two_who_open_a_chat_before_its_first_message_see_each_other(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    async with terminal(shell, "chat", "--as", alice, "--with", bob) as one:
        await one.until("nothing said yet", f"whether {bob} is online is told after")
        async with terminal(shell, "chat", "--as", bob, "--with", alice) as other:
            await one.until(f"{bob} online")
            await other.until(f"{alice} online")
            assert await other.leave("\x04") == 0
        one.type("hello\r")
        await one.until("you: hello", f"{bob} last seen")
        assert await one.leave("\x04") == 0


async def test_who_left_a_group_sees_so(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    async with terminal(shell, "chat", "--as", alice, "--with", bob) as window:
        await window.until("nothing said yet", "→")
        window.type(f'/group new "Trip" {bob}\r')
        await window.until("you created the group", "of 1 online")
        window.type("/group leave\r")
        await window.until("you left", "(you are not in it)>", "you are not in this group any more")
        assert await window.leave("\x04") == 0
