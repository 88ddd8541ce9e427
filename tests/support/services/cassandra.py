"""A real Cassandra, of one node or several, from its Maven artefacts."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.ports import free_port, met_itself
from tests.support.services.folder import ServiceError, fetched, say
from tests.support.services.process import ServiceProcess

VERSION = "5.0.5"
JAVA_VERSIONS = ("17", "11")
"""Those that this Cassandra runs on."""
HEAP_MB = 384
_START_TIMEOUT_S = 180.0

_POM = f"""<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>chatgrpc.tests</groupId>
  <artifactId>cassandra</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.cassandra</groupId>
      <artifactId>cassandra-all</artifactId>
      <version>{VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

_OPENED = (
    "java.base/java.io",
    "java.base/java.lang",
    "java.base/java.lang.module",
    "java.base/java.lang.reflect",
    "java.base/java.math",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.util.jar",
    "java.base/sun.nio.ch",
    "jdk.management/com.sun.management.internal",
)
_EXPORTED = (
    "java.base/java.lang.ref",
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "jdk.unsupported/sun.misc",
)
"""Parts of the JDK that Cassandra reaches into."""

_PERIODIC = "commitlog_sync: periodic\ncommitlog_sync_period: 1s"

_LOGGING = """<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level %date{ISO8601} %logger{0} - %msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="out"/></root>
</configuration>
"""


def fetch() -> None:
    """Has the program ready."""
    _libraries()
    _find_java()


class CassandraNode:
    """One node, on a loopback address of its own; address and data stay the same across restarts."""

    def __init__(
        self,
        name: str,
        number: int,
        count: int,
        cql_port: int,
        storage_port: int,
        kept_data: Path | None = None,
        durable: bool = True,
    ) -> None:
        self.host = f"127.0.0.{number}"
        self.port = cql_port
        self._storage_port = storage_port
        self._durable = durable
        # Each node an equal part of the ring, and known beforehand, so that all may start at once.
        self._token = -(2**63) + (number - 1) * (2**64 // count)
        self._seeds = ",".join(f"127.0.0.{seed}:{storage_port}" for seed in range(1, count + 1))
        self._java, self._jars = _find_java(), _libraries()
        self.process = ServiceProcess(name, self._command, {}, kept_data)

    @property
    def address(self) -> str:
        """What clients dial."""
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        """Starts it; returns when it answers."""
        self.process.launch()
        self.wait()

    def wait(self) -> None:
        """Waits until it answers."""
        self.process.wait_until(self._answers, _START_TIMEOUT_S)

    def stop(self) -> None:
        """Ends it in order."""
        self.process.stop()

    def kill(self) -> None:
        """Ends it as a crash does."""
        self.process.kill()

    def _answers(self) -> bool:
        """Whether it says which options it supports (CQL protocol, version 4)."""
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1) as connection:
            if met_itself(connection):
                return False
            connection.sendall(bytes((4, 0, 0, 0, 5, 0, 0, 0, 0)))
            header = connection.recv(9)
            return len(header) == 9 and header[4] == 6
        return False

    def _command(self, data: Path) -> tuple[str, ...]:
        settings = self.process.folder / "conf"
        settings.mkdir(exist_ok=True)
        (settings / "cassandra.yaml").write_text(self._settings(data))
        (settings / "logback.xml").write_text(_LOGGING)
        return (
            *(self._java, f"-Xms{HEAP_MB}m", f"-Xmx{HEAP_MB}m", "-Xss512k"),
            # Tests are many starts and little work: compile lightly, collect simply.
            *("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+CrashOnOutOfMemoryError"),
            *(f"--add-opens={part}=ALL-UNNAMED" for part in _OPENED),
            *(f"--add-exports={part}=ALL-UNNAMED" for part in _EXPORTED),
            f"-javaagent:{next(self._jars.glob('jamm-*.jar'))}",
            *("-Djdk.attach.allowAttachSelf=true", "-Djava.io.tmpdir=" + str(data)),
            *(f"-Dcassandra.config=file://{settings / 'cassandra.yaml'}", f"-Dcassandra.storagedir={data}"),
            *(f"-Dlogback.configurationFile={settings / 'logback.xml'}", "-Dcassandra-foreground=yes"),
            # No waiting for others to settle; and where nothing must last, no writing of every change of the schema to disk.
            *("-Dcassandra.ring_delay_ms=100", "-Dcassandra.skip_wait_for_gossip_to_settle=0"),
            f"-Dcassandra.unsafesystem={'false' if self._durable else 'true'}",
            *("-cp", f"{settings}:{self._jars}/*", "org.apache.cassandra.service.CassandraDaemon"),
        )

    def _settings(self, data: Path) -> str:
        return f"""cluster_name: chatgrpc-tests
num_tokens: 1
initial_token: {self._token}
auto_bootstrap: false
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: "{self._seeds}"
listen_address: {self.host}
rpc_address: {self.host}
storage_port: {self._storage_port}
native_transport_port: {self.port}
data_file_directories: ["{data}/data"]
commitlog_directory: "{data}/commitlog"
saved_caches_directory: "{data}/saved_caches"
hints_directory: "{data}/hints"
cdc_raw_directory: "{data}/cdc"
# What was acknowledged must be found by a quorum after a replica crashed. Of a log that is synchronised periodically, a killed
# process finds again what was written before the last time: of 200 rows that were acknowledged 158, tried.
{"commitlog_sync: batch" if self._durable else _PERIODIC}
commitlog_segment_size: 8MiB
commitlog_total_space: 128MiB
memtable_heap_space: 64MiB
memtable_offheap_space: 64MiB
file_cache_size: 32MiB
networking_cache_size: 16MiB
concurrent_reads: 8
concurrent_writes: 8
concurrent_compactors: 1
auto_snapshot: false
disk_failure_policy: stop
commit_failure_policy: stop
"""


class CassandraCluster:
    """So many nodes, on one CQL port of loopback addresses of their own."""

    def __init__(self, nodes: int = 1, name: str = "cassandra", kept_data: Path | None = None, durable: bool = True) -> None:
        """Makes the folders.

        Args:
            nodes: how many.
            name: for people, and unique within this process.
            kept_data: a folder; the one node goes on from what it held. More than one would need their old ports too.
            durable: what is acknowledged survives a crash of the process. Without it changes of the schema are quick.
        """
        assert kept_data is None or nodes == 1
        hosts = [f"127.0.0.{number}" for number in range(1, nodes + 1)]
        cql_port, storage_port = _ports_free_on(hosts)
        self.port = cql_port
        self.nodes = [
            CassandraNode(f"{name}-{number}", number, nodes, cql_port, storage_port, kept_data, durable)
            for number in range(1, nodes + 1)
        ]

    @property
    def hosts(self) -> list[str]:
        """What clients are given, beside the port."""
        return [node.host for node in self.nodes]

    def start(self) -> None:
        """Starts all; returns when all answer."""
        say(f"starting {len(self.nodes)} of Cassandra, which takes 5 to 60 s")
        for node in self.nodes:
            node.process.launch()
        for node in self.nodes:
            node.wait()

    def close(self) -> None:
        """Ends all and removes their data."""
        for node in self.nodes:
            node.process.close()


def _libraries() -> Path:
    return fetched(f"cassandra-{VERSION}", _fetch_libraries) / "lib"


def _fetch_libraries(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServiceError("there is no `mvn` to fetch Cassandra with: install Maven (Debian: the package maven)")
    say(f"fetching Cassandra {VERSION} from its Maven artefacts (about 70 MB)")
    (folder / "pom.xml").write_text(_POM)
    command = (
        maven,
        "-B",
        "-q",
        "dependency:copy-dependencies",
        "-DincludeScope=runtime",
        f"-DoutputDirectory={folder / 'lib'}",
    )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServiceError(f"cannot fetch Cassandra; see that Maven reaches its registry. It said:\n{done.stdout[-3000:]}")


def _find_java() -> str:
    for candidate in _javas():
        done = subprocess.run((candidate, "-version"), capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stderr.partition('"')[2].split(".")[0] in JAVA_VERSIONS:
            return candidate
    raise ServiceError(
        "Cassandra needs a JDK 17, and none is here: install one (Debian: openjdk-17-jre-headless), or set JAVA_HOME to it"
    )


def _javas() -> Iterator[str]:
    if "JAVA_HOME" in os.environ:
        yield str(Path(os.environ["JAVA_HOME"]) / "bin" / "java")
    yield from (path for path in (shutil.which("java"),) if path is not None)
    for version in JAVA_VERSIONS:
        yield from (str(java) for java in sorted(Path("/usr/lib/jvm").glob(f"*{version}*/bin/java")))


def _ports_free_on(hosts: list[str]) -> tuple[int, int]:
    """Two ports that nobody listens on now, on any of these hosts."""
    found: list[int] = []
    while len(found) < 2:
        port = free_port()
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for host in hosts:
                stack.enter_context(socket.create_server((host, port)))
            found.append(port)
    return found[0], found[1]
