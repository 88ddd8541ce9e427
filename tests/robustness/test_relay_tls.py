"""Mutual TLS between nodes: who cannot show a certificate of the cluster's authority is not spoken to."""

import pytest
from structlog.testing import capture_logs

from chatgrpc.relay import NodeUnreachableError, RelayOptions, Tls, describe_node
from chatgrpc.relay.link import LinkEndedError, Stream
from chatgrpc.relay.transport import connect, open_link
from chatgrpc.start_error import StartError
from tests.robustness.support_relay import LinkedNode, event, linked, started, until
from tests.support.authority import Authority, Pair

CLUSTER = Authority("cluster")
STRANGERS = Authority("strangers")
NODE = CLUSTER.sign("node")


def options(node_id: str, pair: Pair = NODE, authority: Authority = CLUSTER) -> RelayOptions:
    return RelayOptions(node_id, ca_pem=authority.ca_pem, cert_pem=pair.cert_pem, key_pem=pair.key_pem)


async def test_nodes_with_certificates_of_the_cluster_are_linked() -> None:
    async with linked(options("a", CLUSTER.sign("a")), options("b", CLUSTER.sign("b"))) as (a, b):
        a.relay.send("b", event(1))
        b.relay.send("a", event(2))
        await until(lambda: b.seqs_from("a") == [1] and a.seqs_from("b") == [2])
        tls = Tls(CLUSTER.ca_pem, NODE.cert_pem, NODE.key_pem)
        assert (await describe_node(a.info.relay_address, tls, timeout_s=5)).node_id == "a"


STRANGE = {
    "without TLS": RelayOptions("a"),
    "with a certificate of another authority": options("a", STRANGERS.sign("a")),
    "trusting another authority": options("a", CLUSTER.sign("a"), STRANGERS),
}


@pytest.mark.parametrize("stranger", STRANGE.values(), ids=STRANGE.keys())
@pytest.mark.parametrize("other_id", ["0", "b"], ids=["dialled by the node", "dialling the node"])
async def test_strangers_are_not_linked_with(stranger: RelayOptions, other_id: str) -> None:
    async with started(stranger, options(other_id), options("c")) as (a, b, c):
        with capture_logs() as lines:
            a.see(b.info)
            b.see(a.info, c.info)
            c.see(b.info)
            await until(lambda: any(line["event"] == "relay_dial_failed" for line in lines))
            await until(lambda: b.relay.linked() == {"c"})
        b.relay.send("c", event(1))
        await until(lambda: c.seqs_from(other_id) == [1])
        assert not a.changes
        assert "a" not in b.changes


@pytest.mark.parametrize(
    "tls",
    [None, Tls(CLUSTER.ca_pem, b"", b""), Tls(CLUSTER.ca_pem, STRANGERS.sign("a").cert_pem, STRANGERS.sign("a").key_pem)],
    ids=["without TLS", "without a certificate", "with a certificate of nobody's key"],
)
async def test_strangers_are_told_nothing(tls: Tls | None) -> None:
    async with started(options("a")) as (a,):
        with pytest.raises(NodeUnreachableError):
            await describe_node(a.info.relay_address, tls, timeout_s=3)


async def test_a_node_whose_certificate_is_for_another_address_is_not_linked_with() -> None:
    async with started(options("a"), options("b", CLUSTER.sign("b", "127.0.0.2")), options("c")) as (a, b, c):
        with capture_logs() as lines:
            a.see(b.info, c.info)
            b.see(a.info)
            c.see(a.info)
            await until(lambda: any(line["event"] == "relay_dial_failed" and line["peer"] == "b" for line in lines))
            await until(lambda: a.relay.linked() == {"c"})
        assert not b.changes


async def test_a_node_that_dials_with_a_certificate_for_another_address_is_not_linked_with() -> None:
    async with started(options("a", CLUSTER.sign("a", "127.0.0.99")), options("b"), options("c")) as (a, b, c):
        with capture_logs() as lines:
            a.see(b.info)
            b.see(a.info, c.info)
            c.see(b.info)
            await until(lambda: any(line["event"] == "relay_refused" and "not for 127.0.0.1" in line["why"] for line in lines))
            await until(lambda: b.relay.linked() == {"c"})
        assert "a" not in b.changes


async def test_a_node_does_not_take_the_link_of_another_whose_certificate_it_does_not_have() -> None:
    """The certificate of one node of the cluster is not good for all."""
    async with linked(options("a"), options("b")) as (a, b):
        pair = CLUSTER.sign("c", "127.0.0.3")
        channel = connect(b.info.relay_address, Tls(CLUSTER.ca_pem, pair.cert_pem, pair.key_pem))
        stream = Stream(open_link(channel))
        await stream.say_hello("a", "b")
        with pytest.raises(LinkEndedError, match=r"not for 127\.0\.0\.1"):
            await stream.hear_hello("a")
        await channel.close()
        assert b.changes["a"] == [True]
        a.relay.send("b", event(1))
        await until(lambda: b.seqs_from("a") == [1])


async def test_what_is_no_certificate_is_said_at_the_start() -> None:
    with pytest.raises(StartError, match="certificate and its key"):
        await LinkedNode(options("a", Pair(b"not one", b"nor this"))).start()


def test_no_key_is_shown() -> None:
    assert "PRIVATE" not in repr(options("a"))
    assert "PRIVATE" not in repr(options("a").tls)
