"""Compiles the simulator and the core with mypyc into `.sim/`: the same runs, seed by seed, at some twice the rate.

For many seeds; `make sim COMPILED=1` does it. Needs a C compiler, and minutes of all cores whenever a source has changed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INTO = ROOT / ".sim"
_COPIED = {"src/chatgrpc": "chatgrpc", "tests/sim": "tests/sim"}
_COMPILED = ("chatgrpc/core/*.py", "tests/sim/*.py")
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


def main() -> int:
    """Compiles, unless what is there was made of these very sources."""
    wanted = _fingerprint()
    stamp = INTO / "made-of"
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    if lacking := what_is_lacking():
        print(f"compile-sim: {lacking}; without COMPILED=1 nothing is compiled", file=sys.stderr)
        return 1
    print("compile-sim: compiling the core and the simulator into .sim/, which takes some minutes", file=sys.stderr)
    shutil.rmtree(INTO, ignore_errors=True)
    for source, target in _COPIED.items():
        shutil.copytree(ROOT / source, INTO / target, ignore=shutil.ignore_patterns("__pycache__", "test_*.py"))
    (INTO / "tests/__init__.py").touch()
    (INTO / "mypy.ini").write_text(_MYPY)
    modules = [
        str(path.relative_to(INTO)) for of in _COMPILED for path in sorted(INTO.glob(of)) if path.name not in _NOT_COMPILED
    ]
    log = INTO / "build.log"
    with log.open("w") as told:
        build = [sys.executable, "-c", _BUILD, *modules]
        done = subprocess.run(build, cwd=INTO, stdout=told, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        print(f"compile-sim: it failed; {log.relative_to(ROOT)} says why", file=sys.stderr)
        return 1
    shutil.rmtree(INTO / "build")
    stamp.write_text(wanted)
    return 0


def what_is_lacking() -> str:
    """What keeps this machine from compiling; empty if nothing does."""
    if shutil.which(os.environ.get("CC", "cc")) is None:
        return "there is no C compiler (cc)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "there are no headers of this Python (on Debian: python3-dev)"
    return ""


def _fingerprint() -> str:
    """Of all that goes in."""
    found = hashlib.sha256(sys.version.encode())
    for path in sorted([Path(__file__), *(path for source in _COPIED for path in (ROOT / source).rglob("*.py"))]):
        if path.name.startswith("test_"):
            continue
        found.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
