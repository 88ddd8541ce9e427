"""A node's claim to a keyspace, made each time before it joins: keyspace and etcd must belong together (ADR 4).

Two etcds over one keyspace are two owners of each chat, two keyspaces under one etcd are owners with other logs. So both are
asked which of the other they know, and what stands there lasts. A node that was without its lease asks again: meanwhile etcd
may have been set up anew, or the keyspace may have been given to nodes with another one.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, Protocol, TypeVar

import structlog

from chatgrpc.adapters.cassandra import USE_INTERVAL_S, SchemaError
from chatgrpc.config import ClusterSettings
from chatgrpc.ports.cluster import ClusterUnavailableError
from chatgrpc.ports.errors import StoreError
from chatgrpc.start_error import StartError
from chatgrpc.trouble import Trouble

_ANSWER_TIMEOUT_S: Final = 10.0
_RETRY_S: Final = 0.25

_log = structlog.get_logger()
_T = TypeVar("_T")


class Keyspace(Protocol):
    """See `adapters.cassandra.owner.KeyspaceUse`."""

    async def identity(self) -> str: ...

    async def base(self) -> int: ...

    async def claim_base(self, etcd_base: int) -> None: ...

    async def note_use(self, node_id: str, etcd_base: int) -> None: ...


class Coordinator(Protocol):
    """See `adapters.etcd.EtcdCluster`."""

    async def keyspace(self) -> str: ...

    async def say_keyspace(self, identity: str) -> str: ...

    async def epoch_base(self) -> int: ...

    @property
    def joined_base(self) -> int: ...


class Claim:
    """One node's."""

    def __init__(
        self,
        node_id: str,
        settings: ClusterSettings,
        keyspace: Keyspace,
        coordinator: Coordinator,
        *,
        answer_timeout_s: float = _ANSWER_TIMEOUT_S,
        interval_s: float = USE_INTERVAL_S,
    ) -> None:
        """A question is given up after `answer_timeout_s`; the use of the keyspace is said every `interval_s`."""
        self._node_id = node_id
        self._settings = settings
        self._keyspace = keyspace
        self._coordinator = coordinator
        self._answer_timeout_s = answer_timeout_s
        self._interval_s = interval_s

    async def make(self) -> None:
        """Compares keyspace and etcd, and notes in each that it belongs to the other.

        Raises:
            StartError: they do not belong together, or one of them does not answer: the node must not join.
        """
        keyspace, coordinator = self._keyspace, self._coordinator
        identity = await self._of_cassandra(keyspace.identity)
        self._check(identity, await self._of_etcd(coordinator.keyspace) or identity)  # before this etcd is noted there
        base = await self._of_etcd(coordinator.epoch_base)
        await self._of_cassandra(lambda: keyspace.claim_base(base))
        self._check(identity, await self._of_etcd(lambda: coordinator.say_keyspace(identity)))
        await self._of_cassandra(lambda: keyspace.note_use(self._node_id, base))

    async def keep(self, is_joined: Callable[[], bool], let_go: Callable[[], None]) -> NoReturn:
        """Says again and again that this node uses the keyspace; without a lease it orders nothing there.

        Who claimed the keyspace in the same moment with another etcd may not have seen this node, nor this node it. Of two the
        one whose etcd counts from later stays: `let_go` is called on the other.
        """
        unusable = Trouble("keyspace_unusable")
        while True:
            await asyncio.sleep(self._interval_s)
            if not is_joined():
                continue
            try:
                await self._keyspace.note_use(self._node_id, self._coordinator.joined_base)
                stored = await self._keyspace.base()
            except SchemaError as error:
                unusable.failed(error)  # nobody else owns it: this node goes on, and an operator has to know
                continue
            except StoreError:
                continue  # there are more tries before it is forgotten
            unusable.worked()
            if stored > self._coordinator.joined_base and is_joined():
                _log.error("keyspace_lost", base=self._coordinator.joined_base, base_of_other_etcd=stored)
                let_go()

    def _check(self, ours: str, theirs: str) -> None:
        cluster = self._settings
        if ours != theirs:
            raise StartError(
                f"The nodes of the cluster {cluster.name!r} in this etcd ({cluster.etcd}) use the keyspace {theirs}, and this "
                f"node would use {ours}: are --cluster-keyspace and --cluster-cassandra right? Another cluster needs a name of "
                "its own (--cluster-name). If the keyspace was made anew on purpose, stop all nodes and delete the key "
                f"{cluster.etcd_prefix}keyspace in etcd."
            )

    async def _of_cassandra(self, ask: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Asks until it is answered, or for a time: where many nodes start at once, some are told to try again."""
        why = "it does not answer"
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                while True:
                    try:
                        return await ask()
                    except SchemaError:
                        raise
                    except StoreError as error:
                        why = str(error)
                    await asyncio.sleep(_RETRY_S)
        except SchemaError as error:
            why = str(error)
        except TimeoutError:
            pass
        raise StartError(f"Cassandra ({self._settings.cassandra}): {why}")

    async def _of_etcd(self, ask: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                return await ask()
        except (ClusterUnavailableError, TimeoutError) as error:
            raise StartError(cannot_join(self._settings, error)) from None


def cannot_join(settings: ClusterSettings, why: Exception | None) -> str:
    """What is said when etcd does not let a node in."""
    return (
        f"Cannot join the cluster by etcd ({settings.etcd}): {str(why or '') or 'it does not answer'}. "
        "Is it running, and are --cluster-etcd and its TLS settings right?"
    )
