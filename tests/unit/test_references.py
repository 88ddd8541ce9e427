"""What comments and pages refer to is there: sections of the design, decisions, files."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_sections_of_the_design_that_are_cited_are_there() -> None:
    sections = set(re.findall(r"^## (\d+)\. ", (ROOT / "docs" / "design.md").read_text(), re.MULTILINE))
    cited = {}
    for path in _tracked("*.py", "*.md", "*.proto", "*.toml"):
        for found in re.finditer(r"design (§\d+(?:, §\d+)*)", path.read_text()):
            cited.update(dict.fromkeys(re.findall(r"\d+", found[1]), path))
    assert cited, "this test looks for nothing"
    assert not {number: str(path) for number, path in cited.items() if number not in sections}


def test_requirements_that_are_cited_are_there() -> None:
    listed = set(re.findall(r"^\| ([GMX]\d+) \|", (ROOT / "docs" / "design.md").read_text(), re.MULTILINE))
    cited = {}
    for path in _tracked("*.py", "*.md", "*.proto"):
        cited.update(dict.fromkeys(re.findall(r"\b[GMX]\d{1,2}\b", path.read_text()), path))
    assert len(cited) > len(listed) / 2, "this test looks for nothing"
    assert not {number: str(path) for number, path in cited.items() if number not in listed}


def test_each_event_that_is_logged_has_a_line_in_the_runbook() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text()
    events = {event for path in _tracked("src/chatgrpc/*.py") for event in _events_logged(ast.parse(path.read_text()))}
    assert len(events) > 40, "this test looks for nothing"
    assert {"chat_damaged", "shard_defect", "append_failed", "store_unavailable"} <= events, "it does not see all ways to log"
    assert not {event for event in events if f"`{event}`" not in runbook}


_NAMED_ELSEWHERE = {
    "_EVENT[damage.kind]",  # the values of that dict
    "f'{where}_defect'",  # `DamageBook.defect`
    "event",  # `_report`
    "self._event",  # `Trouble`
    "f'{self._event}_over'",
}
"""How events are logged whose names stand where `_events_logged` finds them."""


def _events_logged(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name("_log")) | ast.Name("Trouble" | "_report"),
                args=[ast.Constant(str(event)), *_],
            ):
                yield event
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(attr="_book"), attr="defect"), args=[ast.Constant(str(part)), *_]
            ):
                yield f"{part}_defect"
            case ast.AnnAssign(target=ast.Name("_EVENT"), value=ast.Dict(values=values)):
                yield from map(ast.literal_eval, values)
            case ast.Call(
                func=ast.Attribute(value=ast.Name("_log")),
                args=[ast.IfExp(body=ast.Constant(str(event)), orelse=ast.Constant(str(other))), *_],
            ):
                yield from (event, other)
            case ast.Call(func=ast.Attribute(value=ast.Name("_log")), args=[named, *_]):
                assert ast.unparse(named) in _NAMED_ELSEWHERE, f"line {named.lineno}: this test does not see which event it is"


def test_decisions_that_are_cited_are_there() -> None:
    decisions = {int(path.name[:4]) for path in (ROOT / "docs" / "adr").glob("[0-9]*.md")}
    for path in _tracked("*.py", "*.md", "*.proto"):
        for number in re.findall(r"\bADR (\d+)\b", path.read_text()):
            assert int(number) in decisions, f"{path}: ADR {number}"


def test_each_decision_has_a_number_of_its_own_and_a_line_in_the_list() -> None:
    listed = (ROOT / "docs" / "adr" / "README.md").read_text()
    found = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert [int(path.name[:4]) for path in found] == list(range(1, len(found) + 1))
    for number, path in enumerate(found, start=1):
        title = path.read_text().splitlines()[0].removeprefix(f"# {number}. ")
        assert f"| [{number}]({path.name}) | {title} |" in listed


def test_links_between_pages_lead_somewhere() -> None:
    for path in _tracked("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), f"{path}: {target}"
