"""Programs from Debian's packages, unpacked into the folder of services: not installed, not started, no root needed."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.services.folder import ServiceError, fetched, say


@dataclass(frozen=True, slots=True)
class Program:
    """A program that can be run."""

    path: str
    environment: Mapping[str, str] = field(default_factory=dict)


def find_program(name: str, packages: tuple[str, ...]) -> Program:
    """The program of that name on this machine, else out of Debian's packages.

    Args:
        name: what it is called on a search path.
        packages: those that hold it and the libraries that a plain Debian lacks; the first one names the folder.

    Raises:
        ServiceError: it is not here and cannot be fetched.
    """
    installed = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if installed is not None:
        return Program(installed)
    root = fetched(f"debian-{packages[0]}", lambda folder: _unpack(packages, folder))
    libraries = ":".join(str(folder) for folder in (root / "usr" / "lib").glob("*-linux-gnu*"))
    return Program(str(root / "usr" / "bin" / name), {"LD_LIBRARY_PATH": libraries} if libraries else {})


def _unpack(packages: tuple[str, ...], folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise ServiceError(
            f"{packages[0]} is not on this machine, and there is no apt-get to fetch it: install it, so that it is on PATH"
        )
    say(f"fetching {packages[0]} from Debian's packages")
    archives = folder / "archives"
    archives.mkdir()
    failure = _download(packages, archives, ()) and _download_with_own_lists(packages, archives)
    if failure:
        raise ServiceError(
            f"cannot fetch {', '.join(packages)} from Debian's packages; see that `apt-get update` works here, or install "
            f"{packages[0]}, so that it is on PATH. apt-get said:\n{failure}"
        )
    for archive in archives.glob("*.deb"):
        subprocess.run(("dpkg-deb", "--extract", str(archive), str(folder)), check=True)
    shutil.rmtree(archives)


def _download_with_own_lists(packages: tuple[str, ...], archives: Path) -> str:
    """The machine's lists of packages may be missing or old, and renewing them would need root."""
    say("the lists of Debian's packages are missing or old here; fetching newer ones for this folder alone")
    own = archives / "apt"
    (own / "lists" / "partial").mkdir(parents=True)
    options = (f"-oDir::State::Lists={own / 'lists'}", f"-oDir::Cache={own / 'cache'}")
    failure = _run("apt-get", *options, "update", cwd=archives)
    return failure or _download(packages, archives, options)


def _download(packages: tuple[str, ...], archives: Path, options: tuple[str, ...]) -> str:
    return _run("apt-get", "-qq", *options, "download", *packages, cwd=archives)


def _run(*command: str, cwd: Path) -> str:
    """What the command complained of; empty if it went well."""
    # As root, apt fetches as another user, who may not write here.
    sandbox = "-oAPT::Sandbox::User=root"
    done = subprocess.run((command[0], sandbox, *command[1:]), cwd=cwd, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"
