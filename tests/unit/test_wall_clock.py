"""The wall clock is read in few places: what waits, is paced or comes in order must not go by a clock that can be stepped."""

import ast
from collections.abc import Iterator
from pathlib import Path

import chatgrpc

ROOT = Path(chatgrpc.__file__).parent
WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}
READERS = {
    "ports/lease_clock.py": "the one place from which the server takes it",
    "cli/main.py": "the expiry of a token that a developer asks for",
    "adapters/etcd/cluster.py": "the first epoch of a new cluster, above those of the one before it",
}
TAKERS = {
    "cluster/ordering.py": "events are stamped",
    "cluster/presence.py": "when a user was seen last, for people",
    "adapters/redis/last_seen.py": "the same",
    "edge/node.py": "devices, tokens and stamps, which people see",
    "edge/interceptors.py": "tokens",
    "edge/revocations.py": "the same",
    "embedded/audience.py": "when a user was seen last, for people",
}
"""Modules that take it from there, and what for."""


def reads_wall_clock(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in WALL:
            return True
        if isinstance(node, ast.ImportFrom) and any((node.module, alias.name) in WALL for alias in node.names):
            return True
    return False


def takes_both_clocks(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "chatgrpc.ports.lease_clock"
        and {alias.name for alias in node.names} & {"now", "wall_clock_ms"}
        for node in ast.walk(tree)
    )


def modules() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(ROOT.rglob("*.py")):
        if "_pb2" not in path.name:
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def test_few_modules_read_the_wall_clock() -> None:
    assert {name for name, tree in modules() if reads_wall_clock(tree)} == READERS.keys()
    assert {name for name, tree in modules() if takes_both_clocks(tree)} == TAKERS.keys()


def test_a_reading_is_found() -> None:
    for source in ("import time\nx = time.time()", "from time import time_ns", "from datetime import datetime\ndatetime.now()"):
        assert reads_wall_clock(ast.parse(source))
    assert not reads_wall_clock(ast.parse("import time\nx = time.monotonic()"))
