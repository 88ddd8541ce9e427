"""How docs/grpcurl.md is read and compared; `scripts/check` holds it to what grpcurl really prints."""

from scripts.grpcurl_docs import PAGE, Step, split


def test_the_page_is_split_into_text_and_commands_without_loss() -> None:
    page = PAGE.read_text()
    parts = split(page)
    assert "".join(part if isinstance(part, str) else "".join(map(str, part)) for part in parts) == page
    steps = [step for part in parts if isinstance(part, list) for step in part]
    assert len(steps) == page.count("\n$ ") > 20
    assert all(step.output for step in steps if step.command.startswith("grpcurl"))


def test_outputs_are_alike_but_for_volatile_values() -> None:
    shown = Step("call", '  "seq": "1",\n  "sent_at_ms": "17",\n  "message_id": "AA=="\n')
    assert shown.is_like(Step("call", '  "seq": "1",\n  "sent_at_ms": "18",\n  "message_id": "BB=="\n'))
    assert not shown.is_like(Step("call", '  "seq": "2",\n  "sent_at_ms": "17",\n  "message_id": "AA=="\n'))
    assert not shown.is_like(Step("call", '  "seq": "1",\n  "sent_at_ms": "17"\n'))
    batched = Step("stream", '{\n  "frames": [\n    {\n      "a": 1\n    },\n    {\n      "b": 2\n    }\n  ]\n}\n')
    apart = '{\n  "frames": [\n    {\n      "a": 1\n    }\n  ]\n}\n{\n  "frames": [\n    {\n      "b": 2\n    }\n  ]\n}\n'
    assert batched.is_like(Step("stream", apart))
