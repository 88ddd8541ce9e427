"""A folder that is closed also to root, as whom tests may run."""

import os
from pathlib import Path
from typing import Any, Literal

import pytest

Answer = Literal["raise", "say no"]
ANSWERS: tuple[Answer, ...] = ("raise", "say no")
"""What `Path.exists` and the like do of what may not be looked at: before Python 3.14, and from then on."""


def close_folder(monkeypatch: pytest.MonkeyPatch, folder: Path, answer: Answer) -> None:
    """Nothing in the folder may be looked at from now on."""
    stat = os.stat

    def stat_as_nobody(path: Any, **options: Any) -> os.stat_result:
        if not isinstance(path, int) and folder in Path(os.fsdecode(path)).parents:
            raise PermissionError(13, os.strerror(13), str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", stat_as_nobody)
    if answer == "say no":
        monkeypatch.setattr(Path, "exists", os.path.exists)
        monkeypatch.setattr(Path, "is_file", os.path.isfile)
        monkeypatch.setattr(Path, "is_dir", os.path.isdir)
