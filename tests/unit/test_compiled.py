"""The compiled copy runs in place of the very sources that it was made of, or not at all."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatgrpc import compiled
from scripts.written_inits import with_written_inits

SHOWN = "import chatgrpc.cli; import chatgrpc.core.ids as ids; print(ids.__file__)"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Sources of a server, and a copy of them; what is shown of it says which is run."""
    package = tmp_path / "src" / "chatgrpc"
    for where in (package, tmp_path / ".compiled" / "chatgrpc"):
        for folder in ("cli", "core", "adapters"):
            (where / folder).mkdir(parents=True)
            (where / folder / "__init__.py").touch()
        for name in ("core/ids.py", "background.py", "adapters/schema.sql"):
            (where / name).touch()
        for name in ("__init__.py", "compiled.py", "start_error.py", "cli/__init__.py"):
            (where / name).write_bytes((compiled.PACKAGE / name).read_bytes())
    made_of = shown(tmp_path, "from chatgrpc import compiled; print(compiled.fingerprint(compiled.PACKAGE))")
    (tmp_path / ".compiled" / compiled.STAMP).write_text(made_of)
    return tmp_path


def shown(root: Path, script: str = SHOWN, **environment: str) -> str:
    """What a Python of those sources prints."""
    environment = {"PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_copy_of_these_sources_is_run(copied: Path) -> None:
    assert shown(copied) == str(copied / ".compiled/chatgrpc/core/ids.py")


@pytest.mark.parametrize("changed", ["core/ids.py", "adapters/schema.sql", "core/new.py"])
def test_a_copy_of_other_sources_is_not_run(copied: Path, changed: str) -> None:
    (copied / "src/chatgrpc" / changed).write_text("changed = True")
    assert shown(copied) == str(copied / "src/chatgrpc/core/ids.py")


def test_the_switch_has_the_sources_run(copied: Path) -> None:
    assert shown(copied, **{compiled.SWITCH: "0"}) == str(copied / "src/chatgrpc/core/ids.py")


@pytest.mark.parametrize("module", ["core", "adapters", "background"])
def test_the_two_are_never_mixed(copied: Path, module: str) -> None:
    """A compiled module that meets another one of the sources reads what is not there."""
    assert shown(copied, f"import chatgrpc.{module}; {SHOWN}") == str(copied / "src/chatgrpc/core/ids.py")


def test_what_is_missing_in_the_copy_is_not_taken_from_the_sources(copied: Path) -> None:
    (copied / ".compiled/chatgrpc/background.py").unlink()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        shown(copied, "import chatgrpc.cli; import chatgrpc.background")
    assert "No module named 'chatgrpc.background'" in failed.value.stderr


def test_a_folder_beside_an_installed_package_is_none_of_its_own(copied: Path) -> None:
    (copied / "src").rename(copied / "lib")
    environment = {"PYTHONPATH": str(copied / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}
    assert shown(copied, SHOWN, **environment) == str(copied / "lib/chatgrpc/core/ids.py")


def test_without_a_copy_the_sources_run(copied: Path) -> None:
    (copied / ".compiled" / compiled.STAMP).unlink()
    assert shown(copied) == str(copied / "src/chatgrpc/core/ids.py")


MAY_SERVE = "import chatgrpc.cli; from chatgrpc import compiled\ntry: compiled.check()\nexcept Exception as e: print(e)"


@pytest.mark.parametrize(("switch", "refused"), [("1", "make compiled"), ("", ""), ("0", "")])
def test_who_wants_nothing_but_the_copy_gets_nothing_else(copied: Path, switch: str, refused: str) -> None:
    """A suite that is to test the copy must not pass on the sources."""
    environment = {compiled.SWITCH: switch}
    assert not shown(copied, MAY_SERVE, **environment)
    (copied / "src/chatgrpc/core/ids.py").write_text("changed = True")
    said = shown(copied, MAY_SERVE, **environment)
    assert refused in said
    assert bool(said) == bool(refused)


RECORDS = '''
from dataclasses import dataclass, field
from typing import ClassVar

@dataclass(frozen=True, slots=True)
class Point:
    """A docstring."""

    x: int
    y: int = -1
    """One of a field."""

    def sum(self) -> int:
        return self.x + self.y


@dataclass(slots=True)
class Open:
    seen: int
    ours: str = field(default="here", compare=False)


@dataclass(eq=False, slots=True)
class Named:
    name: str


@dataclass(slots=True, kw_only=True)
class ByName:
    name: str


@dataclass(slots=True)
class Counted:
    COUNT: ClassVar[int] = 3
    name: str


@dataclass(slots=True)
class Made:
    each: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Base:
    x: int


@dataclass(frozen=True)
class Derived(Base):
    z: int = 0


@dataclass(frozen=True)
class Checked:
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("negative")
'''


def records(source: str) -> dict[str, Any]:
    """What stands in it."""
    names: dict[str, Any] = {"__name__": __name__}
    exec(source, names)
    return names


def test_records_whose_init_is_written_out_are_the_same_records() -> None:
    source, written = RECORDS, with_written_inits(RECORDS)
    assert written.count("def __init__(") == 3
    for found in (records(source), records(written)):
        point, opened, named = found["Point"], found["Open"], found["Named"]
        assert (repr(point(1)), point(1, y=2).sum(), point.__match_args__) == ("Point(x=1, y=-1)", 3, ("x", "y"))
        assert {point(1), point(1, -1), point(2)} == {point(1), point(2)}
        assert opened(1) == opened(1, "there") != opened(2)
        assert opened(1).ours == "here"
        with pytest.raises(TypeError):
            hash(opened(1))
        one = named("a")
        assert len({one, named("a"), one}) == 2
        assert replace(point(1), y=4) == point(1, 4)


def test_records_that_are_not_plain_are_left_as_they_are() -> None:
    found = records(with_written_inits(RECORDS))
    assert found["Made"]().each is not found["Made"]().each
    assert found["Derived"](1, 3).z == 3
    assert (found["Counted"]("a").name, found["Counted"].COUNT) == ("a", 3)
    with pytest.raises(TypeError):
        found["ByName"]("a")
    with pytest.raises(ValueError, match="negative"):
        found["Checked"](-1)
