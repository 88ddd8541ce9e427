"""Secrets in files."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chatgrpc.secret_files import create_secret_file, read_secret_file, warn_of_open_folder


def test_a_secret_is_written_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "secret"
    create_secret_file(path, b"first")
    create_secret_file(path, b"second")
    assert read_secret_file(path) == b"first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_secret_that_others_can_get_at_is_none(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    create_secret_file(path, b"known")
    path.chmod(mode)
    with pytest.raises(PermissionError, match="chmod 600"):
        read_secret_file(path)


@pytest.mark.parametrize(("mode", "warned"), [(0o700, False), (0o755, False), (0o775, True), (0o777, True)])
def test_a_folder_that_others_may_write_into_is_spoken_of(tmp_path: Path, mode: int, warned: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(mode)
    with capture_logs() as lines:
        warn_of_open_folder(folder)
        warn_of_open_folder(tmp_path / "none")
    assert [line["event"] for line in lines] == ["data_folder_open_to_others"] * warned
