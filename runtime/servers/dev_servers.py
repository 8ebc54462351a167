"""Kafka and ZooKeeper for development and tests: one node each, on this machine, from pinned Maven artifacts."""

import fcntl
import json
import os
import shutil
import socket
import uuid
from abc import ABC, abstractmethod
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from millrace.runtime.atomic_file import write_text
from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError
from millrace.runtime.servers.artifacts import Progress, java_program, maven_jars
from millrace.runtime.servers.daemon import Daemon, free_port, port_is_free

_START_SECONDS = 90.0  # a quiet machine takes 5 s, a busy one tens: only a server that hangs takes longer
_START_ATTEMPTS = 3  # each with other ports, where another process has taken one
_PORT_RELEASE_SECONDS = 10.0  # the kernel frees the port of a stopped server at once, unless its process still ends
# A short start matters more than speed: no second compiler tier, no garbage collector threads.
_JVM_FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")

_KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
num.network.threads=2
num.io.threads=4
num.partitions=1
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
message.max.bytes=10485760
replica.fetch.max.bytes=10485760
log.index.size.max.bytes=1048576
log.cleaner.dedupe.buffer.size=33554432
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""

# tickTime bounds the session time-outs that clients may ask for: 1 to 10 s here.
_ZOOKEEPER_PROPERTIES = """\
dataDir={data}
clientPort={port}
clientPortAddress=127.0.0.1
tickTime=500
maxClientCnxns=0
admin.enableServer=false
4lw.commands.whitelist=srvr
"""


@dataclass(frozen=True)
class ServerStatus:
    """State of one server: "running", "stopped", or "external" (an environment variable names one elsewhere)."""

    name: str
    state: str
    address: str | None
    pid: int | None
    log: str | None
    data: str | None


class DevServer(ABC):
    """One server with its data, log, port and process record under `folder`; restarting keeps data and port."""

    name: str
    title: str
    heap: str
    port_names: tuple[str, ...] = ("port",)

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._ports_file = folder / "ports.json"
        self._progress = progress
        self._daemon = Daemon(folder / "process.json", folder / "server.log")

    @abstractmethod
    def _main(self, java: list[str], ports: dict[str, int]) -> list[str]:
        """Writes configuration (and formats storage at the first start); returns the command."""

    @abstractmethod
    def _answers(self, address: str) -> bool:
        """Whether the server answers a real request."""

    @property
    def log(self) -> Path:
        return self._daemon.log

    @property
    def pid(self) -> int | None:
        return self._daemon.pid()

    @property
    def address(self) -> str | None:
        """`host:port` while it runs."""
        return f"127.0.0.1:{self._ports()['port']}" if self.pid is not None else None

    def start(self) -> None:
        """Returns when it answers; does nothing when it runs. The former port is taken again if it is free."""
        if self.pid is None:
            self._start(may_move=True)

    def stop(self) -> None:
        if self.pid is not None:
            self._progress(f"stopping {self.title}")
        self._daemon.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._daemon.kill()

    def restart(self) -> None:
        """Stops it if it runs, and starts it on the same port with the same data."""
        self.stop()
        self._start(may_move=False)

    def status(self) -> ServerStatus:
        external = os.environ.get(f"MILLRACE_{self.name.upper()}")
        pid = self.pid
        if external and pid is None:
            return ServerStatus(self.name, "external", external, None, None, None)
        state = "stopped" if pid is None else "running"
        return ServerStatus(self.name, state, self.address, pid, str(self.log), str(self.data))

    def _start(self, may_move: bool) -> None:
        java = [java_program(), f"-Xmx{self.heap}", *_JVM_FLAGS, "-cp", f"{maven_jars(self.name, self._progress)}/*"]
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(_START_ATTEMPTS):
            ports = self._take_ports(may_move)
            self._progress(f"starting {self.title} on 127.0.0.1:{ports['port']}")
            self._daemon.start(self._main(java, ports), self.folder)
            if self._wait_answers(ports):
                return
            # Another process can take a port between its choice and its use; only then does another attempt help.
            if attempt + 1 == _START_ATTEMPTS or all(map(port_is_free, ports.values())):
                break
        last = self._daemon.log_tail().splitlines()[-1:] or ["the log is empty"]
        self._daemon.stop()
        raise UserError(self.name, ports["port"], f"{self.title} did not start ({last[0]})", f"read {self.log}")

    def _wait_answers(self, ports: dict[str, int]) -> bool:
        address = f"127.0.0.1:{ports['port']}"
        try:
            wait_until(lambda: self.pid is None or self._answers(address), _START_SECONDS, self.title, 0.1)
        except TimeoutError:
            return False
        return self.pid is not None

    def _ports(self) -> dict[str, int]:
        try:
            ports = json.loads(self._ports_file.read_text("utf-8"))
            return {name: int(ports[name]) for name in self.port_names}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _take_ports(self, may_move: bool) -> dict[str, int]:
        ports = self._ports()
        if ports and not may_move:
            wait_until(
                lambda: all(map(port_is_free, ports.values())), _PORT_RELEASE_SECONDS, f"former ports {ports} free"
            )
        elif not ports or not all(map(port_is_free, ports.values())):
            ports = {}
            for name in self.port_names:
                ports[name] = free_port(exclude=list(ports.values()))
            write_text(self._ports_file, json.dumps(ports) + "\n")
        return ports


