"""Who is cut when something keeps gRPC busy: on real connections of this process, read by the test in gRPC's place."""

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from chatgrpc.core.limits import Limits
from chatgrpc.edge import flood_watch
from chatgrpc.edge.flood_watch import Delivered, FloodLimits, FloodWatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a connection has received")

LIMITS = FloodLimits(strangers_bytes_max=16_384, unexplained_bytes_max=24_000, idle_per_address_max=2, idle_grace_s=5)
MUCH = b"x" * 20_000


class Connection:
    """Both ends of one."""

    def __init__(self, server: socket.socket) -> None:
        host, port, *_ = server.getsockname()
        self.client = socket.create_connection((host, port))
        self.served, _ = server.accept()
        name, port, *_ = self.client.getsockname()
        self.peer = f"ipv6:%5B{name}%5D:{port}" if ":" in name else f"ipv4:{name}:{port}"

    def takes(self, message: bytes) -> None:
        """The client sends this, and gRPC reads it."""
        self.client.sendall(message)
        left = len(message)
        while left:
            left -= len(self.served.recv(left))

    def waits(self, message: bytes) -> None:
        """The client sends this, and gRPC has not come to it."""
        self.client.sendall(message)
        while len(self.served.recv(len(message), socket.MSG_PEEK)) < len(message):
            time.sleep(0.001)

    @property
    def is_cut(self) -> bool:
        """Whether the client's next byte meets a reset."""
        self.client.settimeout(0.2)
        try:
            return self.client.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True


class Watched:
    """A port, its connections, and the watch on them."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.cut: list[int] = []
        self.delivered = Delivered()
        self.watch = FloodWatch(self.delivered, LIMITS, self.cut.append)
        self.connections: list[Connection] = []

    def connect(self) -> Connection:
        self.connections.append(Connection(self.server))
        return self.connections[-1]

    def look(self, used_s: float = 1.0) -> None:
        self.watch.look(self.server.getsockname()[1], self.delivered.take(), used_s)

    def look_at_idle(self, now_s: float) -> None:
        self.watch.look_at_idle(self.server.getsockname()[1], now_s)

    def close(self) -> None:
        for connection in self.connections:
            for end in (connection.client, connection.served):
                with contextlib.suppress(OSError):
                    end.close()


@pytest.fixture(params=["127.0.0.1", "::1"])
def watched(request: pytest.FixtureRequest) -> Iterator[Watched]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as server:
        watched = Watched(server)
        yield watched
        watched.close()


def test_a_stranger_that_is_read_for_nothing_is_cut_and_a_client_is_not(watched: Watched) -> None:
    flooder, client, idle = watched.connect(), watched.connect(), watched.connect()
    flooder.takes(MUCH)
    client.takes(MUCH)
    idle.takes(b"hello")
    watched.delivered.opened(client.peer)
    watched.delivered.message(client.peer, len(MUCH))
    watched.look()
    assert (flooder.is_cut, client.is_cut, idle.is_cut) == (True, False, False)
    assert watched.cut == [1]


def test_what_a_cut_connection_still_holds_is_thrown_away(watched: Watched) -> None:
    flooder = watched.connect()
    flooder.waits(b"x" * (LIMITS.strangers_bytes_max + 1))
    watched.look()
    with pytest.raises(ConnectionResetError):
        flooder.served.recv(1024)


def test_a_large_message_on_its_way_is_waited_for(watched: Watched) -> None:
    client = watched.connect()
    client.takes(b"hello")
    watched.delivered.message(client.peer, 5)
    watched.look()
    client.takes(MUCH)
    watched.look()  # not yet a message
    watched.delivered.message(client.peer, len(MUCH))
    watched.look()
    assert not client.is_cut


def test_large_messages_of_many_calls_on_one_connection_are_waited_for(watched: Watched) -> None:
    """They cost too little to be anything else, however many; the work for those that came before is the process's."""
    client = watched.connect()
    client.takes(b"hello")
    watched.delivered.message(client.peer, 5)
    watched.look()
    messages = 5 * MUCH
    client.takes(messages)
    assert len(messages) > LIMITS.unexplained_bytes_max
    watched.look(used_s=0.9 * len(messages) * LIMITS.cost_per_byte_min_s)
    watched.look()
    assert not client.is_cut
    client.takes(messages)
    watched.look(used_s=1.1 * len(messages) * LIMITS.cost_per_byte_min_s)
    assert not client.is_cut
    watched.look()
    assert client.is_cut


