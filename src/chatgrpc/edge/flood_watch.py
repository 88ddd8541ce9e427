"""Cuts connections that keep gRPC busy with bytes that become no message, and those that an address holds idle by the thousand.

gRPC works through all that one socket holds before it turns to the next, on a single thread here (`edge/engine.py`), and no
option of it bounds how many PING, SETTINGS or WINDOW_UPDATE frames a peer may send: they need no token, no call, and HTTP/2's
flow control does not cover them. Looking at every frame would cost each message as much as the server pays for it now. So the
watch looks only when something is wrong: when the process has used up the time since the last look and hardly any message
came of it. Then it compares what each connection took with what became messages, and shuts down those that explain it.

A connection on which no call is open costs little, and a descriptor of those that a process may have; gRPC closes it after two
minutes, and counts none. So the watch counts them by address, while there are many.

See ADR 8. On systems without Linux's TCP_INFO nothing is watched.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import socket
import struct
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import structlog

from chatgrpc.edge.shares import address_of

_log = structlog.get_logger(__name__)

_BYTES_RECEIVED_AT = 128
"""Where tcpi_bytes_received stands in Linux's struct tcp_info, since Linux 4.1."""
_MESSAGE_ALLOWANCE_BYTES = 1_024
"""What a message may cost in frames around it: its own, acknowledgements, windows, TLS; and a call in header fields."""
_PEERS_LOGGED = 8
_KNOWN_MIN = 4_096
_SOCKADDR_BYTES = 16
_AFTER_DEFECT_S = 10.0
_DESCRIPTORS = "/proc/self/fd"

_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class FloodLimits:
    """When the watch takes offence."""

    interval_s: float = 0.02
    """Between two looks at the process's clock."""
    interval_suspicious_s: float = 0.01
    """The same while something is wrong."""
    busy_share: float = 0.4
    """Share of a core; while the process uses less, there is room for everybody, and nothing is looked at."""
    cost_per_message_max_s: float = 0.001
    """A message takes some 60 µs, a megabyte of them a few milliseconds; past this something else takes the time."""
    cost_per_byte_min_s: float = 8e-9
    """Bytes that cost less are large messages on their way, however many: those of a message cost some 3 ns until it is there,
    and those of frames that become nothing 10 (PING) to 100."""
    strangers_bytes_max: int = 96 * 1024
    """Read from a connection that no call has ever come from, or unread in its socket. The first message of an innocent one may
    fill a window of 64 KiB before the event loop hears of its call; what is not under flow control goes on."""
    unexplained_bytes_max: int = 1_280 * 1024
    """Read from another connection, while something is wrong, without a message coming of it: more than the largest message,
    which may be on its way over a slow network, and what a window holds behind it."""
    idle_per_address_max: int = 1_000
    """Connections of one address on which no call is open; of more those are cut that have been idle the longest."""
    idle_interval_s: float = 1.0
    """Between two looks at them."""
    idle_grace_s: float = 5.0
    """So long one has to be seen idle before it is cut: when thousands come at once their calls are not heard of at once."""
    looking_share_max: float = 0.05
    """Share of the time that may be used for looking, however many connections there are."""


class Delivered:
    """Counts what reached the application, by connection (`peer` as gRPC writes it, `ipv4:127.0.0.1:50000`).

    Added to on the event loop, read on the watch's thread; each step is one operation on a dictionary.
    """

    __slots__ = ("_by_peer", "known", "open_calls")

    def __init__(self) -> None:
        self._by_peer: dict[str, int] = {}
        self.open_calls: dict[str, int] = {}
        """How many calls each connection has open; those without one are not in it."""
        self.known: dict[str, None] = {}
        """Connections that a call or a message has come from: a large message may be on its way on them."""

    def opened(self, peer: str) -> None:
        """A call was opened."""
        counts = self._by_peer
        if peer not in self.known:
            self.known[peer] = None
        counts[peer] = counts.get(peer, 0) + _MESSAGE_ALLOWANCE_BYTES
        self.open_calls[peer] = self.open_calls.get(peer, 0) + 1

    def closed(self, peer: str) -> None:
        """A call that was opened is over."""
        left = self.open_calls[peer] - 1
        if left:
            self.open_calls[peer] = left
        else:
            del self.open_calls[peer]

    def message(self, peer: str, size: int) -> None:
        """A message of so many bytes came."""
        counts = self._by_peer
        if peer not in self.known:
            self.known[peer] = None
        counts[peer] = counts.get(peer, 0) + size + _MESSAGE_ALLOWANCE_BYTES

    def take(self) -> dict[str, int]:
        """Bytes by connection since the last call, with an allowance for what goes with a message."""
        taken, self._by_peer = self._by_peer, {}
        return taken


@dataclass(slots=True)
class _Connection:
    """A connection at one look."""

    peer: str
    read: int
    """Bytes that gRPC has read from it since it was opened."""
    unread: int
    unexplained: int = 0
    """Bytes read since the first look, of which no message came."""


