"""What `chatgrpc cluster status` makes of what it was told; tests/e2e/test_cluster_status.py has it ask real parts."""

import io
import json
from collections.abc import Iterable

import pytest
from rich.console import Console

from chatgrpc.cli.cluster_report import ClusterReport, NodeReport
from chatgrpc.cli.cluster_status import duration, ranges, shown
from chatgrpc.core.ids import SHARD_COUNT
from chatgrpc.core.tending import ShardOwner
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.ports.cluster import NodeInfo

FIRST, SECOND = "1" * 32, "2" * 32


def info(node_id: str, draining: bool = False) -> NodeInfo:
    return NodeInfo(node_id, f"10.0.0.{node_id[0]}:15551", f"10.0.0.{node_id[0]}:7000", draining)


def said(node_id: str, shards: Iterable[int]) -> relay_pb2.DescribeResponse:
    return relay_pb2.DescribeResponse(
        node_id=node_id,
        version="0.9",
        uptime_ms=3_723_000,
        streams=17,
        shards=[relay_pb2.HeldShard(shard=shard, epoch=100 + shard, active_chats=shard % 5) for shard in shards],
        links=[
            relay_pb2.LinkState(node_id="x", connected=True, queued_messages=4),
            relay_pb2.LinkState(node_id="y", connected=False, queued_messages=5),
        ],
        lag=relay_pb2.Lag(events_waiting=6, loop_lag_ms=1.25),
    )


def owners(*shards: range) -> dict[int, ShardOwner]:
    return {shard: ShardOwner(FIRST, 100 + shard) for part in shards for shard in part}


def text_of(found: ClusterReport, shards: bool = False, width: int = 240) -> str:
    written = io.StringIO()
    Console(file=written, width=width).print(shown(found, shards, width))
    return written.getvalue()


def cells(text: str, start: str) -> list[str]:
    """The line that starts so, in cells that two blanks part."""
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_a_whole_cluster_is_healthy() -> None:
    everything = range(SHARD_COUNT)
    found = ClusterReport([NodeReport(info(FIRST), SHARD_COUNT, said(FIRST, everything))], owners(everything))
    assert found.healthy
    text = text_of(found)
    assert cells(text, "NODE") == [
        *("NODE", "ADDRESS", "STATE", "STREAMS", "SHARDS", "LINKS", "QUEUED", "APPENDS", "UPTIME", "LOOP LAG", "VERSION")
    ]
    assert cells(text, "111") == [*("1" * 8, "10.0.0.1:15551", "live", "17", "1024", "1/0", "9", "6", "1h 2m", "1.2 ms", "0.9")]
    assert "1 node, 17 streams, 1024 of 1024 shards owned, epochs 100 to 1123" in text
    assert "no owner" not in text


def test_what_is_wrong_is_named() -> None:
    half = range(512)
    nodes = [NodeReport(info(FIRST), 512, said(FIRST, range(500))), NodeReport(info(SECOND), 0, None, "refused (UNAVAILABLE)")]
    found = ClusterReport(nodes, owners(half, range(600, 601)))
    assert not found.healthy
    text = text_of(found)
    assert cells(text, "11111111  ")[4:6] == ["512", "1/1"]
    assert "11111111 owns 512 shards and has 500 in hand" in text
    assert cells(text, "22222222  ")[2] == "unreachable"
    assert "2 nodes, 17 streams, 513 of 1024 shards owned" in text
    assert "511 shards have no owner: 512-599, 601-1023" in text
    assert "22222222 does not answer at 10.0.0.2:7000: refused (UNAVAILABLE)" in text


def test_a_narrow_terminal_shows_what_matters_whole() -> None:
    found = ClusterReport([NodeReport(info(FIRST), 0, said(FIRST, [])), NodeReport(info(SECOND), 0, None, "")], {})
    text = text_of(found, width=80)
    assert cells(text, "NODE")[-2:] == ["QUEUED", "APPENDS"]
    assert cells(text, "11111111  ")[:3] == ["1" * 8, "10.0.0.1:15551", "live"]
    assert cells(text_of(found, width=88), "NODE")[-1] == "UPTIME"


def test_a_node_drains_by_its_own_word_or_by_that_of_etcd() -> None:
    leaving = said(SECOND, [])
    leaving.draining = True
    reports = [NodeReport(info(FIRST, draining=True), 0, said(FIRST, [])), NodeReport(info(SECOND), 0, leaving)]
    assert [report.state for report in reports] == ["draining", "draining"]


