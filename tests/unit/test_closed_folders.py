"""Folders into which this process may not look: a sentence that names the file, or somebody else's to say so; no traceback."""

from pathlib import Path

import pytest

from chatgrpc.adapters.jwt import open_verifier
from chatgrpc.cluster.access import known_relay_secret
from chatgrpc.config import AuthSettings, ClusterSettings, ConfigError, Settings, load_settings
from chatgrpc.secret_files import warn_of_open_folder
from chatgrpc.start_error import StartError
from tests.support.closed_folder import ANSWERS, close_folder


@pytest.fixture(params=ANSWERS)
def closed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is closed."""
    close_folder(monkeypatch, tmp_path / "closed", request.param)
    return tmp_path / "closed"


def test_a_settings_file_in_it_is_named(closed: Path) -> None:
    with pytest.raises(ConfigError, match=r"chatgrpc\.toml: Permission denied"):
        load_settings({}, closed / "chatgrpc.toml")


def test_an_issuers_keys_in_it_are_named(closed: Path) -> None:
    auth = AuthSettings(mode="jwks", issuer="i", jwks_file=closed / "jwks.json")
    with pytest.raises(StartError, match=r"jwks\.json: Permission denied"):
        open_verifier(Settings(auth=auth))


def test_whether_others_may_write_into_a_data_folder_in_it_is_not_known(closed: Path) -> None:
    warn_of_open_folder(closed / "data")


def test_whoever_only_looks_at_a_cluster_knows_no_secret_in_it(closed: Path) -> None:
    assert known_relay_secret(Settings(data_dir=closed / "data", cluster=ClusterSettings(etcd="e:1"))) is None
