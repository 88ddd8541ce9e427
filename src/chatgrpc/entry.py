"""Where the commands `chatgrpc` and `chatgrpc-client` begin: ready before anything can go wrong, so it imports next to nothing.

Loading the rest takes up to a second, in which a Ctrl-C would end in the middle of some import, with its traceback.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from chatgrpc.exits import INTERRUPTED, is_of_output

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def main() -> None:
    """`chatgrpc`: the server, and the client where it is installed; see `chatgrpc.cli.main` for the exit codes."""

    def load() -> Callable[[], None]:
        from chatgrpc.cli import main as cli  # noqa: PLC0415 (takes long)

        cli.prepare()
        app = cli.build_app()  # loads the packages that add commands
        return lambda: cli.run(app)

    _start(load)


def client_main() -> None:
    """`chatgrpc-client`: the client's commands alone."""

    def load() -> Callable[[], None]:
        # gRPC's core writes raw lines to the terminal otherwise; what matters reaches us as a status. Before grpc is imported.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from chatgrpc_client.cli.main import build_app  # noqa: PLC0415 (takes long)

        return build_app()

    _start(load)


def _start(load: Callable[[], Callable[[], None]]) -> None:
    """Loads what takes long, then runs it."""
    signal.signal(signal.SIGINT, _interrupted)
    _open_what_is_closed()
    _wait_for_readers()
    _print_anything()
    sys.argv = [_as_utf8(argument) for argument in sys.argv]
    run = load()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:
        _interrupted(signal.SIGINT, None)
    except OSError as error:
        if not is_of_output(error):
            raise
        with contextlib.suppress(OSError):
            print(f"chatgrpc: the output cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    finally:
        _give_up_output_that_takes_nothing()


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    """Ends at once: nothing has been done that would have to be undone."""
    try:
        os.write(2, b"chatgrpc: interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def _open_what_is_closed() -> None:
    """Puts nothing in the place of standard streams that are closed: else the next file or socket would take their place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < len(_STREAMS):
        pass
    os.close(descriptor)
    for number, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (a descriptor, for as long as we run)


def _wait_for_readers() -> None:
    """Output that does not block, as whoever started this may have left it, loses what its reader has no room for yet."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            os.set_blocking(descriptor, True)


def _print_anything() -> None:
    """A character that the output's encoding does not have is printed as an escape; nobody's words may end a command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _as_utf8(argument: str) -> str:
    """What was typed, in UTF-8 also where the locale says something else; as it is if it is not UTF-8."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        return argument


def _give_up_output_that_takes_nothing() -> None:
    """Flushes what was printed; what cannot be written any more must not make the interpreter complain as it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