class FloodWatch:
    """Watches the connections to one port of this process, on a thread of its own."""

    def __init__(
        self, delivered: Delivered, limits: FloodLimits = FloodLimits(), on_cut: Callable[[int], None] = lambda _: None
    ) -> None:
        """
        Args:
            delivered: what reaches the application.
            limits: when to cut.
            on_cut: called on the watch's thread with the number of connections that were just cut.
        """
        self._delivered = delivered
        self._limits = limits
        self._on_cut = on_cut
        self._port = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_s = self._last_cpu_s = 0.0
        self._last_messages = 0
        self._to_cut: deque[str] = deque()
        self._cut_not_before_s = 0.0
        self._idle: dict[str, float] = {}  # since when, by connection; the longest first
        self._idle_not_before_s = 0.0
        self._seen: dict[int, _Connection] = {}
        self._known_max = _KNOWN_MIN

    @staticmethod
    def is_possible() -> bool:
        """Whether this system tells what a connection has received."""
        return sys.platform == "linux"

    def start(self, port: int) -> None:
        """Begins to watch the connections to the port."""
        if not self.is_possible():
            return
        self._port = port
        self._thread = threading.Thread(target=self._run, name="flood-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch and waits for its thread. Again does nothing."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        pause_s = self._limits.interval_s
        self._last_s, self._last_cpu_s = time.monotonic(), self._cpu_s()
        while not self._stopping.wait(pause_s):
            try:
                pause_s = self._turn()
            except Exception as defect:  # one look that fails must not be the last
                _log.error("flood_watch_failed", exc_info=defect)
                pause_s = _AFTER_DEFECT_S

    def _turn(self) -> float:
        """Looks at what is due; returns how long to wait for the next turn."""
        limits, now_s = self._limits, time.monotonic()
        delivered = self._delivered.take()
        used_s, passed_s = self._cpu_s() - self._last_cpu_s, now_s - self._last_s
        messages = sum(delivered.values()) // _MESSAGE_ALLOWANCE_BYTES
        earned = limits.cost_per_message_max_s * (messages + self._last_messages)  # the work for the last ones may be done now
        pause_s = limits.interval_s
        if used_s >= limits.busy_share * passed_s and used_s > earned:
            pause_s = max(limits.interval_suspicious_s, self._rest_after(partial(self.look, self._port, delivered, used_s)))
        else:
            self._seen = {}
            self._forget_closed()
        if self._to_cut and now_s >= self._cut_not_before_s:
            self._cut_not_before_s = now_s + self._rest_after(self._cut_asked)
        if now_s >= self._idle_not_before_s:
            rest_s = self._rest_after(partial(self.look_at_idle, self._port, now_s))
            self._idle_not_before_s = now_s + max(limits.idle_interval_s, rest_s)
        self._last_s, self._last_cpu_s, self._last_messages = now_s, self._cpu_s(), messages
        return pause_s

    def _rest_after(self, look: Callable[[], None]) -> float:
        """Looks, and says how long not to look again, so that looking takes its share of a core and no more."""
        began_s = time.thread_time()
        look()
        return (time.thread_time() - began_s) / self._limits.looking_share_max

    def _cpu_s(self) -> float:
        """What all threads of the process but this one have used."""
        return time.process_time() - time.thread_time()

    def look(self, port: int, delivered: dict[str, int], used_s: float) -> None:
        """Looks at all connections to the port and cuts those that were read without enough coming of it; something is wrong.

        Args:
            port: the server's.
            delivered: what `Delivered.take()` gave for the time since the last look.
            used_s: what the process has used since then.
        """
        known, seen_before, seen_now = self._delivered.known, self._seen, {}
        connections = _connections(port)
        taken = {
            fd: now.read - before.read
            for fd, now in connections
            if (before := seen_before.get(fd)) is not None and before.peer == now.peer
        }
        is_dear = used_s >= self._limits.cost_per_byte_min_s * sum(taken.values())
        guilty = []
        for fd, now in connections:
            if now.peer not in known:
                is_guilty = max(now.read, now.unread) > self._limits.strangers_bytes_max
            elif fd not in taken:
                is_guilty = False
            else:
                unexplained = seen_before[fd].unexplained
                now.unexplained = max(0, unexplained + (taken[fd] if is_dear else 0) - delivered.get(now.peer, 0))
                # At two looks: what came just now may be told as a message in a moment.
                is_guilty = min(unexplained, now.unexplained) > self._limits.unexplained_bytes_max
            if is_guilty:
                guilty.append((fd, now.peer))
            seen_now[fd] = now
        self._seen = seen_now
        self._tell([peer for fd, peer in guilty if _cut(fd, peer)], "flood")

    def look_at_idle(self, port: int, now_s: float) -> None:
        """Looks at the connections to the port on which no call is open, if there may be too many, and cuts those that are.

        Args:
            port: the server's.
            now_s: the time, by the monotonic clock.
        """
        busy, limit = self._delivered.open_calls, self._limits.idle_per_address_max
        if _descriptor_count() - len(busy) <= limit:
            self._idle = {}
            return
        idle = {
            connection.peer: fd
            for fd, connection in _connections(port)
            if connection.peer not in busy and not connection.unread  # else its call may be what gRPC has not come to
        }
        since_s = {peer: seen_s for peer, seen_s in self._idle.items() if peer in idle}
        self._idle = since_s | dict.fromkeys((peer for peer in idle if peer not in since_s), now_s)
        by_address: dict[str, list[str]] = {}
        for peer in self._idle:
            by_address.setdefault(address_of(peer), []).append(peer)
        surplus = [peer for peers in by_address.values() for peer in peers[: max(0, len(peers) - limit)]]
        last_s = now_s - self._limits.idle_grace_s
        self._tell(
            [peer for peer in surplus if self._idle[peer] <= last_s and peer not in busy and _cut(idle[peer], peer)], "idle"
        )

    def cut(self, peer: str) -> None:
        """Cuts a connection that has shown what it is. In a moment, on the watch's thread: it takes a look at all of them."""
        if self.is_possible():
            self._to_cut.append(peer)

    def _cut_asked(self) -> None:
        asked = set()
        while self._to_cut:
            asked.add(self._to_cut.popleft())
        wanted = [(fd, connection.peer) for fd, connection in _connections(self._port) if connection.peer in asked]
        self._tell([peer for fd, peer in wanted if _cut(fd, peer)], "header fields")

    def _tell(self, cut: list[str], reason: str) -> None:
        if cut:
            self._on_cut(len(cut))
            _log.warning("connections_cut", reason=reason, count=len(cut), peers=cut[:_PEERS_LOGGED])

    def _forget_closed(self) -> None:
        """Lets go of what was known of connections that are gone, before it becomes much."""
        known = self._delivered.known
        if len(known) > self._known_max:
            live = {connection.peer for _, connection in _connections(self._port)}
            for peer in list(known):
                if peer not in live:
                    known.pop(peer, None)
            self._known_max = 2 * len(live) + _KNOWN_MIN


def _descriptor_count() -> int:
    return os.stat(_DESCRIPTORS).st_size or len(list(_descriptors()))  # the size is their number since Linux 6.2, and was 0


def _descriptors() -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir(_DESCRIPTORS)]
    except OSError:  # it takes one to list them, and there is none: all are in use
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _connections(port: int) -> list[tuple[int, _Connection]]:
    """All connections to the port, with their descriptors."""
    read = ((fd, _connection(fd, port)) for fd in _descriptors())
    return [(fd, connection) for fd, connection in read if connection is not None]


