"""How two nodes without TLS show each other that they know the cluster's secret, before they believe what the other says.

Any process of the machine can dial a node's port and call itself a node. So both Hellos carry a random challenge, and each side
answers the other's with an HMAC-SHA-256 over both challenges and both node ids. Nothing that was overheard can be used again,
nor be sent back to where it came from, since the two sides prove different things.
"""

import hmac
import secrets
from typing import Final

from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.relay.link import LinkEndedError

CHALLENGE_BYTES: Final = 16


def describe_proof(secret: bytes) -> bytes:
    """The proof that an operator sends with the question how a node is.

    It is the same each time, and may be: whoever overhears it hears the answer too.
    """
    return hmac.digest(secret, b"describe", "sha256")


class Proof:
    """One side of one link's proofs."""

    def __init__(
        self, secret: bytes | None, dialler_id: str, other_id: str, *, is_dialler: bool, lenient: bool = False
    ) -> None:
        """
        Args:
            secret: the cluster's; without one nothing is proven, nor asked for.
            dialler_id: the node that dialled.
            other_id: the node that was dialled.
            is_dialler: which of the two this side is.
            lenient: believe a node that offers no proof, as those of earlier versions do.
        """
        self._secret = secret
        self._ids = (dialler_id, other_id)
        self._is_dialler = is_dialler
        self._lenient = lenient
        self._theirs = b""
        self.challenge = b"" if secret is None else secrets.token_bytes(CHALLENGE_BYTES)
        """What the other side is to answer."""

    def challenged(self, hello: relay_pb2.Hello) -> bytes:
        """The answer to the challenge in the other side's first Hello; empty if there is none."""
        self._theirs = hello.challenge
        return self._of(self._is_dialler) if self._secret is not None and self._theirs else b""

    def check(self, hello: relay_pb2.Hello) -> None:
        """Looks at the answer in a Hello of the other side, which has been `challenged` by then.

        Raises:
            LinkEndedError: it does not show that the other side knows the secret.
        """
        if self._secret is None:
            return
        if not hello.proof and not self._theirs:
            if self._lenient:
                return
            raise LinkEndedError("it does not show that it knows the cluster's secret; set cluster.relay_secret there too")
        if len(self._theirs) != CHALLENGE_BYTES or not hmac.compare_digest(hello.proof, self._of(not self._is_dialler)):
            raise LinkEndedError("it has another cluster.relay_secret")

    def _of(self, dialler: bool) -> bytes:
        """What the side that dialled, or the other, shows."""
        assert self._secret is not None
        ours, theirs = (self.challenge, self._theirs) if self._is_dialler else (self._theirs, self.challenge)
        parts = (b"dialler" if dialler else b"dialled", ours, theirs, *(node_id.encode() for node_id in self._ids))
        # Each with its length before it, so that no other parts make the same bytes.
        return hmac.digest(self._secret, b"".join(len(part).to_bytes(4) + part for part in parts), "sha256")
