"""The links of one node: one with every other node of the cluster, dialled by the one with the smaller node id."""

import asyncio
import hmac
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import grpc
import structlog

from chatgrpc import background
from chatgrpc.core.backoff import Backoff
from chatgrpc.core.links import Message
from chatgrpc.grpc_calls import end_call
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.metrics import Metrics
from chatgrpc.ports.cluster import NodeInfo
from chatgrpc.relay.certificates import is_for
from chatgrpc.relay.codec import MalformedBatchError
from chatgrpc.relay.link import Link, LinkEndedError, LinkStatus, Stream
from chatgrpc.relay.proof import Proof, describe_proof
from chatgrpc.relay.transport import Port, Tls, connect, open_link

_EXPECT_TIMEOUT_S: Final = 3.0
"""How long a node that dials waits until it is in our view: its own may be ahead."""
_HELLO_TIMEOUT_S: Final = 5.0
"""How long connecting and exchanging Hellos may take; longer than the above."""
_PAUSE_MIN_S: Final = 0.05
_PAUSE_MAX_S: Final = 1.0
_STEADY_S: Final = 2.0
"""A link that lived this long is dialled again at once."""
_FLUSH_TIMEOUT_S: Final = 1.0
"""How long the stop waits for what is still to be sent."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How a node is linked."""

    node_id: str
    """Its incarnation."""
    host: str = "127.0.0.1"
    """Where to listen for other nodes."""
    port: int = 0
    """0 takes any free port."""
    ca_pem: bytes | None = None
    """With the next two, mutual TLS (see `Tls`); all three or none."""
    cert_pem: bytes | None = None
    key_pem: bytes | None = None
    secret: bytes | None = None
    """What all nodes know, and strangers do not; nodes without TLS show each other that they do. None: they need not."""
    accepts_unproven: bool = False
    """Link also with nodes that show nothing, as those of the version before the secret."""
    queue_bytes_max: int = 16 * 1024 * 1024
    """What may wait for one peer."""

    def __repr__(self) -> str:
        """Without what is secret."""
        return f"RelayOptions(node_id={self.node_id!r}, host={self.host!r}, port={self.port})"

    @property
    def tls(self) -> Tls | None:
        """The three, if they are there."""
        if self.ca_pem is None or self.cert_pem is None or self.key_pem is None:
            return None
        return Tls(self.ca_pem, self.cert_pem, self.key_pem)


async def _at_once() -> None:
    """For who is never behind."""


