"""The log: structured, on standard error, without what people write to each other.

Everything goes through one handler: structlog's loggers, the standard library's, those of other packages. The guard stands
before rendering, so that a line that forgot itself still leaks nothing: values under a denied key, raw bytes, and objects
whose `repr` nobody has looked at are replaced, and secrets in addresses are masked. It cannot judge the words of a sentence,
nor those of an exception: write what is fixed as the event, what varies as key and value, and keep content out of exceptions.
"""

import logging
import sys
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from pathlib import PurePath
from typing import Literal, TextIO
from uuid import UUID

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from chatgrpc.masking import mask_addresses

DENIED_WORDS = frozenset(
    {"authorization", "body", "caption", "content", "cookie", "draft", "jwt", "message", "metadata"}
    | {"password", "payload", "secret", "text", "title", "token"}
)
"""A key that is one of these, or ends in `_` and one of these, says that its value must not be logged."""

REDACTED = "[redacted]"

_PLAIN = (str, int, float, bool, type(None), datetime, UUID, PurePath)
_DEPTH_MAX = 6


def configure(level: Literal["debug", "info", "warning", "error"], form: Literal["auto", "json", "console"]) -> None:
    """Sends every log line of the process to standard error.

    Args:
        level: least level that is written.
        form: `json` one object a line, `console` text for people, `auto` console on a terminal and JSON elsewhere.
    """
    stream = sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(stream, form))
    number = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    for chatty in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(chatty).setLevel(max(number, logging.WARNING))
    structlog.configure(
        processors=[*_shared_steps(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def guard(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """structlog processor that replaces what may be message content or a secret."""
    return {key: value if key == "exc_info" else _guarded(key, value, 0) for key, value in event.items()}


def _guarded(key: object, value: object, depth: int) -> object:
    if isinstance(key, str) and key.lower().replace("-", "_").rpartition("_")[2] in DENIED_WORDS:
        return REDACTED
    if isinstance(value, Mapping) and depth < _DEPTH_MAX:
        return {str(name): _guarded(name, inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < _DEPTH_MAX:
        return [_guarded(None, inner, depth + 1) for inner in value]
    return _guarded_scalar(value)


def _guarded_scalar(value: object) -> object:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str):
        return mask_addresses(value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, BaseException):
        return mask_addresses(f"{type(value).__name__}: {value}")
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return f"<{type(value).__name__}>"


def _formatter(stream: TextIO, form: str) -> logging.Formatter:
    steps: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json" or (form == "auto" and not stream.isatty()):
        # No local variables in a traceback: they hold content.
        trace = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        steps += [guard, structlog.processors.ExceptionRenderer(trace), structlog.processors.JSONRenderer(default=str)]
    else:
        console = structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
        steps += [guard, console]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_shared_steps(), processors=steps)


def _shared_steps() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
