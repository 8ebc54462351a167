"""TLS, credentials and access to nodes against a real ZooKeeper, and what wrong settings look like."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.runtime.errors import UserError
from millrace.runtime.servers.dev_servers import ZooKeeperServer
from millrace.runtime.zookeeper import ZooKeeperError, ZooKeeperSession
from tests.integration.test_kafka_security import write_certificate

pytestmark = pytest.mark.service

_SECRET = "correct-horse-7"
_LISTENER = """
serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory
secureClientPort={secure_port}
secureClientPortAddress=127.0.0.1
ssl.clientAuth=none
ssl.keyStore.type=PEM
ssl.keyStore.location={keystore}
ssl.trustStore.type=PEM
ssl.trustStore.location={trusted}
"""


class SecuredZooKeeper(ZooKeeperServer):
    """A server with a port more, for TLS."""

    port_names = ("port", "secure_port")

    def __init__(self, folder: Path, keystore: Path, trusted: Path) -> None:
        super().__init__(folder, print)
        self._keystore, self._trusted = keystore, trusted

    @property
    def secure_address(self) -> str:
        return f"127.0.0.1:{self._ports()['secure_port']}"

    def _main(self, java: list[str], ports: dict[str, int]) -> list[str]:
        command = super()._main(java, ports)
        with open(self.folder / "zoo.cfg", "a") as properties:
            properties.write(_LISTENER.format(keystore=self._keystore, trusted=self._trusted, **ports))
        return command


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SecuredZooKeeper, Path]]:
    """A server, and the certificate to trust."""
    folder = tmp_path_factory.mktemp("secured")
    keystore, trusted = write_certificate(folder)
    server = SecuredZooKeeper(folder / "zookeeper", keystore, trusted)
    server.start()
    try:
        yield server, trusted
    finally:
        server.stop()


def properties(folder: Path, name: str, **settings: object) -> str:
    path = folder / name
    path.write_text("".join(f"{key.replace('_', '.')}={value}\n" for key, value in settings.items()))
    return str(path)


def test_nodes_of_a_session_with_credentials_are_open_to_it_alone(
    secured: tuple[SecuredZooKeeper, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server, trusted = secured
    mine = properties(tmp_path, "mine", ssl_ca=trusted, digest_username="a", digest_password=_SECRET)
    with (
        ZooKeeperSession(server.secure_address, properties_file=mine) as owner,
        ZooKeeperSession(str(server.address)) as stranger,
    ):
        owner.set("/closed/node", b"data")
        owner.register("/closed/replica", b"here")
        assert owner.get("/closed/node") == b"data" and owner.children("/closed") == ["node", "replica"]
        with pytest.raises(ZooKeeperError, match="NoAuth"):
            stranger.get("/closed/node")
        with pytest.raises(ZooKeeperError, match="NoAuth"):
            stranger.delete("/closed/node")
    assert _SECRET not in caplog.text


def test_a_server_that_is_not_trusted_is_not_spoken_to(secured: tuple[SecuredZooKeeper, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _, stranger = write_certificate(other)
    with pytest.raises(UserError, match="no ZooKeeper answers"):
        ZooKeeperSession(
            secured[0].secure_address, connect_seconds=3.0, properties_file=properties(tmp_path, "p", ssl_ca=stranger)
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ssl_keystore": "x"}, "ssl.keystore is unknown; choose from digest.password"),
        ({"digest_username": "a"}, "digest.password is missing"),
        ({"sasl_mechanism": "DIGEST-MD5", "sasl_password": _SECRET}, "sasl.username is missing"),
        (
            {"sasl_mechanism": "DIGEST-MD5", "sasl_username": "a", "sasl_password": _SECRET},
            "SASL needs the package pure-sasl",
        ),
    ],
)
def test_wrong_properties_name_file_and_key_and_no_secret(
    settings: dict[str, object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)  # as where pure-sasl is not installed
    with pytest.raises(UserError, match=f"--zookeeper-properties={tmp_path}/p: {words}") as error:
        ZooKeeperSession("127.0.0.1:1", connect_seconds=0.1, properties_file=properties(tmp_path, "p", **settings))
    assert _SECRET not in str(error.value)
