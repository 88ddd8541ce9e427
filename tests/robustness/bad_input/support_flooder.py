"""Floods of HTTP/2 frames at full speed, by a peer that reads nothing: `python -m … PORT KIND BYTES CONNECTIONS`.

A process of its own, so that neither server nor innocent caller pays for its making. It prints `made`, floods once its standard
input ends, and when every connection has sent its bytes or has lost its peer it prints what became of them as JSON.
"""

import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable

from tests.contract.http2_peer import END_HEADERS, HEADERS, RST_STREAM, SETTINGS, frame
from tests.robustness.bad_input.support_http2 import ACK, CONTINUATION, DATA, PING, PRIORITY, WINDOW_UPDATE, headers, preface

SECONDS_MAX = 6.0
"""By then a flood is over, sent or not."""
_UNIT_BYTES = 64 * 1024

LIST_NODES = "/chatgrpc.v1.NodeService/ListNodes"


def _repeated(unit: bytes) -> Callable[[int], bytes]:
    return lambda size: unit * (size // len(unit))


def _resets(size: int) -> bytes:
    """Streams that are opened and reset at once."""
    pair = len(headers(1, path=LIST_NODES)) + 13
    return b"".join(
        headers(stream, path=LIST_NODES) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
        for stream in range(3, 3 + 2 * (size // pair), 2)
    )


def _hpack(size: int) -> bytes:
    """One field of 4,000 bytes in the dynamic table, then calls that name it 4,000 times each (RFC 7541 §6.1)."""
    value = b"v" * 3_900
    literal = b"\x40\x01x\x7f" + _rest(len(value)) + value  # with incremental indexing
    opening = headers(1, path=LIST_NODES)[9:]
    first = frame(HEADERS, END_HEADERS, 1, opening + literal)
    block = opening + b"\xbe" * 4_000
    once = len(block) + 9
    return first + b"".join(frame(HEADERS, END_HEADERS, 3 + 2 * number, block) for number in range(size // once))


def _rest(length: int) -> bytes:
    rest, out = length - 0x7F, bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes((*out, rest))


def _fields(size: int) -> bytes:
    """A block of fields that does not end: literals in CONTINUATION after CONTINUATION."""
    literal = b"\0\x04name\x7f" + _rest(16_000) + b"x" * 16_000
    return headers(1, flags=0) + frame(CONTINUATION, 0, 1, literal) * (size // 16_020 + 1)


FLOODS: dict[str, Callable[[int], bytes]] = {
    "PING": _repeated(frame(PING, 0, 0, b"12345678")),
    "PING ACK": _repeated(frame(PING, ACK, 0, b"12345678")),
    "WINDOW_UPDATE": _repeated(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))),
    "SETTINGS": _repeated(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535))),
    "SETTINGS, empty": _repeated(frame(SETTINGS, 0, 0)),
    "SETTINGS ACK": _repeated(frame(SETTINGS, ACK, 0)),
    "PRIORITY": _repeated(frame(PRIORITY, 0, 1, b"\0\0\0\0\0")),
    "RST_STREAM of nothing": _repeated(frame(RST_STREAM, 0, 1, struct.pack(">I", 8))),
    "unknown frames": _repeated(frame(0x77, 0, 0)),
    "empty DATA": lambda size: headers(1) + frame(DATA, 0, 1) * (size // 9),
    "CONTINUATION, empty": lambda size: headers(1, flags=0) + frame(CONTINUATION, 0, 1) * (size // 9),
    "CONTINUATION": _fields,
    "HPACK": _hpack,
    "streams reset": _resets,
    "noise": _repeated(bytes(range(256))),
}
"""What is sent behind preface and SETTINGS."""


def flood(port: int, kind: str, size: int, connections: int) -> dict[str, object]:
    """Sends so many bytes on each connection as fast as they are taken; holds all connections until the last is done."""
    script = preface(FLOODS[kind](size))
    waiting: dict[socket.socket, memoryview] = {}
    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setblocking(False)
        waiting[connection] = memoryview(script)
    peers, closed, unsent = list(waiting), 0, 0
    print("made", flush=True)
    sys.stdin.read()
    started_s = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for opened in peers:
            selector.register(opened, selectors.EVENT_WRITE, opened)
        while waiting and (left_s := started_s + SECONDS_MAX - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                peer: socket.socket = key.data
                try:
                    waiting[peer] = waiting[peer][peer.send(waiting[peer][:_UNIT_BYTES]) :]
                    is_done = not waiting[peer]
                except BlockingIOError:
                    continue
                except OSError:
                    closed, is_done = closed + 1, True
                if is_done:
                    selector.unregister(peer)
                    unsent += len(waiting.pop(peer))
    seconds = time.monotonic() - started_s
    time.sleep(1.0)  # what lies in the server's buffers is worked through with the connections open
    for used in peers:
        used.close()
    return {"seconds": seconds, "closed": closed, "unsent": unsent + sum(map(len, waiting.values()))}


if __name__ == "__main__":
    print(json.dumps(flood(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))), flush=True)
