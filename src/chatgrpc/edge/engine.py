"""How gRPC's core runs in this process. This module must not import grpc: the choices fall when grpc is imported.

gRPC has two I/O engines. The default, EventEngine, reads and writes on a pool of threads; they hand work to each other and to
the thread that polls for completions, and that one to the event loop. A node is one process per core, so on its core these
hand-overs buy nothing, and switching between the threads becomes the largest single cost of a message. Without EventEngine the
polling thread does the reading and writing itself. `python -m benchmarks.transport` compares the two.
"""

import os

_VARIABLE = "GRPC_EXPERIMENTS"
_POLLING = "-event_engine_listener"


def serve_by_polling() -> None:
    """Chooses the polling engine for the servers of this process, unless `GRPC_EXPERIMENTS` is set already.

    Has no effect once grpc is imported.
    """
    os.environ.setdefault(_VARIABLE, _POLLING)


def mute_core_log() -> None:
    """Turns off the lines that gRPC's core writes to standard error, unless `GRPC_VERBOSITY` is set already.

    They are raw text among our JSON, one for each peer that cannot shake hands, so anyone could fill the log with them. What
    matters to us reaches us as an exception or a status.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
