"""What is installed is what was looked at: by hashes, and for who only runs the server nothing that develops it."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))
_PINNED = re.compile(r"([a-z0-9][a-z0-9._-]*)==\S+(?: ; [^\\]+)?((?: --hash=sha256:[0-9a-f]{64})+)")


def requirements(lock: str) -> Iterator[str]:
    """Each on one line, with all that belongs to it."""
    for line in (ROOT / lock).read_text().replace(" \\\n", "").splitlines():
        yield re.sub(" +", " ", line)


def names(lock: str) -> set[str]:
    """Of the packages that it pins."""
    return {line.partition("==")[0] for line in requirements(lock)}


def test_there_are_locks_for_development_for_running_and_for_what_installs() -> None:
    assert LOCKS == ["requirements-run.lock", "requirements-tools.lock", "requirements.lock"]


@pytest.mark.parametrize("lock", LOCKS)
def test_each_line_of_a_lock_pins_one_version_by_hashes(lock: str) -> None:
    lines = list(requirements(lock))
    assert lines
    assert [line for line in lines if not _PINNED.fullmatch(line)] == []


def test_who_only_runs_the_server_installs_nothing_that_develops_it() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    tools = {re.split(r"[\[<>=~! ]", wanted)[0] for group in groups.values() for wanted in group}
    assert tools <= names("requirements.lock")
    assert not tools & names("requirements-run.lock")


def test_who_develops_the_server_has_what_it_runs_on() -> None:
    assert set(requirements("requirements-run.lock")) < set(requirements("requirements.lock"))


def test_uv_is_pinned() -> None:
    assert "uv" in names("requirements-tools.lock")


def test_all_that_setup_installs_from_an_index_has_its_hash_checked() -> None:
    lines = (ROOT / "scripts" / "setup").read_text().splitlines()
    installs = [line for line in lines if re.search(r"pip (install|sync)\b", line)]
    assert len(installs) == 4, "this test looks for nothing"
    for line in installs:
        assert "--require-hashes" in line or ("--no-deps" in line and '"$wheels"/' in line), line
