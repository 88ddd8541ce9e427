"""The page that says how the core is driven does what it says."""

import re
from pathlib import Path
from typing import Any

from chatgrpc.v1 import chat_pb2

PAGE = Path(__file__).parents[3] / "docs" / "driving-the-core.md"


def test_the_loop_on_the_page_commits_answers_and_pushes() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), scope)
    ((ticket, _, outcome),) = scope["answers"]
    assert ticket == "ticket"
    assert isinstance(outcome, chat_pb2.SendResult)
    assert outcome.seq == 2
    assert [(delivery.seq, delivery.user_ids) for delivery in scope["pushed"]] == [
        (1, ("alice", "bob")),
        (2, ("alice", "bob")),
    ]
