"""The contract of `edge.transport.Transport`, as tests that every implementation passes.

They see a transport from both ends only: through its methods, and as its peers over the wire. Nothing here sleeps to let
something happen; every wait is for a condition, and the time limit on it is that of a failing test.
"""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from chatgrpc.edge.errors import error_info_of
from tests.contract.http2_peer import (
    DATA,
    END_STREAM,
    RST_STREAM,
    Http2Peer,
    frame,
    grpc_message,
    open_stream,
)
from tests.contract.transport_ends import (
    INBOX_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    OK,
    PEER_WINDOW_BYTES_MAX,
    REFUSED,
    STALL_S,
    WAIT_S,
    Call,
    Connect,
    Edge,
    Peer,
    Served,
    code_of,
    come_and_go,
    read,
    read_to_end,
    write_until_stalled,
)


def _is_left_by_an_earlier_test(record: logging.LogRecord) -> bool:
    """One poller serves all event loops of a process: what comes for a loop that was closed is handed to the one that runs."""
    error = record.exc_info[1] if record.exc_info else None
    return "PollerCompletionQueue" in record.getMessage() and str(error) == "Event loop is closed"


class TransportSuite(ABC):
    """Subclass it, and serve a transport with the limits of `transport_ends`."""

    @pytest.fixture
    @abstractmethod
    def served(self) -> AsyncIterator[Served]:
        """Serves until the test is over."""

    @pytest.fixture
    async def edge(self, served: Served) -> Edge:
        """Stands above the transport."""
        return Edge(served.transport)

    @pytest.fixture
    async def peer(self, served: Served) -> AsyncIterator[Peer]:
        """Stands at the other end of the wire."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}", options=options) as channel:
            yield Peer(channel)

    @pytest.fixture
    async def connect(self, served: Served) -> AsyncIterator[Connect]:
        """Makes connections that speak for themselves."""
        connections: list[Http2Peer] = []

        async def connect() -> Http2Peer:
            connections.append(await Http2Peer.connect(served.port))
            return connections[-1]

        yield connect
        for connection in connections:
            await connection.close()

    @pytest.fixture(autouse=True)
    def _makes_no_noise(self, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        """What peers do is not worth a line in the log."""
        yield
        records = [record for when in ("setup", "call", "teardown") for record in caplog.get_records(when)]
        noise = [
            record.getMessage()
            for record in records
            if record.levelno >= logging.WARNING and not _is_left_by_an_earlier_test(record)
        ]
        assert not noise, noise

    # Opening

    async def test_an_opening_tells_peer_and_token(self, edge: Edge, peer: Peer) -> None:
        calls = [peer.connect("secret"), peer.connect()]
        await edge.until(lambda: len(edge.opened) == 2)
        assert {opened.token for opened in edge.opened.values()} == {"secret", None}
        assert all(opened.peer.startswith("ipv4:127.0.0.1:") for opened in edge.opened.values())
        assert not any(call.done() for call in calls)

    async def test_a_stream_id_is_never_used_again(self, edge: Edge, peer: Peer) -> None:
        for _ in range(20):
            call = peer.connect()
            stream = await edge.opens()  # Edge checks that it is new
            edge.transport.close(stream, OK)
            assert await code_of(call) is grpc.StatusCode.OK
        await edge.closes(*edge.opened)

    # Receiving

    async def test_messages_arrive_whole_and_in_order(self, edge: Edge, peer: Peer) -> None:
        messages = [b"", b"a", b"b" * 100_000, b"", *(f"{i}".encode() for i in range(500))]
        call = peer.connect()
        for message in messages:
            await call.write(message)
        stream = await edge.opens()
        assert await edge.receives(stream, len(messages)) == messages

    async def test_what_many_streams_send_is_kept_apart(self, edge: Edge, peer: Peer) -> None:
        async def send(name: str) -> Call:
            call = peer.connect(name)
            for i in range(20):
                await call.write(f"{name} {i}".encode())
            return call

        calls = await asyncio.gather(*(send(f"device{i}") for i in range(30)))
        await edge.until(lambda: sum(map(len, edge.received.values())) == 30 * 20)
        for stream, messages in edge.received.items():
            assert messages == [f"{edge.opened[stream].token} {i}".encode() for i in range(20)]
        assert len(calls) == len(edge.opened)

    async def test_the_longest_message_arrives_and_a_longer_one_ends_its_stream(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        await call.write(b"x" * MESSAGE_BYTES_MAX)
        stream = await edge.opens()
        assert [len(message) for message in await edge.receives(stream, 1)] == [MESSAGE_BYTES_MAX]
        await call.write(b"x" * (MESSAGE_BYTES_MAX + 1))
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await edge.closes(stream)
        other = peer.connect()
        await other.write(b"still here")
        assert await edge.receives(await edge.opens(), 1) == [b"still here"]

    @pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate], ids=["gzip", "deflate"])
    async def test_compressed_messages_arrive_as_they_were(self, edge: Edge, peer: Peer, compression: grpc.Compression) -> None:
        messages = [b"", b"a", b"b" * 100_000, b"x" * MESSAGE_BYTES_MAX]
        call = peer.connect(compression=compression)
        for message in messages:
            await call.write(message)
        stream = await edge.opens()
        assert await edge.receives(stream, len(messages)) == messages
        await edge.writes(stream, b"not compressed")
        assert await read(call) == b"not compressed"

    async def test_what_is_unpacked_beyond_the_longest_message_ends_its_stream(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect(compression=grpc.Compression.Gzip)
        await call.write(b"x" * (MESSAGE_BYTES_MAX + 1))
        stream = await edge.opens()
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await edge.closes(stream)
        assert edge.received[stream] == []

    async def test_a_stream_lasts_no_longer_than_its_peer_says(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect(timeout_s=0.5)
        stream = await edge.opens()
        await call.write(b"in time")
        assert await edge.receives(stream, 1) == [b"in time"]
        assert await code_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED
        await edge.closes(stream)

    async def test_nothing_is_lost_when_nobody_drains_for_long(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        message = b"x" * 8_000
        went, waiting = await write_until_stalled(call, message, INBOX_BYTES_MAX + PEER_WINDOW_BYTES_MAX)
        assert went * len(message) >= INBOX_BYTES_MAX
        edge.drain()
        held_bytes = sum(map(len, edge.received[stream]))
        assert held_bytes <= INBOX_BYTES_MAX + len(message)
        await edge.drains_until_done(waiting)
        await call.done_writing()
        await edge.closes(stream)
        assert edge.received[stream] == [message] * (went + 1)

    async def test_a_peer_that_is_not_read_stops_no_other(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        edge.transport.hold(stream)
        _, waiting = await write_until_stalled(call, b"x" * 8_000, INBOX_BYTES_MAX + PEER_WINDOW_BYTES_MAX)
        other = peer.connect()
        other_stream = await edge.opens()
        await other.write(b"hello")
        assert await edge.receives(other_stream, 1) == [b"hello"]
        await edge.writes(other_stream, b"hello yourself")
        assert await read(other) == b"hello yourself"
        edge.transport.release(stream)
        await edge.drains_until_done(waiting)

    # Holding

    async def test_a_held_stream_is_not_read_until_it_is_released(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        await call.write(b"before")
        await edge.receives(stream, 1)
        edge.transport.hold(stream)
        message = b"x" * 8_000
        went, waiting = await write_until_stalled(call, message, PEER_WINDOW_BYTES_MAX)
        edge.drain()
        assert len(edge.received[stream]) <= 2, "more than the message under way was read from a held stream"
        edge.transport.release(stream)
        await edge.drains_until_done(waiting)
        await call.done_writing()
        await edge.closes(stream)
        assert edge.received[stream] == [b"before", *[message] * (went + 1)]

    async def test_held_streams_do_not_stop_the_others_of_their_connection(self, edge: Edge, peer: Peer) -> None:
        waiting = []
        for _ in range(8):
            call = peer.connect()
            stream = await edge.opens()
            edge.transport.hold(stream)
            _, writing = await write_until_stalled(call, b"x" * 8_000, PEER_WINDOW_BYTES_MAX)
            waiting.append((stream, writing))
        other = peer.connect()
        await other.write(b"hello")
        assert await edge.receives(await edge.opens(), 1) == [b"hello"]
        for stream, writing in waiting:
            edge.transport.release(stream)
            await edge.drains_until_done(writing)

    async def test_a_held_stream_whose_peer_sends_little_frames_harms_nobody(self, edge: Edge, connect: Connect) -> None:
        connection = await connect()
        await connection.start()
        await connection.send(open_stream(1))
        held = await edge.opens()
        edge.transport.hold(held)
        for _ in range(50):
            await connection.send(frame(DATA, 0, 1, grpc_message(b"x")) * 200)  # 60,000 bytes, a window's worth
        await connection.send(open_stream(3), frame(DATA, 0, 3, grpc_message(b"hello")))
        assert await edge.receives(await edge.opens(), 1) == [b"hello"]
        edge.transport.release(held)
        assert await edge.receives(held, 10_000) == [b"x"] * 10_000

    async def test_a_held_stream_reports_that_its_peer_is_gone(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        edge.transport.hold(stream)
        call.cancel()
        await edge.closes(stream)

    async def test_a_held_stream_is_written_to(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        edge.transport.hold(stream)
        await edge.writes(stream, b"hello")
        assert await read(call) == b"hello"

    # Writing

    async def test_a_stream_is_writable_from_its_opening_and_again_after_each_message(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        assert edge.writable[stream] == 0
        messages = [b"", b"one", b"x" * 300_000, b"three"]
        for number, message in enumerate(messages):
            reading = asyncio.create_task(read(call))
            await edge.writes(stream, message)
            assert edge.writable[stream] == number + 1
            assert await reading == message

    async def test_a_stream_that_is_writable_again_wakes_the_edge_if_it_asks_for_that(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        edge.transport.write([(stream, b"one")])
        assert await call.read() == b"one"
        assert not edge.is_woken, "nobody has asked"
        await edge.until(lambda: edge.writable[stream] == 1)
        assert not edge.is_woken
        edge.transport.write([(stream, b"two")])
        assert await call.read() == b"two"
        assert not edge.is_woken, "it was asked for once"

    async def test_writing_to_a_stream_that_is_not_writable_is_refused(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        with pytest.raises(AssertionError, match="not writable"):
            edge.transport.write([(stream, b"one"), (stream, b"two")])
        assert not call.done()

    async def test_one_call_writes_to_many_streams(self, edge: Edge, peer: Peer) -> None:
        calls = [peer.connect(f"{i}") for i in range(40)]
        await edge.until(lambda: len(edge.opened) == len(calls))
        edge.transport.write((stream, (opened.token or "").encode()) for stream, opened in edge.opened.items())
        assert await asyncio.gather(*map(read, calls)) == [f"{i}".encode() for i in range(40)]
        await edge.until(lambda: edge.writable.keys() == edge.opened.keys())

    async def test_a_peer_that_does_not_read_costs_one_message(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        message = b"x" * 16_384
        with contextlib.suppress(TimeoutError):
            while edge.writable[stream] * len(message) < 64 * PEER_WINDOW_BYTES_MAX:
                async with asyncio.timeout(STALL_S):
                    await edge.writes(stream, message)
        taken = edge.writable[stream]
        assert taken * len(message) <= PEER_WINDOW_BYTES_MAX, "a stream that nobody reads stayed writable"
        for _ in range(taken + 1):
            assert await read(call) == message
        await edge.until(lambda: edge.writable[stream] == taken + 1)

    async def test_messages_to_streams_that_are_gone_are_dropped(self, edge: Edge, peer: Peer) -> None:
        call, living = peer.connect("gone"), peer.connect("living")
        await edge.until(lambda: len(edge.opened) == 2)
        [gone] = [stream for stream, opened in edge.opened.items() if opened.token == "gone"]
        [other] = edge.opened.keys() - {gone}
        call.cancel()
        await edge.closes(gone)
        edge.transport.write([(gone, b"lost"), (other, b"found"), (10**9, b"never was")])
        assert await read(living) == b"found"
        edge.transport.hold(gone)
        edge.transport.release(gone)
        edge.transport.close(gone, REFUSED, b"lost")
        edge.transport.close(10**9, REFUSED)

    # Ends that the peer makes

    async def test_a_half_closed_stream_ends_after_all_that_it_sent(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        messages = [f"{i}".encode() for i in range(200)]
        for message in messages:
            await call.write(message)
        await call.done_writing()
        stream = await edge.opens()
        await edge.closes(stream)
        assert edge.received[stream] == messages
        assert await code_of(call) is grpc.StatusCode.OK

    async def test_what_a_peer_sent_is_reported_before_it_has_finished(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        for message in (b"one", b"two", b"three"):
            await call.write(message)
        await call.done_writing()
        stream = await edge.opens()
        await edge.until(lambda: stream in edge.finished)
        assert edge.received[stream] == [b"one", b"two", b"three"]
        assert await code_of(call) is grpc.StatusCode.OK
        await edge.closes(stream)

    async def test_a_cancelled_stream_ends(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        call.cancel()
        await edge.closes(stream)

    async def test_a_stream_that_its_peer_breaks_while_it_is_written_to_ends(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        edge.transport.write([(stream, b"x" * 4 * PEER_WINDOW_BYTES_MAX)])
        call.cancel()
        await edge.closes(stream)
        assert edge.writable[stream] == 0

    # Ends that we make

    async def test_closing_sends_the_message_under_way_then_the_last_one_then_the_status(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        edge.transport.write([(stream, b"x" * 200_000)])
        edge.transport.close(stream, REFUSED, b"last")
        assert await read_to_end(call) == [b"x" * 200_000, b"last"]
        assert await code_of(call) is grpc.StatusCode.UNAUTHENTICATED
        assert await call.details() == REFUSED.message
        info = error_info_of(await call.trailing_metadata())
        assert info is not None
        assert (info.reason, info.domain) == (REFUSED.reason, "chatgrpc")
        await edge.closes(stream)
        assert edge.writable[stream] == 0

    async def test_closing_with_ok_explains_nothing(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        edge.transport.close(await edge.opens(), OK, b"bye")
        assert await read_to_end(call) == [b"bye"]
        assert await code_of(call) is grpc.StatusCode.OK
        assert error_info_of(await call.trailing_metadata()) is None

    async def test_closing_without_a_last_message_sends_the_status_alone(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        edge.transport.close(await edge.opens(), REFUSED)
        assert await read_to_end(call) == []
        assert await code_of(call) is grpc.StatusCode.UNAUTHENTICATED

    async def test_the_first_closing_counts(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        edge.transport.close(stream, REFUSED, b"first")
        edge.transport.close(stream, OK, b"second")
        edge.transport.write([(stream, b"third")])
        assert await read_to_end(call) == [b"first"]
        assert await code_of(call) is grpc.StatusCode.UNAUTHENTICATED
        await edge.closes(stream)

    async def test_after_closing_nothing_more_is_received(self, edge: Edge, peer: Peer) -> None:
        calls = {token: peer.connect(token) for token in ("one", "two")}
        await edge.until(lambda: len(edge.opened) == 2)
        streams = {opened.token: stream for stream, opened in edge.opened.items()}
        woken = asyncio.Event()
        edge.transport.on_input(woken.set)
        await calls["one"].write(b"read, but not yet drained")
        await woken.wait()
        edge.transport.close(streams["one"], OK)
        edge.transport.on_input(edge._wake_up)
        await read_to_end(calls["one"])
        await calls["two"].write(b"later")
        await edge.receives(streams["two"], 1)
        await edge.closes(streams["one"])
        assert edge.received[streams["one"]] == []

    async def test_a_peer_that_does_not_read_is_cut(self, edge: Edge, connect: Connect) -> None:
        connection = await connect()
        await connection.start()
        await connection.send(open_stream(1))
        await edge.opens()
        await connection.send(open_stream(3))
        stream = await edge.opens()
        edge.transport.write([(stream, b"x" * 4 * PEER_WINDOW_BYTES_MAX)])
        edge.transport.close(stream, REFUSED, b"last")
        await edge.closes(stream)
        await connection.send(open_stream(5))  # a transport may let go of a stream only when the next one comes
        await edge.opens()
        async with asyncio.timeout(WAIT_S):
            while (await connection.frame())[::2] != (RST_STREAM, 3):
                pass
        assert edge.closed == {stream}

    async def test_both_sides_end_a_stream_at_once(self, edge: Edge, peer: Peer) -> None:
        for number in range(60):
            call = peer.connect()
            stream = await edge.opens()
            if number % 3 == 0:
                call.cancel()
            elif number % 3 == 1:
                await call.done_writing()
            edge.transport.write([(stream, b"under way")])
            edge.transport.close(stream, REFUSED, b"last")
            if number % 3 == 2:
                call.cancel()
            await edge.closes(stream)

    # Peers that are no gRPC clients, or bad ones

    @pytest.mark.parametrize(
        "sent",
        [
            b"GET / HTTP/1.1\r\nhost: test\r\n\r\n",
            bytes(range(256)) * 300,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(256)) * 300,
        ],
        ids=["http1", "noise", "preface-then-noise"],
    )
    async def test_a_connection_that_makes_no_sense_opens_nothing(
        self, edge: Edge, peer: Peer, connect: Connect, sent: bytes
    ) -> None:
        connection = await connect()
        await connection.send(sent)
        async with asyncio.timeout(WAIT_S):
            await connection.until_closed()
        await self._still_serves(edge, peer)
        assert len(edge.opened) == 1

    async def test_silent_connections_stop_no_one(self, edge: Edge, peer: Peer, connect: Connect) -> None:
        connections = [await connect() for _ in range(50)]
        for number, connection in enumerate(connections):
            if number % 2:
                await connection.start()
        await self._still_serves(edge, peer)
        assert len(edge.opened) == 1

    async def test_a_connection_that_breaks_within_a_message_ends_its_stream(
        self, edge: Edge, peer: Peer, connect: Connect
    ) -> None:
        connection = await connect()
        await connection.start()
        await connection.send(open_stream(), frame(DATA, 0, 1, grpc_message(b"whole")))
        stream = await edge.opens()
        await connection.send(frame(DATA, 0, 1, grpc_message(b"half", length=1000)))
        assert await edge.receives(stream, 1) == [b"whole"]
        connection.reset()
        await edge.closes(stream)
        assert edge.received[stream] == [b"whole"]
        await self._still_serves(edge, peer)

    @pytest.mark.parametrize(
        "sent",
        [
            grpc_message(b"", length=2**32 - 1),
            grpc_message(b"not gzip", compressed=1),
            grpc_message(b"unknown flag", compressed=7),
        ],
        ids=["four-gigabytes", "compressed-by-nothing", "unknown-flag"],
    )
    async def test_a_message_that_makes_no_sense_harms_its_stream_only(
        self, edge: Edge, peer: Peer, connect: Connect, sent: bytes
    ) -> None:
        connection = await connect()
        await connection.start()
        await connection.send(open_stream(), frame(DATA, 0, 1, sent))
        stream = await edge.opens()
        await self._still_serves(edge, peer)
        edge.transport.close(stream, REFUSED)  # the C core of gRPC does not end the stream for an unknown flag
        await edge.closes(stream)
        assert edge.received[stream] == []

    async def test_a_half_message_and_a_half_close_end_the_stream(self, edge: Edge, connect: Connect) -> None:
        connection = await connect()
        await connection.start()
        await connection.send(open_stream(), frame(DATA, END_STREAM, 1, grpc_message(b"half", length=1000)))
        stream = await edge.opens()
        await edge.closes(stream)
        assert edge.received[stream] == []

    # Many

    async def test_a_thousand_streams_opened_and_dropped_leave_nothing(self, edge: Edge, connect: Connect) -> None:
        await come_and_go(edge, connect, connections=20, streams=50)
        assert len(edge.opened) >= 500
        assert edge.closed == edge.opened.keys()
        assert all(messages == [b"hello"] for messages in edge.received.values() if messages)

    async def _still_serves(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        await call.write(b"hello")
        assert await edge.receives(stream, 1) == [b"hello"]
        await edge.writes(stream, b"hello yourself")
        assert await read(call) == b"hello yourself"
        edge.transport.close(stream, OK)
        assert await code_of(call) is grpc.StatusCode.OK
        await edge.closes(stream)
