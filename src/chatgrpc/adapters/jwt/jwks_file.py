"""Keys from a file, read again when the file changes."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from chatgrpc.adapters.jwt.keys import JWKS_BYTES_MAX, InvalidJwksError, KeySet, VerificationKey, parse_jwks
from chatgrpc.ports.tokens import KeysUnavailableError

_log = structlog.get_logger(__name__)

_Version = tuple[int, int, int]


class JwksFromFile:
    """A JWK set in a file.

    A change is seen within `check_interval_s`. If the file vanishes or cannot be read, the keys that were read last stay.
    Replace the file by renaming a new one over it, so that no half-written file is read.
    """

    def __init__(self, path: Path, *, check_interval_s: float = 2.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._check_interval_s = check_interval_s
        self._monotonic = monotonic
        self._keys: KeySet | None = None
        self._version: _Version | None = None
        self._check_at_s = float("-inf")
        self._check = asyncio.Lock()

    async def find(self, kid: str) -> VerificationKey | None:
        """See `KeySource.find`."""
        if self._monotonic() >= self._check_at_s:
            async with self._check:
                if self._monotonic() >= self._check_at_s:
                    await asyncio.to_thread(self._read_if_changed)
                    self._check_at_s = self._monotonic() + self._check_interval_s
        if self._keys is None:
            raise KeysUnavailableError(f"no keys could be read from {self._path}")
        return self._keys.get(kid)

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _read_if_changed(self) -> None:
        try:
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                if version == self._version:
                    return
                self._version = version  # before it is parsed: a file that is wrong is said to be so once
                document = file.read(JWKS_BYTES_MAX + 1)
            if len(document) > JWKS_BYTES_MAX:
                raise InvalidJwksError(f"larger than {JWKS_BYTES_MAX} bytes")
            self._keys = parse_jwks(document)
        except (OSError, InvalidJwksError) as error:
            _log.error("jwks file not read", path=self._path, error=error, keys_kept=len(self._keys or ()))
        else:
            _log.info("jwks file read", path=self._path, kids=sorted(self._keys))
