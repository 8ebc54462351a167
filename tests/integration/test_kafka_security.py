"""TLS and SASL against a real broker, with all settings in a file, and what a wrong password looks like."""

import datetime
import ipaddress
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from millrace.pipelines.kafka.sink import KafkaRecord, WriteToKafka
from millrace.pipelines.kafka.source import ReadFromKafka
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, check_broker, ensure_topic, make_admin, make_consumer
from millrace.runtime.servers.dev_servers import KafkaServer

pytestmark = pytest.mark.service

PASSWORD, WRONG = "correct-horse-7", "wrong-battery-9"

# The listener without security stays, for the broker itself and for creating users.
_LISTENER = """
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port},SASL_SSL://127.0.0.1:{secure_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secure_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
    user_millrace="{password}";
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.ssl.keystore.type=PEM
listener.name.sasl_ssl.ssl.keystore.location={keystore}
"""


class SecuredKafka(KafkaServer):
    """A broker with a listener more, for TLS and SASL."""

    port_names = ("port", "controller_port", "secure_port")

    def __init__(self, folder: Path, keystore: Path) -> None:
        super().__init__(folder, print)
        self._keystore = keystore

    @property
    def secure_address(self) -> str:
        return f"127.0.0.1:{self._ports()['secure_port']}"

    def _main(self, java: list[str], ports: dict[str, int]) -> list[str]:
        command = super()._main(java, ports)
        with open(self.folder / "server.properties", "a") as properties:  # of equal names the last one counts
            properties.write(_LISTENER.format(password=PASSWORD, keystore=self._keystore, **ports))
        return command


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """(keystore with key and certificate of 127.0.0.1, certificate to trust)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    trusted, keystore = folder / "ca.pem", folder / "keystore.pem"
    trusted.write_bytes(certificate.public_bytes(pem))
    keystore.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()) + trusted.read_bytes())
    return keystore, trusted


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SecuredKafka, Path]]:
    """A broker, and the certificate to trust."""
    folder = tmp_path_factory.mktemp("secured")
    keystore, trusted = write_certificate(folder)
    server = SecuredKafka(folder / "kafka", keystore)
    server.start()
    try:
        admin = make_admin(KafkaConnection(server.address or ""))
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        user = UserScramCredentialUpsertion("millrace", info, PASSWORD.encode())
        admin.alter_user_scram_credentials([user])["millrace"].result(30)
        yield server, trusted
    finally:
        server.stop()


@pytest.fixture
def connect(secured: tuple[SecuredKafka, Path], tmp_path: Path) -> Callable[..., KafkaConnection]:
    """connect(mechanism="PLAIN", password=PASSWORD) -> KafkaConnection whose settings are in a file."""
    server, trusted = secured

    def connection(mechanism: str = "PLAIN", password: str = PASSWORD, more: str = "") -> KafkaConnection:
        properties = tmp_path / "client.properties"
        properties.write_text(
            f"security.protocol=SASL_SSL\nssl.ca.location={trusted}\nsasl.mechanism={mechanism}\n"
            f"sasl.username=millrace\nsasl.password={password}\n{more}"
        )
        return KafkaConnection(server.secure_address, str(properties))

    return connection


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_records_go_in_and_out_through_tls_and_sasl(connect: Callable[..., KafkaConnection], mechanism: str) -> None:
    connection, topic = connect(mechanism), f"secured-{mechanism}"
    check_broker(connection)
    ensure_topic(connection, topic)
    with beam.Pipeline() as pipeline:
        _ = pipeline | beam.Create([KafkaRecord(b"1"), KafkaRecord(b"2")]) | WriteToKafka(connection, topic)
    with beam.Pipeline() as pipeline:
        blocks = pipeline | ReadFromKafka.of_topics(connection, [topic], "earliest", "end")
        values = blocks | beam.FlatMap(lambda block: block.column("value").to_pylist())
        assert_that(values, equal_to([b"1", b"2"]))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_is_one_line_that_does_not_show_it(
    connect: Callable[..., KafkaConnection], assert_user_error: Callable[..., str], mechanism: str
) -> None:
    connection = connect(mechanism, WRONG)
    line = assert_user_error(
        "feed", "--task", "millrace.examples.feed_ranking:FeedRanking", "--kafka", connection.bootstrap_servers,
        "--kafka-properties", connection.properties_file, mentions=["--kafka-properties", "uthentication"],
    )  # fmt: skip
    assert WRONG not in line and "correct the user, the password" in line


def test_a_client_that_is_refused_logs_no_password(
    connect: Callable[..., KafkaConnection], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        consumer = make_consumer(connect(password=WRONG))
        consumer.consume(1, 2.0)
        consumer.close()
    assert "uthentication" in caplog.text and WRONG not in caplog.text


def test_a_certificate_that_is_not_trusted_is_named(secured: tuple[SecuredKafka, Path], tmp_path: Path) -> None:
    properties = tmp_path / "client.properties"
    properties.write_text("security.protocol=SSL\n")
    with pytest.raises(UserError, match="--kafka-properties=.*client.properties: .*certificate"):
        check_broker(KafkaConnection(secured[0].secure_address, str(properties)))


def test_a_setting_that_does_not_exist_is_named_without_the_secrets(connect: Callable[..., KafkaConnection]) -> None:
    with pytest.raises(
        UserError, match='--kafka-properties=.*No such configuration property: "no.such.thing"'
    ) as raised:
        check_broker(connect(more="no.such.thing=1\n"))
    assert PASSWORD not in str(raised.value)
