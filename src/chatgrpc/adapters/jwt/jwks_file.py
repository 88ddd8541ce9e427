"""Keys from a file, read again when the file changes."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from chatgrpc.adapters.jwt.keys import JWKS_BYTES_MAX, STALE_MAX_S, InvalidJwksError, KeySet, VerificationKey, parse_jwks
from chatgrpc.ports.tokens import KeysUnavailableError

_log = structlog.get_logger(__name__)

_Version = tuple[int, int, int]


class JwksFromFile:
    """A JWK set in a file.

    A change is seen within `check_interval_s`. If the file vanishes, cannot be read, or holds no key that serves, the keys that
    were read last stay, for `stale_max_s`. Replace the file by renaming a new one over it, so that no half-written file is
    read.
    """

    def __init__(
        self,
        path: Path,
        *,
        check_interval_s: float = 2.0,
        stale_max_s: float = STALE_MAX_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._check_interval_s = check_interval_s
        self._stale_max_s = stale_max_s
        self._monotonic = monotonic
        self._keys: KeySet | None = None
        self._version: _Version | None = None
        self._is_good = False  # what the file held when it was last looked at is what we hold
        self._confirmed_at_s = float("-inf")
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
        if self._monotonic() - self._confirmed_at_s > self._stale_max_s:
            raise KeysUnavailableError(f"the keys of {self._path} could not be read again for too long")
        return self._keys.get(kid)

    def check(self) -> None:
        """Reads the file, which blocks.

        Raises:
            OSError: it cannot be read.
            InvalidJwksError: it is not a JWK set, or holds no key that a token could be verified with.
        """
        with self._path.open("rb") as file:
            parse_jwks(file.read(JWKS_BYTES_MAX + 1))

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _read_if_changed(self) -> None:
        looked_at_s = self._monotonic()
        self._read()
        if self._is_good:
            self._confirmed_at_s = looked_at_s

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                if version == self._version:
                    return
                self._version = version  # before it is parsed: a file that is wrong is said to be so once
                self._is_good = False
                document = file.read(JWKS_BYTES_MAX + 1)
            if len(document) > JWKS_BYTES_MAX:
                raise InvalidJwksError(f"larger than {JWKS_BYTES_MAX} bytes")
            self._keys = parse_jwks(document)
        except (OSError, InvalidJwksError) as error:
            self._version = self._version if isinstance(error, InvalidJwksError) else None
            self._is_good = False
            _log.error("jwks_file_not_read", path=self._path, error=error, keys_kept=len(self._keys or ()))
        else:
            self._is_good = True
            _log.info("jwks_file_read", path=self._path, kids=sorted(self._keys))
