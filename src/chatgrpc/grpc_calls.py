"""What grpc.aio leaves undone at the end of a call that this process made."""

from typing import Any

import grpc


def end_call(call: "grpc.aio.StreamStreamCall[Any, Any]") -> None:
    """Ends a call of ours, however far it is; again does nothing.

    `cancel()` alone does not always. When a write fails, since the other side has ended the call, grpc.aio takes the call for
    done (status INTERNAL, "Internal error from Core") and from then on neither reads nor cancels it. But what had come before
    the end was not read, the core keeps the status until it is, and so the call never ends: it holds its stream, and the
    connection too, even when its channel is closed. grpc.aio has no public way to tell the core, so this takes the one that
    `cancel()` itself would take. To a call that the core has ended it does no harm.
    """
    if not call.cancel():
        call._cython_call.cancel("It is over.")  # type: ignore[attr-defined]
