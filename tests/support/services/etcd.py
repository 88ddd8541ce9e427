"""A real etcd, of one member or several."""

import json
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.services.debian import Program, find_program
from tests.support.services.process import ServiceProcess

_PACKAGES = ("etcd-server",)
_START_TIMEOUT_S = 30.0
_HEARTBEAT_MS = 100
_ELECTION_MS = 1_000


def fetch() -> None:
    """Has the program ready."""
    find_program("etcd", _PACKAGES)


class EtcdMember:
    """One member; its address stays the same across restarts, and its data too."""

    def __init__(self, name: str, program: Program, client_port: int, peer_port: int, kept_data: Path | None = None) -> None:
        self.name = name
        self.port = client_port
        self.peer_url = f"http://127.0.0.1:{peer_port}"
        self.certificate: tuple[Path, Path] | None = None
        """With its key: it speaks TLS, and wants to be shown the same certificate."""
        self._health_port = free_port()
        self._initial_cluster = ""
        self._program = program
        self._kept = kept_data is not None
        self.process = ServiceProcess(name, self._command, program.environment, kept_data)

    @property
    def endpoint(self) -> str:
        """What clients dial."""
        return f"localhost:{self.port}" if self.certificate else f"127.0.0.1:{self.port}"

    def launch(self, initial_cluster: str) -> None:
        """Starts it, without waiting: a member answers only once most of them run."""
        self._initial_cluster = initial_cluster
        self.process.launch()

    def start(self) -> None:
        """Starts it again; returns when it answers."""
        self.process.launch()
        self.wait()

    def wait(self) -> None:
        """Waits until it answers."""
        self.process.wait_until(self.healthy, _START_TIMEOUT_S)

    def stop(self) -> None:
        """Ends it in order."""
        self.process.stop()

    def kill(self) -> None:
        """Ends it as a crash does."""
        self.process.kill()

    def healthy(self) -> bool:
        """Whether it knows a leader and can write."""
        return bool(_ask(f"http://127.0.0.1:{self._health_port}/health", None).get("health") == "true")

    def is_leader(self) -> bool:
        """Whether it leads."""
        status = _ask(f"http://{self.endpoint}/v3/maintenance/status", b"{}")
        return "leader" in status and bool(status["leader"] == status["header"]["member_id"])

    def _command(self, data: Path) -> tuple[str, ...]:
        client_url = f"http{'s' if self.certificate else ''}://127.0.0.1:{self.port}"
        return (
            *(self._program.path, "--name", self.name, "--data-dir", str(data / "etcd")),
            *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *("--initial-cluster", self._initial_cluster, "--initial-cluster-state", "new"),
            *("--heartbeat-interval", str(_HEARTBEAT_MS), "--election-timeout", str(_ELECTION_MS)),
            *("--logger", "zap", "--log-level", "warn"),
            # Tests need no data that outlives the machine's power, and share its disk.
            *(() if self._kept else ("--unsafe-no-fsync",)),
            *("--listen-metrics-urls", f"http://127.0.0.1:{self._health_port}"),
            *self._tls_flags(),
        )

    def _tls_flags(self) -> tuple[str, ...]:
        if self.certificate is None:
            return ()
        cert_file, key_file = map(str, self.certificate)
        return ("--cert-file", cert_file, "--key-file", key_file, "--client-cert-auth", "--trusted-ca-file", cert_file)


class EtcdCluster:
    """An etcd of so many members."""

    def __init__(
        self,
        members: int = 1,
        name: str = "etcd",
        certificate: tuple[Path, Path] | None = None,
        kept_data: Path | None = None,
    ) -> None:
        """With `kept_data`, a folder, one member goes on from what it held; more than one would need their old ports too."""
        assert kept_data is None or members == 1
        program = find_program("etcd", _PACKAGES)
        numbers = range(1, members + 1)
        self.members = [EtcdMember(f"{name}-{number}", program, free_port(), free_port(), kept_data) for number in numbers]
        for member in self.members:
            member.certificate = certificate

    @property
    def endpoints(self) -> tuple[str, ...]:
        """What clients are given."""
        return tuple(member.endpoint for member in self.members)

    def start(self) -> None:
        """Starts all; returns when all answer."""
        initial_cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        for member in self.members:
            member.launch(initial_cluster)
        for member in self.members:
            member.wait()

    def leader(self) -> EtcdMember:
        """The member that leads now."""
        return next(member for member in self.members if member.process.running and member.is_leader())

    def close(self) -> None:
        """Ends all and removes their data."""
        for member in self.members:
            member.process.close()


def _ask(url: str, body: bytes | None) -> dict[str, Any]:
    """What it answers as JSON; nothing if it does not."""
    try:
        with urllib.request.urlopen(url, body, timeout=2) as answer:
            read: dict[str, Any] = json.load(answer)
    except (OSError, ValueError):
        return {}
    return read
