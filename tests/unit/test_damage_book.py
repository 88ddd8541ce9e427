"""What goes wrong with single chats is told to operators, with what to do, and not again and again."""

import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chatgrpc.core.damage import Damage, Kind
from chatgrpc.damage_book import REMEMBERED_S, DamageBook
from chatgrpc.metrics import Metrics

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
DEEDS = {Kind.STORED: "nodetool repair", Kind.EPOCH_FELL: "stop every node", Kind.DEFECT: "please report it"}
"""What the line of each kind asks of whoever reads it."""


def test_each_kind_of_damage_has_a_deed() -> None:
    assert DEEDS.keys() == {*Kind}


@pytest.mark.parametrize("kind", Kind)
def test_the_line_of_a_damaged_chat_says_what_an_operator_does(kind: Kind) -> None:
    with capture_logs() as lines:
        DamageBook(Metrics()).note(Damage("g.1", kind, "why"))
    (line,) = lines
    assert (line["log_level"], line["chat_id"], line["why"]) == ("error", "g.1", "why")
    assert DEEDS[kind] in line["help"]
    for cited in re.findall("see '(.*?)'", line["help"]):
        assert cited in OPERATIONS.read_text()


def test_a_chat_that_is_asked_for_again_and_again_is_told_once_every_ten_minutes() -> None:
    times_s = iter((0.0, 1.0, REMEMBERED_S - 1, REMEMBERED_S))
    book = DamageBook(Metrics(), lambda: next(times_s))
    with capture_logs() as lines:
        for _ in range(4):
            book.note(Damage("g.1", Kind.STORED, "why"))
    assert [line["event"] for line in lines] == ["chat_damaged"] * 2
