"""What Cassandra and its driver say, in the ports' words.

A statement's values never stand in these messages; of a few kinds of error the server's own sentence does, which names tables
and limits.
"""

from collections.abc import Mapping
from typing import Any

from cassandra import (
    DriverException,
    OperationTimedOut,
    ReadTimeout,
    RequestExecutionException,
    RequestValidationException,
    Unavailable,
    WriteTimeout,
)
from cassandra.cluster import NoHostAvailable

from chatgrpc.ports.errors import OutcomeUnknownError, StoreError, StoreUnavailableError


class SchemaError(StoreError):
    """The keyspace is not one of this chatgrpc, or was written by a newer one."""


def failed_read(error: BaseException) -> StoreUnavailableError:
    """A read that brought nothing."""
    return StoreUnavailableError(described(error))


def failed_write(error: BaseException, nothing_sent: bool) -> StoreError:
    """A write that was not acknowledged.

    Args:
        error: what the driver made of the last try.
        nothing_sent: whether every node that was asked refused, so that nothing can have been stored.
    """
    return StoreUnavailableError(described(error)) if nothing_sent else OutcomeUnknownError(described(error))


def described(error: BaseException) -> str:
    """A sentence for people, without values of the statement."""
    if isinstance(error, NoHostAvailable):
        reasons = error.errors if isinstance(error.errors, dict) else {}
        if reasons and all(isinstance(reason, Unavailable) for reason in reasons.values()):
            return described(next(iter(reasons.values())))
        return f"Cassandra: no node can do it ({_by_host(reasons)})"
    if isinstance(error, Unavailable):
        return (
            f"Cassandra: {error.required_replicas} replicas must be alive and {error.alive_replicas} are "
            "(the keyspace's replication factor must not be greater than the number of nodes)"
        )
    if isinstance(error, ReadTimeout | WriteTimeout):
        return f"Cassandra: {error.received_responses} of {error.required_responses} replicas answered in time"
    if isinstance(error, OperationTimedOut):
        return "Cassandra did not answer in time"
    if isinstance(error, RequestExecutionException | RequestValidationException | DriverException | OSError):
        return f"Cassandra: {type(error).__name__}: {error}"
    return f"Cassandra: {type(error).__name__}"


def _by_host(reasons: Mapping[Any, Any]) -> str:
    found = (f"{host}: {type(reason).__name__}: {reason}" for host, reason in reasons.items())
    return "; ".join(found) or "none is known to be up"