def test_one_node_that_does_not_answer_makes_it_unhealthy() -> None:
    everything = range(SHARD_COUNT)
    silent = NodeReport(info(SECOND), 0, None, "silence")
    whole = NodeReport(info(FIRST), SHARD_COUNT, said(FIRST, everything))
    assert not ClusterReport([whole, silent], owners(everything)).healthy


def test_every_shard_can_be_listed() -> None:
    found = ClusterReport([NodeReport(info(FIRST), 3, said(FIRST, [0, 2]))], owners(range(3)))
    listed = text_of(found, shards=True).partition("SHARD ")[2].splitlines()[1:]
    assert len(listed) == SHARD_COUNT
    assert [line.split() for line in listed[:4]] == [
        ["0", "100", "0", "1" * 8],
        ["1", "101", "-", "1" * 8],
        ["2", "102", "2", "1" * 8],
        ["3", "-", "-", "nobody"],
    ]


def test_nothing_at_all_is_shown_too() -> None:
    text = text_of(ClusterReport([], {}))
    assert "0 nodes, 0 streams, 0 of 1024 shards owned\n" in text
    assert "1024 shards have no owner: 0-1023" in text


def test_scripts_get_everything() -> None:
    nodes = [NodeReport(info(FIRST), 2, said(FIRST, [0, 1])), NodeReport(info(SECOND), 0, None, "silence")]
    told = json.loads(json.dumps(ClusterReport(nodes, owners(range(2))).to_json()))
    assert told["healthy"] is False
    assert told["shards"]["owned"] == 2
    assert told["shards"]["unowned"][:2] == [2, 3]
    assert told["epochs"] == {"lowest": 100, "highest": 101}
    assert told["owners"] == [{"shard": shard, "node_id": FIRST, "epoch": 100 + shard} for shard in (0, 1)]
    first, second = told["nodes"]
    assert (first["state"], first["shards"], first["said"]["version"]) == ("live", 2, "0.9")
    assert first["said"]["lag"] == {"events_waiting": 6, "deliveries_waiting": 0, "store_writes": 0, "loop_lag_ms": 1.25}
    assert first["said"]["draining"] is False
    assert first["said"]["shards"][1] == {"shard": 1, "epoch": 101, "active_chats": 1}
    assert first["said"]["links"][1]["rtt_ms"] is None
    assert (second["state"], second["said"], second["why_unreachable"]) == ("unreachable", None, "silence")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3_661, "1h 1m"), (86_400, "1d 0h"), (1_000_000, "11d 13h")]
)
def test_a_time_is_told_by_its_largest_units(seconds: int, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([1, 2], "1-2"), ([0, 2, 3, 4, 9], "0, 2-4, 9")])
def test_runs_of_numbers_are_drawn_together(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_damaged_chats_are_named_once_whoever_met_them() -> None:
    nodes = []
    for node_id in (FIRST, SECOND):
        answer = said(node_id, [])
        answer.damaged_chats.add(chat_id="g.sick", why="there is no row at seq 6")
        answer.damaged_chat_count = 1
        nodes.append(NodeReport(info(node_id), 0, answer))
    text = text_of(ClusterReport(nodes, owners(range(SHARD_COUNT))))
    assert "1 chat is damaged and refused" in text
    assert text.count("g.sick: there is no row at seq 6") == 1
    (chat,) = ClusterReport(nodes, {}).to_json()["nodes"][0]["said"]["damaged_chats"]
    assert chat == {"chat_id": "g.sick", "why": "there is no row at seq 6"}


def test_damaged_chats_that_nodes_do_not_name_are_counted() -> None:
    answer = said(FIRST, [])
    answer.damaged_chat_count = 3
    text = text_of(ClusterReport([NodeReport(info(FIRST), 0, answer)], {}))
    assert "3 chats are damaged and refused" in text
    assert "cluster.relay_secret" in text


def test_of_many_damaged_chats_some_are_named_and_all_are_counted() -> None:
    answer = said(FIRST, [])
    for number in range(100):
        answer.damaged_chats.add(chat_id=f"g.{number}", why="garbage")
    answer.damaged_chat_count = 250
    text = text_of(ClusterReport([NodeReport(info(FIRST), 0, answer)], owners(range(SHARD_COUNT))))
    assert "250 chats are damaged" in text
    assert "and 230 more" in text
