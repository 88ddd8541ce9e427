"""The commands, as a person or a script runs them, on a real server."""

import asyncio
import contextlib
import json
import re
import shutil
import signal
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chatgrpc.v1.session_pb2 import TYPING_KIND_STOPPED, TYPING_KIND_TEXT
from chatgrpc_client.datadir import DataDir
from chatgrpc_client.events import TypingChanged
from tests.support.server import ServerProcess

from .conftest import Home, watching
from .shell import TIMEOUT_S, Shell, certificate, parsed, terminal

Names = tuple[str, str, str]


def test_send_and_history_for_scripts(shell: Shell, names: Names) -> None:
    alice, bob, carol = names
    code, lines = shell.call("send", "--as", alice, "--to", bob, "first\x1b[2J \u202eline")
    assert code == 0
    assert re.fullmatch(rf"✓ sent to {bob} as #2 \(chat d\.\S{{22}}\)", lines[0])
    code, lines = shell.call("send", "--as", alice, "--to", bob, "second", "--json")
    (sent,) = parsed(lines)
    assert (code, sent["seq"], sent["status"]) == (0, 3, "sent")
    shell.call("send", "--as", bob, "--chat", sent["chat_id"], "third")

    code, lines = shell.call("history", "--as", bob, "--with", alice, "--json", "--all")
    events = parsed(lines)
    assert (code, [e["seq"] for e in events]) == (0, [1, 2, 3, 4])
    assert events[1]["text"] == "first\x1b[2J \u202eline"
    assert not {"\x1b", "\u202e"} & set(lines[1])
    assert (events[0]["type"], events[0]["kind"], events[0]["sender"]) == ("chat_created", "direct", alice)
    assert events[2]["client_message_id"] == sent["client_message_id"]
    for options, seqs in (
        (("--limit", "2"), [3, 4]),
        (("--before", "4", "--limit", "2"), [2, 3]),
        (("--after", "2", "--limit", "2"), [3, 4]),
        ((), [1, 2, 3, 4]),
    ):
        _, lines = shell.call("history", "--as", bob, "--with", alice, "--json", *options)
        assert [e["seq"] for e in parsed(lines)] == seqs

    code, lines = shell.call("history", "--as", bob, "--chat", sent["chat_id"])
    assert code == 0
    assert lines[1].endswith(f"{alice}: first\\x1b[2J \\u202eline")
    code, lines = shell.call("history", "--as", bob, "--with", carol)
    assert code == 1
    assert "not a member" in lines[0]


def test_a_refused_send_says_why(shell: Shell, names: Names) -> None:
    alice, _, _ = names
    code, lines = shell.call("send", "--as", alice, "--chat", "g.aaaaaaaaaaaaaaaaaaaaaa", "hello")
    assert code == 3
    assert "not a member" in lines[0]


