"""Topics under access control: what exists needs no right to create, and a refusal names the right that is missing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, make_admin, partitions_of
from millrace.runtime.servers.dev_servers import KafkaServer
from millrace.runtime.topic_setup import ensure_model_events

pytestmark = pytest.mark.service

# Whoever uses the listener without SASL may do everything; the user of the other one may do what he was granted.
_ACCESS_CONTROL = """
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port},SASL://127.0.0.1:{user_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{user_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
    user_millrace="pass";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""


class GuardedKafka(KafkaServer):
    """A broker with a listener more, whose user `millrace` has no right until it is granted."""

    port_names = ("port", "controller_port", "user_port")

    @property
    def user_address(self) -> str:
        return f"127.0.0.1:{self._ports()['user_port']}"

    def _main(self, java: list[str], ports: dict[str, int]) -> list[str]:
        command = super()._main(java, ports)
        with open(self.folder / "server.properties", "a") as properties:  # of equal names the last one counts
            properties.write(_ACCESS_CONTROL.format(**ports))
        return command


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KafkaConnection, KafkaConnection]]:
    """(connection of a super user, connection of the user without rights)."""
    folder: Path = tmp_path_factory.mktemp("guarded")
    server = GuardedKafka(folder / "kafka", print)
    server.start()
    properties = folder / "client.properties"
    properties.write_text(
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.username=millrace\nsasl.password=pass\n"
    )
    try:
        yield KafkaConnection(str(server.address)), KafkaConnection(server.user_address, str(properties))
    finally:
        server.stop()


def grant(admin: KafkaConnection, user: KafkaConnection, topic: str, *operations: AclOperation) -> None:
    """Grants the operations, DESCRIBE among them; returns when the broker acts by it, which is soon and not at once."""
    bindings = [
        AclBinding(
            ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:millrace", "*", operation,
            AclPermissionType.ALLOW,
        )
        for operation in operations
    ]  # fmt: skip
    client = make_admin(admin)
    for future in client.create_acls(bindings).values():
        future.result()
    wait_until(lambda: _may_look(user, topic), 60.0, f"the right to look at {topic}")


def _may_look(user: KafkaConnection, topic: str) -> bool:
    try:
        partitions_of(user, topic)
    except UserError as error:
        return error.problem == "the topic does not exist"
    return True


def test_an_existing_topic_needs_no_right_to_create(guarded: tuple[KafkaConnection, KafkaConnection]) -> None:
    admin, user = guarded
    ensure_topic(admin, "present", partitions=2)
    grant(admin, user, "present", AclOperation.DESCRIBE)
    ensure_topic(user, "present", partitions=2)
    assert partitions_of(user, "present") == [0, 1]


def test_what_is_refused_names_the_missing_right(guarded: tuple[KafkaConnection, KafkaConnection]) -> None:
    admin, user = guarded
    with pytest.raises(UserError, match="topic=hidden: .*grant DESCRIBE"):
        ensure_topic(user, "hidden")
    with pytest.raises(UserError, match="hidden: the user may not look at it"):
        partitions_of(user, "hidden")
    grant(admin, user, "absent", AclOperation.DESCRIBE)
    with pytest.raises(UserError, match="topic=absent: .*may not create it; create it, or grant CREATE"):
        ensure_topic(user, "absent")


def test_settings_that_may_not_be_read_are_not_checked(guarded: tuple[KafkaConnection, KafkaConnection]) -> None:
    admin, user = guarded
    ensure_model_events(admin, "model.events")
    grant(admin, user, "model.events", AclOperation.DESCRIBE)
    ensure_model_events(user, "model.events")