class Relay:
    """Carries messages between this node and the others. What is sent may be lost, and comes in order if it comes.

    Everything happens on one event loop, and no callback may block it. `see` and `stop` may call back before they return.
    """

    def __init__(
        self,
        options: RelayOptions,
        receive: Callable[[str, list[Message]], None],
        link_changed: Callable[[str, bool], None],
        describe: Callable[[], relay_pb2.DescribeResponse],
        metrics: Metrics,
        caught_up: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        """Belongs to the event loop that is running.

        Args:
            options: who we are and where to listen.
            receive: called with a node's id and what one of its batches carried, in order, while its link is up.
            link_changed: called with a node's id when its link is up (True), and when it is no more (False).
            describe: says how the node is, for `RelayService.Describe`; its id and its links are filled in here.
            metrics: what is counted.
            caught_up: returns once what was received is worked off so far that a link may read on; the peer waits meanwhile.
        """
        self._options = options
        self._receive = receive
        self._link_changed = link_changed
        self._describe = describe
        self._metrics = metrics
        self._caught_up = caught_up
        self._port = Port(self._serve_link, self._serve_describe)
        self._nodes: Mapping[str, NodeInfo] = {}
        self._nodes_changed = asyncio.Event()
        self._links: dict[str, Link] = {}
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # those of `_dialling`, and those that are just ending
        self._stopping = False

    async def start(self) -> int:
        """Listens; returns the port.

        Raises:
            StartError: the port cannot be had, or the certificate and its key cannot be used.
        """
        return await self._port.listen(self._options.host, self._options.port, self._options.tls)

    def see(self, nodes: Mapping[str, NodeInfo]) -> None:
        """Links with these nodes, and with no others; this node itself may be among them."""
        if self._stopping:
            return
        own_id = self._options.node_id
        self._nodes = {node_id: node for node_id, node in nodes.items() if node_id != own_id}
        for node_id in self._dialling.keys() - self._nodes.keys():
            self._dialling.pop(node_id).cancel()
        for node_id in self._links.keys() - self._nodes.keys():
            self._drop(self._links[node_id], "it is not in the cluster any more")
        for node_id in self._nodes.keys() - self._dialling.keys():
            if own_id < node_id:
                dialling = background.again(partial(self._keep_dialling, node_id), "relay_dial")
                task = self._dialling[node_id] = background.start(dialling, background.logged("relay_dial"))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        self._nodes_changed.set()
        self._nodes_changed = asyncio.Event()

    def send(self, node_id: str, message: Message) -> bool:
        """Queues a message, or drops it if too much is waiting for the node; False if there is no link just now."""
        link = self._links.get(node_id)
        if link is None:
            return False
        link.send(message)
        return True

    def linked(self) -> set[str]:
        """The nodes whose link is up."""
        return set(self._links)

    def status(self) -> list[LinkStatus]:
        """How the link with each node is, by node id."""
        links = self._links
        return [
            links[node_id].status() if node_id in links else LinkStatus(node_id, connected=False)
            for node_id in sorted(self._nodes)
        ]

    async def stop(self) -> None:
        """Sends what waits, as far as that is done within a second, and ends all links. Again does nothing."""
        if self._stopping:
            return
        self._stopping = True
        for node_id, task in self._dialling.items():
            if node_id not in self._links:
                task.cancel()
        links = list(self._links.values())
        for link in links:
            link.close()
        if links:
            await asyncio.wait([link.ended for link in links], timeout=_FLUSH_TIMEOUT_S)
        for link in links:
            self._drop(link, "the node stops")
        await self._port.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_dialling(self, node_id: str) -> bool:
        """Links again and again; True once this relay stops, which lets a link that is up end by itself."""
        backoff = Backoff(_PAUSE_MIN_S, _PAUSE_MAX_S)
        why = ""
        while not self._stopping:
            linked_s, why = await self._dial(node_id, why)
            if linked_s >= _STEADY_S:
                backoff.reset()
            await asyncio.sleep(backoff.next_s() * random.uniform(0.5, 1.0))  # noqa: S311  # spreads, and guards nothing
        return True

    async def _dial(self, node_id: str, why_before: str) -> tuple[float, str]:
        """Links once; returns for how many seconds the link was up, and why it was not, which is logged if it is news."""
        own_id = self._options.node_id
        address = self._nodes[node_id].relay_address
        channel = connect(address, self._options.tls)
        call = open_link(channel)
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                stream = Stream(call)
                proof = self._proof(own_id, node_id, is_dialler=True)
                await stream.say_hello(own_id, node_id, proof.challenge)
                if await stream.hear_hello(own_id) != node_id:
                    raise LinkEndedError("it was answered by another node")
                answer = proof.challenged(stream.heard)
                proof.check(stream.heard)
                await stream.say_hello(own_id, node_id, proof.challenge, answer)
            return await self._carry(node_id, stream), ""
        except (LinkEndedError, MalformedBatchError, TimeoutError) as error:
            why = str(error) or "no answer"
            if why != why_before:
                _log.warning("relay_dial_failed", peer=node_id, address=address, why=why)
            return 0.0, why
        finally:
            end_call(call)
            await channel.close()

    async def _serve_link(self, _: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        own_id = self._options.node_id
        stream = Stream(context)
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                node_id = await stream.hear_hello(own_id)
            if node_id >= own_id:
                raise LinkEndedError("of two nodes the one with the smaller id dials")
            await self._expect(node_id)
            self._check_certificate(node_id, context)
            proof = self._proof(node_id, own_id, is_dialler=False)
            await stream.say_hello(own_id, node_id, proof.challenge, proof.challenged(stream.heard))
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                if await stream.hear_hello(own_id) != node_id:
                    raise LinkEndedError("it calls itself by another name than before")
            proof.check(stream.heard)
        except (LinkEndedError, MalformedBatchError, TimeoutError) as error:
            why = str(error) or "no Hello came"
            _log.warning("relay_refused", address=context.peer(), why=why)
            context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
            context.set_details(why)
        else:
            await self._carry(node_id, stream)

    def _proof(self, dialler_id: str, other_id: str, *, is_dialler: bool) -> Proof:
        options = self._options
        return Proof(options.secret, dialler_id, other_id, is_dialler=is_dialler, lenient=options.accepts_unproven)

    def _check_certificate(self, node_id: str, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        """With TLS, the certificate of who dials must be for the address at which the node that it says it is can be dialled.

        Raises:
            LinkEndedError: it is not.
        """
        if self._options.tls is None:
            return
        address = self._nodes[node_id].relay_address
        shown = context.auth_context().get("x509_pem_cert", ())
        if not any(is_for(pem, address) for pem in shown):
            raise LinkEndedError(f"the certificate of who dials is not for {address}, the address of the node it says it is")

    async def _expect(self, node_id: str) -> None:
        """Waits until the node is in our view.

        Raises:
            LinkEndedError: it did not come.
        """
        try:
            async with asyncio.timeout(_EXPECT_TIMEOUT_S):
                while node_id not in self._nodes:
                    await self._nodes_changed.wait()
        except TimeoutError:
            raise LinkEndedError("the node that dials is not in the cluster") from None

    async def _carry(self, node_id: str, stream: Stream) -> float:
        """Keeps a link up until it ends; returns for how many seconds it was."""
        if self._stopping:
            return 0.0
        if node_id in self._links:
            self._drop(self._links[node_id], "the node has dialled again")
        link = Link(node_id, stream, self._options.queue_bytes_max, self._receive, self._metrics, self._caught_up)
        self._links[node_id] = link
        self._metrics.relay_links.set(len(self._links))
        _log.info("relay_linked", peer=node_id)
        self._tell_changed(node_id, True)
        try:
            await link.run()
        finally:
            self._drop(link, "its call was cancelled")
        return link.age_s

    def _drop(self, link: Link, why: str) -> None:
        """Ends a link, and says so once."""
        link.end(why)
        if self._links.get(link.node_id) is link:
            del self._links[link.node_id]
            self._metrics.relay_links.set(len(self._links))
            _log.info("relay_unlinked", peer=link.node_id, why=link.ended.result())
            self._tell_changed(link.node_id, False)

    def _tell_changed(self, node_id: str, up: bool) -> None:
        try:
            self._link_changed(node_id, up)
        except Exception:
            _log.exception("relay_link_changed_failed", peer=node_id)

    async def _serve_describe(self, request: relay_pb2.DescribeRequest, _: object) -> relay_pb2.DescribeResponse:
        answer = self._describe()
        secret = self._options.secret
        if secret is not None and not hmac.compare_digest(request.proof, describe_proof(secret)):
            del answer.damaged_chats[:]  # any process of the machine may ask, and ids of groups are not to be guessed
        answer.node_id = self._options.node_id
        answer.links.extend(_link_state(status) for status in self.status())
        return answer


def _link_state(status: LinkStatus) -> relay_pb2.LinkState:
    return relay_pb2.LinkState(
        node_id=status.node_id,
        connected=status.connected,
        connected_ms=status.connected_ms,
        queued_messages=status.queued_messages,
        queued_bytes=status.queued_bytes,
        sent_messages=status.sent_messages,
        received_messages=status.received_messages,
        dropped_messages=status.dropped_messages,
        rtt_ms=status.rtt_ms,
    )