def test_tail_counts_messages_and_goes_on_where_it_stopped(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    for text in ("one", "two", "three"):
        shell.call("send", "--as", alice, "--to", bob, text)
    code, lines = shell.call("tail", "--as", bob, "--json", "--count", "2")
    assert (code, [e["seq"] for e in parsed(lines)]) == (0, [1, 2, 3])
    code, lines = shell.call("tail", "--as", bob, "--count", "1")
    assert code == 0
    assert lines[0].endswith(f"{alice}: three")


async def test_tail_neither_skips_nor_repeats_across_interrupts(shell: Shell, home: Home, names: Names) -> None:
    alice, bob, _ = names
    got: list[int] = []
    async with shell.start("send", "--as", alice, "--to", bob, "-") as sender:

        async def flood() -> int:
            for number in range(400):
                sender.type(f"{number}")
                await asyncio.sleep(0.01)
            return await sender.end()

        flooding = asyncio.create_task(flood())
        for number, wanted in ((signal.SIGINT, 60), (signal.SIGTERM, 150), (signal.SIGINT, 401)):
            async with shell.start("tail", "--as", bob, "--json") as tail:
                await tail.until(lambda line, seq=wanted: json.loads(line)["seq"] >= seq)  # type: ignore[misc]
                assert await tail.end(number) == 130
                got += [event["seq"] for event in parsed(tail.lines)]
        assert await flooding == 0
    assert got == list(range(1, 402))


def test_devices_are_listed_and_revoked(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    shell.call("send", "--as", alice, "--to", bob, "hi")
    _, lines = shell.call("devices", "--as", alice)
    device_id = lines[0].split()[0]
    assert "send" in lines[0].split()[1:]
    assert shell.call("devices", "--as", alice, "--revoke", device_id)[0] == 0
    code, lines = shell.call("send", "--as", alice, "--to", bob, "again")
    assert code == 1
    assert "revoked" in lines[0]
    assert lines[1].startswith("1 message kept on disk")


def test_wrong_calls_say_what_is_wrong(shell: Shell, names: Names, tmp_path: Path) -> None:
    alice, bob, _ = names
    assert shell.call("send", "--as", alice, "text")[0] == 2
    assert shell.call("send", "--as", "no such user!", "--to", bob, "text")[0] == 2
    code, lines = shell.call("history", "--as", alice, "--with", bob, "--token", "forged")
    assert code == 1
    assert "chatgrpc token" in lines[0]
    with DataDir(tmp_path / "home" / "chatgrpc" / shell.server.address.replace(":", "_") / alice / "chat"):
        code, lines = shell.call("chat", "--as", alice, "--with", bob)
    assert code == 1
    assert "--device NAME" in lines[0]
    shell.environment["CHATGRPC_DATA_DIR"] = str(tmp_path / "nowhere")
    code, lines = shell.call("history", "--as", alice, "--with", bob)
    assert code == 2
    assert "chatgrpc serve" in lines[0]


def test_send_without_a_server_keeps_the_message_and_says_so(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "server")
    server.token("alice")  # makes the key
    shell = Shell(server, tmp_path)
    code, lines = shell.call("send", "--as", "alice", "--to", "bob", "kept", "--timeout", "0.5")
    assert code == 1
    assert "not sent yet: the server cannot be reached" in lines[0]
    assert "do not send the text again" in lines[1]
    try:
        asyncio.run(server.start())
        code, lines = shell.call("send", "--as", "alice", "--to", "bob", "later")
        assert (code, lines[-1]) == (0, "1 message that waited from earlier: sent too")
        _, lines = shell.call("history", "--as", "bob", "--with", "alice", "--json")
        assert [e.get("text") for e in parsed(lines)] == [None, "kept", "later"]
    finally:
        server.close()


def test_what_waits_for_a_server_never_goes_to_another(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    before, here = ("send", "--as", alice, "--to", bob), shell.server.address
    code, lines = shell.call(*before, "--server", "127.0.0.1:1", "--timeout", "0.5", "for the other one")
    assert (code, lines[1][:22]) == (1, "1 message kept on disk"), lines
    for wrong in (
        "localhost",
        "127.0.0.1:",
        "127.0.0.1:70000",
        "../x:1",
        "ftp://host:1",
        "",
        "127.0.0.1:1,",
        "127.0.0.1:1,localhost",
    ):
        code, lines = shell.call(*before, "--server", wrong, "--timeout", "0.5", "for nobody")
        assert code == 2, wrong
        assert any("HOST:PORT" in line for line in lines), lines
    code, lines = shell.call(*before, "--server", here, "for this one")
    assert (code, len(lines)) == (0, 1), "nothing waited from earlier"
    _, lines = shell.call("history", "--as", alice, "--with", bob, "--json", "--all")
    assert [e.get("text") for e in parsed(lines)] == [None, "for this one"]


def test_what_waits_for_one_node_goes_out_by_any_of_the_list_in_whatever_order(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    before, here = ("send", "--as", alice, "--to", bob), shell.server.address
    code, _ = shell.call(*before, "--server", "127.0.0.1:1,127.0.0.1:2", "--timeout", "0.5", "one")
    assert code == 1
    code, lines = shell.call(*before, "--server", "127.0.0.1:2, 127.0.0.1:1", "--timeout", "0.5", "two")
    assert (code, lines[1][:23]) == (1, "2 messages kept on disk"), lines
    code, lines = shell.call(*before, "--server", f"{here},127.0.0.1:1", "three")
    assert (code, lines[-1]) == (0, "2 messages that waited from earlier: sent too")
    for _ in range(4):  # whichever of them is tried first
        code, lines = shell.call("history", "--as", bob, "--with", alice, "--server", f"127.0.0.1:1,{here}", "--json")
        assert [e.get("text") for e in parsed(lines)] == [None, "one", "two", "three"]


def test_certificates_that_cannot_be_used_are_one_line(shell: Shell, names: Names, tmp_path: Path) -> None:
    alice, bob, _ = names
    (tmp_path / "no.pem").write_bytes(b"\xff\x00 not PEM")
    (tmp_path / "empty.pem").write_bytes(b"")
    for path, reason in (
        (tmp_path / "missing.pem", "No such file"),
        (tmp_path, "Is a directory"),
        *((tmp_path / name, "no certificates") for name in ("no.pem", "empty.pem")),
    ):
        for command in (("send", "--to", bob, "x"), ("chat", "--with", bob), ("tail",), ("history", "--with", bob)):
            code, lines = shell.call(*command, "--as", alice, "--tls-ca", str(path))
            assert (code, len(lines)) == (2, 1), lines
            assert lines[0].startswith("chatgrpc: --tls-ca: ")
            assert reason in lines[0]


async def test_send_waits_for_another_send_of_the_same_user(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    runs = await asyncio.gather(*(shell.run("send", "--as", alice, "--to", bob, f"{n}") for n in range(2)))
    assert [code for code, _ in runs] == [0, 0], runs


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("/nonsense", 3),
        ("/react 99 x", 3),
        ("/group add", 3),
        ("/open", 3),
        ("/open g.aaaaaaaaaaaaaaaaaaaaaa", 3),
        ("/group", 0),
        ("\n/help\n", 0),
    ],
)
async def test_lines_that_could_not_be_carried_out_do_not_end_with_0(shell: Shell, names: Names, typed: str, code: int) -> None:
    alice, bob, _ = names
    done, lines = await shell.run("chat", "--as", alice, "--with", bob, typed=typed)
    assert done == code, lines


async def test_an_empty_line_of_standard_input_is_no_message(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    code, lines = await shell.run("send", "--as", alice, "--to", bob, "-", typed="one\n\ntwo\n")
    assert (code, len(lines)) == (0, 2), lines


async def test_history_tells_of_a_reaction_to_a_message_further_up(shell: Shell, home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice:
        sent = await (await alice.send("hello", user_id=bob_id)).sent
        await (await alice.react(sent.chat_id, 2, "👍")).sent
    assert await shell.run("history", "--as", bob_id, "--with", alice_id, "--limit", "1") == (
        0,
        [f"       👍 {alice_id} reacted to #2"],
    )


async def test_a_chat_opens_with_its_newest_page_and_shows_older_ones_on_demand(shell: Shell, home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice:
        for number in range(1, 50):
            outgoing = await alice.send(f"message {number}", user_id=bob_id)
        await outgoing.sent
    async with shell.start("chat", "--as", bob_id, "--with", alice_id) as bob:
        await bob.until(lambda line: line.endswith("message 49"))
        assert [line.split()[-1] for line in bob.lines if "message" in line] == [str(n) for n in range(30, 50)]
        bob.type("/older", "/older", "/older", "/older")
        await bob.until(lambda line: "that is the beginning" in line)
        assert await bob.end() == 0
        shown = [int(line.split()[-1]) for line in bob.lines if re.search(r"message \d+$", line)]
        assert shown == [*range(30, 50), *range(10, 30), *range(1, 10)]


async def test_pages_of_which_everything_is_hidden_are_not_the_beginning_of_the_chat(
    shell: Shell, home: Home, names: Names
) -> None:
    alice_id, bob_id, _ = names
    chat = ("chat", "--as", alice_id, "--with", bob_id)
    async with home.device(bob_id) as bob:
        for number in range(2, 51):
            outgoing = await bob.send(f"message {number}", user_id=alice_id)
        await outgoing.sent
    async with shell.start(*chat) as alice:
        await alice.until(lambda line: line.endswith("message 50"))
        alice.type(f"/hide {' '.join(str(seq) for seq in range(11, 51))}")
        await alice.until(lambda line: "hidden for you: #11" in line)
        assert await alice.end() == 0
    async with shell.start(*chat) as alice:
        await alice.until(lambda line: "#31 to #50 are hidden for you" in line)
        alice.type("/older", "/older", "/older")
        await alice.until(lambda line: "#11 to #30 are hidden for you" in line)
        await alice.until(lambda line: line.endswith("message 10"))
        await alice.until(lambda line: "that is the beginning" in line)
        assert await alice.end() == 0
        assert "nothing said yet" not in "".join(alice.lines)


async def test_what_became_of_a_hidden_message_is_not_shown_by_another_run(shell: Shell, home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    chat = ("chat", "--as", alice_id, "--with", bob_id)
    async with home.device(bob_id) as bob:
        sent = await (await bob.send("the secret", user_id=alice_id)).sent
        async with shell.start(*chat) as alice:
            await alice.until(lambda line: line.endswith("the secret"))
            alice.type("/hide 2")
            await alice.until(lambda line: "hidden for you: #2" in line)
            assert await alice.end() == 0
        await (await bob.edit(sent.chat_id, 2, "the secret as it was")).sent
        await (await bob.send("on the page", user_id=alice_id)).sent
        async with shell.start(*chat) as alice:
            await alice.until(lambda line: line.endswith("on the page"))
            await (await bob.edit(sent.chat_id, 2, "the secret as it is")).sent
            await (await bob.send("live", user_id=alice_id)).sent
            await alice.until(lambda line: line.endswith("live"))
            assert await alice.end() == 0
            assert "secret" not in "".join(alice.lines)


def test_over_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    tls = {"CHATGRPC_SERVER__TLS_CERT_FILE": str(cert), "CHATGRPC_SERVER__TLS_KEY_FILE": str(key)}
    server = ServerProcess(tmp_path / "server", tls)
    shell = Shell(server, tmp_path)
    try:
        asyncio.run(server.start())
        trusting = ("--as", "alice", "--to", "bob", "--tls-ca", str(cert))
        assert shell.call("send", *trusting, "sealed")[0] == 0
        code, lines = shell.call("history", "--as", "bob", "--with", "alice", "--tls-ca", str(cert), "--json")
        assert (code, parsed(lines)[-1]["text"]) == (0, "sealed")
        code, lines = shell.call("send", "--as", "alice", "--to", "bob", "--timeout", "1", "in the clear")
        assert code == 1
        assert "not sent yet" in lines[0]
    finally:
        server.close()


async def test_a_chat_through_pipes(shell: Shell, home: Home, names: Names) -> None:
    alice_id, bob_id, carol_id = names
    async with home.device(bob_id) as bob, shell.start("chat", "--as", alice_id, "--with", bob_id) as alice:
        await alice.until(lambda line: "nothing said yet" in line)
        alice.type("hello", "/edit 2 hello!", "/nonsense")
        await alice.until(lambda line: "no command /nonsense" in line)
        await alice.until(lambda line: "✓✓ delivered #2" in line)
        chat_id = bob.direct_chat_id(alice_id)
        await bob.mark_read(chat_id, 3)
        await alice.until(lambda line: line.strip() == "✓✓ read #2")
        bob.typing(chat_id)
        await alice.until(lambda line: f"{bob_id} is typing…" in line)
        await (await bob.send("hi \x1b[31mred", user_id=alice_id, reply_to_seq=2)).sent
        await alice.until(lambda line: line.endswith(f"{bob_id}: ↳#2 “hello!” hi \\x1b[31mred"))
        alice.type("/react 4 👍", f"/forward 4 {carol_id}", "/delete 2", "/hide 4", "/who", "/chats")
        await alice.until(lambda line: "hidden for you: #4" in line)
        alice.type(f'/group new "Book club" {bob_id}', "hi group", "/group rename Film club", f"/group role {bob_id} admin")
        await alice.until(lambda line: f"you made {bob_id} an admin" in line)
        alice.type("/group link ask")
        token = (await alice.until(lambda line: "/group join" in line)).split()[-1]
        async with shell.start("chat", "--as", carol_id, "--with", bob_id) as carol:
            carol.type(f"/group join {token}")
            await carol.until(lambda line: "an admin of the group must let you in" in line)
            await alice.until(lambda line: f"{carol_id} asks to be let in" in line)
            alice.type(f"/group approve {carol_id}")
            await alice.until(lambda line: f"you added {carol_id}" in line)
            assert await carol.end() == 0
        alice.type(f"/group mute {carol_id} 5", f"/group remove {carol_id}", "/group leave")
        await alice.until(lambda line: line.endswith(f"you left; {bob_id} owns the group now"))
        assert await alice.end() == 3, "/nonsense was not carried out"
        output = "\n".join(alice.lines)
        for wanted in ("you edited #2: hello!", "👍 you reacted to #4", "you deleted #2", "/open N goes there", "Film club"):
            assert wanted in output
        page = await bob.history(chat_id, limit=50)
        assert [e.content.WhichOneof("body") for e in page.events] == [
            "chat_created",
            "erased",
            "erased",
            "text",
            "reaction",
            "delete",
        ]


async def test_other_chats_are_named_by_their_titles_and_opened_by_number(shell: Shell, home: Home, names: Names) -> None:
    alice_id, bob_id, carol_id = names
    async with home.device(alice_id) as alice, shell.start("chat", "--as", bob_id, "--with", carol_id) as bob:
        await bob.until(lambda line: "nothing said yet" in line)
        team = await alice.groups.create("Team", [bob_id])
        number = (await bob.until(lambda line: f"✉ {alice_id} added you to “Team”: /open " in line)).split()[-1]
        other = await alice.groups.create("Other", [])
        await alice.groups.add(other.chat_id, [bob_id])
        await bob.until(lambda line: f"✉ {alice_id} added you to “Other”: /open 2" in line)
        await (await alice.send("to all", chat_id=team.chat_id)).sent
        await bob.until(lambda line: line.strip() == f"✉ {alice_id} wrote in “Team”: /open {number}")
        await (await alice.send("to you", user_id=bob_id)).sent
        await bob.until(lambda line: line.strip() == f"✉ {alice_id} wrote to you: /open {alice_id}")
        bob.type(f"/open {number}")
        await bob.until(lambda line: line.endswith(f"{alice_id}: to all"))
        bob.type("/hide 99", "/open 99", "/open what ever", "/group")
        await bob.until(lambda line: "there is no #99 yet" in line)
        await bob.until(lambda line: "a number that /chats lists; 99 is none" in line)
        await bob.until(lambda line: "the first a letter or digit" in line)
        await bob.until(lambda line: "/group decline USER" in line)
        await alice.groups.mute(team.chat_id, bob_id, int(datetime.now(UTC).timestamp() * 1000) + 3_600_000)
        await bob.until(lambda line: f"{alice_id} muted you until" in line)
        bob.type("may I")
        await bob.until(lambda line: re.search(r"✗ refused: .*muted.* for \d+ (?:minutes|s) more\. ", f"{line} ") is not None)
        bob.type('/group new "Mine"')
        await bob.until(lambda line: "you created the group “Mine”" in line)
        bob.type(f"/open g.{'a' * 22}")
        await bob.until(lambda line: "✗ there is no such chat, or you are not a member of it (/chats lists yours)" in line)
        assert await bob.end() == 3, "a message was refused"
        assert not [line for line in bob.lines if "“Mine”; type" in line or "in “”" in line]


def test_names_that_cannot_be_are_refused_before_anything_is_kept(shell: Shell, names: Names) -> None:
    alice, _, _ = names
    for command in (
        ("send", "--to", "no one!", "x"),
        ("chat", "--with", "_bob"),
        ("history", "--with", "b ob"),
        ("tail", "--with", "é"),
        ("send", "--chat", "Team", "x"),
        ("chat", "--group", "Team"),
        ("history", "--chat", "Team"),
        ("tail", "--chat", "Team"),
    ):
        code, lines = shell.call(*command, "--as", alice)
        assert code == 2, (command, lines)
        assert any(f"'{command[1]}'" in line for line in lines), lines


async def until_queued(folder: Path, count: int) -> None:
    """Waits until so many messages of the device under this folder are on its disk, and wait to be sent."""
    async with asyncio.timeout(TIMEOUT_S):
        while queued(folder) != count:
            await asyncio.sleep(0.05)


def queued(folder: Path) -> int:
    (path,) = folder.rglob("store.sqlite3")
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as stored:
        return int(stored.execute("SELECT count(*) FROM outbox").fetchone()[0])


@pytest.mark.slow
async def test_a_chat_survives_kills_of_the_server_and_of_itself(own_server: ServerProcess, tmp_path: Path) -> None:
    """The main job: what was typed meanwhile is sent once, in order."""
    shell, typed = Shell(own_server, tmp_path), [f"line {number}" for number in range(60)]
    async with shell.start("chat", "--as", "alice", "--with", "bob") as alice:
        await alice.until(lambda line: "nothing said yet" in line)
        alice.type(*typed[:10])
        await alice.until(lambda line: line.endswith("you: line 9"))
        alice.type(*typed[10:20])
        own_server.kill()
        alice.type(*typed[20:28])
        await alice.until(lambda line: "not connected" in line)
        await own_server.start()
        alice.type(*typed[28:30])  # who types is not kept waiting for the next try
        await alice.until(lambda line: line.endswith("you: line 29"))
        own_server.kill()
        alice.type(*typed[30:40])
        await until_queued(tmp_path, 10)
        assert await alice.end(signal.SIGTERM) == 130
    async with shell.start("chat", "--as", "alice", "--with", "bob") as alice:
        alice.type(*typed[40:50])
        await alice.until(lambda line: "not connected" in line)
        await until_queued(tmp_path, 20)
        alice.process.kill()
        await alice.process.wait()
    await own_server.start()
    code, _ = await shell.run("chat", "--as", "alice", "--with", "bob", typed="\n".join(typed[50:]))
    assert code == 0
    _, lines = await shell.run("history", "--as", "bob", "--with", "alice", "--json", "--all")
    said = [event["text"] for event in parsed(lines) if event["type"] == "text"]
    assert said == typed


async def test_a_refusal_in_a_terminal_is_one_line_and_the_next_line_is_sent(shell: Shell, home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice, terminal(shell, "chat", "--as", bob_id, "--with", alice_id) as bob:
        await bob.until("nothing said yet", "→")
        await (await alice.send("mine", user_id=bob_id)).sent
        await bob.until(f"{alice_id}: mine")
        bob.type("/edit 2 not mine\r")
        await bob.until("✗ refused: ")
        bob.type("still here\r")
        await bob.until("you: still here")
        assert "Unhandled exception" not in bob.all
        assert await bob.leave("\x04") == 0
        assert "Unhandled exception" not in bob.all


async def test_a_token_that_is_refused_in_an_open_chat_ends_it_with_one_line(own_server: ServerProcess, tmp_path: Path) -> None:
    shell = Shell(own_server, tmp_path)
    async with terminal(shell, "chat", "--as", "alice", "--with", "bob") as alice:
        await alice.until("nothing said yet", "→")
        own_server.kill()
        await alice.until("waiting: ", "; next try in ")
        assert "offline" not in alice.all.split("waiting: ", 1)[1]
        alice.type("waits\r")
        await alice.until("⌛ waits")
        shutil.rmtree(own_server.data_dir)
        await own_server.start()
        await alice.until("chatgrpc: the server refuses the token", "run `chatgrpc chat` again: it makes its own token")
        assert await asyncio.wait_for(alice.process.wait(), TIMEOUT_S) == 1
        assert "Unhandled exception" not in alice.all
        assert "Traceback" not in alice.all
        assert "never retrieved" not in alice.all


async def test_typing_is_told_at_once_after_a_message_and_taken_back_with_the_line(
    shell: Shell, home: Home, names: Names
) -> None:
    alice_id, bob_id, _ = names
    async with (
        home.device(alice_id) as alice,
        watching(alice) as seen,
        terminal(shell, "chat", "--as", bob_id, "--with", alice_id) as bob,
    ):
        await (await alice.send("hello", user_id=bob_id)).sent
        alice.watch([alice.direct_chat_id(bob_id)])
        await bob.until(f"{alice_id}: hello")

        def kinds() -> list[int]:
            return [e.typing.kind for e in seen.of(TypingChanged)]

        bob.type("a")
        await seen.until(lambda: kinds() == [TYPING_KIND_TEXT])
        bob.type("\r")
        await bob.until("you: a")
        await asyncio.sleep(1.1)  # the server drops typing within a second of the one before
        bob.type("b")
        await seen.until(lambda: kinds() == [TYPING_KIND_TEXT] * 2)
        bob.type("\x15")  # Ctrl-U
        await seen.until(lambda: kinds() == [TYPING_KIND_TEXT] * 2 + [TYPING_KIND_STOPPED])


async def test_an_interrupt_takes_the_line_back_before_it_leaves(shell: Shell, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with terminal(shell, "chat", "--as", alice_id, "--with", bob_id) as alice:
        await alice.until("nothing said yet", "→")
        alice.type("half a li")
        await alice.until("half a li")
        alice.type("\x03")
        await alice.until("Ctrl-C again or Ctrl-D leaves")
        alice.type("whole\r")
        await alice.until("you: whole", "✓ sent #2")
        alice.type("/who\r")
        await alice.until(f"{bob_id}: offline, has not read yet")
        assert await alice.leave("\x03") == 0


async def test_two_people_in_two_terminals(shell: Shell, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with (
        terminal(shell, "chat", "--as", alice_id, "--with", bob_id) as alice,
        terminal(shell, "chat", "--as", bob_id, "--with", alice_id) as bob,
    ):
        await alice.until("nothing said yet", f"{alice_id} → {bob_id}>")
        await bob.until("nothing said yet")
        alice.type("hello bob\r")
        await alice.until("you: hello bob", "✓✓ read #2")
        await bob.until(f"{alice_id}: hello bob")
        bob.type("I am typ")
        await alice.until("is typing…")
        bob.type("ing\r")
        await alice.until(f"{bob_id}: I am typing", "online")
        alice.type("/react 3 👍\r")
        await bob.until(f"👍 {alice_id} reacted to #3 “I am typing”")
        assert await alice.leave("\x04") == 0
        await bob.until("last seen")
        assert await bob.leave("\x03") == 0
