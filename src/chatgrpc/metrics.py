"""What the server counts and times, and the HTTP endpoint at which Prometheus reads it.

Children of labelled metrics are bound once and kept (`metrics.frames_in["send"].inc(3)`), so that an update is a look-up in a
dictionary and one addition: 0.3 to 0.4 µs, a histogram's 0.7 µs. So count once per tick and kind, not once per frame.
Labels come from our own tables (kinds of frames, codes, registered methods), never from a peer: each new value of a label
is a series that lives as long as the process.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from chatgrpc.metrics_endpoint import MetricsEndpoint
from chatgrpc.start_error import StartError

_FAST_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)

Child = TypeVar("Child")
Label = TypeVar("Label")


class Bound(dict[Label, Child], Generic[Label, Child]):
    """The children of a labelled metric by label, each bound when it is first asked for."""

    def __init__(self, bind: Callable[[Label], Child]) -> None:
        super().__init__()
        self._bind = bind

    def __missing__(self, label: Label) -> Child:
        child = self[label] = self._bind(label)
        return child


class Metrics:
    """The metrics of one node, in a registry of their own; updated on any thread, read on the endpoint's."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        self.streams_live = Gauge("chatgrpc_streams_live", "Device streams that are open.", registry=registry)
        self.tasks = Gauge("chatgrpc_tasks", "Tasks of the event loop: streams, calls, reads and writes.", registry=registry)
        self.connections_cut = Counter(
            "chatgrpc_connections_cut", "Connections that were cut; the log says why (`connections_cut`).", registry=registry
        )
        frames_in = Counter("chatgrpc_frames_in", "Frames received from devices.", ["kind"], registry=registry)
        self.frames_in = Bound[str, Counter](frames_in.labels)

        self.events_committed = Counter("chatgrpc_events_committed", "Events committed in the log.", registry=registry)
        self.chats_damaged = Gauge(
            "chatgrpc_chats_damaged",
            "Chats refused lately, since what is stored of them cannot be right.",
            registry=registry,
        )
        damage_found = Counter(
            "chatgrpc_damage_found", "Times that a chat was found damaged, by what is wrong.", ["kind"], registry=registry
        )
        self.damage_found = Bound[str, Counter](damage_found.labels)
        defects = Counter(
            "chatgrpc_defects", "Mistakes of the program that cost one part of its work, by part.", ["part"], registry=registry
        )
        self.defects = Bound[str, Counter](defects.labels)
        self.group_commit_events = Histogram(
            "chatgrpc_group_commit_events", "Events committed together.", buckets=_SIZES, registry=registry
        )
        self.group_commit_seconds = Histogram(
            "chatgrpc_group_commit_seconds", "Time of one group commit.", buckets=_FAST_S, registry=registry
        )

        self.tick_seconds = Histogram(
            "chatgrpc_tick_seconds", "Time of one tick: drain, rules, flush.", buckets=_FAST_S, registry=registry
        )
        self.send_seconds = Histogram(
            "chatgrpc_send_seconds", "From a send's arrival to its answer.", buckets=_FAST_S, registry=registry
        )
        self.catch_up_pages = Counter("chatgrpc_catch_up_pages", "Pages read from the log for devices.", registry=registry)

        send_errors = Counter("chatgrpc_send_errors", "Sends that were refused.", ["code"], registry=registry)
        self.send_errors = Bound[str, Counter](send_errors.labels)
        disconnects = Counter("chatgrpc_disconnects", "Streams that ended, by reason.", ["code"], registry=registry)
        self.disconnects = Bound[str, Counter](disconnects.labels)
        unary_seconds = Histogram(
            "chatgrpc_unary_seconds", "Time of one unary call.", ["method", "code"], buckets=_FAST_S, registry=registry
        )
        self.unary_seconds = Bound[tuple[str, str], Histogram](lambda label: unary_seconds.labels(*label))
        """By method and status code; its `_count` is the number of calls."""

        self.cluster_joined = Gauge(
            "chatgrpc_cluster_joined", "1 while this node holds its lease in etcd, else 0.", registry=registry
        )
        self.shards_held = Gauge("chatgrpc_shards_held", "Shards in this node's hands.", registry=registry)
        self.session_map_lost = Gauge(
            "chatgrpc_session_map_lost", "1 while the session map does not answer, else 0.", registry=registry
        )
        self.store_writes_waiting = Gauge(
            "chatgrpc_store_writes_waiting", "Writes of this node's chats that have not succeeded yet.", registry=registry
        )
        self.store_reads_waiting = Gauge(
            "chatgrpc_store_reads_waiting", "Reads of this node's chats that failed and are tried again.", registry=registry
        )
        self.store_failures = Counter(
            "chatgrpc_store_failures", "Tries to read or write this node's chats that failed.", registry=registry
        )

        self.relay_links = Gauge("chatgrpc_relay_links", "Other nodes that this one is linked with.", registry=registry)
        self.relay_messages_in = Counter("chatgrpc_relay_messages_in", "Messages received from other nodes.", registry=registry)
        self.relay_messages_out = Counter("chatgrpc_relay_messages_out", "Messages sent to other nodes.", registry=registry)
        self.relay_bytes_in = Counter("chatgrpc_relay_bytes_in", "Bytes received from other nodes.", registry=registry)
        self.relay_bytes_out = Counter("chatgrpc_relay_bytes_out", "Bytes sent to other nodes.", registry=registry)
        relay_dropped = Counter(
            "chatgrpc_relay_dropped", "Messages dropped since too much waited for a node.", ["kind"], registry=registry
        )
        self.relay_dropped = Bound[str, Counter](relay_dropped.labels)

    def count_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        """Makes `tasks` the number of unfinished tasks of the loop, counted when it is read."""
        self.tasks.set_function(lambda: len(asyncio.all_tasks(loop)))


class MetricsServer:
    """The HTTP endpoint, on a thread of its own and at most sixteen more, each for a few seconds."""

    def __init__(self, metrics: Metrics, host: str, port: int, seconds_max: float = 10.0) -> None:
        """Starts to listen; port 0 takes any free one, and no connection lasts longer than `seconds_max`.

        Raises:
            StartError: the address cannot be listened on.
        """
        try:
            self._server = MetricsEndpoint(host, port, metrics.registry, seconds_max)
        except OSError as error:
            raise StartError(
                f"metrics: cannot listen on {host}:{port}: {error.strerror or error}; "
                "choose another port with --metrics-port, or turn the endpoint off with --metrics-port 0"
            ) from error
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Closes the port, and returns once the thread has ended; at most half a second. Again does nothing."""
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._server.server_close()
