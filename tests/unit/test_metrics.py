"""Metrics, and the endpoint at which Prometheus reads them."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chatgrpc.metrics import Metrics, MetricsServer
from chatgrpc.metrics_endpoint import CONNECTIONS_MAX
from chatgrpc.start_error import StartError


def scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        text = response.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_counted_is_read_at_the_endpoint() -> None:
    metrics = Metrics()
    metrics.streams_live.set(2)
    metrics.frames_in["send"].inc(3)
    metrics.frames_in["send"].inc()
    metrics.frames_in["ack"].inc()
    metrics.events_committed.inc(4)
    metrics.group_commit_events.observe(4)
    metrics.group_commit_seconds.observe(0.003)
    metrics.tick_seconds.observe(0.001)
    metrics.send_seconds.observe(0.004)
    metrics.send_errors["NOT_A_MEMBER"].inc()
    metrics.disconnects["DRAIN"].inc()
    metrics.catch_up_pages.inc()
    metrics.unary_seconds["SendMessage", "OK"].observe(0.01)
    server = MetricsServer(metrics, "127.0.0.1", 0)
    try:
        read = scrape(server.port)
    finally:
        server.stop()
    assert read["chatgrpc_streams_live", ()] == 2
    assert read["chatgrpc_frames_in_total", (("kind", "send"),)] == 4
    assert read["chatgrpc_frames_in_total", (("kind", "ack"),)] == 1
    assert read["chatgrpc_events_committed_total", ()] == 4
    assert read["chatgrpc_group_commit_events_sum", ()] == 4
    assert read["chatgrpc_group_commit_seconds_bucket", (("le", "0.002"),)] == 0
    assert read["chatgrpc_group_commit_seconds_bucket", (("le", "0.005"),)] == 1
    assert read["chatgrpc_tick_seconds_count", ()] == 1
    assert read["chatgrpc_send_seconds_sum", ()] == 0.004
    assert read["chatgrpc_send_errors_total", (("code", "NOT_A_MEMBER"),)] == 1
    assert read["chatgrpc_disconnects_total", (("code", "DRAIN"),)] == 1
    assert read["chatgrpc_catch_up_pages_total", ()] == 1
    assert read["chatgrpc_unary_seconds_count", (("code", "OK"), ("method", "SendMessage"))] == 1
    assert read["process_resident_memory_bytes", ()] > 1_000_000


async def test_tasks_are_counted_when_they_are_read() -> None:
    metrics = Metrics()
    metrics.count_tasks(asyncio.get_running_loop())
    before = metrics.registry.get_sample_value("chatgrpc_tasks")
    sleeper = asyncio.create_task(asyncio.sleep(60))
    during = metrics.registry.get_sample_value("chatgrpc_tasks")
    sleeper.cancel()
    await asyncio.gather(sleeper, return_exceptions=True)
    assert before is not None
    assert during == before + 1
    assert metrics.registry.get_sample_value("chatgrpc_tasks") == before


def test_two_nodes_in_one_process_do_not_share_metrics() -> None:
    one, other = Metrics(), Metrics()
    one.frames_in["send"].inc()
    assert one.frames_in["send"] is one.frames_in["send"]
    assert other.registry.get_sample_value("chatgrpc_frames_in_total", {"kind": "send"}) is None


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port}: .*--metrics-port 0"):
            MetricsServer(Metrics(), "127.0.0.1", port)


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(StartError, match="cannot listen on"):
        MetricsServer(Metrics(), "192.0.2.1", 0)


def test_stopping_frees_the_port() -> None:
    server = MetricsServer(Metrics(), "127.0.0.1", 0)
    scrape(server.port)
    server.stop()
    server.stop()
    with pytest.raises(urllib.error.URLError):
        scrape(server.port)
    again = MetricsServer(Metrics(), "127.0.0.1", server.port)
    again.stop()


def test_connections_that_say_nothing_cost_no_scrape_and_a_bounded_number_of_threads() -> None:
    before = threading.active_count()
    server = MetricsServer(Metrics(), "127.0.0.1", 0, seconds_max=3600.0)
    with contextlib.ExitStack() as silent:
        for number in range(10 * CONNECTIONS_MAX):
            peer = silent.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30.0))
            peer.sendall(b"GET /metrics HTTP/1.1\r\nX: " if number % 2 else b"")
        assert ("chatgrpc_streams_live", ()) in scrape(server.port)
        give_up_s = time.monotonic() + 30.0
        while threading.active_count() > before + 1 + CONNECTIONS_MAX:
            assert time.monotonic() < give_up_s
            time.sleep(0.01)
        server.stop()


def test_a_peer_that_goes_on_saying_little_is_cut_off() -> None:
    server = MetricsServer(Metrics(), "127.0.0.1", 0, seconds_max=0.1)
    give_up_s = time.monotonic() + 30.0
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as peer,
        contextlib.suppress(ConnectionError),
    ):
        is_open = True
        while is_open:
            assert time.monotonic() < give_up_s
            peer.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                is_open = peer.recv(1) != b""
    assert ("chatgrpc_streams_live", ()) in scrape(server.port)
    server.stop()


def test_a_broken_connection_is_no_line_of_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    server = MetricsServer(Metrics(), "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by RST
        peer.sendall(b"GET")
    assert ("chatgrpc_streams_live", ()) in scrape(server.port)
    server.stop()
    assert capfd.readouterr().err == ""