class KafkaServer(DevServer):
    """A single-node KRaft broker."""

    name, title, heap = "kafka", "Kafka", "512m"
    port_names = ("port", "controller_port")

    def _main(self, java: list[str], ports: dict[str, int]) -> list[str]:
        properties = self.folder / "server.properties"
        write_text(properties, _KAFKA_PROPERTIES.format(data=self.data, **ports))
        java = [*java, "-Dorg.apache.logging.log4j.level=INFO"]
        if not (self.data / "meta.properties").exists():
            shutil.rmtree(self.data, ignore_errors=True)  # left by a format that was interrupted
            cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "m", 1)
            self._format([*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)])
        return [*java, "kafka.Kafka", str(properties)]

    def _format(self, command: list[str]) -> None:
        formatter = Daemon(self.folder / "format.json", self.log)
        formatter.start(command, self.folder)
        wait_until(lambda: formatter.pid() is None, _START_SECONDS, "format of Kafka's storage")
        if not (self.data / "meta.properties").exists():
            raise UserError("kafka", self.data, "its storage could not be formatted", f"read {self.log}")

    def _answers(self, address: str) -> bool:
        from millrace.runtime.kafka_client import KafkaConnection, check_broker

        try:
            check_broker(KafkaConnection(address), seconds=2.0)
        except UserError:
            return False
        return True


class ZooKeeperServer(DevServer):
    """A stand-alone ZooKeeper."""

    name, title, heap = "zookeeper", "ZooKeeper", "256m"

    def _main(self, java: list[str], ports: dict[str, int]) -> list[str]:
        properties = self.folder / "zoo.cfg"
        write_text(properties, _ZOOKEEPER_PROPERTIES.format(data=self.data, **ports))
        java = [*java, "-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dzookeeper.admin.enableServer=false"]
        return [*java, "org.apache.zookeeper.server.ZooKeeperServerMain", str(properties)]

    def _answers(self, address: str) -> bool:
        host, _, port = address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=2.0) as connection:
                connection.sendall(b"srvr")
                return connection.recv(64).startswith(b"Zookeeper version")
        except OSError:
            return False


class DevServers:
    """The pair of servers of one state folder.

    Args:
      state_folder: where both keep everything; created when needed.
      progress: told in a few words what happens.
    """

    def __init__(self, state_folder: Path, progress: Progress = print) -> None:
        self.folder = state_folder.absolute()
        self.kafka = KafkaServer(self.folder / "kafka", progress)
        self.zookeeper = ZooKeeperServer(self.folder / "zookeeper", progress)
        self._progress = progress

    @property
    def servers(self) -> tuple[DevServer, ...]:
        return (self.kafka, self.zookeeper)

    @property
    def kafka_address(self) -> str:
        """`host:port` of the broker to use, after `up`."""
        return self._address(self.kafka)

    @property
    def zookeeper_address(self) -> str:
        """`host:port` of the ZooKeeper to use, after `up`."""
        return self._address(self.zookeeper)

    def up(self) -> None:
        """Starts what does not run and is not named by $MILLRACE_KAFKA or $MILLRACE_ZOOKEEPER."""
        self._for_each_own(DevServer.start)

    def restart(self) -> None:
        """Stops both and starts them on the same ports with the same data; one that does not run is started."""
        self._for_each_own(DevServer.restart)

    def _for_each_own(self, do: Callable[[DevServer], None]) -> None:
        with self._locked():
            for server in self.servers:
                if server.status().state == "external":
                    self._progress(f"{server.title}: MILLRACE_{server.name.upper()}={server.status().address} is used")
                else:
                    do(server)

    def down(self) -> None:
        """Stops both; their data stays."""
        if self.folder.is_dir():
            with self._locked():
                for server in reversed(self.servers):
                    server.stop()

    def status(self) -> list[ServerStatus]:
        return [server.status() for server in self.servers]

    @staticmethod
    def _address(server: DevServer) -> str:
        address = server.status().address
        if address is None:
            raise UserError(server.name, "", "it does not run", "start it with `millrace dev up`")
        return address

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / "lock", "w")  # noqa: SIM115 (closed by the `with` below)
        except OSError as error:
            raise UserError(
                "MILLRACE_STATE", self.folder, f"cannot be written ({error.strerror})", "name a writable folder"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def default_state_folder() -> Path:
    """`dev` in $MILLRACE_STATE, else in `.state` of the working folder."""
    return Path(os.environ.get("MILLRACE_STATE") or ".state") / "dev"


def running_address(name: str) -> str | None:
    """Address of the running development server "kafka" or "zookeeper", None when there is none."""
    silent: Callable[[str], None] = lambda _: None  # noqa: E731
    servers = DevServers(default_state_folder(), silent)
    return {server.name: server.address for server in servers.servers}[name]
