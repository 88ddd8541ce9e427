"""How the commands `chatgrpc` and `chatgrpc-client` end. Imports next to nothing: it is loaded before anything can go wrong."""

import errno

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""
_OUTPUT_ERRNOS = frozenset({errno.ENOSPC, errno.EPIPE, errno.EBADF, errno.EIO})


def is_of_output(error: OSError) -> bool:
    """Whether it is a standard output that takes nothing: it is full, unread, closed or gone. What names a file is none."""
    return error.errno in _OUTPUT_ERRNOS and error.filename is None