def _connection(fd: int, port: int) -> _Connection | None:
    """Reads a descriptor, which gRPC may close or use again at any moment; then nothing, or another connection is read."""
    try:
        borrowed = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=fd)  # room for either kind of address
    except OSError:
        return None
    try:
        info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED_AT + 8)
        (received,) = struct.unpack_from("Q", info, _BYTES_RECEIVED_AT)
        if borrowed.getsockname()[1] != port:
            return None
        (unread,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))
        return _Connection(_peer_of(borrowed), received - unread, unread)
    except (OSError, struct.error, IndexError):
        return None
    finally:
        borrowed.detach()


def _peer_of(connection: socket.socket) -> str:
    """The peer as gRPC writes it."""
    host, port, *_ = connection.getpeername()
    if host.startswith("::ffff:") and "." in host:
        host = host.removeprefix("::ffff:")
    return f"ipv6:%5B{host.partition('%')[0]}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _cut(fd: int, peer: str) -> str | None:
    """Resets a connection and throws away what it still holds; gRPC reads an error next."""
    try:
        held = socket.socket(fileno=os.dup(fd))  # from here on it is this connection, whatever becomes of the number
    except OSError as error:
        if error.errno != errno.EMFILE:
            return None
        return _cut_borrowed(fd, peer)
    with held:
        return _reset(held, peer)


def _cut_borrowed(fd: int, peer: str) -> str | None:
    """The same where no descriptor is left to hold it by; the number is not given to another connection in between."""
    try:
        borrowed = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        return _reset(borrowed, peer)
    finally:
        borrowed.detach()


def _reset(connection: socket.socket, peer: str) -> str | None:
    with contextlib.suppress(OSError):
        if _peer_of(connection) != peer:
            return None
        # To no address (AF_UNSPEC): Linux resets the connection and empties both its queues, at once. Shutting it down would
        # leave what has come for gRPC to work through.
        if _libc.connect(connection.fileno(), bytes(_SOCKADDR_BYTES), _SOCKADDR_BYTES) != 0:
            connection.shutdown(socket.SHUT_RDWR)
        return peer
    return None
