"""Compiles with mypyc what runs most, into a copy of the sources: `server` (.compiled/) or `sim` (.sim/).

`make compiled` and `make sim COMPILED=1` do it. What comes out does the same in less time: the server's rules and its tick
loop, or whole clusters in the simulator, seed by seed. Needs a C compiler, and is made anew where a source has changed.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from chatgrpc import compiled
from scripts.written_inits import with_written_inits

ROOT = Path(__file__).resolve().parent.parent
LACKING = 3
"""Exit status where this machine cannot compile."""
_MADE_BY = "made-by"
"""File in the folder that says how it was made."""
_NOT_COMPILED = {"__init__.py", "__main__.py"}
_BUILD = """
import os, sys
from mypyc.build import mypycify
from setuptools import setup
modules = mypycify(["--config-file", "mypy.ini", *sys.argv[1:]], opt_level="2", debug_level="0", multi_file=True)
setup(ext_modules=modules, packages=[], script_args=["build_ext", "--inplace", "--parallel", str(os.cpu_count())])
"""
_MYPY = """
[mypy]
mypy_path = .
namespace_packages = True
explicit_package_bases = True
follow_imports = silent
ignore_missing_imports = True
"""


@dataclass(frozen=True)
class Copy:
    """What is copied where, and what of it is compiled."""

    into: Path
    copied: Mapping[str, str]
    compiled: Sequence[str]
    left: frozenset[str] = frozenset()
    """Modules that mypyc cannot compile."""

    @property
    def sources(self) -> list[Path]:
        """The folders that are copied."""
        return [ROOT / source for source in self.copied]


def main() -> int:
    """Compiles, unless what is there was made of these very sources."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=COPIES)
    what = parser.parse_args().what
    return make(COPIES[what])


def make(copy: Copy) -> int:
    """Makes the copy; returns the exit status."""
    with (ROOT / f"{copy.into.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = {compiled.STAMP: compiled.fingerprint(*copy.sources), _MADE_BY: _recipe()}
        if all((copy.into / name).exists() and (copy.into / name).read_text() == text for name, text in wanted.items()):
            return 0
        if lacking := what_is_lacking():
            print(f"compile: {lacking}; what is not compiled does the same, and takes longer", file=sys.stderr)
            return LACKING
        print(f"compile: compiling into {copy.into.name}/, which takes two minutes of two cores", file=sys.stderr)
        return _make_anew(copy)


def _make_anew(copy: Copy) -> int:
    into, old = (copy.into.with_name(f"{copy.into.name}.{name}") for name in ("new", "old"))
    shutil.rmtree(into, ignore_errors=True)
    for source, target in copy.copied.items():
        shutil.copytree(ROOT / source, into / target, ignore=shutil.ignore_patterns("__pycache__", "test_*.py"))
    made_of = compiled.fingerprint(*(into / target for target in copy.copied.values()))  # whatever the sources are by now
    for package in {Path(target).parts[0] for target in copy.copied.values()}:
        (into / package / "__init__.py").touch()
    modules = _compiled(copy, into)
    for path in modules:
        path.write_text(with_written_inits(path.read_text()))
    (into / "mypy.ini").write_text(_MYPY)
    log = into / "build.log"
    with log.open("w") as told:
        build = [sys.executable, "-c", _BUILD, *(str(path.relative_to(into)) for path in modules)]
        done = subprocess.run(build, cwd=into, stdout=told, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        print(f"compile: it failed; {log.relative_to(ROOT)} says why", file=sys.stderr)
        return 1
    shutil.rmtree(into / "build")
    (into / compiled.STAMP).write_text(made_of)
    (into / _MADE_BY).write_text(_recipe())
    shutil.rmtree(old, ignore_errors=True)
    if copy.into.exists():
        copy.into.rename(old)  # whole or not there at all, for whoever starts now
    into.rename(copy.into)
    shutil.rmtree(old, ignore_errors=True)
    return 0


def _recipe() -> str:
    recipe = b"".join((ROOT / "scripts" / name).read_bytes() for name in ("compile.py", "written_inits.py"))
    return hashlib.sha256(recipe + version("mypy").encode()).hexdigest()


def _compiled(copy: Copy, into: Path) -> list[Path]:
    found = [path for of in copy.compiled for path in sorted(into.glob(of)) if path.name not in _NOT_COMPILED]
    return [path for path in found if str(path.relative_to(into)) not in copy.left]


def what_is_lacking() -> str:
    """What keeps this machine from compiling; empty if nothing does."""
    if shutil.which(os.environ.get("CC", "cc")) is None:
        return "there is no C compiler (cc)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "there are no headers of this Python (on Debian: python3-dev)"
    return ""


_CORE = "chatgrpc/core/*.py"
_EDGE = """alarms connection gathered_marks loop native_transport ordering session_reader shares sizes slices transport turns
    watermarks"""
_TICK = (
    *(f"chatgrpc/edge/{name}.py" for name in _EDGE.split()),
    *(f"chatgrpc/embedded/{name}.py" for name in ("audience", "ordering")),
    *(f"chatgrpc/adapters/sqlite/{name}.py" for name in ("chat_log", "cursors", "handback", "receipts", "writer")),
    "chatgrpc/background.py",
)
COPIES = {
    "server": Copy(
        compiled.FOLDER,
        {"src/chatgrpc": "chatgrpc"},
        (_CORE, *_TICK),
        frozenset({"chatgrpc/core/looks.py"}),  # a generic dataclass with slots
    ),
    "sim": Copy(ROOT / ".sim", {"src/chatgrpc": "chatgrpc", "tests/sim": "tests/sim"}, (_CORE, "tests/sim/*.py")),
}


if __name__ == "__main__":
    sys.exit(main())
