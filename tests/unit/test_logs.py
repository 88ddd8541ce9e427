"""The log: one line an event, from every logger, and nothing in it of what people write."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import pytest
import structlog

from chatgrpc import logs
from chatgrpc.logs import REDACTED, guard

SECRET = "the words alice wrote"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_each_line_is_an_object_from_whichever_logger(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    structlog.contextvars.bind_contextvars(session="s1")
    structlog.get_logger("chatgrpc.edge").info("stream opened", peer="ipv4:1", streams=3)
    logging.getLogger("somebody.else").warning("it is %s", "odd")
    ours, theirs = lines(capsys)
    assert ours.pop("timestamp").endswith("Z")
    assert theirs.pop("timestamp").endswith("Z")
    assert ours == {
        "event": "stream opened",
        "level": "info",
        "logger": "chatgrpc.edge",
        "peer": "ipv4:1",
        "session": "s1",
        "streams": 3,
    }
    assert theirs == {"event": "it is odd", "level": "warning", "logger": "somebody.else", "session": "s1"}


def test_nothing_below_the_level_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "json")
    structlog.get_logger("a").info("quiet")
    logging.getLogger("b").info("quiet")
    structlog.get_logger("a").error("loud")
    logging.getLogger("b").error("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud", "loud"]


def test_the_http_client_does_not_log_the_addresses_it_calls(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", "json")
    logging.getLogger("httpx").info("HTTP Request: GET https://user:password@issuer.example")
    assert lines(capsys) == []


def test_configuring_again_does_not_write_twice(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logs.configure("info", "json")
    structlog.get_logger("a").info("once")
    assert [line["event"] for line in lines(capsys)] == ["once"]


@pytest.mark.parametrize(
    "key",
    [
        "text",
        "content",
        "token",
        "payload",
        "authorization",
        "password",
        "message",
        "Text",
        "message_text",
        "access_token",
        "event-payload",
        "x-Authorization",
        "caption",
        "body",
        "title",
        "draft",
        "secret",
    ],
)
def test_a_denied_key_is_redacted_at_any_depth(key: str) -> None:
    event = guard(None, "info", {"event": "e", key: SECRET, "a": {"b": [{key: SECRET}]}})
    assert event == {"event": "e", key: REDACTED, "a": {"b": [{key: REDACTED}]}}


@pytest.mark.parametrize("key", ["context", "payload_bytes", "token_reason", "contents", "chat_id", "textual", "kind"])
def test_a_key_that_only_looks_like_one_is_kept(key: str) -> None:
    assert guard(None, "info", {"event": "e", key: 5}) == {"event": "e", key: 5}


@dataclass
class _Message:
    words: str

    def __str__(self) -> str:
        return self.words


class _Code(Enum):
    RESUME = SECRET


def test_bytes_and_unknown_objects_are_named_but_not_shown() -> None:
    deep: Any = SECRET
    for _ in range(20):
        deep = [deep]
    event = guard(
        None,
        "info",
        {"event": "e", "a": _Message(SECRET), "b": SECRET.encode(), "c": _Code.RESUME, "d": [_Message(SECRET)], "f": deep},
    )
    assert SECRET not in repr(event)
    assert event["a"] == "<_Message>"
    assert event["b"] == f"<{len(SECRET)} bytes>"
    assert event["c"] == "RESUME"
    assert event["d"] == ["<_Message>"]
    assert guard(None, "info", {"event": "e", "error": ValueError("why")})["error"] == "ValueError: why"


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_shows_content_not_even_a_traceback(
    form: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("debug", form)
    logger = structlog.get_logger("chatgrpc")
    local_text = SECRET
    structlog.contextvars.bind_contextvars(text=SECRET)
    logger.info("sent", content=SECRET, event_=_Message(SECRET), nested={"payload": SECRET})
    logger.bind(token=SECRET).warning("bound")
    logging.getLogger("other").error("plain", extra={"text": SECRET})
    try:
        raise RuntimeError("why it failed")
    except RuntimeError:
        logger.exception("failed", text=local_text)
        logging.getLogger("other").exception("failed")
    written = capsys.readouterr().err
    assert SECRET not in written
    assert written.count("why it failed") >= 2
    assert "test_no_line_shows_content" in written
    assert REDACTED in written


def test_auto_is_text_on_a_terminal_and_json_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, is_json in ((Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        logs.configure("info", "auto")
        structlog.get_logger(f"a{is_json}").info("hello", streams=3)
        assert stream.getvalue().startswith("{") is is_json
        assert "hello" in stream.getvalue()
