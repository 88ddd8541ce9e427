"""How the commands reach a server and show who they are: tokens that end, TLS that does not fit, somebody else's token."""

import asyncio
import os
import re
import struct
import subprocess
from functools import partial
from pathlib import Path

import pytest

from chatgrpc.core.limits import Limits
from chatgrpc.v1 import chat_pb2, content_pb2, device_service_pb2, session_pb2
from chatgrpc_client import Client
from chatgrpc_client.cli.ending import advice
from chatgrpc_client.cli.screen import PlainScreen
from chatgrpc_client.cli.tail import _Printer
from chatgrpc_client.effects import disconnected
from chatgrpc_client.events import log_event
from chatgrpc_client.exceptions import TokenUnavailableError, stop_error
from chatgrpc_client.reachability import explain, host_of, is_loopback, proxy_of
from chatgrpc_client.unary import Devices
from tests.support import stepped_clock
from tests.support.cast import BRIEF_LIVES_S
from tests.support.server import ServerProcess

from .conftest import Home, until, watching
from .shell import CHATGRPC, TIMEOUT_S, Shell, certificate, parsed

Names = tuple[str, str, str]
STEERING = "\x1b]0;owned\x07 \u202egnp.exe"


@pytest.mark.parametrize("way", ["--token-file", "--token-command"])
async def test_a_chat_outlives_its_first_token(shell: Shell, names: Names, tmp_path: Path, way: str) -> None:
    alice, bob, _ = names
    kept, asked = tmp_path / "token", tmp_path / "asked"
    value = str(kept) if way == "--token-file" else f"echo once >> {asked}; cat {kept}"
    for ttl_s in BRIEF_LIVES_S[1:]:
        kept.write_text(shell.server.token(alice, ttl_s))
        async with shell.start("chat", "--as", alice, "--with", bob, way, value) as chat:
            await chat.until(lambda line: "nothing said yet" in line or _came_too_late(line))
            if any(map(_came_too_late, chat.lines)):
                assert ttl_s < BRIEF_LIVES_S[-1]
                continue
            kept.write_text(shell.server.token(alice, 3_600))
            await asyncio.sleep(ttl_s + 1)  # past the end of the first token
            chat.type("still here")
            await chat.until(lambda line: line.endswith("you: still here"))
            assert await chat.end() == 0
            return


@pytest.mark.parametrize("way", ["--token-file", "--token-command"])
async def test_a_chat_waits_for_whoever_renews_its_token_late(shell: Shell, names: Names, tmp_path: Path, way: str) -> None:
    alice, bob, _ = names
    kept = tmp_path / "token"
    value = str(kept) if way == "--token-file" else f"cat {kept}"
    for ttl_s in BRIEF_LIVES_S:
        kept.write_text(shell.server.token(alice, ttl_s))
        async with shell.start("chat", "--as", alice, "--with", bob, way, value) as chat:
            await chat.until(lambda line: "nothing said yet" in line or _came_too_late(line))
            if any(map(_came_too_late, chat.lines)):
                assert ttl_s < BRIEF_LIVES_S[-1]
                continue
            await chat.until(lambda line: "The token expired" in line and "another one is waited for" in line)
            chat.type("still here")
            kept.write_text(shell.server.token(alice, 3_600))
            await chat.until(lambda line: line.endswith("you: still here"))
            assert await chat.end() == 0
            return


def _came_too_late(line: str) -> bool:
    """On a busy machine: the token ran out before the room was shown."""
    return "not connected" in line or "no history" in line


