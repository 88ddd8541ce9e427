"""Each exception is made when it is raised: one that is made once and raised again and again keeps every frame it passed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import chatgrpc

ROOT = Path(chatgrpc.__file__).parent


def raised_again(tree: ast.Module) -> list[str]:
    """Names to which a module binds what it calls, at its top, and that it raises as they are."""
    made = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return [exception.id for exception in raised if isinstance(exception, ast.Name) and exception.id in made]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        if "_pb2" not in path.name:
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def test_no_module_raises_an_exception_that_it_made_once() -> None:
    assert {name: again for name, tree in modules() if (again := raised_again(tree))} == {}


def test_one_is_found() -> None:
    assert raised_again(ast.parse("GONE = ValueError('x')\ndef f():\n    raise GONE")) == ["GONE"]
    assert raised_again(ast.parse("class Gone(Exception): pass\ndef f():\n    raise Gone")) == []