def test_a_large_message_over_a_slow_network_is_waited_for(watched: Watched) -> None:
    limits = FloodLimits()
    assert limits.unexplained_bytes_max > Limits().batch_bytes_max + 64 * 1024, "the largest message, and a window"
    client = watched.connect()
    client.takes(b"hello")
    watched.delivered.message(client.peer, 5)
    for _ in range(8):
        watched.look()
        client.takes(b"x" * 2_900)
    watched.delivered.message(client.peer, 8 * 2_900)
    for _ in range(8):
        watched.look()
        client.takes(b"x" * 2_900)
    assert not client.is_cut


def test_a_first_message_that_is_large_is_waited_for(watched: Watched) -> None:
    """A Hello may be: first the loop has not heard of its call, then not of the whole message."""
    assert FloodLimits().strangers_bytes_max > 64 * 1024, "what a stream's window holds before the call is heard of"
    client = watched.connect()
    client.takes(b"x" * LIMITS.strangers_bytes_max)
    watched.look()
    watched.delivered.opened(client.peer)
    client.takes(MUCH)
    watched.look()
    watched.delivered.message(client.peer, len(MUCH) + LIMITS.strangers_bytes_max)
    watched.look()
    assert not client.is_cut


def test_a_client_that_turns_to_flooding_is_cut(watched: Watched) -> None:
    client = watched.connect()
    client.takes(b"hello")
    watched.delivered.message(client.peer, 5)
    watched.look()
    for _ in range(3):
        client.takes(MUCH)
        watched.look()
    assert client.is_cut


def test_connections_of_other_ports_are_left_alone(watched: Watched) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        elsewhere = Connection(other)
        elsewhere.takes(MUCH)
        watched.look()
        assert not elsewhere.is_cut
        elsewhere.client.close()
        elsewhere.served.close()


def test_of_too_many_idle_connections_those_that_were_idle_first_are_cut(watched: Watched) -> None:
    """Also those that have not said a word; not those with a call, nor one whose call may not have been heard of."""
    first, second, busy, third, unheard = (watched.connect() for _ in range(5))
    second.takes(b"hello")
    unheard.waits(b"a call")
    watched.delivered.opened(busy.peer)
    watched.look_at_idle(0.0)
    newer, newest = watched.connect(), watched.connect()
    watched.look_at_idle(4.9)
    assert watched.cut == []
    watched.look_at_idle(5.0)
    assert watched.cut == [3]
    assert [connection.is_cut for connection in (first, second, third)] == [True] * 3
    assert not any(connection.is_cut for connection in (busy, newer, newest, unheard))


def test_a_connection_whose_calls_are_over_is_idle(watched: Watched) -> None:
    used, _, _ = (watched.connect() for _ in range(3))
    watched.delivered.opened(used.peer)
    watched.delivered.opened(used.peer)
    watched.delivered.closed(used.peer)
    watched.look_at_idle(0.0)
    watched.look_at_idle(5.0)
    assert watched.cut == []
    watched.delivered.closed(used.peer)
    watched.look_at_idle(10.0)
    watched.look_at_idle(15.0)
    assert watched.cut == [1]


def test_without_a_descriptor_left_the_watch_goes_on(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when strangers have used them up: neither the list of them nor a copy of one can be had."""
    connections = [watched.connect() for _ in range(3)]

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "listdir", none_left)
    monkeypatch.setattr(os, "dup", none_left)
    watched.look_at_idle(0.0)
    watched.look_at_idle(5.0)
    assert watched.cut == [1]
    assert [connection.is_cut for connection in connections].count(True) == 1


def test_who_is_to_be_cut_is_cut_by_the_thread(watched: Watched) -> None:
    guilty, other = watched.connect(), watched.connect()
    watched.watch.start(watched.server.getsockname()[1])
    try:
        watched.watch.cut(guilty.peer)
        give_up_at = time.monotonic() + 10
        while not watched.cut and time.monotonic() < give_up_at:
            time.sleep(0.01)
    finally:
        watched.watch.stop()
    assert guilty.is_cut
    assert not other.is_cut


def test_a_look_that_fails_is_not_the_last(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood_watch, "_AFTER_DEFECT_S", 0.01)
    failures = iter([OSError("no look today")])
    count = flood_watch._descriptor_count

    def fails_once() -> int:
        for failure in failures:
            raise failure
        return count()

    monkeypatch.setattr(flood_watch, "_descriptor_count", fails_once)
    idle = [watched.connect() for _ in range(3)]
    watched.watch = FloodWatch(watched.delivered, replace(LIMITS, idle_interval_s=0.01, idle_grace_s=0.01), watched.cut.append)
    watched.watch.start(watched.server.getsockname()[1])
    try:
        give_up_at = time.monotonic() + 10
        while not watched.cut and time.monotonic() < give_up_at:
            time.sleep(0.01)
    finally:
        watched.watch.stop()
    assert [connection.is_cut for connection in idle].count(True) == 1