def test_a_token_is_expired_when_the_server_says_so_and_not_the_clock_of_this_machine(
    shell: Shell, names: Names, tmp_path: Path
) -> None:
    alice, bob, _ = names
    (tmp_path / "token").write_text(shell.server.token(alice, 600))
    try:
        library = stepped_clock.build(tmp_path)
    except stepped_clock.NoCompilerError as missing:
        pytest.skip(str(missing))
    (tmp_path / "offset").write_bytes(struct.pack("=q", 7_200 * 10**9))
    ahead = {**shell.environment, **stepped_clock.preloaded(library, tmp_path / "offset")}
    for command in (
        ("send", "--as", alice, "--to", bob, "hello", "--token-file", str(tmp_path / "token")),
        ("history", "--as", alice, "--with", bob, "--token-command", f"cat {tmp_path / 'token'}"),
    ):
        done = subprocess.run((CHATGRPC, *command), env=ahead, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stderr
    assert "hello" in done.stdout


def test_a_token_comes_through_a_pipe_and_one_that_nobody_writes_holds_up_no_exit(
    shell: Shell, names: Names, tmp_path: Path
) -> None:
    alice, bob, _ = names
    history = f"{CHATGRPC} history --as {bob} --with {alice} --token-file <(echo {shell.server.token(bob)})"
    assert shell.call("send", "--as", alice, "--to", bob, "hello")[0] == 0
    done = subprocess.run(["bash", "-c", history], env=shell.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "hello" in done.stdout) == (0, True), done.stderr
    os.mkfifo(tmp_path / "pipe")
    for way in (("--token-file", str(tmp_path / "pipe")), ("--token-command", "sleep 60 & wait")):
        send = (CHATGRPC, "send", "--as", alice, "--to", bob, "x", "--timeout", "2", *way)
        done = subprocess.run(send, env=shell.environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 1
        assert "no token has been given yet" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_token_that_cannot_be_had_is_told(shell: Shell, names: Names, tmp_path: Path) -> None:
    alice, bob, _ = names
    before = ("history", "--as", alice, "--with", bob)
    for more, words in (
        (("--token-command", "echo 'log in first' >&2; exit 3"), "ended with status 3: log in first"),
        (("--token-command", "true"), "--token-command holds no token"),
        (("--token-command", "echo two words"), "that is no token"),
        (("--token-command", "printf 'a\\033b'"), "that is no token"),
        (("--token-file", str(tmp_path / "none")), "No such file"),
    ):
        code, lines = shell.call(*before, *more)
        assert (code, len(lines)) == (1, 1), lines
        assert words in lines[0]
    code, lines = shell.call("send", "--as", alice, "--to", bob, "x", "--timeout", "0.5", "--token-command", "exit 3")
    assert code == 1
    assert "no token could be had" in lines[0]
    assert shell.call(*before, "--token", "a", "--token-file", "b")[0] == 2


NO_TOKENS = ("", "two words", "one\ntwo", "one\rtwo", "tökön", "a\x1bb", "a\x7fb")


@pytest.mark.parametrize("given", NO_TOKENS)
def test_what_can_be_no_token_is_a_mistake_of_whoever_gave_it(shell: Shell, names: Names, given: str) -> None:
    alice, bob, _ = names
    for command in (("history", "--with", bob), ("devices",), ("send", "--to", bob, "x")):
        code, lines = shell.call(*command, "--as", alice, "--token", given)
        assert code == 2, lines
        assert "no token" in "".join(lines)


@pytest.mark.parametrize("given", NO_TOKENS)
async def test_a_provider_that_gives_what_can_be_no_token_is_told_so(home: Home, names: Names, given: str) -> None:
    client = home.device(names[0])
    client._token = partial(_given, given)
    async with client:
        with pytest.raises(TokenUnavailableError, match="no token"):
            await client.profiles.get()
        await until(lambda: "no token" in client.connection.message)


async def _given(token: str) -> str:
    return token


def test_the_hint_of_a_refused_token_fits_where_it_came_from(shell: Shell, names: Names, tmp_path: Path) -> None:
    alice, bob, _ = names
    before = ("history", "--as", alice, "--with", bob)
    foreign = "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUuY29tLyIsInN1YiI6ImEifQ.c2ln"
    _, lines = shell.call(*before, "--token", foreign)
    assert "https://id.example.com/ gives out new ones" in lines[0]
    assert "chatgrpc token" not in lines[0]
    _, lines = shell.call(*before, "--token", "forged")
    assert "`chatgrpc token USER` makes one for development" in lines[0]
    (tmp_path / "token").write_text("forged")
    _, lines = shell.call(*before, "--token-file", str(tmp_path / "token"))
    assert f"it stood in {tmp_path / 'token'}" in lines[0]
    shell.environment["CHATGRPC_DATA_DIR"] = str(tmp_path / "other")
    ServerProcess(tmp_path / "other").token(alice)  # makes a key that the server does not know
    _, lines = shell.call(*before)
    assert "made with the development key found here" in lines[0]


def test_another_users_token_is_refused_by_every_command(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    theirs = ("--as", bob, "--token", shell.server.token(alice))
    shell.call("send", "--as", alice, "--to", bob, "hello")
    for command in (
        ("devices",),
        ("devices", "--revoke", "x"),
        ("history", "--with", alice),
        ("send", "--to", alice, "x", "--timeout", "5"),
        ("tail",),
        ("chat", "--with", alice),
    ):
        code, lines = shell.call(*command, *theirs)
        assert code == 1, (command, lines)
        assert any(f"the token is {alice}'s, and" in line for line in lines), (command, lines)
        assert not any("hello" in line for line in lines)


def test_tls_that_does_not_fit_says_what_does_not(tmp_path: Path) -> None:
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    public, key = certificate(tmp_path / "right")
    other, _ = certificate(tmp_path / "wrong")
    with_tls = ServerProcess(
        tmp_path / "server", {"CHATGRPC_SERVER__TLS_CERT_FILE": str(public), "CHATGRPC_SERVER__TLS_KEY_FILE": str(key)}
    )
    without = ServerProcess(tmp_path / "plain")
    for server in (with_tls, without):
        server.token("alice")
    sending = ("send", "--as", "alice", "--to", "bob", "x", "--timeout", "1")
    try:
        asyncio.run(with_tls.start())
        asyncio.run(without.start())
        for server, more, words in (
            (with_tls, ("--tls-ca", str(other)), "its certificate is not trusted"),
            (with_tls, ("--tls",), "its certificate is not trusted"),
            (with_tls, (), "if it uses TLS, say so here too"),
            (without, ("--tls-ca", str(public)), "it does not speak TLS"),
        ):
            code, lines = Shell(server, tmp_path).call(*sending, *more)
            assert code == 1
            assert words in lines[0], lines
            assert ": OK" not in lines[0]
        code, lines = Shell(with_tls, tmp_path).call(*sending[:-1], "15", "--tls-ca", str(public))
        assert code == 0, lines
    finally:
        with_tls.close()
        without.close()


@pytest.mark.parametrize(
    ("reason", "tls", "words"),
    [
        (
            (
                "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal"
                ":CERTIFICATE_VERIFY_FAILED: certificate has expired: OK"
            ),
            True,
            "not trusted (certificate has expired); it must be renewed",
        ),
        (
            "Custom verification check failed with error: UNAUTHENTICATED: Hostname Verification Check failed.",
            True,
            "its certificate is not made out to chat.example.com",
        ),
        (
            (
                "Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame, got frame type 80) (Trying to connect an"
                " http1.x server (HTTP status 400))"
            ),
            False,
            "what answers there is no gRPC server",
        ),
        ("Failed to connect to remote host: Connection refused", False, "the server cannot be reached: Connection refused"),
    ],
)
def test_what_grpc_says_is_told_in_words(reason: str, tls: bool, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    details = f"failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:443: {reason}"
    said = explain(details, "chat.example.com:443", tls=tls)
    assert words in said
    assert not said.endswith("OK")
    assert explain("The store is away.", "chat.example.com:443", tls=tls) == "The store is away."


def test_which_addresses_are_of_this_machine_and_which_go_through_a_proxy() -> None:
    for address in (
        "127.0.0.1:1",
        "127.8.8.8:1",
        "[::1]:1",
        "localhost:1",
        "unix:/run/x",
        "ipv4:127.0.0.1:1",
        "dns:///localhost:1",
    ):
        assert is_loopback(address) or address.startswith("ipv4"), address
        assert proxy_of("127.0.0.1:1", {"http_proxy": "http://p:3"}) == ""
    assert host_of("[2001:db8::1]:443") == "2001:db8::1"
    assert proxy_of("a.example:1", {"http_proxy": "http://u:p@proxy:3128"}) == "http://proxy:3128 (http_proxy)"
    assert proxy_of("a.example:1", {"http_proxy": "http://proxy:3128", "no_proxy": "b.example,.example"}) == ""


def test_what_a_server_says_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for code in (200, 300, 301, 303, 304, 305):
        ending = disconnected(session_pb2.Disconnect(code=code, message=STEERING))  # type: ignore[arg-type]
        said = advice(stop_error(ending.code, ending.message), "hint")
        assert not re.search("[\x00-\x1f\x7f\u202e]", said), said
    PlainScreen().show(f"two\nlines {STEERING}")
    shown = capsys.readouterr().out
    assert shown.count("\n") == 2
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", shown)


def test_what_waits_is_listed_and_dropped(shell: Shell, names: Names) -> None:
    alice, bob, _ = names
    shell.call("send", "--as", alice, "--to", bob, "--server", "127.0.0.1:1", "--timeout", "0.2", "for nobody")
    shell.call("send", "--as", alice, "--to", bob, "--server", "127.0.0.1:2", "--timeout", "0.2", "nor this")
    _, lines = shell.call("queue", "--as", alice, "--json")
    listed = {line["text"]: line for line in parsed(lines)}
    assert {line["server"] for line in listed.values()} == {"127.0.0.1_1", "127.0.0.1_2"}
    assert (listed["nor this"]["status"], listed["nor this"]["to"]) == ("queued", bob)
    one = listed["for nobody"]["client_message_id"]
    assert shell.call("queue", "--as", alice, "--drop", one) == (0, ["dropped 1"])
    assert shell.call("queue", "--as", alice, "--drop", one)[0] == 1
    assert [line["text"] for line in parsed(shell.call("queue", "--as", alice, "--json")[1])] == ["nor this"]
    assert shell.call("queue", "--as", alice, "--drop", "all") == (0, ["dropped 1"])
    assert shell.call("queue", "--as", alice) == (0, ["nothing waits"])
    assert shell.call("queue", "--as", alice, "--data-dir", str(shell.server.data_dir / "none"))[0] == 2


def test_ids_that_a_server_says_steer_no_terminal(
    shell: Shell, names: Names, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = device_service_pb2.Device(device_id=f"a{STEERING}", name=STEERING)

    async def listed(_: Devices) -> list[device_service_pb2.Device]:
        return [device]

    async def revoked(_: Devices, device_id: str) -> device_service_pb2.Device:
        return device

    monkeypatch.setattr(Devices, "list", listed)
    monkeypatch.setattr(Devices, "revoke", revoked)
    for more in ((), ("--revoke", "a")):
        code, lines = shell.call("devices", "--as", names[0], *more)
        assert (code, len(lines)) == (0, 1)
        assert not re.search("[\x00-\x1f\x7f\u202e]", lines[0]), lines
    event = chat_pb2.ChatEvent(
        chat_id=f"d.{STEERING}", seq=1, content=content_pb2.Content(text=content_pb2.TextContent(text=STEERING))
    )
    for as_json in (False, True):
        _Printer(names[0], "", as_json).print(log_event(event))
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", capsys.readouterr().out)


async def test_history_shows_what_became_of_the_messages_that_it_shows(shell: Shell, home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice, home.device(bob_id) as bob:
        first = await (await alice.send("frist", user_id=bob_id)).sent
        await (await alice.send("second", user_id=bob_id)).sent
        await (await alice.edit(first.chat_id, 2, "first")).sent
        await (await bob.react(first.chat_id, 2, "👍")).sent
    for place in (("--before", "3"), ("--after", "1", "--limit", "1"), ("--all",)):
        _, lines = await shell.run("history", "--as", bob_id, "--with", alice_id, *place)
        (line,) = [line for line in lines if line.lstrip().startswith("#2")]
        assert line.endswith(f"{alice_id}: first  (edited)  [👍]"), (place, lines)


async def test_unread_counts_what_one_has_not_read_anywhere(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice, home.device(bob_id) as bob, home.device(bob_id, "tablet") as tablet:
        await bob.wait_until_live(TIMEOUT_S)
        await tablet.wait_until_live(TIMEOUT_S)
        chat_id = alice.direct_chat_id(bob_id)
        async with watching(bob) as seen:
            for text in ("one", "two", "three"):
                await (await alice.send(text, user_id=bob_id)).sent
            await (await bob.send("mine", chat_id=chat_id)).sent
            await (await alice.react(chat_id, 5, "👍")).sent
            await (await alice.react(chat_id, 5, "")).sent
            await (await alice.delete(chat_id, 4)).sent
            await seen.until(lambda: bool(seen.events) and any(getattr(e, "seq", 0) == 8 for e in seen.events))
            assert await bob.unread(chat_id) == 2
            await tablet.mark_read(chat_id, 2)
            async with asyncio.timeout(TIMEOUT_S):
                while await bob.unread(chat_id) != 1:
                    await asyncio.sleep(0.05)
            await tablet.mark_read(chat_id, 8)
            async with asyncio.timeout(TIMEOUT_S):
                while await bob.unread(chat_id):
                    await asyncio.sleep(0.05)


async def test_unread_leaves_out_what_was_said_while_one_was_not_in_the_group(shell: Shell, home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with (
        home.device(alice_id) as alice,
        home.device(bob_id) as bob,
        shell.start("chat", "--as", bob_id, "--with", alice_id) as chat,
    ):
        await chat.until(lambda line: "nothing said yet" in line)
        chat_id = (await alice.groups.create("Trip", [bob_id])).chat_id
        async with home.device(bob_id, "tablet") as tablet:
            await _say(alice, chat_id, 3)
            read = await _say(alice, chat_id, 1)
            await _held(tablet, chat_id, read)
        await bob.mark_read(chat_id, read)
        unread = await _say(alice, chat_id, 1)
        await _held(bob, chat_id, unread)
        await alice.groups.remove(chat_id, bob_id)
        await _say(alice, chat_id, 5)
        await alice.groups.add(chat_id, [bob_id])
        newest = await _say(alice, chat_id, 2)
        async with home.device(bob_id, "tablet") as tablet:
            for device in (bob, tablet):
                await _held(device, chat_id, newest)
                await _unread(device, chat_id, 3)  # one from before, and what came since
            await tablet.mark_read(chat_id, unread)
            for device in (bob, tablet):
                await _unread(device, chat_id, 2)
        await chat.until(lambda line: "added you to" in line)
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                chat.type("/chats")
                line = await chat.until(lambda line: line.endswith(chat_id))
                if "“Trip” (2 members), 2 new" in line:
                    break
                await asyncio.sleep(0.1)


async def _say(client: Client, chat_id: str, count: int) -> int:
    """Says something so many times; returns the number of the last."""
    return [(await (await client.send("hello", chat_id=chat_id)).sent).seq for _ in range(count)][-1]


async def _held(client: Client, chat_id: str, seq: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while (state := await client.chat(chat_id)) is None or state.seq < seq:
            await asyncio.sleep(0.05)


async def _unread(client: Client, chat_id: str, count: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while await client.unread(chat_id) != count:
            await asyncio.sleep(0.05)


async def test_a_user_whose_id_is_a_number_can_be_opened_as_the_client_says(shell: Shell, home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    for number in ("4915112345678", "42"):
        async with home.device(number) as caller, shell.start("chat", "--as", alice_id, "--with", bob_id) as alice:
            await alice.until(lambda line: "nothing said yet" in line)
            await (await caller.send("call me", user_id=alice_id)).sent
            line = await alice.until(lambda line: "wrote to you: " in line)
            alice.type(line.split("wrote to you: ")[1])
            await alice.until(lambda line: line.endswith(": call me"))
            alice.type("/edit 99 hi", "/react 99 x", "/delete 99", "/reply 99 x")
            for _ in range(4):
                await alice.until(lambda line: "there is no #99 yet" in line)
            assert await alice.end() == 3, "there is no #99"


def test_the_devices_of_jobs_take_no_place_from_those_that_last(shell: Shell, names: Names, tmp_path: Path) -> None:
    alice, bob, _ = names
    for number in range(12):
        shell.environment["XDG_DATA_HOME"] = str(tmp_path / f"home{number}")
        assert shell.call("send", "--as", alice, "--to", bob, f"build {number} is green")[0] == 0
    shell.environment["XDG_DATA_HOME"] = str(tmp_path / "phone")
    code, lines = shell.call("tail", "--as", alice, "--with", bob, "--count", "1")
    assert code == 0, lines
    _, lines = shell.call("devices", "--as", alice)
    assert len(lines) == 10
    assert sum("  tail  " in line for line in lines) == 1, lines


def test_send_needs_no_device_where_the_user_has_as_many_as_allowed(shell: Shell, names: Names, tmp_path: Path) -> None:
    """A job whose home is not kept is a new device each time, and went on until there were ten."""
    alice, bob, _ = names
    for number in range(13):
        shell.environment["XDG_DATA_HOME"] = str(tmp_path / f"home{number}")
        code, lines = shell.call("send", "--as", alice, "--to", bob, f"build {number} is green")
        assert (code, len(lines)) == (0, 1), lines
        assert lines[0].startswith(f"✓ sent to {bob} as #{number + 2} ")
    assert shell.call("queue", "--as", alice) == (0, ["nothing waits"])
    code, lines = shell.call("send", "--as", alice, "--chat", f"d.{'x' * 22}", "to nobody")
    assert (code, lines[0].startswith("chatgrpc: refused: there is no such chat")) == (3, True), lines
    _, lines = shell.call("history", "--as", bob, "--with", alice, "--json")
    assert [event["text"] for event in parsed(lines)[1:]] == [f"build {number} is green" for number in range(13)]


async def test_what_waited_from_earlier_and_goes_out_without_a_device_is_told_apart(
    shell: Shell, home: Home, names: Names
) -> None:
    alice, bob, carol = names
    nowhere = f"d.{'x' * 22}"
    for to in (("--to", carol), ("--chat", nowhere)):
        without_token = ("--token-command", "exit 3", "--timeout", "0.5")
        assert (await shell.run("send", "--as", alice, *to, "earlier", *without_token))[0] == 1
    for number in range(Limits().devices_per_user_max):
        async with home.device(alice, f"device{number}") as device:
            await device.wait_until_live(TIMEOUT_S)
    code, lines = await shell.run("send", "--as", alice, "--to", bob, "now")
    assert (code, sorted(line.split(" (")[0].split(", or ")[0] for line in lines)) == (
        3,
        [
            "chatgrpc: a message that waited from earlier was refused: there is no such chat",
            f"✓ a message that waited from earlier was sent to {carol} as #2",
            f"✓ sent to {bob} as #2",
        ],
    )


async def test_nothing_is_sent_with_somebody_elses_token_also_without_a_session(shell: Shell, home: Home, names: Names) -> None:
    alice, bob, carol = names
    for number in range(Limits().devices_per_user_max):
        async with home.device(alice, f"device{number}") as device:
            await device.wait_until_live(TIMEOUT_S)
    token = shell.server.token(alice)
    code, lines = await shell.run("send", "--as", bob, "--token", token, "--to", carol, "who am I?")
    assert code == 1
    assert f"the token is {alice}'s, and not {bob}'s" in lines[0]
    code, lines = await shell.run("send", "--as", alice, "--token", token, "--to", carol, "it is me")
    assert (code, lines[0].split(" (")[0]) == (0, f"✓ sent to {carol} as #2")  # behind the event that made the chat
